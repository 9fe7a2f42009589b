"""The map of one pool: feeds its publisher with what is seen. Pure; time is an argument.

The publisher itself is that of static pools (`memkv.metadata.publisher`). What is added is the
cluster's own evidence: a node whose polls fail is not lost while kubelet and its pod's readiness
say that it is well, because then the way between it and the operator is broken, and clients that
take another way are served. A kubelet that does not renew its Lease says nothing of the kind
(`plan/heartbeats.py`), whatever else is said of it: a node that dies while its pod is replaced is
dead, too.
"""

from collections.abc import Collection, Mapping, Sequence

from memkv.metadata.publisher import (
    Outcome,
    Publisher,
    PublisherConfig,
    PublisherState,
)
from memkv.metadata.roster import LossPolicy, WorkerReport
from memkv.tenant import tenant_tag
from memkv_operator.api.pool import Pool
from memkv_operator.plan.acceptance import accepts_mass_loss
from memkv_operator.plan.membership import Member

FIRST_MAP_WAIT_MS = 20_000  # pods that start together differ by the pull of an image or a recovery


def publisher_config(pool: Pool, members: Sequence[Member]) -> PublisherConfig:
    """Return what the pool's spec means to the publisher."""
    return PublisherConfig(
        nodes=sum(member.desired for member in members),
        slots=pool.spec.slots,
        moving_slots_percent_max=pool.spec.moving_slots_percent_max,
        move_timeout_s=pool.spec.move_timeout_s,
        first_map_wait_ms=FIRST_MAP_WAIT_MS,
        loss=LossPolicy(
            grace_ms=pool.spec.node_lost_grace_s * 1000,
            accept_mass_loss=accepts_mass_loss(pool),
        ),
        tenants=frozenset(tenant_tag(tenant.name) for tenant in pool.spec.tenants),
    )


class PoolMaps:
    """Decides on the maps of one pool, from its take-over on."""

    def __init__(
        self, pool: Pool, state: PublisherState | None, transitions: int, now_ms: int
    ) -> None:
        """`transitions`: of the Lease, by which this operator leads. CallerError when the stored
        map has another number of slots than the pool."""
        config = publisher_config(pool, ())
        self._publisher = Publisher(config, state, now_ms, term_floor=transitions)
        self._polled: set[str] = set()
        self._vouched: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._replaced: frozenset[str] = frozenset()
        """Those held because the operator replaces their pods."""
        self._silent: frozenset[str] = frozenset()

    @property
    def state(self) -> PublisherState | None:
        """What was decided last, stored or not."""
        return self._publisher.state

    @property
    def has_followed(self) -> bool:
        """Whether no loss is on its way into the map, as of the last step."""
        return self._publisher.has_followed

    def configure(self, pool: Pool, members: Sequence[Member]) -> None:
        """Go by the newest spec and the newest look at the cluster."""
        self._publisher.reconfigure(publisher_config(pool, members))
        self._vouched = frozenset(member.name for member in members if member.vouched)
        self._held = frozenset(member.name for member in members if member.held)
        self._replaced = frozenset(m.name for m in members if m.held_for_restart)
        self._publisher.vouch(self._trusted)
        self._publisher.dismiss([m.name for m in members if not m.desired])
        self._publisher.cordon([m.name for m in members if m.cordoned])
        self._publisher.hold_still(pool.spec.paused)

    @property
    def _trusted(self) -> frozenset[str]:
        """Nodes whose workers do not die. A cordoned machine that reboots is silent, and waited
        for; a pod is replaced on a machine that runs."""
        return (self._vouched - self._silent) | (self._held - (self._replaced & self._silent))

    def answered(self, node: str, reports: Collection[WorkerReport], now_ms: int) -> None:
        """Note a node's answer."""
        self._polled.add(node)
        self._publisher.answered(node, reports, now_ms)

    def failed(self, node: str) -> None:
        """Note that a poll failed."""
        self._polled.add(node)
        self._publisher.failed(node)

    def polled_only(self, nodes: Collection[str] | Mapping[str, object]) -> None:
        """Note whose pods can be asked at all: all others do not answer."""
        for node in self._polled - set(nodes):
            self._publisher.failed(node)
        self._polled &= set(nodes)

    def fell_silent(self, since_ms: Mapping[str, int]) -> None:
        """Note whose kubelets are silent now, and since when, whatever their Nodes say."""
        self._silent = frozenset(since_ms)
        self._publisher.vouch(self._trusted)
        for node, silent_since_ms in since_ms.items():
            self._publisher.silent_since(node, silent_since_ms)

    def step(self, now_ms: int, wall_s: int) -> Outcome:
        """Return the next state, to be stored and then published."""
        return self._publisher.step(now_ms, wall_s)
