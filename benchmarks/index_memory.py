"""Print what the block index costs: peak RSS of this process divided by blocks, and its speed.

    python benchmarks/index_memory.py [BLOCKS]        # default 10 million, about 600 MB
"""

import resource
import struct
import sys
import time

from memkv import _hotpath

BATCH = 512
BLOCKS_DEFAULT = 10_000_000
LOOKUPS = 2_000_000
PRIME = 1_000_003  # a step that visits all blocks in an order caches cannot guess


def block_id(number: int) -> bytes:
    return struct.pack("<QQQQ", _hotpath.xxh3_64(struct.pack("<Q", number)), number, 0, 0)


def fill(index: _hotpath.BlockIndex, blocks: int) -> float:
    start = time.perf_counter()
    for number in range(blocks):
        index.insert(1, block_id(number), number & 4095, number, 129, 0, 0, number)
    return time.perf_counter() - start


def look_up(index: _hotpath.BlockIndex, blocks: int) -> float:
    """Return seconds spent in `exists_many` alone."""
    spent = 0.0
    for first in range(0, LOOKUPS, BATCH):
        ids = b"".join(block_id((first + i) * PRIME % blocks) for i in range(BATCH))
        start = time.perf_counter()
        found = index.exists_many(1, ids, 1)
        spent += time.perf_counter() - start
        assert found == b"\1\0\0\0" * BATCH
    return spent


def main() -> None:
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else BLOCKS_DEFAULT
    index = _hotpath.BlockIndex(blocks)
    fill_s = fill(index, blocks)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    slot_blocks = len(index.handles_of_slot(7)) // 4
    scan_s = time.perf_counter() - start
    look_up_s = look_up(index, blocks)
    print(f"blocks              {blocks}")
    print(f"table               {index.memory_bytes / blocks:.1f} bytes a block")
    print(f"peak RSS            {peak_bytes / blocks:.1f} bytes a block, interpreter included")
    print(f"insert              {blocks / fill_s:.0f} blocks/s, one call each, ids included")
    print(f"exists_many         {LOOKUPS / look_up_s:.0f} ids/s in batches of {BATCH}")
    print(f"scan for a slot     {scan_s * 1e3:.1f} ms ({slot_blocks} blocks found)")


if __name__ == "__main__":
    main()
