"""What the two sides of the connector tell each other; pickled where they are two processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from memkv.integrations.hints import NO_ID
from memkv.integrations.keys import Namespace
from memkv.integrations.vllm.planner import PlacedBlock


@dataclass(frozen=True)
class RankFormat:
    """What one worker's blocks are, as only it knows: it has the tensors."""

    layout: str
    kv_dtype: str
    payload_bytes: tuple[int, ...]
    """Of a block, for each cache group; where layers are cut into parts, for each part."""


@dataclass(frozen=True)
class Transfer:
    """Blocks to load or to store for one request, in the order of their numbers."""

    job: int
    request_id: str
    names: tuple[Namespace, ...]
    """For each rank."""
    prefix_id: bytes
    """8 bytes that requests with the same beginning share: a hint for eviction."""
    blocks: list[PlacedBlock]
    session_id: bytes = NO_ID
    """The same of requests of one conversation."""


@dataclass
class Orders:
    """Of the scheduler's side to the worker's, for one step."""

    loads: list[Transfer] = field(default_factory=list)
    stores: list[Transfer] = field(default_factory=list)
    layered: list[Transfer] = field(default_factory=list)
    """Loads for requests of this very step: each layer waits for its part."""
    is_idle: bool = False
    """No tokens are computed in this step: waiting a moment for transfers delays nobody."""


@dataclass(frozen=True)
class FailedLoad:
    """A load that ended early: from block `first_missing` on nothing was loaded."""

    request_id: str
    first_missing: int
    reason: str


@dataclass
class Results:
    """Of the worker's side to the scheduler's; of all ranks after merging."""

    stored: dict[int, int] = field(default_factory=dict)
    """Store jobs that are over, and how many ranks say so: their blocks may be reused."""
    layered: dict[int, int] = field(default_factory=dict)
    """Load jobs of `Orders.layered` that are over, and how many ranks say so."""
    failed: dict[str, FailedLoad] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    """What happened since the last step, for statistics."""

    def merge(self, other: Results) -> Results:
        """Take what another rank says."""
        for mine, theirs in ((self.stored, other.stored), (self.layered, other.layered)):
            for job, ranks in theirs.items():
                mine[job] = mine.get(job, 0) + ranks
        for request_id, load in other.failed.items():
            known = self.failed.get(request_id)
            if known is None or load.first_missing < known.first_missing:
                self.failed[request_id] = load
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        return self
