"""What the demonstration found."""

from dataclasses import asdict, dataclass

from memkv.demo.reference import Reference, ratio
from memkv.demo.tally import ReplayReport

WARM_RATIO_MIN = 0.99


@dataclass(frozen=True, slots=True)
class Outage:
    """One node killed and brought back.

    durable_blocks: acknowledged as durable, owned by the node, and stored just before the kill
    replaced: of these, blocks stored again elsewhere while it was away; they prove nothing about
        the node's flash and are left out of the ratio
    served_again: of the rest, blocks the pool served with right bytes once it was back
    evicted: blocks the node says it evicted since it is back, for blocks that moved to it; those
        came back too, but not all of the missing ones need to be among them
    """

    node: str
    after_request: int
    requests_without_it: int
    processes_killed: int
    away_s: float
    durable_blocks: int
    replaced: int
    served_again: int
    evicted: int = 0

    @property
    def warm_ratio(self) -> float:
        """Blocks that came back / blocks that were there."""
        expected = self.durable_blocks - self.replaced
        missing = expected - self.served_again
        return ratio(self.served_again, expected - min(self.evicted, missing))


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Figures of one demonstration."""

    replay: ReplayReport
    reference: Reference
    outage: Outage
    nodes: int
    capacity_bytes: int
    block_bytes: int
    wrong_bytes: int
    blocks_verified: int
    total_s: float

    @property
    def passed(self) -> bool:
        """No wrong byte, and the node came back warm."""
        return self.wrong_bytes == 0 and self.outage.warm_ratio >= WARM_RATIO_MIN

    def document(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "passed": self.passed,
            "requests": self.replay.requests,
            "prefix_hit_ratio": self.replay.prefix_hit_ratio,
            "gbps": self.replay.gbps,
            "get_p50_us": self.replay.get_p50_us,
            "get_p99_us": self.replay.get_p99_us,
            "blocks_verified": self.blocks_verified,
            "wrong_bytes": self.wrong_bytes,
            "warm_ratio": self.outage.warm_ratio,
            "nodes": self.nodes,
            "capacity_bytes": self.capacity_bytes,
            "block_bytes": self.block_bytes,
            "total_s": self.total_s,
            "replay": asdict(self.replay),
            "reference": asdict(self.reference),
            "outage": {**asdict(self.outage), "warm_ratio": self.outage.warm_ratio},
        }
