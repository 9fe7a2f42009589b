"""How long a store takes to open again after kill -9, with nothing of it in the page cache.

A process fills a store, says that all of it is durable, and is killed. Another one opens it and
asks for every block. What is timed is the open; starting Python is not.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memkv import keys, pattern
from memkv.bench.processes import drop_page_cache
from memkv.bench.results import MeasurementFailed
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
    """Seconds from opening the file to a store that answers, and how many blocks it knows."""

    seconds: float
    blocks: int
    blocks_back: int
    remark: str


def measure(directory: Path, blocks: int = BLOCKS) -> Reopen:
    """Fill, kill, open. Raises MeasurementFailed when a step fails."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "store.data"
    path.unlink(missing_ok=True)
    try:
        filler = subprocess.Popen(command("fill", path, blocks), stdout=subprocess.PIPE, text=True)
        try:
            assert filler.stdout is not None
            if filler.stdout.readline().strip() != "durable":
                raise MeasurementFailed("the store could not be filled; see the error above")
        finally:
            filler.kill()
            filler.wait()
        not_dropped = drop_page_cache()
        done = subprocess.run(
            command("open", path, blocks), stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise MeasurementFailed("the store could not be opened again; see the error above")
        found = json.loads(done.stdout)
    finally:
        path.unlink(missing_ok=True)
    remark = f"{found['blocks_back']:,} of {blocks:,} durable blocks back; {found['segments']}"
    return Reopen(
        found["seconds"], blocks, found["blocks_back"],
        f"{remark}; {not_dropped}" if not_dropped else f"{remark}; page cache dropped",
    )  # fmt: skip


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


def reopen(path: Path, blocks: int) -> dict[str, object]:
    """Open and count what is there."""
    begin = time.perf_counter()
    store = open_store(FileDevice.open(str(path)), StoreConfig(256 * MIB), CLOCK, RANDOM)
    seconds = time.perf_counter() - begin
    answers = memoryview(store.exists(TENANT, ids_of(blocks))).cast("i")
    segments = ", ".join(f"{count} segments {what}" for what, count in
                         sorted(store.recovery.segments.items()) if count)
    return {"seconds": seconds, "blocks_back": sum(answers), "segments": segments}


def main(arguments: Sequence[str]) -> None:
    what, path, blocks = arguments
    if what == "fill":
        fill(Path(path), int(blocks))
    else:
        print(json.dumps(reopen(Path(path), int(blocks))))


if __name__ == "__main__":
    main(sys.argv[1:])
