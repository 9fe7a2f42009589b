"""What only a raw NVMe drive shows: discards, its own word of its health, and one that turns bad
for longer than a pause (device mapper's error target over it)."""

import contextlib
import random
import subprocess
import threading
import time
from pathlib import Path

from memkv.clock import SystemClock
from memkv.io.block_device import BlockDevice
from memkv.limits import MIB
from memkv.node.drive_health import DriveHealth
from memkv.pattern import block, seed_of
from memkv.status import Status
from memkv.testing.guest_node import GuestNode, drive, wiped
from memkv.testing.namespaces import within
from memkv.testing.wire_client import Block, RequestFailed, WireClient
from memkv.wire.items import Durability

NAME = "memkv-bad"
FAULT_S = 120.0


def new_block() -> Block:
    made = random.randbytes(32)
    return Block(made, block(seed_of(made), MIB), Durability.DURABLE)


def test_an_nvme_drive_is_told_what_is_unused_when_it_is_formatted() -> None:
    path = wiped(drive(1))
    node = GuestNode(path)
    node.start()
    try:
        with within("client"), node.client() as client:
            counters = client.stat()["counters"]
            assert client.lane().put([new_block()]) == [Status.OK]
    finally:
        node.stop()
    assert counters["discards_refused"] == 0
    assert counters["discarded_bytes"] >= bytes_of(path) - MIB


def bytes_of(path: Path) -> int:
    sectors = (Path("/sys/block") / path.resolve().name / "size").read_text()
    return int(sectors) * 512


def test_an_nvme_drive_says_how_it_is() -> None:
    path = drive(1)
    known = BlockDevice.of(path.stat())
    assert known is not None
    answer = DriveHealth(str(path), known, SystemClock()).ask()
    print(f"health: {answer}")
    assert answer.health is not None, answer.cause
    assert answer.health.media_errors == 0


def dmsetup(*arguments: str) -> None:
    subprocess.run(["dmsetup", "--noudevsync", *arguments], check=True)


def put_until_faulted(client: WireClient) -> None:
    lane, pause, give_up = client.lane(), threading.Event(), time.monotonic() + FAULT_S
    while client.stat()["drive"]["state"] != "faulted":
        with contextlib.suppress(RequestFailed):  # busy, or too late
            assert lane.put([new_block()]) != [Status.OK], "durable on a drive that fails"
        assert time.monotonic() < give_up, client.stat()["drive"]
        pause.wait(0.2)


def test_a_drive_that_fails_for_long_is_faulted_until_the_node_starts_again() -> None:
    below = wiped(drive(1))
    sectors = bytes_of(below) // 512
    tables = {"linear": f"0 {sectors} linear {below.resolve()} 0", "error": f"0 {sectors} error"}
    dmsetup("create", NAME, "--table", tables["linear"])
    dmsetup("mknodes")  # there is no udev
    node = GuestNode(Path("/dev/mapper") / NAME)

    def become(kind: str) -> None:
        dmsetup("load", NAME, "--table", tables[kind])
        dmsetup("suspend", "--noflush", "--nolockfs", NAME)
        dmsetup("resume", NAME)

    try:
        node.start()
        kept = [new_block() for _ in range(4)]
        with within("client"), node.client() as client:
            assert client.lane().put(kept) == [Status.OK] * len(kept)
            become("error")
            put_until_faulted(client)
            [hit] = client.lane().get(kept[-1].block_id).values()
            assert hit.payload == kept[-1].data, "what is in DRAM is served"
            become("linear")
            assert client.lane().put([new_block()]) == [Status.UNAVAILABLE]
            print(f"said: {client.stat()['drive']}")
        node.kill()
        node.start()
        with within("client"), node.client() as client:
            assert client.stat()["drive"]["state"] == "healthy"
            got = client.lane().get(b"".join(made.block_id for made in kept))
            assert [got[n].payload for n in range(len(kept))] == [made.data for made in kept]
        node.stop()
    finally:
        node.kill()
        dmsetup("remove", "--retry", NAME)
