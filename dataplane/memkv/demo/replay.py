"""Replays requests of a trace as an engine would: get the stored prefix, compute and put the rest.

The content of a block is a function of its key, so every byte that comes back can be judged without
a copy of what was stored. A wrong byte is counted, never raised: the report must show all of them.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memkv import _hotpath, pattern
from memkv.client.options import BlockHint, Durability, PutOptions
from memkv.client.sync import Client
from memkv.demo.tally import Tally
from memkv.limits import KIB
from memkv.status import Status

BLOCK_BYTES = 512 * KIB
UNANSWERED = frozenset({Status.TIMEOUT, Status.UNAVAILABLE, Status.BUSY, Status.CLOSED})
BLOCKS_PER_CALL = 64  # 32 MiB: enough for every lane to stay busy, little enough to allocate
NAMESPACE = "conversation"


def key_of(block: int, namespace: str = NAMESPACE) -> str:
    """Return the key under which a block of the trace is stored."""
    return f"{namespace}/{block}"


@dataclass(frozen=True, slots=True)
class Checked:
    """Answer to a verified get: blocks in order that came back, right or wrong."""

    served: tuple[bool, ...]
    wrong_bytes: int
    unanswered: tuple[bool, ...]
    """Blocks about which the node said nothing: they may be there or not."""


class Arena:
    """Memory for one call's blocks, registered with the client. The client must outlive it."""

    def __init__(self, client: Client, block_bytes: int, blocks: int = BLOCKS_PER_CALL) -> None:
        self.block_bytes = block_bytes
        self.blocks = blocks
        self._client = client
        self._memory = bytearray(block_bytes * blocks)
        self._base = _hotpath.address_of(self._memory)
        view = memoryview(self._memory)
        self._views = [view[i * block_bytes : (i + 1) * block_bytes] for i in range(blocks)]
        client.register_buffer(self._base, len(self._memory))

    def pointers(self, count: int) -> list[int]:
        """Return the addresses of the first `count` places."""
        return [self._base + i * self.block_bytes for i in range(count)]

    def view(self, place: int) -> memoryview:
        """Return the bytes of one place."""
        return self._views[place]

    def close(self) -> None:
        self._client.unregister_buffer(self._base)


class Replay:
    """Replays against one client and counts. Not thread-safe."""

    def __init__(
        self, client: Client, *, namespace: str = NAMESPACE, block_bytes: int = BLOCK_BYTES,
        durability: Durability = "durable",
    ) -> None:  # fmt: skip
        self.tally = Tally()
        self.stored: set[str] = set()
        """Keys whose put was acknowledged."""
        self._client = client
        self._namespace = namespace
        self._durability = durability
        self._arena = Arena(client, block_bytes)

    def run(self, blocks: Sequence[int]) -> None:
        """Serve one request."""
        keys = [key_of(block, self._namespace) for block in blocks]
        hits = self._get_prefix(keys[: self._client.match_prefix(keys)])
        self._put(keys, hits)
        self.tally.requests += 1
        self.tally.blocks += len(keys)
        self.tally.hit_blocks += hits

    def _get_prefix(self, keys: Sequence[str]) -> int:
        """Get and verify; return how many leading blocks were served right."""
        hits = 0
        for part in parts(keys, self._arena.blocks):
            served = self.get_checked(part).served
            right = next((i for i, good in enumerate(served) if not good), len(served))
            hits += right
            if right < len(part):
                break
        return hits

    def get_checked(self, keys: Sequence[str]) -> Checked:
        """Get at most BLOCKS_PER_CALL blocks in one timed call and compare every byte."""
        size = self._arena.block_bytes
        before = time.perf_counter()
        results = self._client.batch_get_into(
            keys, self._arena.pointers(len(keys)), [size] * len(keys)
        )
        elapsed = time.perf_counter() - before
        read = sum(result for result in results if result > 0)
        if read:
            self.tally.get_us.append(elapsed * 1e6)
            self.tally.get_s += elapsed
            self.tally.bytes_read += read
        served, wrong_bytes = [], 0
        for place, (key, result) in enumerate(zip(keys, results, strict=True)):
            wrong = 0 if result < 0 else self._wrong_bytes(key, place, result)
            wrong_bytes += wrong
            served.append(result == size and not wrong)
        self.tally.blocks_verified += sum(1 for result in results if result >= 0)
        self.tally.wrong_bytes += wrong_bytes
        unanswered = tuple(result in UNANSWERED for result in results)
        return Checked(tuple(served), wrong_bytes, unanswered)

    def _wrong_bytes(self, key: str, place: int, length: int) -> int:
        """Count the bytes that are not the key's; a wrong length counts as that many bytes."""
        view, seed = self._arena.view(place)[:length], pattern.seed_of(key)
        missing = self._arena.block_bytes - length
        if pattern.first_wrong_byte(view, seed) is None:
            return missing
        right = pattern.block(seed, length)
        return missing + sum(a != b for a, b in zip(view, right, strict=True))

    def _put(self, keys: Sequence[str], begin: int) -> None:
        """Store keys[begin:], the blocks an engine would now have computed."""
        size = self._arena.block_bytes
        prefix_id = pattern.seed_of(keys[0]).to_bytes(8, "little") if keys else bytes(8)
        depth = begin
        for part in parts(keys[begin:], self._arena.blocks):
            for place, key in enumerate(part):
                pattern.fill(self._arena.view(place), pattern.seed_of(key))
            hints = [BlockHint(prefix_id, depth + i) for i in range(len(part))]
            before = time.perf_counter()
            results = self._client.batch_put_from(
                part, self._arena.pointers(len(part)), [size] * len(part),
                PutOptions(durability=self._durability, hints=hints),
            )  # fmt: skip
            self.tally.put_s += time.perf_counter() - before
            stored = [key for key, result in zip(part, results, strict=True) if result == 0]
            self.stored.update(stored)
            self.tally.bytes_written += size * len(stored)
            self.tally.puts_dropped += len(part) - len(stored)
            depth += len(part)

    def close(self) -> None:
        """Give the memory back; before the client is closed."""
        self._arena.close()


def parts(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Cut a list into pieces of at most `size`."""
    for begin in range(0, len(keys), size):
        yield keys[begin : begin + size]


def durable_keys(client: Client, keys: Iterable[str], batch: int = 512) -> list[str]:
    """Return those of `keys` that the pool says are stored now."""
    known = list(keys)
    found: list[str] = []
    for part in parts(known, batch):
        answers = client.batch_is_exist(part)
        found.extend(key for key, answer in zip(part, answers, strict=True) if answer == 1)
    return found
