"""A drive whose reads and writes fail for a while (dm-flakey over the NVMe drive): misses and
refused puts within their deadlines, no wrong byte, and service again when the drive is back."""

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv.limits import MIB
from memkv.pattern import block, seed_of
from memkv.status import Status
from memkv.testing.guest_node import GuestNode, drive, wiped
from memkv.testing.namespaces import within
from memkv.testing.wire_client import Block, Lane, RequestFailed
from memkv.wire.items import Durability

NAME = "memkv-flaky"
DEADLINE_MS = 5_000
SLACK_S = 20.0  # of an emulated machine beyond a deadline
BLOCKS = 24
BLOCK_BYTES = MIB
NODE_MEMORY_BYTES = 24 * MIB  # of which blocks get a part: most gets go to the drive
SECTOR_BYTES = 512
ERASE_S = 60.0


class Flaky:
    """The second drive behind dm-flakey."""

    def __init__(self) -> None:
        self._below = wiped(drive(1)).resolve()
        self.path = Path("/dev/mapper") / NAME
        self._dmsetup("create", NAME, "--table", self._table(""))

    def _table(self, errors: str) -> str:
        sectors = (Path("/sys/block") / self._below.name / "size").read_text().strip()
        kind = f"flakey {self._below} 0 {errors}" if errors else f"linear {self._below} 0"
        return f"0 {sectors} {kind}"

    def _load(self, table: str) -> None:
        self._dmsetup("load", NAME, "--table", table)
        self._dmsetup("suspend", "--noflush", "--nolockfs", NAME)
        self._dmsetup("resume", NAME)

    def fail_all(self) -> None:
        """From now on every read and write fails."""
        self._load(self._table("0 3600"))

    def fail_writes(self) -> None:
        """From now on every write fails; reads are answered."""
        self._load(self._table("0 3600 1 error_writes"))

    def work(self) -> None:
        self._load(self._table(""))

    def remove(self) -> None:
        self._dmsetup("remove", "--retry", NAME)

    def _dmsetup(self, *arguments: str) -> None:
        # No udev runs here to make device nodes, so libdevmapper must.
        environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
        subprocess.run(["dmsetup", *arguments], check=True, env=environment)


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    made = Flaky()
    yield made
    made.work()
    made.remove()


@pytest.fixture
def lane(flaky: Flaky) -> Iterator[Lane]:
    node = GuestNode(flaky.path, memory_bytes=NODE_MEMORY_BYTES)
    node.start()
    try:
        with within("client"), node.client() as client:
            yield client.lane()
        node.stop()
    finally:
        node.kill()


def new_block(durability: Durability) -> Block:
    made = random.randbytes(32)
    return Block(made, block(seed_of(made), BLOCK_BYTES), durability)


def put(lane: Lane, made: Block) -> Status:
    """Put one block; RETRY_LATER and the like come as the request's status or the block's."""
    try:
        [status] = lane.put([made], deadline_ms=DEADLINE_MS)
    except RequestFailed as error:
        return error.status
    return status


def get(lane: Lane, made: Block) -> bool:
    """Get one block: is it there? Asserts that it is right if so, and that the deadline holds."""
    began = time.monotonic()
    try:
        [item] = lane.get(made.block_id, deadline_ms=DEADLINE_MS).values()
        found = item.status is Status.OK
        assert not found or item.payload == made.data, "wrong bytes"
    except RequestFailed:
        found = False
    assert time.monotonic() - began < DEADLINE_MS / 1000 + SLACK_S
    return found


def wait_for_a_durable_put(lane: Lane) -> Block:
    """Put until one is acknowledged: segments that failed are erased first."""
    pause, give_up = threading.Event(), time.monotonic() + ERASE_S
    while put(lane, made := new_block(Durability.DURABLE)) is not Status.OK:
        assert time.monotonic() < give_up, "the node does not serve again"
        pause.wait(0.2)
    return made


@pytest.mark.parametrize("what", ["fail_all", "fail_writes"])
def test_errors_of_the_drive_are_misses_in_time_and_it_serves_again(
    flaky: Flaky, lane: Lane, what: str
) -> None:
    kept = [new_block(Durability.DURABLE) for _ in range(BLOCKS)]
    assert [put(lane, made) for made in kept] == [Status.OK] * BLOCKS
    getattr(flaky, what)()
    there = sum(get(lane, made) for made in kept)
    began = time.monotonic()
    during = put(lane, new_block(Durability.DURABLE))
    assert during is not Status.OK, "acknowledged as durable by a drive that takes no writes"
    assert time.monotonic() - began < DEADLINE_MS / 1000 + SLACK_S
    flaky.work()
    after = wait_for_a_durable_put(lane)
    assert get(lane, after)
    back = sum(get(lane, made) for made in kept)
    print(f"{what}: {there} of {BLOCKS} served during it, {back} afterwards; put: {during.name}")
    if what == "fail_all":
        assert there < BLOCKS, "the drive was to be asked"
    assert back >= there
    with contextlib.suppress(RequestFailed):
        assert lane.get(random.randbytes(32))[0].status is Status.MISS
