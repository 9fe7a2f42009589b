"""What two pools claim at once: names of their objects in one namespace; drives, directories and
ports on a node. The older pool keeps it and is left undisturbed; the younger one says so."""

from collections.abc import Iterable, Mapping, Sequence

from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.names import (
    DAEMON_SETS,
    SECRETS,
    daemon_set_name,
    identity_name,
    metadata_secret_name,
    node_secret_name,
)
from memkv_operator.api.pool import NodeGroup, Pool
from memkv_operator.plan.drive_desk import rank_of
from memkv_operator.plan.membership import group_of
from memkv_operator.plan.node_drives import NodeDrives
from memkv_operator.plan.preflight import Finding, named
from memkv_operator.render.storage import state_path

NAME_CLAIMED = "NameClaimedTwice"

Meetings = Mapping[tuple[str, str], Sequence[str]]
"""(older pool, what both claim) -> nodes."""


def claim_findings(
    pool: Pool, others: Sequence[Pool], kube_nodes: Mapping[str, KubeNode]
) -> list[Finding]:
    """Return what older pools have on nodes of this one. It blocks the pool's children, because
    a pod that starts first would take it from the older pool; its map goes on."""
    paths: dict[tuple[str, str], list[str]] = {}
    ports: dict[tuple[str, str], list[str]] = {}
    older = [other for other in others if rank_of(other) < rank_of(pool)]
    for node in kube_nodes.values() if older else ():
        mine = group_of(pool, node)
        for other in older if mine is not None else ():
            theirs = group_of(other, node)
            if mine is None or theirs is None:
                continue
            if state_path(pool, mine) == state_path(other, theirs) != "":
                paths.setdefault((other.key, state_path(pool, mine)), []).append(node.name)
            for port in sorted(ports_of(pool, mine) & ports_of(other, theirs)):
                ports.setdefault((other.key, str(port)), []).append(node.name)
    return [
        *_name_findings(pool, older),
        *_path_findings(pool, paths),
        *_port_findings(pool, ports),
    ]


def names_of(pool: Pool) -> frozenset[tuple[str, str]]:
    """Return (kind, name) of the objects of a pool that another pool of the namespace could come
    to from its own name: "a" and "a-node" both make a Secret a-node-identity. Names of other kinds
    have one end each."""
    name = pool.meta.name
    groups = {(DAEMON_SETS.kind, daemon_set_name(name, group.name)) for group in pool.spec.groups}
    secrets = (identity_name(name), node_secret_name(name), metadata_secret_name(name))
    return frozenset(groups | {(SECRETS.kind, s) for s in secrets if pool.has_tls})


def ports_of(pool: Pool, group: NodeGroup) -> frozenset[int]:
    """Return the ports that a group opens on the node itself."""
    if not group.network.host:
        return frozenset()
    ports = pool.spec.ports
    data = range(ports.data, ports.data + group.workers)
    return frozenset({*data, ports.admin, ports.metrics})


def wants_drives(pool: Pool) -> bool:
    """Return whether a pool needs agents at all."""
    return any(group.drives is not None for group in pool.spec.groups)


def drive_findings(
    pool: Pool, drives: Mapping[str, NodeDrives], no_agents: tuple[str, str] | None
) -> list[Finding]:
    """Return what stands between a pool and its drives.

    `no_agents`: (reason, message) of why no agent runs; None: there are some.
    """
    if not wants_drives(pool):
        return []
    if no_agents is not None:
        reason, message = no_agents
        wants = [group.name for group in pool.spec.groups if group.drives is not None]
        return [
            Finding(
                reason,
                f"nodeGroups[{wants[0]}].storage names drives, and only agents hand drives to "
                f"pods: {message}",
                False,
            )
        ]
    claimed: dict[tuple[str, str], list[str]] = {}
    for node, found in drives.items():
        lacking = len(found.drives) and sum(d.position >= 0 for d in found.drives) < found.workers
        for drive in found.drives:
            if drive.claimed_by and (lacking or _is_named(pool, drive.path)):
                claimed.setdefault((drive.claimed_by, drive.path), []).append(node)
    return [
        Finding(
            "DriveClaimedTwice",
            f"{path} on {named(nodes)} is used by pool {other} and claimed by pool {pool.key} too: "
            f"take it out of {pool.key}, by devicePaths or excludedDevices, or delete {other}",
            False,
        )
        for (other, path), nodes in sorted(claimed.items())
    ]


def _is_named(pool: Pool, path: str) -> bool:
    return any(path in g.drives.paths for g in pool.spec.groups if g.drives is not None)


def _name_findings(pool: Pool, older: Sequence[Pool]) -> Iterable[Finding]:
    for other in older:
        if other.meta.namespace != pool.meta.namespace:
            continue
        shared = sorted(names_of(pool) & names_of(other))
        if shared:
            objects = ", ".join(f"{kind} {name}" for kind, name in shared)
            yield Finding(
                NAME_CLAIMED,
                f"pools {other.key} and {pool.key} both need {objects}, and {other.key} is older: "
                f"make {pool.key} anew under another name (or with other names of nodeGroups, for "
                "a DaemonSet), or in another namespace",
                blocks=True,
                freezes=False,
            )


def _path_findings(pool: Pool, meetings: Meetings) -> Iterable[Finding]:
    for (other, path), nodes in sorted(meetings.items()):
        yield Finding(
            "PathClaimedTwice",
            f"pools {other} and {pool.key} both keep their data in {path} on {named(list(nodes))}, "
            f"and {other} is older: give {pool.key} another storage.file.hostPath, or make the "
            "nodeSelectors exclude each other",
            blocks=True,
            freezes=False,
        )


def _port_findings(pool: Pool, meetings: Meetings) -> Iterable[Finding]:
    shared: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (other, port), nodes in meetings.items():
        shared.setdefault((other, tuple(nodes)), []).append(port)
    for (other, where), ports in sorted(shared.items()):
        yield Finding(
            "PortClaimedTwice",
            f"pools {other} and {pool.key} both open {', '.join(ports)} on {named(list(where))} "
            f"(HostNetwork), and {other} is older: give {pool.key} other spec.ports, or make the "
            "nodeSelectors exclude each other",
            blocks=True,
            freezes=False,
        )
