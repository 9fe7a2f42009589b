"""The limit of the local transport: memcpy of a block followed by xxh3_128 over it, one thread.

The native module does both without the GIL. MemKV itself sums 256 KiB at a time by xxh3_64, so this
is a yardstick from outside, not a replay of what it does.
"""

import time
from collections.abc import Sequence

from memkv import _hotpath
from memkv.bench.statistics import gb_per_s


def measure_gbps(size_bytes: int, seconds: float, blocks: int = 16) -> float:
    """Copy and sum blocks that together do not fit the caches; return GB/s of payload."""
    sources = [bytearray(size_bytes) for _ in range(blocks)]
    for number, source in enumerate(sources):
        _hotpath.fill_pattern(source, number)
    target = bytearray(size_bytes)
    return _measure(sources, target, seconds)


def _measure(sources: Sequence[bytearray], target: bytearray, seconds: float) -> float:
    copied = 0
    begin = now = time.perf_counter()
    while now - begin < seconds:
        for source in sources:
            _hotpath.copy_memory(target, source)
            _hotpath.xxh3_128(target)
            copied += len(target)
        now = time.perf_counter()
    return gb_per_s(copied, now - begin)
