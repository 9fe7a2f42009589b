"""Blocks over RDMA: clients and workers of this process on devices in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv.limits import KIB, MIB
from memkv.rdma.verbs import REMOTE, VerbsError
from memkv.status import Status
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import LocalWorkers, local_workers, open_breaker
from memkv.testing.registered import Arena, content
from memkv.testing.waiting import eventually

ROOM = 64 * MIB


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    fabric = FakeFabric()
    yield fabric
    assert fabric.open_objects() == {}
    fabric.close()


@pytest.fixture
def pool(tmp_path: Path, fabric: FakeFabric) -> Iterator[LocalWorkers]:
    with local_workers(
        tmp_path, 1, memory_bytes=48 * MIB, verbs=FakeVerbs(fabric, ["node0"])
    ) as pool:
        yield pool
    (tmp_path / "flash-0").unlink()


@pytest.fixture(params=[False, True], ids=["arena", "strict"])
def strict(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("size", [1, 4 * KIB, 64 * KIB, 300_000, 2 * MIB])
def test_blocks_go_and_come(
    pool: LocalWorkers, fabric: FakeFabric, strict: bool, size: int
) -> None:
    client, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["client0"]), strict=strict)
    arena = Arena(client)
    keys = [f"{n}" for n in range(8)]
    blocks = [content(key, size) for key in keys]
    ptrs = [arena.fill(n * 2 * MIB, data) for n, data in enumerate(blocks)]
    eventually(lambda: client.attachment.core.sessions()[0].rdma.lanes is not None, "lanes")
    assert client.batch_put_from(keys, ptrs, [size] * 8) == [0] * 8
    arena.view[:] = bytes(ROOM)
    assert client.batch_get_into(keys, ptrs, [2 * MIB] * 8) == [size] * 8
    for n, data in enumerate(blocks):
        assert bytes(arena.view[n * 2 * MIB : n * 2 * MIB + size]) == data
    statistics = client.stats()
    assert statistics.rdma_keys == 16
    assert statistics.rdma_fallbacks == 0


def test_no_node_memory_has_a_remote_right(pool: LocalWorkers, fabric: FakeFabric) -> None:
    rails = pool.workers[0].rails
    assert rails is not None
    assert not any(region.access & REMOTE for region in rails.regions())
    of_nodes = [one for one in fabric.registrations if one.device == "node0"]
    assert of_nodes
    assert not any(one.access & REMOTE for one in of_nodes)


# --- memory of another device -----------------------------------------------------------------
@pytest.fixture
def exported() -> Iterator[int]:
    """Stands in for the dma-buf of a GPU's memory: the fabric takes any file that can be mapped."""
    fd = os.memfd_create("exported")
    os.ftruncate(fd, 4 * MIB)
    yield fd
    os.close(fd)


GPU_ADDRESS = 0x7F00_0000_0000
"""Nothing is mapped there: whoever reads or writes it ends this process."""


def test_gets_reach_memory_that_no_cpu_can_read(
    pool: LocalWorkers, fabric: FakeFabric, exported: int
) -> None:
    fabric.knobs.accepts_dmabuf = True
    client, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["client0"]))
    data = content("k", MIB)
    assert client.put("k", data) == 0
    assert client.register_dmabuf(exported, MIB, 2 * MIB, ptr=GPU_ADDRESS) == 0
    eventually(lambda: client.attachment.core.sessions()[0].rdma.lanes is not None, "lanes")
    assert client.batch_get_into(["k"], [GPU_ADDRESS], [MIB]) == [MIB]
    assert os.pread(exported, MIB, MIB) == data
    assert client.batch_put_from(["new"], [GPU_ADDRESS], [MIB]) == [Status.UNAVAILABLE]
    ranges = client.batch_get_ranges(["k"], [[(0, 10)]], [GPU_ADDRESS], [10])
    assert ranges == [Status.UNAVAILABLE]
    fabric.set_port("client0", False)
    eventually(
        lambda: client.batch_get_into(["k"], [GPU_ADDRESS], [MIB]) == [Status.UNAVAILABLE],
        "an end without RDMA",
    )
    fabric.set_port("client0", True)
    assert client.unregister_buffer(GPU_ADDRESS) == 0


def test_a_device_that_takes_no_dmabuf_is_a_clear_error(
    pool: LocalWorkers, fabric: FakeFabric, exported: int
) -> None:
    client, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["client0"]))
    with pytest.raises(VerbsError, match="dma-buf"):
        client.register_dmabuf(exported, 0, MIB, ptr=GPU_ADDRESS)
    assert client.register_buffer(GPU_ADDRESS, MIB) == 0  # nothing of it was kept


def test_answers_over_rdma_close_the_breaker_again(
    pool: LocalWorkers, fabric: FakeFabric
) -> None:
    client, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["client0"]))
    arena = Arena(client)
    session = client.attachment.core.sessions()[0]
    eventually(lambda: session.rdma.lanes is not None, "lanes")
    assert client.batch_put_from(["k"], [arena.fill(0, content("k", MIB))], [MIB]) == [0]
    open_breaker(session)
    assert client.batch_get_into(["k"], [arena.address], [MIB]) == [MIB]
    assert session.breaker_state == "closed"
    assert client.stats().rdma_fallbacks == 0
