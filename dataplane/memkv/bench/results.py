"""What a measurement says: one row, the same fields for every measurement."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from memkv.bench.statistics import Pair
from memkv.errors import MemKVError


class MeasurementFailed(MemKVError):
    """The pool did not do what was measured: a miss, a refusal or a wrong byte."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measured figure beside its limit.

    gbps, limit_gbps: payload, 10^9 bytes a second; 0 where the figure is no bandwidth
    p50_us, p99_us: time of one call of `blocks_per_call` blocks
    ratio: median over pairs of figure / limit; None without a limit
    cpu_s_per_gb: CPU time of client and nodes together
    """

    op: str
    transport: str
    tier: str
    size_bytes: int
    gbps: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    limit: str = ""
    """What the limit is, in words."""
    limit_gbps: float = 0.0
    ratio: float | None = None
    pairs: Sequence[Pair] = ()
    cpu_s_per_gb: float | None = None
    blocks_per_call: int = 1
    remark: str = ""

    def document(self) -> dict[str, object]:
        """Return the JSON form; its first nine names are a public interface."""
        return {
            "op": self.op,
            "transport": self.transport,
            "tier": self.tier,
            "size_bytes": self.size_bytes,
            "gbps": round(self.gbps, 4),
            "p50_us": round(self.p50_us, 1),
            "p99_us": round(self.p99_us, 1),
            "limit_gbps": round(self.limit_gbps, 4),
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "limit": self.limit,
            "pairs": [[round(pair.figure, 4), round(pair.limit, 4)] for pair in self.pairs],
            "cpu_s_per_gb": None if self.cpu_s_per_gb is None else round(self.cpu_s_per_gb, 4),
            "blocks_per_call": self.blocks_per_call,
            "remark": self.remark,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table of figures that must be reached.

    `measured`, `limit` and `wanted` are texts for people; `reached` is None when the figure could
    not be judged, `remark` then says why.
    """

    what: str
    measured: str
    limit: str
    wanted: str
    ratio: float | None
    reached: bool | None
    remark: str = ""
    details: dict[str, object] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "what": self.what,
            "measured": self.measured,
            "limit": self.limit,
            "wanted": self.wanted,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "reached": self.reached,
            "remark": self.remark,
            **self.details,
        }
