"""Where RDMA does not work blocks go over TCP, counted and said; and it comes back by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from memkv.client.sync import Client
from memkv.clock import SystemClock
from memkv.limits import KIB, MIB
from memkv.node.config import WorkerConfig
from memkv.node.server import WorkerServer
from memkv.node.store_adapter import NodeStore
from memkv.rdma.verbs import Verbs
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import POOL, LocalWorker, LocalWorkers, local_workers
from memkv.testing.registered import Arena, content, lanes_open, sides, wait_for_lanes
from memkv.testing.waiting import eventually
from memkv.wire.ticket import AnonymousVerifier

SIZE = 256 * KIB
ROOM = 8 * MIB


class Caller:
    """A client whose every call must be right, whatever way it goes."""

    def __init__(self, pool: LocalWorkers, verbs: Verbs, *, strict: bool = False) -> None:
        self.client, _ = pool.client(pool.map(), verbs=verbs, strict=strict)
        self.arena = Arena(self.client, ROOM)
        self.calls = 0

    @property
    def fallbacks(self) -> int:
        return self.client.stats().rdma_fallbacks

    @property
    def problems(self) -> str:
        return "\n".join(self.client.attachment.problems())

    def call(self) -> None:
        """Put a block and get it."""
        self.calls += 1
        key = f"{id(self)}-{self.calls}"
        data = content(key, SIZE)
        assert self.client.batch_put_from([key], [self.arena.fill(0, data)], [SIZE]) == [0]
        self.arena.fill(0, bytes(SIZE))
        assert self.client.batch_get_into([key], [self.arena.address], [SIZE]) == [SIZE]
        assert self.arena.holds(0, data)

    def goes_over_rdma(self) -> bool:
        """Call, and return whether nothing of it fell back."""
        before = self.fallbacks
        self.call()
        return self.fallbacks == before

    def must_fall_back(self, why: str) -> None:
        """It is counted and said; calls go on."""
        eventually(lambda: not self.goes_over_rdma(), "a fallback")
        before = self.fallbacks
        self.call()
        assert self.fallbacks == before + 2
        eventually(lambda: why in self.problems, f"a problem with {why!r}, not {self.problems!r}")
        assert "over TCP" in self.problems

    def must_come_back(self, count: int = 4) -> None:
        """By itself, in seconds."""
        wait_for_lanes(self.client, count)
        eventually(self.goes_over_rdma, "RDMA")
        wait_for_lanes(self.client, count)
        eventually(lambda: not self.problems, f"no problem any more: {self.problems!r}")


@pytest.fixture
def caller(fabric: FakeFabric, pool: LocalWorkers, strict: bool) -> Caller:
    caller = Caller(pool, FakeVerbs(fabric, ["client0"]), strict=strict)
    caller.must_come_back()
    return caller


@pytest.mark.parametrize("name", ["client0", "node0"])
def test_a_port_goes_down_and_comes_back(fabric: FakeFabric, caller: Caller, name: str) -> None:
    for _ in range(2):
        fabric.set_port(name, False)
        caller.must_fall_back("down")
        fabric.set_port(name, True)
        caller.must_come_back()


@pytest.mark.parametrize("name", ["client0", "node0"])
def test_a_port_is_down_when_a_client_connects(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool, name: str
) -> None:
    FakeVerbs(fabric, ["client0"])
    fabric.set_port(name, False)
    rails = pool.workers[0].rails
    assert rails is not None
    rails.refresh()
    caller = Caller(pool, FakeVerbs(fabric, ["client0"]), strict=strict)
    caller.must_fall_back("down")
    fabric.set_port(name, True)
    caller.must_come_back()


@pytest.mark.parametrize("name", ["client0", "node0"])
def test_an_address_changes(fabric: FakeFabric, caller: Caller, name: str) -> None:
    port = fabric.adapters[name].ports[1]
    changed = tuple(replace(gid, value=gid.value[:-1] + b"\x77") for gid in port.gids)
    lost = sides(caller.client)[0].lost_lanes
    fabric.set_gids(name, changed)
    eventually(lambda: sides(caller.client)[0].lost_lanes >= lost + 4, "the end of the lanes")
    caller.must_come_back()
    fabric.set_gids(name, ())
    caller.must_fall_back("GID")
    fabric.set_gids(name, port.gids)
    caller.must_come_back()


@pytest.mark.parametrize("name", ["client0", "node0"])
def test_a_device_is_removed_and_comes_back(
    fabric: FakeFabric, caller: Caller, name: str
) -> None:
    for _ in range(2):
        gids = fabric.adapters[name].ports[1].gids
        fabric.remove_device(name)
        caller.must_fall_back(name)
        fabric.add_device(name)
        fabric.set_gids(name, gids)
        caller.must_come_back()


def test_a_device_of_a_client_without_memory_to_it_comes_back(
    fabric: FakeFabric, caller: Caller
) -> None:
    """Its first registration fails, as where too little memory may be locked."""
    fabric.remove_device("client0")
    caller.must_fall_back("client0")
    fabric.knobs.fails_at["region"] = 1
    fabric.add_device("client0")
    caller.must_come_back()


@contextmanager
def refused(fabric: FakeFabric, kind: str) -> Iterator[None]:
    """Have every device refuse something."""
    fabric.knobs.refuses.add(kind)
    yield
    fabric.knobs.refuses.remove(kind)


def test_a_refused_registration_is_said_and_tried_again(
    fabric: FakeFabric, caller: Caller
) -> None:
    with refused(fabric, "region"):
        other = Arena(caller.client, MIB)
        eventually(lambda: "no memory for a region" in caller.problems, "a problem")
        assert caller.goes_over_rdma()  # what is registered is not the worse for it
        data = content("other", SIZE)
        ptr = other.fill(0, data)
        assert caller.client.batch_put_from(["other"], [ptr], [SIZE]) == [0]
        assert caller.fallbacks == 1
    eventually(lambda: not caller.problems, "a second try")

    def goes_over_rdma() -> bool:
        before = caller.fallbacks
        other.fill(0, bytes(SIZE))
        assert caller.client.batch_get_into(["other"], [ptr], [SIZE]) == [SIZE]
        assert other.holds(0, data)
        return caller.fallbacks == before

    eventually(goes_over_rdma, "RDMA for that memory, too")
    caller.client.unregister_buffer(other.address)


@pytest.mark.parametrize("kind", ["region", "queue pair"])
def test_what_is_refused_from_the_start_is_tried_again(
    fabric: FakeFabric, pool: LocalWorkers, strict: bool, kind: str
) -> None:
    with refused(fabric, kind):
        caller = Caller(pool, FakeVerbs(fabric, ["client0"]), strict=strict)
        caller.must_fall_back(f"no memory for a {kind}")
    caller.must_come_back()


def test_windows_that_are_refused_cost_no_lane(fabric: FakeFabric, pool: LocalWorkers) -> None:
    caller = Caller(pool, FakeVerbs(fabric, ["client0"]), strict=True)
    caller.must_come_back()
    with refused(fabric, "window"):
        assert not caller.goes_over_rdma()
    assert caller.goes_over_rdma()
    assert sides(caller.client)[0].lost_lanes == 0


def test_without_pyverbs_it_is_said_how_to_get_it(fabric: FakeFabric, pool: LocalWorkers) -> None:
    verbs = FakeVerbs(fabric, ["client0"], missing="pyverbs is missing: apt install pyverbs")
    caller = Caller(pool, verbs)
    caller.must_fall_back("apt install pyverbs")
    verbs._missing = ""
    caller.must_come_back()


def test_a_machine_without_devices_says_so(fabric: FakeFabric, pool: LocalWorkers) -> None:
    caller = Caller(pool, FakeVerbs(fabric, []))
    caller.must_fall_back("no RDMA device")


# --- nodes ------------------------------------------------------------------------------------
def restart(worker: LocalWorker, port: int) -> None:
    worker.server = WorkerServer(
        NodeStore(worker.store),
        WorkerConfig(POOL, worker.uuid, 1, block_bytes_max=2 * MIB, port=port),
        SystemClock(), AnonymousVerifier(loopback=True), rails=worker.rails,
    )  # fmt: skip
    worker.server.start()


def test_a_node_is_started_anew(fabric: FakeFabric, pool: LocalWorkers, caller: Caller) -> None:
    worker = pool.workers[0]
    port = worker.server.port
    worker.server.stop()
    lanes = {one.lane for one in sides(caller.client)[0]._open}
    restart(worker, port)
    pool.stack.callback(worker.server.stop)
    eventually(lambda: all(lane.is_closed for lane in lanes), "the end of the lanes")
    caller.must_come_back()


# --- two rails --------------------------------------------------------------------------------
@contextmanager
def two_rails(fabric: FakeFabric, directory: Path) -> Iterator[LocalWorkers]:
    with local_workers(
        directory, 1, memory_bytes=48 * MIB, verbs=FakeVerbs(fabric, ["node0", "node1"])
    ) as pool:
        yield pool


def ports_used(client: Client) -> set[str]:
    return {one.lane.port.name for one in sides(client)[0]._open}


@pytest.mark.parametrize("side", ["client", "node"])
def test_one_of_two_rails_dies_and_the_other_carries_on(
    fabric: FakeFabric, tmp_path: Path, strict: bool, side: str
) -> None:
    with two_rails(fabric, tmp_path) as pool:
        caller = Caller(pool, FakeVerbs(fabric, ["client0", "client1"]), strict=strict)
        caller.must_come_back()
        assert ports_used(caller.client) == {"client0/1", "client1/1"}
        lost = sides(caller.client)[0].lost_lanes
        fabric.set_port(f"{side}1", False)
        eventually(
            lambda: sides(caller.client)[0].lost_lanes >= lost + 2
            and lanes_open(caller.client) == [4],
            "four lanes on the other rail",
        )
        assert caller.goes_over_rdma()
        if side == "client":
            assert ports_used(caller.client) == {"client0/1"}
        fabric.set_port(f"{side}1", True)
        eventually(lambda: len(ports_used(caller.client)) == 2, "lanes on both rails")
        caller.must_come_back()
        fabric.remove_device(f"{side}0")
        eventually(caller.goes_over_rdma, "RDMA over what is left")
