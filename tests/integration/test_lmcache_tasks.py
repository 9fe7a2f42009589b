"""Tasks of LMCache's L2 adapter against real workers, without LMCache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from memkv._hotpath import address_of
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.integrations.lmcache_names import L2Names
from memkv.integrations.lmcache_tasks import L2Tasks, Signals, StoreOutcome
from memkv.integrations.settings import PoolSettings
from memkv.integrations.transfers import Transfers
from memkv.limits import KIB
from memkv.pattern import block, seed_of
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.waiting import WAIT_S

SHAPE = (2, 4, 64, 128)
SIZE = 128 * KIB


@dataclass(frozen=True)
class Dtype:
    itemsize: int = 2

    def __str__(self) -> str:
        return "torch.bfloat16"


@dataclass(frozen=True)
class Layout:
    shapes: Sequence[Sequence[int]] = (SHAPE,)
    dtypes: Sequence[Dtype] = (Dtype(),)


@dataclass(frozen=True)
class Key:
    chunk_hash: bytes
    model_name: str = "llama"
    kv_rank: int = 0x01000100
    object_group_id: int = 0
    cache_salt: str = ""


class Memory:
    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)
        self.used: int | None = None

    @property
    def data_ptr(self) -> int:
        return address_of(self.data)

    def get_size(self) -> int:
        return len(self.data)

    def get_shapes(self) -> Sequence[Sequence[int]]:
        return (SHAPE,)

    def get_dtypes(self) -> Sequence[Dtype]:
        return (Dtype(),)

    def set_used_size(self, n: int) -> None:
        self.used = n


@dataclass
class Heard:
    """What the tasks told the adapter."""

    events: dict[str, threading.Semaphore] = field(
        default_factory=lambda: {name: threading.Semaphore(0) for name in ("s", "q", "l")}
    )
    stored: list[tuple[Key, int]] = field(default_factory=list)
    loaded: list[Key] = field(default_factory=list)

    def signals(self) -> Signals[Key]:
        return Signals(
            self.events["s"].release, self.events["q"].release, self.events["l"].release,
            lambda keys, sizes: self.stored.extend(zip(keys, sizes, strict=True)),
            self.loaded.extend,
        )

    def wait(self, name: str) -> None:
        assert self.events[name].acquire(timeout=WAIT_S)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorkers]:
    with local_workers(tmp_path_factory.mktemp("pool"), 2) as running:
        yield running


Made = tuple["L2Tasks[Key]", Heard]
Make = Callable[[str], Made]


@pytest.fixture
def make(pool: LocalWorkers) -> Iterator[Make]:
    opened: list[Transfers] = []

    def made(layout: str = "") -> Made:
        client, _ = pool.client(pool.map())
        opened.append(Transfers(client))
        heard = Heard()
        return L2Tasks(opened[-1], L2Names(PoolSettings(), "tests", layout), heard.signals()), heard

    yield made
    for transfers in opened:
        transfers.close()


def keys_of(name: str, count: int) -> list[Key]:
    return [Key(f"{name}-{number}".encode()) for number in range(count)]


def content(key: Key) -> bytes:
    return bytes(block(seed_of(key.chunk_hash.decode()), SIZE))


def stored(tasks: L2Tasks[Key], heard: Heard, keys: list[Key]) -> StoreOutcome:
    objects = [Memory(content(key)) for key in keys]
    task = tasks.submit_store(keys, objects)
    heard.wait("s")
    return tasks.pop_stores()[task]


def looked_up(tasks: L2Tasks[Key], heard: Heard, keys: list[Key]) -> list[bool] | None:
    task = tasks.submit_lookup(keys, {0: Layout()})
    heard.wait("q")
    found = tasks.lookup_result(task)
    assert tasks.lookup_result(task) is None, "a result is given once"
    return found


def loaded(
    tasks: L2Tasks[Key], heard: Heard, keys: list[Key], objects: list[Memory]
) -> list[bool] | None:
    task = tasks.submit_load(keys, objects)
    heard.wait("l")
    found = tasks.load_result(task)
    assert tasks.load_result(task) is None, "a result is given once"
    return found


def test_store_lookup_load_by_another_process_of_the_pool(make: Make) -> None:
    keys = keys_of("way", 5)
    tasks, heard = make("")
    assert stored(tasks, heard, keys[:4]) == StoreOutcome(True, 4 * SIZE)
    assert heard.stored == [(key, SIZE) for key in keys[:4]]
    assert stored(tasks, heard, keys[:4]) == StoreOutcome(True, 0), "it is there already"
    assert tasks.pop_stores() == {}

    tasks, heard = make("")
    assert looked_up(tasks, heard, keys) == [True] * 4 + [False]
    assert tasks.status()["locked_keys"] == 4
    objects = [Memory(bytes(SIZE)) for _ in keys]
    assert loaded(tasks, heard, keys, objects) == [True] * 4 + [False]
    assert [memory.data for memory in objects[:4]] == [content(key) for key in keys[:4]]
    assert heard.loaded == keys[:4]
    tasks.unlock(keys)  # one more than is locked
    tasks.unlock(keys)
    assert tasks.status() == {"tasks_under_way": {}, "locked_keys": 0}


def test_a_group_without_a_layout_is_a_miss(make: Make) -> None:
    tasks, heard = make("")
    keys = keys_of("group", 2)
    assert stored(tasks, heard, keys).success
    other = Key(keys[1].chunk_hash, object_group_id=7)
    assert looked_up(tasks, heard, [keys[0], other]) == [True, False]


def test_delete_is_for_everybody(make: Make) -> None:
    keys = keys_of("delete", 3)
    tasks, heard = make("")
    assert stored(tasks, heard, keys).success
    assert tasks.delete(keys[:2]) == (keys[:2], [SIZE] * 2)
    assert tasks.delete([Key(b"delete", model_name="never seen")]) == ([], [])
    other, others_heard = make("")
    assert looked_up(other, others_heard, keys) == [False, False, True]


def test_what_a_serde_made_may_be_shorter_than_its_room(make: Make) -> None:
    (key,) = keys_of("serde", 1)
    tasks, heard = make("aesgcm")
    task = tasks.submit_store([key], [Memory(content(key)[:1000])])
    heard.wait("s")
    assert tasks.pop_stores()[task] == StoreOutcome(True, 1000)
    assert looked_up(tasks, heard, [key]) == [True]
    room = Memory(bytes(SIZE))
    assert loaded(tasks, heard, [key], [room]) == [True]
    assert room.used == 1000
    assert bytes(room.data[:1000]) == content(key)[:1000]
    plain, plains_heard = make("")
    assert looked_up(plain, plains_heard, [key]) == [False], "without the serde it is another one"


def test_without_a_pool_no_call_waits_and_all_tasks_end() -> None:
    options = ConnectOptions("127.0.0.1:1", deadline_ms=500, bootstrap_timeout_ms=1)
    transfers, heard = Transfers(Client(options)), Heard()
    tasks = L2Tasks(transfers, L2Names(PoolSettings(), "tests"), heard.signals())
    keys = keys_of("away", 2)
    started = time.monotonic()
    assert stored(tasks, heard, keys) == StoreOutcome(False, 0)
    assert looked_up(tasks, heard, keys) == [False, False]
    assert loaded(tasks, heard, keys, [Memory(bytes(SIZE)) for _ in keys]) == [False, False]
    tasks.unlock(keys)
    assert time.monotonic() - started < WAIT_S
    transfers.close()
    assert stored(tasks, heard, keys) == StoreOutcome(False, 0), "closed"
