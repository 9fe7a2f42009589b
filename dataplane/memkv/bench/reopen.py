"""How long a store takes to open again after kill -9, with nothing of it in the page cache.

A process fills a store, says that all of it is durable, and is killed. Others open copies of what
it left, one a turn, and ask for every block. What is timed is the open; starting Python is not.
"""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from memkv import keys, pattern
from memkv.bench.processes import drop_page_cache
from memkv.bench.results import MeasurementFailed
from memkv.bench.statistics import PAIRS_MIN, median
from memkv.checksum import seal
from memkv.clock import SystemClock
from memkv.io.file_device import FileDevice
from memkv.limits import GIB, KIB, MIB
from memkv.status import Status
from memkv.store.api import PendingPut, StoreConfig, open_store
from memkv.store.requests import PutRequest
from memkv.tenant import Tenant

BLOCKS = 100_000
BLOCK_BYTES = 4 * KIB
CAPACITY_BYTES = 2 * GIB
BATCH = 256
PUT_TIMEOUT_NS = 60_000_000_000
TENANT = Tenant.named("bench")
CLOCK = SystemClock()
RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Reopen:
    """Seconds from opening a file to a store that answers, by turns, and how many blocks it knows
    (in the worst turn)."""

    turns: tuple[float, ...]
    blocks: int
    blocks_back: int
    remark: str

    @property
    def seconds(self) -> float:
        return median(self.turns)


def measure(directory: Path, blocks: int = BLOCKS, turns: int = PAIRS_MIN) -> Reopen:
    """Fill and kill, then open again and again. Raises MeasurementFailed when a step fails."""
    directory.mkdir(parents=True, exist_ok=True)
    left, path = directory / "left.data", directory / "store.data"
    left.unlink(missing_ok=True)
    try:
        fill_and_kill(left, blocks)
        found, not_dropped = [], ""
        for _ in range(turns):
            copy_written(left, path)
            not_dropped = drop_page_cache()
            found.append(open_in_a_process(path, blocks))
    finally:
        left.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    back = min(turn.blocks_back for turn in found)
    remark = f"{back:,} of {blocks:,} durable blocks back; {found[0].segments}"
    return Reopen(
        tuple(turn.seconds for turn in found), blocks, back,
        f"{remark}; {not_dropped}" if not_dropped else f"{remark}; page cache dropped",
    )  # fmt: skip


def fill_and_kill(path: Path, blocks: int) -> None:
    """Leave behind what a process killed by SIGKILL leaves."""
    filler = subprocess.Popen(command("fill", path, blocks), stdout=subprocess.PIPE, text=True)
    try:
        assert filler.stdout is not None
        if filler.stdout.readline().strip() != "durable":
            raise MeasurementFailed("the store could not be filled; see the error above")
    finally:
        filler.kill()
        filler.wait()


def copy_written(source: Path, target: Path) -> None:
    """Copy what was ever written; the rest is allocated and empty, as in the source."""
    with source.open("rb") as here, target.open("wb") as there:
        size, end = os.fstat(here.fileno()).st_size, 0
        os.posix_fallocate(there.fileno(), 0, size)
        while (begin := next_written(here.fileno(), end, size)) < size:
            end = os.lseek(here.fileno(), begin, os.SEEK_HOLE)
            while begin < end:
                begin += os.copy_file_range(
                    here.fileno(), there.fileno(), end - begin, begin, begin
                )


def next_written(fd: int, begin: int, size: int) -> int:
    """Return where the next written byte is, or `size`."""
    try:
        return os.lseek(fd, begin, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


@dataclass(frozen=True, slots=True)
class Opened:
    """What the process that opened a store says of it."""

    seconds: float
    blocks_back: int
    segments: str


def open_in_a_process(path: Path, blocks: int) -> Opened:
    """Open in a process of its own, which has nothing of the file in its memory."""
    done = subprocess.run(
        command("open", path, blocks), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise MeasurementFailed("the store could not be opened again; see the error above")
    return Opened(**json.loads(done.stdout))


def command(what: str, path: Path, blocks: int) -> list[str]:
    return [sys.executable, "-m", "memkv.bench.reopen", what, str(path), str(blocks)]


def ids_of(blocks: int) -> bytes:
    return keys.block_ids([f"reopen/{number}" for number in range(blocks)])


def fill(path: Path, blocks: int) -> None:
    """The process that is killed: store everything, say so, wait."""
    ids = ids_of(blocks)
    device = FileDevice.create(str(path), CAPACITY_BYTES)
    store = open_store(device, StoreConfig(256 * MIB), CLOCK, RANDOM)
    for begin in range(0, blocks, BATCH):
        deadline_ns = CLOCK.monotonic_ns() + PUT_TIMEOUT_NS
        pending: list[PendingPut] = []
        for number in range(begin, min(begin + BATCH, blocks)):
            block_id = ids[32 * number : 32 * number + 32]
            data = pattern.block(number, BLOCK_BYTES)
            made = seal(data, block_id, TENANT.tag)
            request = PutRequest(block_id, made.length, made.root, made.sums, durable=True)
            put = store.begin_put(TENANT, request, deadline_ns)
            if isinstance(put, Status):
                sys.exit(f"put of block {number}: {put.name}")
            put.payload[:] = data
            put.commit(made.sums)
            pending.append(put)
        for status in store.wait_durable(pending, deadline_ns):
            if status is not Status.OK:
                sys.exit(f"a put did not become durable: {Status(status).name}")
    print("durable", flush=True)
    sys.stdin.read()


def reopen(path: Path, blocks: int) -> Opened:
    """Open and count what is there."""
    begin = time.perf_counter()
    store = open_store(FileDevice.open(str(path)), StoreConfig(256 * MIB), CLOCK, RANDOM)
    seconds = time.perf_counter() - begin
    answers = memoryview(store.exists(TENANT, ids_of(blocks))).cast("i")
    segments = ", ".join(f"{count} segments {what}" for what, count in
                         sorted(store.recovery.segments.items()) if count)
    return Opened(seconds, sum(answers), segments)


def main(arguments: Sequence[str]) -> None:
    what, path, blocks = arguments
    if what == "fill":
        fill(Path(path), int(blocks))
    else:
        print(json.dumps(asdict(reopen(Path(path), int(blocks)))))


if __name__ == "__main__":
    main(sys.argv[1:])
