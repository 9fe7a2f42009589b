"""A replay against real workers: it counts hits right and sees every wrong byte."""

from pathlib import Path

from memkv import pattern
from memkv.demo.replay import Replay, durable_keys, key_of
from memkv.limits import KIB
from memkv.testing.local_workers import local_workers

BLOCK_BYTES = 64 * KIB


def test_prefixes_are_hit_and_verified(tmp_path: Path) -> None:
    with local_workers(tmp_path, 2) as pool:
        client, _ = pool.client(pool.map())
        replay = Replay(client, block_bytes=BLOCK_BYTES)
        for blocks in ((0, 1, 2), (0, 1, 3), (0, 1, 3, 4), (5, 0)):
            replay.run(blocks)
        replay.close()
        found = replay.tally.report(1.0)
        assert (found.requests, found.blocks, found.hit_blocks) == (4, 12, 5)
        assert found.blocks_verified == 5
        assert found.wrong_bytes == 0
        assert found.bytes_read == 5 * BLOCK_BYTES
        # Block 0 of the last request was put again: a no-op, acknowledged all the same.
        assert found.bytes_written == 7 * BLOCK_BYTES
        assert found.puts_dropped == 0
        keys = [key_of(block) for block in range(7)]
        assert durable_keys(client, keys) == keys[:6]


def test_a_block_with_other_bytes_is_seen_and_ends_the_prefix(tmp_path: Path) -> None:
    """One flipped byte, stored under its key by a valid put: only the content tells."""
    with local_workers(tmp_path, 1) as pool:
        client, _ = pool.client(pool.map())
        replay = Replay(client, block_bytes=BLOCK_BYTES)
        right = pattern.block(pattern.seed_of(key_of(0)), BLOCK_BYTES)
        client.put(key_of(0), right)
        wrong = bytearray(pattern.block(pattern.seed_of(key_of(1)), BLOCK_BYTES))
        wrong[1234] ^= 0x10
        client.put(key_of(1), wrong)
        replay.run((0, 1, 2))
        replay.close()
        assert replay.tally.hit_blocks == 1
        assert replay.tally.blocks_verified == 2
        assert replay.tally.wrong_bytes == 1


def test_a_block_that_is_too_short_is_wrong_too(tmp_path: Path) -> None:
    with local_workers(tmp_path, 1) as pool:
        client, _ = pool.client(pool.map())
        replay = Replay(client, block_bytes=BLOCK_BYTES)
        client.put(key_of(0), pattern.block(pattern.seed_of(key_of(0)), BLOCK_BYTES - 3))
        replay.run((0,))
        replay.close()
        assert replay.tally.hit_blocks == 0
        assert replay.tally.wrong_bytes == 3
