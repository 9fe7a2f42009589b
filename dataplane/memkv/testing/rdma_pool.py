"""A worker in a process of its own, on a raw drive and a soft-RoCE device, and clients beside it.

The process is forked from the test: importing MemKV anew takes seconds in an emulated machine.
"""

from __future__ import annotations

import mmap
import multiprocessing
import random
import resource
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from memkv._hotpath import address_of
from memkv.client.attach import Attachment
from memkv.client.options import LOCAL_OFF, ConnectOptions, PutOptions
from memkv.client.rdma_settings import RDMA_ON
from memkv.client.rdma_side import RdmaSide
from memkv.client.sync import Client
from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.limits import MIB
from memkv.node.config import WorkerConfig
from memkv.node.server import WorkerServer
from memkv.node.store_adapter import NodeStore
from memkv.pattern import block, seed_of
from memkv.rdma.client_memory import MemoryMode, RdmaOptions
from memkv.rdma.driver import PyVerbs
from memkv.rdma.rails import RailOptions, Rails
from memkv.rdma.verbs import REMOTE
from memkv.shardmap.map import MapVersion, ShardMap, Worker, pack_owners
from memkv.store.api import open_store
from memkv.store.config import StoreConfig
from memkv.testing.local_workers import POOL, SLOTS, StaticSource
from memkv.wire.ticket import AnonymousVerifier

NODE_ADDRESS, NODE_DEVICE, CLIENT_DEVICE = "10.98.0.1", "rxe0", "rxe1"
UUID = b"a worker in a vm"
WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time of the worker's process."""

    user_s: float
    system_s: float


@dataclass
class NodeProcess:
    """A worker that answers questions about itself."""

    process: ForkProcess
    pipe: Connection
    port: int

    def ask(self, question: str) -> object:
        self.pipe.send(question)
        return self.pipe.recv()

    def usage(self) -> Usage:
        answer = self.ask("usage")
        assert isinstance(answer, Usage)
        return answer

    def stop(self) -> None:
        """Close the store cleanly and end."""
        if self.process.is_alive():
            self.pipe.send("stop")
        self.process.join(60)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.join()

    def map(self) -> ShardMap:
        worker = Worker(UUID, 1, "node", NODE_ADDRESS, self.port)
        return ShardMap(MapVersion(bytes(16), 1, 1), SLOTS, (worker,), pack_owners([0] * SLOTS), {})


def serve(drive: Path, memory_bytes: int, pipe: Connection) -> None:
    """Be the worker's process."""
    device = FileDevice.open(str(drive))
    store = open_store(
        device,
        StoreConfig(memory_bytes, block_bytes_max=16 * MIB, worker_uuid=UUID, slots=SLOTS),
        SystemClock(), random.SystemRandom(),
    )  # fmt: skip
    rails = Rails(PyVerbs(), store.memory, RailOptions((NODE_DEVICE,)), SystemClock())
    server = WorkerServer(
        NodeStore(store), WorkerConfig(POOL, UUID, 1, NODE_ADDRESS, 0), SystemClock(),
        AnonymousVerifier(loopback=True), rails=rails,
    )  # fmt: skip
    server.start()
    pipe.send((server.port, rails.problems))
    while (question := pipe.recv()) != "stop":
        if question == "usage":
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(Usage(used.ru_utime, used.ru_stime))
        elif question == "remote rights":
            pipe.send([bool(region.access & REMOTE) for region in rails.regions()])
        elif question == "statistics":
            pipe.send(dict(store.statistics().counters))
        elif question == "rails":
            pipe.send((rails.usable, rails.problems, rails.queue_pairs, rails.broken))
    server.stop()
    rails.close()
    store.close(clean=True)
    device.close()


@contextmanager
def node(drive: Path, memory_bytes: int = 128 * MIB) -> Iterator[NodeProcess]:
    """Run a worker on a drive until the block ends."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=serve, args=(drive, memory_bytes, theirs), daemon=True)
    process.start()
    theirs.close()
    port, problems = ours.recv()
    running = NodeProcess(process, ours, port)
    assert problems == {}, problems
    try:
        yield running
    finally:
        if process.is_alive():
            running.stop()


@contextmanager
def client(
    running: NodeProcess, *, mode: MemoryMode = MemoryMode.ARENA, deadline_ms: int = 20_000
) -> Iterator[Client]:
    """A client on the other soft-RoCE device."""
    source = StaticSource()
    source.publish(running.map())
    options = replace(
        ConnectOptions("127.0.0.1:1", POOL, "default", deadline_ms, bootstrap_timeout_ms=20_000),
        rdma=RDMA_ON, rdma_options=RdmaOptions(mode, (CLIENT_DEVICE,)), local_dir=LOCAL_OFF,
    )  # fmt: skip
    made = Client(options, Attachment(options, source))
    try:
        yield made
    finally:
        made.close()


class Arena:
    """Registered memory of a client, whose lanes are up when this is made."""

    def __init__(self, made: Client, size_bytes: int) -> None:
        self.client = made
        self.memory = mmap.mmap(-1, size_bytes)
        self.view = memoryview(self.memory)
        self.address = address_of(self.memory)
        assert made.register_buffer(self.address, size_bytes) == 0
        self.wait_for_lanes()

    @property
    def side(self) -> RdmaSide:
        return self.client.attachment.core.sessions()[0].rdma

    @property
    def open_lanes(self) -> int:
        lanes = self.side.lanes
        return lanes.open_count if lanes is not None else 0

    def wait_for_lanes(self, *, hurry: bool = False) -> None:
        """`hurry`: without the pauses after lanes that broke."""

        def are_open() -> bool:
            if hurry:
                self.side._backoff.reset()
            return self.open_lanes > 0

        eventually(are_open, lambda: self.side.last_error)

    def put(self, keys: list[str], size_bytes: int) -> None:
        """Store blocks of the pattern, durably; they lie from the beginning of the memory on."""
        for at in range(0, len(keys), len(self.view) // size_bytes):
            some = keys[at : at + len(self.view) // size_bytes]
            for n, key in enumerate(some):
                self.view[n * size_bytes : (n + 1) * size_bytes] = block(seed_of(key), size_bytes)
            options = PutOptions(durability="durable")
            ptrs = [self.address + n * size_bytes for n in range(len(some))]
            done = self.client.batch_put_from(some, ptrs, [size_bytes] * len(some), options)
            assert done == [0] * len(some), done

    def get(self, keys: list[str], size_bytes: int) -> list[int]:
        """Read blocks to the beginning of the memory, one after another."""
        ptrs = [self.address + n * size_bytes for n in range(len(keys))]
        return self.client.batch_get_into(keys, ptrs, [size_bytes] * len(keys))

    def is_right(self, keys: list[str], size_bytes: int) -> bool:
        return all(
            self.holds(n * size_bytes, block(seed_of(key), size_bytes))
            for n, key in enumerate(keys)
        )

    def holds(self, offset: int, data: bytes) -> bool:
        """Whether exactly this lies there. (Bytes: memoryviews compare one element at a time.)"""
        return self.memory[offset : offset + len(data)] == data


def eventually(holds: Callable[[], bool], why_not: Callable[[], object]) -> None:
    """Wait for background work, which has no other signal."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, why_not()
        select.select([], [], [], 0.02)
