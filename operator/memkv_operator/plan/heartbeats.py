"""Which kubelets have fallen silent, from their Leases. Pure; times are arguments.

A Node stays Ready for 40 to 55 s after its machine died: so long the cluster waits by default. Its
kubelet renews a Lease every 10 s, which tells it sooner. Nodes of the map that do not answer the
operator are looked up there, and only these: at rest nobody asks. What their Nodes say does not
matter: a cluster may call a Node not ready before the next leader takes over, and only the Lease
tells that leader since when the node has been silent.

An operator that stands by looks at the Leases of all nodes of pools as soon as its leader's own
Lease is late. Where the leader died with its node, its successor has then waited for the kubelet's
next renewal already.

No clock of another machine decides. A kubelet is silent when its Lease stayed the same for longer
than it takes to renew it, by this process's own clock, while the API server answered. Only how long
it has been silent before this process looked is taken from the time in the Lease: an operator that
has just taken over would else grant a dead node its whole grace once more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv.shardmap import ShardMap, WorkerState
from memkv_operator.plan.facts import NodeSeen

RENEWALS_PER_LEASE = 4  # kubelet renews after a quarter of the Lease
LATE_PERCENT = 120  # of the time between renewals: jitter, and an API server that takes its time
LEASE_S_DEFAULT = 40
PATIENCE_MS = 25_000  # silence beyond this is believed however long the pool's grace is
DECIDING_MS = 5_000  # before the grace ends, so that its end is not waited for twice


@dataclass(frozen=True, slots=True)
class Beat:
    """A kubelet's Lease, as it was read."""

    renewed: str
    """Opaque: it changes with each renewal."""
    renewed_ms: int
    """Wall clock of the node."""
    between_ms: int
    """From one renewal to the next, as kubelet is configured."""


@dataclass(frozen=True, slots=True)
class _Seen:
    beat: Beat
    since_ms: int
    """When it was seen first, while the API server has answered without a break."""
    silent_since_ms: int


def read_beat(lease: JsonObject) -> Beat | None:
    """Return what a Lease of kube-node-lease says; None: nothing that can be judged."""
    spec = Reader(lease).object("spec")
    try:
        renewed = spec.text("renewTime")
        at = datetime.fromisoformat(renewed)
        lease_s = max(1, spec.integer("leaseDurationSeconds", LEASE_S_DEFAULT))
    except (ValueError, ConfigError):
        return None
    return Beat(renewed, int(at.timestamp() * 1000), lease_s * 1000 // RENEWALS_PER_LEASE)


def suspects_of(shard_map: ShardMap | None, seen: Mapping[str, NodeSeen]) -> frozenset[str]:
    """Return the nodes of a map that did not answer the very last poll, or were not asked yet.

    Lost ones are left out: of them nothing is to be decided any more.
    """
    return frozenset(
        worker.node_name
        for worker in (shard_map.workers if shard_map is not None else ())
        if worker.state is not WorkerState.LOST
        and not ((one := seen.get(worker.node_name)) is not None and one.reachable)
    )


@dataclass(slots=True)
class Heartbeats:
    """What was seen of the Leases of nodes that do not answer."""

    _seen: dict[str, _Seen] = field(default_factory=dict)

    def looked(self, node: str, beat: Beat | None, now_ms: int, wall_ms: int) -> None:
        """Note a Lease that was read now. None: there is none, and nothing is known."""
        known = self._seen.get(node)
        if beat is None:
            self._seen.pop(node, None)
        elif known is None:
            age_ms = max(0, wall_ms - beat.renewed_ms)
            self._seen[node] = _Seen(beat, now_ms, now_ms - age_ms)
        elif known.beat.renewed != beat.renewed:
            self._seen[node] = _Seen(beat, now_ms, now_ms)

    def interrupted(self, now_ms: int) -> None:
        """Note that the API server did not answer: kubelets could not renew either, so their next
        renewal is waited for anew."""
        self._seen = {node: replace(one, since_ms=now_ms) for node, one in self._seen.items()}

    def keep(self, nodes: Collection[str]) -> None:
        """Forget all other nodes."""
        self._seen = {node: one for node, one in self._seen.items() if node in nodes}

    def silent(self, nodes: Collection[str], grace_ms: int, now_ms: int) -> dict[str, int]:
        """Return those of some nodes whose kubelet is silent, and since when. `grace_ms`: of the
        pool."""
        total_ms = min(PATIENCE_MS, grace_ms - DECIDING_MS)
        return {
            node: one.silent_since_ms
            for node, one in self._seen.items()
            if node in nodes
            and now_ms - one.since_ms >= one.beat.between_ms * LATE_PERCENT // 100
            and now_ms - one.silent_since_ms >= total_ms
        }
