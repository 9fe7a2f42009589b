"""What the index costs: peak resident memory of a process that holds nothing else, by blocks.

A turn takes some 20 s and its figure hardly varies.
"""

import json
import struct
import subprocess
import sys
from dataclasses import dataclass

from memkv import _hotpath
from memkv.bench.processes import peak_resident_bytes
from memkv.bench.statistics import median

BLOCKS = 10_000_000
TURNS = 5


@dataclass(frozen=True, slots=True)
class IndexMemory:
    """Peaks of all turns; `interpreter_bytes` is what a process had before the index."""

    blocks: int
    peaks_bytes: tuple[int, ...]
    interpreter_bytes: int

    @property
    def turns(self) -> tuple[float, ...]:
        """Bytes a block of each turn."""
        return tuple(peak / self.blocks for peak in self.peaks_bytes)

    @property
    def bytes_per_block(self) -> float:
        return median(self.turns)


def measure(blocks: int = BLOCKS, turns: int = TURNS) -> IndexMemory:
    """Fill an index in a process of its own, turn by turn."""
    found = [measure_turn(blocks) for _ in range(turns)]
    return IndexMemory(
        blocks, tuple(turn["peak"] for turn in found), max(turn["before"] for turn in found)
    )


def measure_turn(blocks: int) -> dict[str, int]:
    """Return the peak of one process and what it had before, in bytes."""
    command = [sys.executable, "-m", "memkv.bench.index_memory", str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def fill(blocks: int) -> dict[str, int]:
    """Fill; ids are spread like hashes, so buckets fill as they do in a node."""
    before = peak_resident_bytes()
    index = _hotpath.BlockIndex(blocks)
    pack, spread = struct.Struct("<QQQQ").pack, 0x9E3779B97F4A7C15
    for number in range(blocks):
        block_id = pack(number * spread & 0xFFFFFFFFFFFFFFFF, number, 0, 0)
        index.insert(1, block_id, number & 4095, number, 129, 0, 0, number & 0xFFFFFFFF)
    if len(index) != blocks:
        raise RuntimeError(f"the index holds {len(index)} of {blocks} blocks")
    return {"peak": peak_resident_bytes(), "before": before}


if __name__ == "__main__":
    print(json.dumps(fill(int(sys.argv[1]))))
