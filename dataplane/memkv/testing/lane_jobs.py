"""Jobs for lanes as tests want them: plain blocks of one tenant under small numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from memkv._hotpath import Engine, Job, LaneGroup, address_of
from memkv.testing.lane_peer import LanePeer
from memkv.wire.frame import encode_frame
from memkv.wire.items import PutItem, encode_get_request, encode_put_item
from memkv.wire.local import LocalGetItem, Part, encode_local_get
from memkv.wire.opcodes import Flag, Opcode

TENANT_TAG = bytes(range(16))


def soon(seconds: float = 20.0) -> int:
    """Return a monotonic deadline that a healthy test does not reach."""
    return time.monotonic_ns() + int(seconds * 1e9)


def identity(number: int) -> bytes:
    """Return the block id of item `number`."""
    return number.to_bytes(32, "little")


def get_job(targets: Sequence[bytearray | memoryview], deadline_ns: int | None = None) -> Job:
    """Return a GET of block i into target i."""
    ids = b"".join(identity(number) for number in range(len(targets)))
    body = encode_get_request(ids, [len(target) for target in targets])
    scatters = [[(address_of(target), len(target))] for target in targets]
    frame = encode_frame(Opcode.GET, Flag.NONE, 0, body, count=len(targets))
    return Job.get(frame, scatters, TENANT_TAG, deadline_ns or soon(), owner=targets)


def local_get_job(
    targets: Sequence[bytearray | memoryview], deadline_ns: int | None = None
) -> Job:
    """Return a LOCAL_GET of block i into target i, which is region i + 1."""
    items = [
        LocalGetItem(identity(number), (Part(number + 1, 0, len(target)),))
        for number, target in enumerate(targets)
    ]
    frame = encode_frame(Opcode.LOCAL_GET, Flag.NONE, 0, encode_local_get(items), count=len(items))
    scatters = [[(address_of(target), len(target))] for target in targets]
    return Job.local_get(frame, scatters, TENANT_TAG, deadline_ns or soon(), owner=targets)


def put_job(blocks: Sequence[bytes], deadline_ns: int | None = None) -> Job:
    """Return a PUT of block i (ttl 60 s, depth i), gathered from two pieces."""
    items = b"".join(
        encode_put_item(PutItem(identity(i), len(block), bytes(16), b"", ttl_s=60, depth=i))
        for i, block in enumerate(blocks)
    )
    frame = encode_frame(Opcode.PUT, Flag.NONE, 0, items, count=len(blocks))
    scatters = []
    for block in blocks:
        address, half = address_of(block), len(block) // 2
        scatters.append([(address, half), (address + half, len(block) - half)])
    return Job.put(frame, scatters, TENANT_TAG, deadline_ns or soon(), owner=blocks)


def group_with(
    engine: Engine, peer: LanePeer, lanes: int = 1, queue_max: int = 1024, grace_ms: int = 0
) -> LaneGroup:
    """Return a group with `lanes` connections to the peer."""
    group = LaneGroup(engine, "test", lanes, queue_max, grace_ms=grace_ms)
    for _ in range(lanes):
        group.add_lane(peer.connect())
    return group
