"""A node on the raw drive, by its stable name, and a client in the other namespace, over TCP."""

import os
import random
from collections.abc import Iterator

import pytest

from memkv.limits import KIB, MIB
from memkv.pattern import block, seed_of
from memkv.status import Status
from memkv.testing.guest_node import GuestNode, drive, wiped
from memkv.testing.namespaces import within
from memkv.testing.wire_client import Block, Lane
from memkv.wire.items import Durability, Source

LENGTHS = (1, 4 * KIB, 70_000, MIB + 1, 2 * MIB)


@pytest.fixture
def node() -> Iterator[GuestNode]:
    started = GuestNode(wiped(drive()))
    started.start()
    yield started
    started.kill()


def durable(count: int) -> list[Block]:
    ids = [random.randbytes(32) for _ in range(count)]
    return [
        Block(made, block(seed_of(made), LENGTHS[n % len(LENGTHS)]), Durability.DURABLE)
        for n, made in enumerate(ids)
    ]


def sources(lane: Lane, blocks: list[Block]) -> set[int]:
    """Get all blocks, compare each byte, and return where they came from."""
    got = lane.get(b"".join(made.block_id for made in blocks))
    for number, made in enumerate(blocks):
        assert got[number].status is Status.OK
        assert got[number].payload == made.data
    return {item.result.source for item in got.values()}


def test_the_drive_has_a_stable_name() -> None:
    assert drive().name == "nvme-QEMU_NVMe_Ctrl_memkv0"
    assert drive().is_block_device()


def test_blocks_go_between_the_namespaces_and_outlive_restarts(node: GuestNode) -> None:
    blocks = durable(10)
    with within("client"), node.client() as client:
        lane = client.lane()
        assert lane.put(blocks) == [Status.OK] * len(blocks)
        sources(lane, blocks)
        [miss] = lane.get(os.urandom(32)).values()
        assert miss.status is Status.MISS
    node.stop()
    node.start()
    with within("client"), node.client() as client:
        assert sources(client.lane(), blocks) == {Source.FLASH}
    node.kill()
    node.start()
    with within("client"), node.client() as client:
        lane = client.lane()
        assert sources(lane, blocks) == {Source.FLASH}
        assert client.delete(b"".join(made.block_id for made in blocks)) == [0] * len(blocks)


def test_the_client_is_elsewhere_than_the_node(node: GuestNode) -> None:
    with pytest.raises(OSError):  # the first namespace has no way to it
        node.client()
