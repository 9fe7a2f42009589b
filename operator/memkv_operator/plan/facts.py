"""What the operator knows of data-plane nodes from asking them."""

from collections.abc import Collection
from dataclasses import dataclass

from memkv.metadata.roster import WorkerReport

USED_STEPS = 64  # used bytes are shown in such parts of the capacity, or each put would be a write


@dataclass(frozen=True, slots=True)
class TenantFacts:
    """A tenant's room on a worker: what its blocks take, and what is guaranteed and in force."""

    name: str
    flash_bytes: int
    flash_guaranteed_bytes: int
    memory_bytes: int
    memory_guaranteed_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """One worker of a node, as the node says."""

    position: int
    uuid: str
    """Hex; empty until its drive was read once."""
    incarnation: int
    phase: str
    """As MemKVNode shows it: Starting, Ready, Backoff, Failed, Stopped."""
    host: str
    port: int
    capacity_bytes: int
    used_bytes: int
    applied_epoch: int
    restarts: int
    message: str
    flash_guaranteed_bytes_max: int = 0
    """What can be guaranteed to all tenants together; 0: not known yet."""
    memory_guaranteed_bytes_max: int = 0
    tenants: tuple[TenantFacts, ...] = ()
    rdma_rails: tuple[str, ...] = ()
    """Ports, as device/port, that clients can use now."""
    rdma_problem: str = ""
    """Why there are none, or which more are not used."""

    @property
    def used_bytes_roughly(self) -> int:
        """Used bytes, rounded down to a part of the capacity."""
        step = max(1, self.capacity_bytes // USED_STEPS)
        return self.used_bytes // step * step


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node's last answer."""

    version: str
    draining: bool
    spec_generation: int
    spec_revision: str
    """Of the spec in force."""
    workers: tuple[WorkerFacts, ...]
    reports: Collection[WorkerReport]
    """The same for the publisher."""
    transports: frozenset[str] = frozenset({"tcp"})
    """Of payload, that its workers serve."""
    rdma_wanted: bool = False
    """Whether its workers look for RDMA devices."""
    ticket_keys: frozenset[str] = frozenset()
    """Ids of the keys whose tickets its workers take; empty: it does not say."""

    @property
    def serving(self) -> bool:
        """Whether all its workers serve."""
        return bool(self.workers) and all(w.phase == "Ready" for w in self.workers)


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What polling of a node's pod came to."""

    pod_uid: str
    facts: NodeFacts | None
    """The last answer, of this pod; None: it never answered."""
    problem: str = ""
    """Why the very last poll failed; empty: it did not."""

    @property
    def reachable(self) -> bool:
        """Whether the very last poll was answered."""
        return self.facts is not None and not self.problem
