"""Loads of vLLM that a NIC writes into memory which no CPU can read, on devices in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv import _hotpath
from memkv.client.sync import Client
from memkv.errors import ConfigError
from memkv.integrations.arena import HeaderPages
from memkv.integrations.keys import Namespace
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory
from memkv.integrations.vllm.gpu_direct import CudaDriver, DirectLoads, direct_or_copied
from memkv.integrations.vllm.memory import InPlaceMemory
from memkv.integrations.vllm.messages import FailedLoad, Transfer
from memkv.integrations.vllm.mover import Mover
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.limits import KIB, MIB
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import LocalWorkers, local_workers
from memkv.testing.waiting import eventually

GPU_ADDRESS = 0x7F00_0000_0000
"""Nothing is mapped there: whoever reads or writes it ends this process."""
OFFSET = 512  # of the cache in a page: allocators of GPU memory hand out smaller pieces than pages
LAYERS, BLOCKS, LAYER_BYTES = 3, 8, 64 * KIB
CACHE_BYTES = LAYERS * BLOCKS * LAYER_BYTES
NAME = Namespace("model", "", "uint8", "vllm:test/3xH1", 16, "vllm/sha256/0")
WAIT_S = 60


class Gpu:
    """A GPU's memory and driver: the memory is a file, which the fabric maps like a dma-buf."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("gpu")
        os.ftruncate(self.fd, 2 * MIB)
        self.exports: list[tuple[int, int]] = []
        self.shown = 0
        self.is_model_over = True
        self.is_broken = False

    def export(self, address: int, size_bytes: int) -> int:
        self.exports.append((address, size_bytes))
        return os.dup(self.fd)

    def after_model(self) -> Callable[[], bool]:
        return lambda: self.is_model_over

    def show_writes(self) -> None:
        if self.is_broken:
            raise ConfigError("cuFlushGPUDirectRDMAWrites failed: CUDA error 719")
        self.shown += 1

    def read(self, place: int) -> bytes:
        begins = [(layer * BLOCKS + place) * LAYER_BYTES + OFFSET for layer in range(LAYERS)]
        return b"".join(os.pread(self.fd, LAYER_BYTES, begin) for begin in begins)


class Host:
    """What blocks are copied through: here, a second cache with the same places."""

    def __init__(self) -> None:
        self.bytes = bytearray(os.urandom(CACHE_BYTES))
        self.memory = InPlaceMemory([runs_at(_hotpath.address_of(memoryview(self.bytes)))])

    def read(self, place: int) -> bytes:
        begins = [(layer * BLOCKS + place) * LAYER_BYTES for layer in range(LAYERS)]
        return b"".join(bytes(self.bytes[begin : begin + LAYER_BYTES]) for begin in begins)


class Rig:
    """A mover over a cache in GPU memory."""

    def __init__(self, client: Client, gpu: Gpu) -> None:
        self.gpu, self.host = gpu, Host()
        self.now_ns = time.monotonic_ns()
        self.memory = DirectLoads(
            client, gpu, [runs_at(GPU_ADDRESS + OFFSET)], [(GPU_ADDRESS + OFFSET, CACHE_BYTES)],
            self.host.memory, lambda: self.now_ns,
        )  # fmt: skip
        self.pages = HeaderPages(client, 16)
        self.mover = Mover(
            client, self.memory, self.pages, 0, batch_bytes=2 * MIB, in_flight_bytes=8 * MIB,
            load_deadline_ms=30_000, now_ns=time.monotonic_ns,
        )

    def store(self, numbers: range) -> None:
        """Store blocks, each from the host's place of its number."""
        self.mover.store(transfer(1, {number: number for number in numbers}))
        assert self.end() == []
        assert self.mover.take_counts()["store_blocks"] == len(numbers)

    def load(self, places: dict[int, int]) -> list[FailedLoad]:
        self.mover.load(transfer(2, places))
        return self.end()

    def end(self) -> list[FailedLoad]:
        failed = []
        deadline = time.monotonic() + WAIT_S
        while self.mover.is_busy:
            assert time.monotonic() < deadline
            failed += self.mover.poll(wait_ms=10).failed
        return failed

    def close(self) -> None:
        self.memory.close()
        self.pages.close()


def runs_at(address: int) -> BlockRuns:
    """Layers one after the other, each with its blocks side by side."""
    return BlockRuns(
        [LayerMemory(address + layer * BLOCKS * LAYER_BYTES, (BLOCKS, LAYER_BYTES),
                     (LAYER_BYTES, 1), 1) for layer in range(LAYERS)],
        BLOCKS,
    )  # fmt: skip


def transfer(job: int, places: dict[int, int]) -> Transfer:
    return Transfer(job, f"request-{job}", (NAME,), b"prefix..", [
        PlacedBlock(number, 0, place, bytes((number,)) * 32) for number, place in places.items()
    ])  # fmt: skip


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    fabric = FakeFabric()
    fabric.knobs.accepts_dmabuf = True
    yield fabric
    assert fabric.open_objects() == {}
    fabric.close()


@pytest.fixture
def pool(tmp_path: Path, fabric: FakeFabric) -> Iterator[LocalWorkers]:
    verbs = FakeVerbs(fabric, ["node0"])
    with local_workers(tmp_path, 1, memory_bytes=48 * MIB, verbs=verbs) as pool:
        yield pool
    (tmp_path / "flash-0").unlink()


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    os.close(gpu.fd)


@pytest.fixture
def client(pool: LocalWorkers, fabric: FakeFabric) -> Client:
    client, _ = pool.client(pool.map(), verbs=FakeVerbs(fabric, ["client0"]))
    return client


@pytest.fixture
def rig(client: Client, gpu: Gpu) -> Iterator[Rig]:
    rig = Rig(client, gpu)
    eventually(lambda: client.attachment.core.sessions()[0].rdma.lanes is not None, "lanes")
    yield rig
    rig.close()


def test_loads_land_in_gpu_memory_and_nowhere_else(rig: Rig, client: Client, gpu: Gpu) -> None:
    rig.store(range(4))
    before = bytes(rig.host.bytes)
    assert rig.load({number: 7 - number for number in range(4)}) == []
    for number in range(4):
        assert gpu.read(7 - number) == rig.host.read(number)
    assert gpu.read(0) == bytes(LAYERS * LAYER_BYTES), "a place that nobody asked for"
    assert bytes(rig.host.bytes) == before
    assert gpu.shown, "kernels were not told of what a NIC wrote"
    assert client.stats().rdma_keys >= 4


def test_whole_pages_are_exported(rig: Rig, gpu: Gpu) -> None:
    page = os.sysconf("SC_PAGESIZE")
    assert gpu.exports == [(GPU_ADDRESS, CACHE_BYTES + page)]


def test_a_place_is_not_written_before_the_model_is_done_with_it(rig: Rig, gpu: Gpu) -> None:
    rig.store(range(1))
    gpu.is_model_over = False
    rig.mover.load(transfer(2, {0: 3}))
    for _ in range(20):
        assert rig.mover.poll(wait_ms=5).loads == []
    assert gpu.read(3) == bytes(LAYERS * LAYER_BYTES)
    gpu.is_model_over = True
    assert rig.end() == []
    assert gpu.read(3) == rig.host.read(0)


def test_without_lanes_loads_go_through_host_memory_for_a_while(
    rig: Rig, gpu: Gpu, fabric: FakeFabric
) -> None:
    rig.store(range(2))
    stored = rig.host.read(0)
    fabric.set_port("client0", False)
    eventually(lambda: rig.load({0: 3}) != [], "a load that reaches no GPU")
    eventually(lambda: rig.load({0: 4}) == [], "the same by way of the host")
    assert rig.host.read(4) == stored
    fabric.set_port("client0", True)

    def lands_in_gpu_memory() -> bool:
        rig.now_ns += 6_000_000_000
        return rig.load({0: 5}) == []

    eventually(lands_in_gpu_memory, "direct loads again")
    assert gpu.read(5) == stored


def test_a_gpu_that_cannot_show_what_was_written_fails_the_load(rig: Rig, gpu: Gpu) -> None:
    rig.store(range(2))
    gpu.is_broken = True
    (failed,) = rig.load({0: 0, 1: 1})
    assert failed.first_missing == 0
    assert rig.load({0: 5}) == [], "through host memory"
    assert rig.host.read(5) == rig.host.read(0)


def test_blocks_that_are_not_there_fail_the_load(rig: Rig) -> None:
    rig.store(range(2))
    (failed,) = rig.load({0: 0, 1: 1, 2: 2})
    assert failed.first_missing == 2


def test_where_no_nic_takes_it_blocks_are_copied(
    client: Client, gpu: Gpu, fabric: FakeFabric, caplog: pytest.LogCaptureFixture
) -> None:
    fabric.knobs.accepts_dmabuf = False
    host = Host()
    found = direct_or_copied(
        client, [runs_at(GPU_ADDRESS)], [(GPU_ADDRESS, CACHE_BYTES)], host.memory,
        time.monotonic_ns, lambda: gpu,
    )  # fmt: skip
    assert found is host.memory
    assert "cannot register a dma-buf" in caplog.text


# --- the driver -------------------------------------------------------------------------------
LIBRARY = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
static int wanted(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}
int cuCtxGetDevice(int *device) { *device = 3; return wanted("NO_CONTEXT", 0); }
int cuDeviceGetAttribute(int *value, int number, int device) {
    if (device != 3) return 101;
    *value = number == 124 ? wanted("DMABUF", 1) : number == 118 ? wanted("ORDER", 100)
           : number == 117 ? wanted("FLUSH", 1) : -1;
    return 0;
}
int cuMemGetHandleForAddressRange(void *fd, uint64_t address, size_t size, int kind,
                                  uint64_t flags) {
    printf("export %#llx %zu %d %llu\n", (unsigned long long)address, size, kind,
           (unsigned long long)flags);
    fflush(stdout);
    *(int *)fd = memfd_create("gpu", 0);
    return 0;
}
int cuFlushGPUDirectRDMAWrites(int target, int scope) {
    printf("flush %d %d\n", target, scope);
    fflush(stdout);
    return 0;
}
"""
PROGRAM = """
import os
from memkv.errors import ConfigError
from memkv.integrations.vllm.gpu_direct import CudaDriver
try:
    driver = CudaDriver()
    os.fstat(driver.export(0x7F0000000000, 3 << 32))
    driver.show_writes()
except ConfigError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libcuda.so.1 that says how it was called."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "cuda.c").write_text(LIBRARY)
    made, source = str(folder / "libcuda.so.1"), str(folder / "cuda.c")
    command = ["gcc", "-shared", "-fPIC", "-o", made, source]
    subprocess.run(command, check=True, timeout=WAIT_S)
    return folder


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ["export 0x7f0000000000 12884901888 1 0"]),
        ({"ORDER": "0"}, ["export 0x7f0000000000 12884901888 1 0", "flush 0 100"]),
        ({"ORDER": "0", "FLUSH": "2"}, ["the GPU neither orders"]),
        ({"DMABUF": "0"}, ["the GPU's driver exports no dma-bufs"]),
        ({"NO_CONTEXT": "201"}, ["cuCtxGetDevice failed: CUDA error 201"]),
    ],
    ids=["ordered", "to be flushed", "neither", "no dma-bufs", "no context"],
)
def test_the_driver_is_called_as_it_wants(
    library: Path, variables: dict[str, str], said: list[str]
) -> None:
    environment = {**os.environ, **variables, "LD_LIBRARY_PATH": str(library)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True,
        timeout=WAIT_S, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(text) for line, text in zip(lines, said, strict=True))


def test_a_machine_without_a_gpu_says_so() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"CUDA"):
        CudaDriver()
