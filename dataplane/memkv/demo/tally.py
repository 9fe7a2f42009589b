"""What a replay counts. Pure: figures in, one frozen report out."""

from dataclasses import dataclass, field

from memkv.bench.statistics import gb_per_s, percentile
from memkv.demo.reference import ratio


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """Figures of a replay, or of a part of one.

    prefix_hit_ratio: blocks served as prefix / blocks asked for
    gbps: payload of gets and puts / time spent in their calls (GB = 10^9 bytes)
    get_p50_us, get_p99_us: time of one get call; a call carries up to a request's whole prefix
    blocks_verified: blocks whose every byte was compared with the only right content
    puts_dropped: blocks the pool refused or did not answer for; a later request misses them
    """

    requests: int
    blocks: int
    hit_blocks: int
    prefix_hit_ratio: float
    gbps: float
    get_gbps: float
    put_gbps: float
    get_p50_us: float
    get_p99_us: float
    get_calls: int
    bytes_read: int
    bytes_written: int
    blocks_verified: int
    wrong_bytes: int
    puts_dropped: int
    seconds: float


@dataclass(slots=True)
class Tally:
    """Counts while a replay runs."""

    requests: int = 0
    blocks: int = 0
    hit_blocks: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    blocks_verified: int = 0
    wrong_bytes: int = 0
    puts_dropped: int = 0
    get_us: list[float] = field(default_factory=list)
    get_s: float = 0.0
    put_s: float = 0.0

    def report(self, seconds: float) -> ReplayReport:
        """Return the figures; `seconds` is the whole replay on the clock."""
        return ReplayReport(
            requests=self.requests,
            blocks=self.blocks,
            hit_blocks=self.hit_blocks,
            prefix_hit_ratio=ratio(self.hit_blocks, self.blocks),
            gbps=gb_per_s(self.bytes_read + self.bytes_written, self.get_s + self.put_s),
            get_gbps=gb_per_s(self.bytes_read, self.get_s),
            put_gbps=gb_per_s(self.bytes_written, self.put_s),
            get_p50_us=percentile(self.get_us, 0.5),
            get_p99_us=percentile(self.get_us, 0.99),
            get_calls=len(self.get_us),
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
            blocks_verified=self.blocks_verified,
            wrong_bytes=self.wrong_bytes,
            puts_dropped=self.puts_dropped,
            seconds=seconds,
        )
