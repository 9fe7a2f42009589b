"""What the index costs: peak resident memory of a process that holds nothing else, by blocks."""

import json
import struct
import subprocess
import sys
from dataclasses import dataclass

from memkv import _hotpath
from memkv.bench.processes import peak_resident_bytes

BLOCKS = 10_000_000


@dataclass(frozen=True, slots=True)
class IndexMemory:
    """Bytes a block; `interpreter_bytes` is what the process had before the index."""

    blocks: int
    peak_bytes: int
    interpreter_bytes: int

    @property
    def bytes_per_block(self) -> float:
        return self.peak_bytes / self.blocks


def measure(blocks: int = BLOCKS) -> IndexMemory:
    """Fill an index in a process of its own."""
    command = [sys.executable, "-m", "memkv.bench.index_memory", str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    return IndexMemory(blocks, int(figures["peak"]), int(figures["before"]))


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
