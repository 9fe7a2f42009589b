"""What the demonstration found."""

from dataclasses import asdict, dataclass

from memkv.demo.reference import Reference, ratio
from memkv.demo.tally import ReplayReport

WARM_RATIO_MIN = 0.99


@dataclass(frozen=True, slots=True)
class Outage:
    """One node killed and brought back.

    durable_blocks: acknowledged as durable, owned by the node, and stored just before the kill,
        when the node evicted nothing any more
    replaced: of these, blocks stored anew while it was away; what is served of them proves nothing
        about the node's flash, so they count as not served
    served_again: of the rest, blocks the node served with right bytes once it was back, before
        anything was put again; so none of the missing ones had to be evicted
    """

    node: str
    after_request: int
    requests_without_it: int
    processes_killed: int
    away_s: float
    durable_blocks: int
    replaced: int
    served_again: int

    @property
    def warm_ratio(self) -> float:
        """Blocks that came back / blocks that were there. Nothing is left out of either."""
        return ratio(self.served_again, self.durable_blocks)


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
