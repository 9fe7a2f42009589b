"""Two pools on one node: the older one keeps what both claim."""

from dataclasses import replace
from typing import Any

import pytest

from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.claims import claim_findings, drive_findings
from memkv_operator.plan.drives import Drive, DriveState
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.preflight import Finding
from memkv_operator.testing.cluster import SPEC

NODES = {
    name: KubeNode(name, {"memkv.io/node": "true", "name": name}, True, False, {})
    for name in ("n1", "n2")
}
FILE = {"file": {"hostPath": "/data/a", "size": "20Gi"}}
OTHER_FILE = {"file": {"hostPath": "/data/b", "size": "20Gi"}}
DRIVES = {"devicePaths": ["/dev/disk/by-id/d"]}


def pool(name: str, created: str, storage: Any, **changes: Any) -> Pool:
    group = {**SPEC["nodeGroups"][0], "storage": storage, **changes.pop("group", {})}
    meta = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "creationTimestamp": created}
    return read_pool({"metadata": meta, "spec": {**SPEC, "nodeGroups": [group], **changes}})


def found(one: Pool, other: Pool) -> list[Finding]:
    return claim_findings(one, [one, other], NODES)


def test_one_directory_blocks_the_younger_pool_and_leaves_the_older_alone() -> None:
    older, younger = pool("old", "2026-01-01", FILE), pool("new", "2026-02-01", FILE)
    assert found(older, younger) == []
    (finding,) = found(younger, older)
    assert (finding.reason, finding.blocks, finding.freezes) == ("PathClaimedTwice", True, False)
    for part in ("ns/old", "ns/new", "/data/a", "n1, n2", "hostPath"):
        assert part in finding.message


TLS = {"metadata": {"tls": {"mode": "SelfSigned"}}}
PLAIN = {"metadata": {"tls": {"mode": "Disabled"}}}


@pytest.mark.parametrize(
    ("older", "younger", "shared"),
    [
        (("a", TLS), ("a-node", TLS), "Secret a-node-identity"),
        (("a-metadata", TLS), ("a", TLS), "Secret a-metadata-identity"),
        (("a", {"group": {"name": "b-c"}}), ("a-b", {"group": {"name": "c"}}), "DaemonSet a-b-c"),
        (("a", TLS), ("a-nodes", TLS), ""),
        (("a", TLS), ("a-node", PLAIN), ""),
    ],
)
def test_pools_that_would_share_an_object_are_named_and_the_older_keeps_it(
    older: tuple[str, Any], younger: tuple[str, Any], shared: str
) -> None:
    one = pool(older[0], "2026-01-01", FILE, **older[1])
    other = pool(younger[0], "2026-02-01", OTHER_FILE, **younger[1])
    assert found(one, other) == []
    findings = found(other, one)
    assert [f.reason for f in findings] == ["NameClaimedTwice"] * bool(shared)
    for finding in findings:
        assert (finding.blocks, finding.freezes) == (True, False)
        for part in (f"ns/{older[0]}", f"ns/{younger[0]}", shared, "another name"):
            assert part in finding.message
    elsewhere = replace(other, meta=replace(other.meta, namespace="elsewhere"))
    assert found(elsewhere, one) == []


HOST = {"network": {"mode": "HostNetwork", "rdma": {"mode": "Disabled"}}}


@pytest.mark.parametrize(
    ("ports", "shared"),
    [
        ({}, "7070, 9470, 9471"),
        ({"data": 7080, "admin": 9480, "metrics": 9481}, ""),
        ({"data": 7069, "admin": 9480, "metrics": 9481}, "7070"),
        ({"data": 7080, "admin": 9480, "metrics": 7070}, "7070"),
    ],
)
def test_ports_of_the_node_are_opened_once(ports: dict[str, int], shared: str) -> None:
    older = pool("old", "2026-01-01", FILE, **HOST)
    younger = pool("new", "2026-02-01", OTHER_FILE, ports=ports, group={"workers": 2}, **HOST)
    reasons = [(f.reason, f.message) for f in found(younger, older)]
    assert bool(reasons) == bool(shared)
    if shared:
        assert reasons[0][0] == "PortClaimedTwice"
        assert f"both open {shared} on n1, n2" in reasons[0][1]
    assert found(older, younger) == []


def test_pods_with_addresses_of_their_own_and_pools_on_other_nodes_do_not_meet() -> None:
    older = pool("old", "2026-01-01", FILE, **HOST)
    assert found(pool("new", "2026-02-01", OTHER_FILE), older) == []
    elsewhere = {"nodeSelector": {"name": "n3"}}
    assert found(pool("new", "2026-02-01", FILE, group=elsewhere, **HOST), older) == []


def test_pools_with_drives_have_directories_of_their_own() -> None:
    older, younger = pool("old", "2026-01-01", DRIVES), pool("new", "2026-02-01", DRIVES)
    assert found(younger, older) == []


def drives(state: DriveState, claimed_by: str, path: str = "/dev/disk/by-id/d") -> NodeDrives:
    position = 0 if state is DriveState.READY else -1
    row = Drive("d", path, 1, "f", state, position=position, claimed_by=claimed_by)
    return NodeDrives("new-1", "ns", (row,))


def test_a_drive_that_another_pool_has_is_said_with_both_names() -> None:
    younger = pool("new", "2026-02-01", DRIVES)
    assert drive_findings(younger, {"n1": drives(DriveState.READY, "")}, None) == []
    (finding,) = drive_findings(younger, {"n1": drives(DriveState.DENIED, "ns/old")}, None)
    assert (finding.reason, finding.blocks) == ("DriveClaimedTwice", False)
    for part in ("ns/old", "ns/new", "/dev/disk/by-id/d", "n1"):
        assert part in finding.message


def test_drives_need_agents_and_files_do_not() -> None:
    none = ("AgentMissing", "there are none")
    (finding,) = drive_findings(pool("new", "2026", DRIVES), {}, none)
    assert finding.reason == "AgentMissing"
    assert finding.message.endswith("only agents hand drives to pods: there are none")
    assert drive_findings(pool("new", "2026", FILE), {}, none) == []
