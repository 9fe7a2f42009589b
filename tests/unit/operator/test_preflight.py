"""Whatever keeps pods from running is said: before it happens, and from the pods themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from memkv.limits import GIB, MIB
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.cluster import KubeNode, Taint, read_kube_node, read_pod
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.membership import members_of
from memkv_operator.plan.nodes import trouble_of
from memkv_operator.plan.pod_trouble import explained
from memkv_operator.plan.preflight import Preflight
from memkv_operator.plan.validity import findings
from memkv_operator.render.children import children_of
from memkv_operator.render.memory_store import file_bytes, flight_bytes
from memkv_operator.render.resources import memory_needed, resources_of

SAMPLES = sorted((Path(__file__).resolve().parents[3] / "deploy/samples").glob("*.yaml"))
GROUP: dict[str, Any] = {
    "name": "g",
    "nodeSelector": {"memkv.io/node": "true"},
    "memory": {"size": "4Gi"},
    "storage": {"file": {"hostPath": "/data", "size": "1Gi"}},
}
NETWORK: dict[str, Any] = {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}}


def pool_of(network: dict[str, Any] = NETWORK, **group: Any) -> Pool:
    meta: JsonObject = {"name": "pool-a", "namespace": "ns", "uid": "0123456789ab"}
    return read_pool(
        {"metadata": meta, "spec": {"nodeGroups": [{**GROUP, **group}], "network": network}}
    )


def node(name: str = "n1", taints: tuple[Taint, ...] = (), **allocatable: str) -> KubeNode:
    named = {key.replace("__", "/").replace("_", "-"): value for key, value in allocatable.items()}
    return KubeNode(name, {"memkv.io/node": "true"}, True, False, named, taints)


def found(pool: Pool, *nodes: KubeNode, preflight: Preflight | None = None) -> dict[str, str]:
    by_name = {one.name: one for one in nodes}
    listed = findings(pool, by_name, preflight=preflight or Preflight())
    return {one.reason: one.message for one in listed}


def pod(status: Any, node_name: str = "", affinity: str = "n1") -> Any:
    fields = [{"key": "metadata.name", "operator": "In", "values": [affinity]}]
    term: Any = {"nodeSelectorTerms": [{"matchFields": fields}]}
    spec: dict[str, Any] = {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    }
    if node_name:
        spec["nodeName"] = node_name
    labels = {"app.kubernetes.io/component": "node", "memkv.io/pool": "pool-a"}
    meta = {"name": "pool-a-g-x", "namespace": "ns", "uid": "u", "labels": labels}
    return {"metadata": meta, "spec": spec, "status": status}


def waiting(why: str, says: str = "", /, **last: Any) -> Any:
    state: Any = {"waiting": {"reason": why, "message": says}}
    container = {"state": state, "lastState": {"terminated": last} if last else {}}
    return {"containerStatuses": [container]}


def test_a_pool_that_fits_has_no_findings() -> None:
    assert found(pool_of(), node()) == {}


def test_huge_pages_that_lack_are_counted_with_the_command() -> None:
    pool = pool_of(memory={"size": "4Gi", "hugePages": "2Mi"}, workers=2)
    message = found(pool, node(hugepages_2Mi="2Gi"), node("n2"))["InsufficientHugepages"]
    assert "needs 4Gi of hugepages-2Mi" in message
    assert "n1 has 2Gi, n2 has 0" in message
    assert "echo 2048 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in message
    assert "restart kubelet" in message
    assert found(pool, node(hugepages_2Mi="4Gi")) == {}


def test_huge_pages_larger_than_a_workers_memory_stop_the_pool() -> None:
    pool = pool_of(memory={"size": "1Gi", "hugePages": "1Gi"}, workers=2)
    assert "HugePagesTooLarge" in found(pool, node(hugepages_1Gi="8Gi"))


def test_a_resource_that_is_not_or_not_enough_advertised() -> None:
    rdma = {"mode": "Preferred", "resources": [{"name": "rdma/rail0", "count": 2}]}
    pool = pool_of({"mode": "HostNetwork", "rdma": rdma})
    message = found(pool, node(rdma__rail0="1"), node("n2", rdma__rail0="63"))
    assert message["ResourceNotAdvertised"].startswith("n1 do not advertise 2 of rdma/rail0")


def test_a_taint_that_the_group_does_not_tolerate() -> None:
    tainted = node(taints=(Taint("dpu", "yes", "NoSchedule"),))
    message = found(pool_of(), tainted)["TaintNotTolerated"]
    assert "n1 have the taint dpu=yes:NoSchedule" in message
    assert "{key: dpu, operator: Exists}" in message
    for toleration in ({"operator": "Exists"}, {"key": "dpu", "operator": "Exists"},
                       {"key": "dpu", "value": "yes", "effect": "NoSchedule"}):  # fmt: skip
        assert found(pool_of(tolerations=[toleration]), tainted) == {}
    other = {"key": "dpu", "value": "no"}
    assert found(pool_of(tolerations=[other]), tainted)
    passing = node(taints=(Taint("node.kubernetes.io/not-ready", "", "NoExecute"),))
    assert found(pool_of(), passing) == {}


def test_taints_are_read() -> None:
    manifest: Any = {
        "metadata": {"name": "n"},
        "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
    }
    assert [str(one) for one in read_kube_node(manifest).taints] == ["a:NoSchedule"]


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_pod_security_that_forbids_the_pods_is_named_with_the_command(level: str) -> None:
    message = found(pool_of(), node(), preflight=Preflight(level))["PodSecurityForbidsPrivileged"]
    assert "kubectl label --overwrite namespace ns" in message
    assert found(pool_of(), node(), preflight=Preflight("privileged")) == {}


def test_why_the_api_server_refuses_pods_is_passed_on() -> None:
    refused = Preflight("", {"g": "exceeded quota: compute"})
    assert "exceeded quota" in found(pool_of(), node(), preflight=refused)["PodCreateFailed"]


def test_a_selector_that_matches_nothing_names_the_label() -> None:
    message = found(pool_of())["SelectorMatchesNothing"]
    assert "kubectl label node NODE memkv.io/node=true" in message


def test_a_memory_limit_below_the_need() -> None:
    pool = pool_of(resources={"limits": {"memory": "1Gi"}})
    assert "is 1Gi, and a pod takes" in found(pool, node())["MemoryLimitTooSmall"]


def test_a_pod_that_waits_for_a_node_belongs_to_that_node() -> None:
    """It has no spec.nodeName yet; the node's trouble was "no pod" then, and not the reason."""
    message = "0/3 nodes are available: 1 Insufficient hugepages-2Mi."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    read = read_pod(pod({"conditions": [{**scheduled, "message": message}]}))
    [member] = members_of(pool_of(), {"n1": node()}, [], [read], {})
    reason, text = trouble_of(member, frozenset())
    assert reason == "InsufficientHugepages"
    assert message in text
    other = replace(read, trouble="Unschedulable: 1 Insufficient cpu")
    assert explained(other)[0] == "Unschedulable"


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [
        (waiting("ImagePullBackOff", "not found"), "ImagePullFailed", "imagePullSecrets"),
        (waiting("ErrImageNeverPull"), "ImagePullFailed", "spec.image"),
        (
            waiting("CreateContainerError", "cannot load seccomp profile x"),
            "CreateContainerError", "run the agent there",
        ),
        (waiting("CreateContainerConfigError", "no secret"), "CreateContainerError", "no secret"),
        (
            waiting("CrashLoopBackOff", "x", reason="Error", exitCode=2, message="no space"),
            "CrashLoop", "Error, exit 2: no space; kubectl logs --previous -n ns pool-a-g-x",
        ),
        (
            waiting("CrashLoopBackOff", "back-off", reason="OOMKilled", exitCode=137),
            "CrashLoop", "OOMKilled, exit 137",
        ),
        ({"containerStatuses": [{"state": {"terminated": {"reason": "Error", "exitCode": 1}}}]},
         "CrashLoop", "Error, exit 1"),
        (waiting("Strange", "x"), "PodFailing", "Strange: x"),
    ],
)  # fmt: skip
def test_a_pods_own_words_become_the_reason(status: Any, reason: str, says: str) -> None:
    told, message = explained(read_pod(pod(status, "n1")))
    assert told == reason
    assert says in message


def test_only_the_end_of_long_last_words_is_shown() -> None:
    status = waiting("CrashLoopBackOff", "", reason="Error", exitCode=1, message="a" * 9000 + "end")
    trouble = read_pod(pod(status)).trouble
    assert trouble.endswith("end")
    assert len(trouble) < 500


@pytest.mark.parametrize(
    ("given", "requests", "limits"),
    [
        ({}, "250m", None),
        ({"limits": {"cpu": "4"}}, "4", "4"),
        ({"requests": {"cpu": 4}}, "4", "4"),
        ({"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}, "2", "4"),
        ({"requests": {"cpu": "1500m"}}, "1500m", None),
    ],
)
def test_whole_cores_make_a_pod_guaranteed(
    given: dict[str, Any], requests: str, limits: str | None
) -> None:
    pool = pool_of(resources=given)
    made: Any = resources_of(pool, pool.spec.groups[0])
    assert made["requests"]["cpu"] == requests
    assert made["limits"].get("cpu") == limits
    assert made["requests"]["memory"] == made["limits"]["memory"]
    if requests == limits:
        assert made["requests"] == made["limits"]


def test_huge_pages_are_asked_for_in_whole_pages_and_the_index_beside_them() -> None:
    pool = pool_of(memory={"size": f"{5 * MIB}", "hugePages": "2Mi"}, workers=1)
    group = pool.spec.groups[0]
    made: Any = resources_of(pool, group)
    assert made["limits"]["hugepages-2Mi"] == "4Mi"
    whole = pool_of(memory={"size": "8Gi", "hugePages": "2Mi"}).spec.groups[0]
    none = pool_of(memory={"size": "8Gi"}).spec.groups[0]
    assert memory_needed(none) - memory_needed(whole) == 7 * GIB


def test_a_group_without_storage_lives_in_memory() -> None:
    pool = pool_of(storage={}, workers=2)
    group = pool.spec.groups[0]
    assert found(pool, node()) == {}
    assert flight_bytes(group) + file_bytes(group) == group.memory_bytes // 2
    [made] = [c.manifest for c in children_of(pool, "memkv:1") if c.resource.kind == "DaemonSet"]
    spec = Reader(made).object("spec").object("template").object("spec")
    volumes: Any = {volume.text("name"): volume.value for volume in spec.objects("volumes")}
    assert volumes["memory"]["emptyDir"]["medium"] == "Memory"
    assert int(volumes["memory"]["emptyDir"]["sizeLimit"]) >= 2 * file_bytes(group)
    [container] = spec.objects("containers")
    assert f"--capacity={file_bytes(group)}" in container.texts("args")
    drives = ",".join(f"/var/lib/memkv-memory/flash-{n}.data" for n in range(2))
    assert f"--drives={drives}" in container.texts("args")
    huge = pool_of(storage={}, memory={"size": "4Gi", "hugePages": "2Mi"})
    assert "HugePagesNeedStorage" in found(huge, node(hugepages_2Mi="4Gi"))


def test_another_audience_reaches_pods_and_metadata() -> None:
    meta: JsonObject = {"name": "pool-a", "namespace": "ns", "uid": "0123456789ab"}
    spec: JsonObject = {
        "nodeGroups": [GROUP], "network": NETWORK, "metadata": {"auth": {"audience": "kv.corp"}},
    }  # fmt: skip
    pool = read_pool({"metadata": meta, "spec": spec})
    assert found(pool, node()) == {}
    rendered = yaml.safe_dump_all([c.manifest for c in children_of(pool, "memkv:1")])
    assert "--audience=kv.corp" in rendered
    assert "audience: kv.corp" in rendered
    assert "audience: memkv-metadata" not in rendered


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_plan_without_findings_where_nodes_have_what_they_ask_for(path: Path) -> None:
    pool = read_pool({**yaml.safe_load(path.read_text()), "status": {}})
    nodes = {}
    for group in pool.spec.groups:
        labels = {"memkv.io/node": "false", **group.node_selector}
        allocatable = {"hugepages-2Mi": "1Ti", "hugepages-1Gi": "1Ti"}
        allocatable |= {name: "63" for name, _ in group.network.rdma_resources}
        nodes[group.name] = KubeNode(group.name, labels, True, False, allocatable)
    assert findings(pool, nodes) == []
    kinds = [child.resource.kind for child in children_of(pool, "memkv:1")]
    assert kinds.count("DaemonSet") == len(pool.spec.groups)


def test_seccomp_is_the_profile_of_the_agent_where_the_group_says_so() -> None:
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {"type": "RuntimeDefault"}),
        (
            {"seccompProfile": "Localhost"},
            {"type": "Localhost", "localhostProfile": "memkv/data-plane.json"},
        ),
    ]
    for given, wanted in cases:
        made = children_of(pool_of(**given), "memkv:1")
        [daemon_set] = [c.manifest for c in made if c.resource.kind == "DaemonSet"]
        spec = Reader(daemon_set).object("spec").object("template").object("spec")
        assert spec.object("securityContext").object("seccompProfile").value == wanted
