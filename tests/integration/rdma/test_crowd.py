"""Arena, strict and TCP clients of two workers at once, on every face, while devices misbehave: no
wrong byte, and nothing open at the end."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memkv import pattern
from memkv.client.aio_client import AsyncClient
from memkv.client.sync import Client
from memkv.limits import KIB, MIB
from memkv.status import Status
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.oracle import ContentOracle, Verdict, content_seed
from memkv.testing.registered import Arena, lanes_open
from memkv.testing.waiting import eventually

RUN_S = 4.0
SIZES = [1, 4 * KIB, 100_000, 512 * KIB, MIB]
ROOM = MIB
PLACES = 4
TENANT = "default"
KEYS = 60


@pytest.fixture
def two(tmp_path: Path, fabric: FakeFabric) -> Iterator[LocalWorkers]:
    with local_workers(
        tmp_path, 2, memory_bytes=48 * MIB, verbs=FakeVerbs(fabric, ["node0", "node1"])
    ) as pool:
        yield pool
    for number in range(2):
        (tmp_path / f"flash-{number}").unlink()


@dataclass
class Truth:
    """What was put, by whom so ever; one put a key, so that any answer can be judged."""

    oracle: ContentOracle = field(default_factory=ContentOracle)
    lock: threading.Lock = field(default_factory=threading.Lock)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    results: dict[int, int] = field(default_factory=dict)

    def data(self, key: str, size: int) -> bytes:
        """Return what a key's block is, the same for all that put it."""
        with self.lock:
            if key not in self.sizes:
                put = self.oracle.begin_put((TENANT, key), size)
                self.sizes[key] = (size, content_seed((TENANT, key), put.number))
            size, seed = self.sizes[key]
        return bytes(pattern.block(seed, size))

    def judge(self, key: str, data: bytes) -> None:
        with self.lock:
            verdict = self.oracle.judge((TENANT, key), data, 0)
            if verdict is not Verdict.OK:
                self.wrong.append(f"{key}: {verdict.value}")

    def count(self, results: list[int]) -> None:
        with self.lock:
            for result in results:
                kind = min(result, 1)
                self.results[kind] = self.results.get(kind, 0) + 1


class Caller:
    """One thread with memory of its own."""

    def __init__(self, truth: Truth, client: Client, arena: Arena, base: int, seed: int) -> None:
        self.truth = truth
        self.client = client
        self.arena = arena
        self.base = base
        self.random = random.Random(seed)
        self.quarantined: set[int] = set()

    def places(self) -> list[int]:
        """Return offsets of memory that nobody writes; a place is quarantined for a moment."""
        every = [self.base + n * ROOM for n in range(PLACES)]
        return [offset for offset in every if self.arena.address + offset not in self.quarantined]

    def call(self) -> None:
        places = self.places()
        keys = self.random.sample([f"k{n}" for n in range(KEYS)], len(places))
        if self.random.random() < 0.5:
            self.get(keys, places)
        else:
            self.put(keys, places)

    def put(self, keys: list[str], places: list[int]) -> None:
        blocks = [self.truth.data(key, self.random.choice(SIZES)) for key in keys]
        ptrs = [self.arena.fill(at, data) for at, data in zip(places, blocks, strict=True)]
        self.truth.count(self.run_put(keys, ptrs, [len(data) for data in blocks]))

    def get(self, keys: list[str], places: list[int]) -> None:
        ptrs = [self.arena.fill(at, b"\xee" * ROOM) for at in places]
        results = self.run_get(keys, ptrs, [ROOM] * len(keys))
        self.truth.count(results)
        for key, at, result in zip(keys, places, results, strict=True):
            if result > 0:
                self.truth.judge(key, bytes(self.arena.view[at : at + result]))
            elif result == Status.QUARANTINED:
                self.quarantined.add(self.arena.address + at)

    def run_put(self, keys: list[str], ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.client.batch_put_from(keys, ptrs, sizes)

    def run_get(self, keys: list[str], ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.client.batch_get_into(keys, ptrs, sizes)


class EventCaller(Caller):
    """By the eventfd face."""

    def run_put(self, keys: list[str], ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.wait(self.client.submit_put_from(keys, ptrs, sizes))

    def run_get(self, keys: list[str], ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.wait(self.client.submit_get_into(keys, ptrs, sizes))

    def wait(self, job: int) -> list[int]:
        found: list[list[int]] = []

        def has_ended() -> bool:
            for one in self.client.completions():
                self.quarantined.difference_update(one.released)
                if one.job_id == job:
                    found.append(one.results)
            return bool(found)

        eventually(has_ended, "the end of a job", 10)
        return found[0]


class Chaos:
    """Things that go wrong, one after another, and what undoes them."""

    def __init__(self, fabric: FakeFabric, clients: list[str]) -> None:
        self.fabric = fabric
        self.names = [*clients, "node0", "node1"]
        self.random = random.Random(6)

    def step(self) -> None:
        knobs, name = self.fabric.knobs, self.random.choice(self.names)
        kind = self.random.randrange(7)
        if kind == 0:
            self.fabric.set_port(name, False)
        elif kind == 1:
            knobs.flip_writes += 1
        elif kind == 2:
            knobs.flip_reads += 1
        elif kind == 3:
            knobs.drop_completions += 1
        elif kind == 4:
            knobs.refuse_closes[name] = self.random.randrange(1, 40)
        elif kind == 5:
            knobs.fails_at[self.random.choice(["queue pair", "window", "region"])] = 1
        else:
            knobs.delay_s = 0.002

    def undo(self) -> None:
        self.fabric.knobs.delay_s = 0.0
        for name in self.names:
            self.fabric.set_port(name, True)

    def end(self) -> None:
        knobs = self.fabric.knobs
        self.undo()
        knobs.flip_writes = knobs.flip_reads = knobs.drop_completions = 0
        knobs.refuse_closes.clear()
        knobs.fails_at.clear()


def run_all(callers: list[Caller], chaos: Chaos, until: float) -> list[str]:
    errors: list[str] = []

    def run(caller: Caller) -> None:
        try:
            while time.monotonic() < until:
                caller.call()
        except Exception as error:  # it is what the test looks for
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    while time.monotonic() < until and not errors:
        chaos.step()
        threads[0].join(0.1)
        chaos.undo()
        threads[0].join(0.05)
    chaos.end()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.usefixtures("impatient")
def test_no_byte_is_wrong_whatever_fails(fabric: FakeFabric, two: LocalWorkers) -> None:
    truth, shard_map = Truth(), two.map()
    callers: list[Caller] = []
    names = ["arena", "strict", "events"]
    for name in names:
        client, _ = two.client(
            shard_map, verbs=FakeVerbs(fabric, [name]), strict=name == "strict", deadline_ms=600
        )
        arena = Arena(client, 2 * PLACES * ROOM)
        kind = EventCaller if name == "events" else Caller
        callers += [
            kind(truth, client, arena, n * PLACES * ROOM, len(callers) + n)
            for n in range(1 if name == "events" else 2)
        ]
    plain, _ = two.client(shard_map, deadline_ms=600)
    callers.append(Caller(truth, plain, Arena(plain, PLACES * ROOM), 0, 99))
    errors = run_all(callers, Chaos(fabric, names), time.monotonic() + RUN_S)
    assert errors == []
    assert truth.wrong == []
    assert truth.results.get(1, 0) + truth.results.get(0, 0) > 0, truth.results
    clients = {caller.client for caller in callers if caller.client is not plain}
    eventually(
        lambda: all(lanes_open(client) == [4, 4] for client in clients), "all lanes again"
    )
    assert all(client.stats().rdma_keys > 0 for client in clients)
    assert sum(client.stats().rdma_fallbacks for client in clients) > 0


# --- asyncio --------------------------------------------------------------------------------------
def test_a_task_that_is_cancelled_leaves_no_late_byte(
    fabric: FakeFabric, two: LocalWorkers, strict: bool
) -> None:
    """Nor does a fence that fails at first hold the loop, or its buffer for ever."""
    client, _ = two.client(
        two.map(), verbs=FakeVerbs(fabric, ["client0"]), deadline_ms=1_000, strict=strict
    )
    arena = Arena(client, 4 * ROOM)
    data = bytes(pattern.block(1, ROOM))
    eventually(lambda: min(lanes_open(client)) == 4, "lanes")
    assert client.batch_put_from(["k"], [arena.fill(0, data)], [ROOM]) == [0]

    async def run() -> list[int]:
        face = AsyncClient(client.attachment.core.options, client.attachment)
        fabric.hold(3)
        task = asyncio.create_task(face.batch_get_into(["k"], [arena.address], [ROOM]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        results = await face.batch_get_into(["k"], [arena.address + ROOM], [ROOM])
        fabric.knobs.refuse_closes["client0"] = 1_000_000
        results += await face.batch_get_into(["k"], [arena.address + 2 * ROOM], [ROOM])
        fabric.knobs.refuse_closes.clear()
        released: set[int] = set()
        end = time.monotonic() + 10
        while arena.address + 2 * ROOM not in released and time.monotonic() < end:
            await asyncio.sleep(0)
            for one in face.completions():
                released.update(one.released)
        assert arena.address + 2 * ROOM in released
        return results

    assert asyncio.run(run()) == [Status.TIMEOUT, Status.QUARANTINED]
    arena.fill(0, b"\x11" * 3 * ROOM)
    fabric.release()
    fabric.settle()
    assert arena.holds(0, b"\x11" * 3 * ROOM)
