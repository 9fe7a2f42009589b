"""Which kubelets have fallen silent, from their Leases. Pure; times are arguments.

A Node stays Ready for 40 to 55 s after its machine died: so long the cluster waits by default. Its
kubelet renews a Lease every 10 s, which tells it sooner. Nodes that do not answer the operator are
looked up there, and only these: at rest nobody asks.

No clock of another machine decides. A kubelet is silent when its Lease stayed the same for longer
than it takes to renew it, by this process's own clock, while the API server answered. Only how long
it has been silent before this process looked is taken from the time in the Lease: an operator that
has just taken over would else grant a dead node its whole grace once more.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.json_values import JsonObject, Reader

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

    def silent(self, grace_ms: int, now_ms: int) -> dict[str, int]:
        """Return the nodes whose kubelet is silent, and since when. `grace_ms`: of the pool."""
        total_ms = min(PATIENCE_MS, grace_ms - DECIDING_MS)
        return {
            node: one.silent_since_ms
            for node, one in self._seen.items()
            if now_ms - one.since_ms >= one.beat.between_ms * LATE_PERCENT // 100
            and now_ms - one.silent_since_ms >= total_ms
        }
