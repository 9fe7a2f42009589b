"""Frozen frames: a change here is a change of the protocol and needs a new version.

`python tests/unit/wire/test_golden.py` prints the frames as the code makes them today.
"""

import json
import re
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from memkv._hotpath import block_root, chunk_sums
from memkv.reasons import MissReason
from memkv.status import Status
from memkv.wire.events import EventsPage, EventsRequest, FeedFlag, FeedKind
from memkv.wire.frame import Frame, FrameReader, encode_error, encode_frame
from memkv.wire.hints import Hint
from memkv.wire.items import (
    Durability,
    PutItem,
    RangesItem,
    Source,
    encode_get_request,
    encode_get_result,
    encode_get_result_with_hint,
    encode_pull_request,
    encode_pull_result,
    encode_put_item,
    encode_ranges_request,
)
from memkv.wire.local import (
    Access,
    LocalGetItem,
    Part,
    RegisterRequest,
    encode_local_get,
    encode_local_put,
    encode_registered,
    encode_unregister,
)
from memkv.wire.messages import (
    HelloRequest,
    HelloResponse,
    LaneHello,
    ListEntry,
    ListKind,
    ListPage,
    ListRequest,
    encode_keys,
    encode_statuses,
    pack_statuses,
)
from memkv.wire.opcodes import Flag, Opcode, Transport
from memkv.wire.rdma import (
    ConnectRequest,
    End,
    RdmaRegister,
    encode_connected,
    encode_rdma_unregister,
)
from memkv.wire.ticket import anonymous_ticket

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "frames.json"
DOCUMENT = ROOT / "docs" / "wire-protocol.md"

ID_A, ID_B = bytes(range(32)), bytes(range(32, 64))
UUID_CLIENT, UUID_WORKER, UUID_SESSION = (bytes([value]) * 16 for value in (0xC1, 0xA1, 0x51))
LINEAGE = bytes([0x1E]) * 16
PAYLOAD = b"hello world, twice a block"
TENANT_TAG = blake2b(b"default", digest_size=16, person=b"memkv-tenant").digest()
SUMS = chunk_sums(PAYLOAD)
ROOT_SUM = block_root(ID_A, TENANT_TAG, len(PAYLOAD), SUMS)
DONE = Flag.RESPONSE | Flag.LAST
VERSION = {"map_epoch": 7, "map_term": 2}


HINT = Hint(0, 1234, 8, 2, UUID_WORKER, "127.0.0.1", 7071)


def golden_frames() -> dict[str, bytes]:
    """Return every frame this file freezes, by name."""
    return {
        **session_frames(), **payload_frames(), **local_frames(), **rdma_frames(),
        **control_frames(),
    }  # fmt: skip


def session_frames() -> dict[str, bytes]:
    """Return the frames that open and end a session."""
    ticket = anonymous_ticket("default/local", "default", 1_700_000_000, salt=b"salt").encode()
    granted = HelloResponse(
        1, UUID_WORKER, 3, UUID_SESSION, 16 << 20, 1024, 2 << 30, 5, LINEAGE, 2, 7,
        (bytes([0x70]) * 32, bytes([0x71]) * 32), f"/run/memkv/{UUID_WORKER.hex()}.sock",
    )  # fmt: skip
    hello = HelloRequest(
        UUID_CLIENT, "default/local", ticket, LINEAGE, Transport.TCP | Transport.LOCAL,
        protocol_max=1,
    ).encode()
    return {
        "hello": encode_frame(Opcode.HELLO, 0, 1, hello, deadline_ms=5000),
        "hello_response": encode_frame(Opcode.HELLO, DONE, 1, granted.encode()),
        "hello_refused": encode_error(Opcode.HELLO, 1, Status.DENIED, "no"),
        "lane_hello": encode_frame(
            Opcode.HELLO,
            Flag.LANE | Flag.EXPRESS,
            0,
            LaneHello(UUID_SESSION, bytes([0x70]) * 32).encode(),
            deadline_ms=5000,
        ),
        "lane_hello_response": encode_frame(Opcode.HELLO, DONE, 0),
        "goodbye": encode_frame(Opcode.GOODBYE, 0, 17),
        "goodbye_response": encode_frame(Opcode.GOODBYE, DONE, 17),
    }


def payload_frames() -> dict[str, bytes]:
    """Return the frames of lanes."""
    put = PutItem(
        ID_A, len(PAYLOAD), ROOT_SUM, SUMS, b"prefix01", b"session1", 60, 3, Durability.DURABLE
    )
    result = encode_get_result(0, 0, len(PAYLOAD), ROOT_SUM, SUMS, Source.FLASH)
    ranges = [RangesItem(ID_A, ((0, 5), (13, 5)))]
    get_body = encode_get_request(ID_A + ID_B, [4096, 8192])
    return {
        "put": encode_frame(
            Opcode.PUT, Flag.LAST, 9, encode_put_item(put), count=1, deadline_ms=2000,
            payload_bytes=len(PAYLOAD), **VERSION,
        ) + PAYLOAD,
        "put_response": encode_frame(Opcode.PUT, DONE, 9, pack_statuses([0]), count=1),
        "get": encode_frame(
            Opcode.GET, 0, 10, get_body, count=2, deadline_ms=2000, **VERSION
        ),
        "get_response_hit": encode_frame(
            Opcode.GET, Flag.RESPONSE, 10, result, count=1, payload_bytes=len(PAYLOAD)
        ) + PAYLOAD,
        "get_response_elsewhere": encode_frame(
            Opcode.GET,
            DONE | Flag.HINTS,
            10,
            encode_get_result_with_hint(1, Status.WRONG_OWNER, replace(HINT, index=1)),
            count=1,
        ),
        "get_failed": encode_error(Opcode.GET, 10, Status.BUSY, "over the session's credit"),
        "get_ranges": encode_frame(
            Opcode.GET_RANGES, 0, 11, encode_ranges_request(ranges), count=1, deadline_ms=2000
        ),
        "get_ranges_response": encode_frame(
            Opcode.GET_RANGES,
            DONE,
            11,
            encode_get_result(
                0, 0, 10, sums=chunk_sums(b"hello") + chunk_sums(b"twice")
            ),
            count=1,
            payload_bytes=10,
        ) + b"hellotwice",
        "pull": encode_frame(
            Opcode.PULL, 0, 18, encode_pull_request(TENANT_TAG, ID_A + ID_B), count=2,
            deadline_ms=2000, **VERSION,
        ),
        "pull_response": encode_frame(
            Opcode.PULL,
            DONE,
            18,
            encode_pull_result(result, (1_800_000_000, 3, b"prefix01", b"session1")),
            count=1,
            payload_bytes=len(PAYLOAD),
        ) + PAYLOAD,
    }  # fmt: skip


def local_frames() -> dict[str, bytes]:
    """Return the frames of lanes to a worker's Unix socket."""
    put = PutItem(ID_A, len(PAYLOAD), ROOT_SUM, SUMS, b"prefix01", b"session1", 60, 3)
    wanted = [
        LocalGetItem(ID_A, (Part(1, 4096, 16), Part(2, 0, 16))),
        LocalGetItem(ID_B, (Part(1, 8192, 8192),)),
    ]
    result = encode_get_result(0, 0, len(PAYLOAD), ROOT_SUM, SUMS, Source.FLASH)
    region = RegisterRequest(1, Access.READ | Access.WRITE, 65_536, 1 << 20)
    return {
        "register": encode_frame(Opcode.REGISTER, 0, 19, region.encode(), deadline_ms=2000),
        "register_response": encode_frame(Opcode.REGISTER, DONE, 19, encode_registered(True)),
        "register_refused": encode_error(Opcode.REGISTER, 19, Status.INVALID, "no"),
        "unregister": encode_frame(
            Opcode.UNREGISTER, 0, 20, encode_unregister(1), deadline_ms=2000
        ),
        "unregister_response": encode_frame(Opcode.UNREGISTER, DONE, 20),
        "local_get": encode_frame(
            Opcode.LOCAL_GET, 0, 21, encode_local_get(wanted), count=2, deadline_ms=2000, **VERSION
        ),
        "local_get_response_placed": encode_frame(
            Opcode.LOCAL_GET, Flag.RESPONSE, 21, result, count=1
        ),
        "local_get_response_miss": encode_frame(
            Opcode.LOCAL_GET, DONE, 21, encode_get_result(1, Status.MISS), count=1
        ),
        "local_put": encode_frame(
            Opcode.LOCAL_PUT, Flag.LAST, 22, encode_local_put(put, [Part(1, 0, len(PAYLOAD))]),
            count=1, deadline_ms=2000, **VERSION,
        ),
        "local_put_response": encode_frame(
            Opcode.LOCAL_PUT, DONE, 22, pack_statuses([0]), count=1
        ),
    }  # fmt: skip


def rdma_frames() -> dict[str, bytes]:
    """Return the frames of RDMA."""
    gids = [bytes(10) + b"\xff\xff" + bytes([10, 0, 0, host]) for host in (1, 2)]
    client, node = End(0x123456, 0xABCDEF, 4096, 0, gids[0]), End(17, 99, 1024, 0, gids[1])
    region = RdmaRegister(1, 2, Access.READ | Access.WRITE, 0xCAFE, 0x7F00_0000_1000, 1 << 20)
    put = PutItem(ID_A, len(PAYLOAD), ROOT_SUM, SUMS, b"prefix01", b"session1", 60, 3)
    wanted = [
        LocalGetItem(ID_A, (Part(1, 4096, 16), Part(2, 0, 16, key=0xBEEF))),
        LocalGetItem(ID_B, (Part(1, 8192, 8192),)),
    ]
    result = encode_get_result(0, 0, len(PAYLOAD), ROOT_SUM, SUMS, Source.DRAM)
    parts = [Part(1, 0, 20), Part(2, 4, len(PAYLOAD) - 20, key=0xBEEF)]
    return {
        "rdma_connect": encode_frame(
            Opcode.RDMA_CONNECT, 0, 23, ConnectRequest(client, 2, 3).encode(), deadline_ms=2000
        ),
        "rdma_connect_response": encode_frame(
            Opcode.RDMA_CONNECT, DONE, 23, encode_connected(node)
        ),
        "rdma_connect_refused": encode_error(Opcode.RDMA_CONNECT, 23, Status.UNAVAILABLE, "no"),
        "rdma_register": encode_frame(
            Opcode.RDMA_REGISTER, 0, 24, region.encode(), deadline_ms=2000
        ),
        "rdma_register_response": encode_frame(Opcode.RDMA_REGISTER, DONE, 24),
        "rdma_unregister": encode_frame(
            Opcode.RDMA_UNREGISTER, 0, 25, encode_rdma_unregister(1, 2), deadline_ms=2000
        ),
        "rdma_unregister_response": encode_frame(Opcode.RDMA_UNREGISTER, DONE, 25),
        "rdma_get": encode_frame(
            Opcode.RDMA_GET, 0, 26, encode_local_get(wanted), count=2, deadline_ms=2000, **VERSION
        ),
        "rdma_get_response_placed": encode_frame(
            Opcode.RDMA_GET, Flag.RESPONSE, 26, result, count=1
        ),
        "rdma_get_response_miss": encode_frame(
            Opcode.RDMA_GET, DONE, 26, encode_get_result(1, Status.MISS), count=1
        ),
        "rdma_put": encode_frame(
            Opcode.RDMA_PUT, Flag.LAST, 27, encode_local_put(put, parts), count=1,
            deadline_ms=2000, **VERSION,
        ),
        "rdma_put_response": encode_frame(
            Opcode.RDMA_PUT, DONE, 27, pack_statuses([0]), count=1
        ),
    }  # fmt: skip


def control_frames() -> dict[str, bytes]:
    """Return the requests of control connections, and their responses."""
    events = ID_A[:16] + b"prefix01" + bytes.fromhex("03000000 00000000")
    events += ID_B[:16] + bytes(8) + bytes.fromhex("00000000 01000000")
    page = ListPage(ListKind.BLOCKS, 99, (ListEntry(ID_A, TENANT_TAG, 26, 0, 3, 1_800_000_000),))
    return {
        "exists": encode_frame(
            Opcode.EXISTS, 0, 12, encode_keys(30_000, ID_A + ID_B), count=2, deadline_ms=500
        ),
        "exists_response": encode_frame(Opcode.EXISTS, DONE, 12, pack_statuses([1, 0]), count=2),
        "exists_response_elsewhere": encode_frame(
            Opcode.EXISTS,
            DONE | Flag.HINTS,
            12,
            encode_statuses(pack_statuses([Status.WRONG_OWNER, 1]), [HINT]),
            count=2,
        ),
        "delete": encode_frame(
            Opcode.DELETE, 0, 13, encode_keys(0, ID_A), count=1, deadline_ms=2000
        ),
        "pin": encode_frame(Opcode.PIN, 0, 14, encode_keys(60, ID_A), count=1, deadline_ms=2000),
        "stat": encode_frame(Opcode.STAT, 0, 15, deadline_ms=2000),
        "stat_response": encode_frame(Opcode.STAT, DONE, 15, b'{"blocks":1}'),
        "prefetch": encode_frame(
            Opcode.PREFETCH, 0, 28, encode_keys(0, ID_A + ID_B), count=2, deadline_ms=500
        ),
        "prefetch_response": encode_frame(
            Opcode.PREFETCH, DONE, 28, pack_statuses([2, Status.BUSY]), count=2
        ),
        "why": encode_frame(
            Opcode.WHY, 0, 29, encode_keys(0, ID_A + ID_B), count=2, deadline_ms=500
        ),
        "why_response": encode_frame(
            Opcode.WHY, DONE, 29,
            pack_statuses([MissReason.EVICTED, MissReason.NEVER_STORED]), count=2,
        ),
        "events": encode_frame(
            Opcode.EVENTS, 0, 30, EventsRequest(FeedKind.EVENTS, 0x1234, 99, 100).encode(),
            deadline_ms=500,
        ),
        "events_response": encode_frame(
            Opcode.EVENTS, DONE, 30, EventsPage(0x1234, 101, FeedFlag.NONE, events).encode(),
            count=2,
        ),
        "events_response_gap": encode_frame(
            Opcode.EVENTS, DONE, 30, EventsPage(0x1235, 7, FeedFlag.GAP).encode()
        ),
        "list": encode_frame(Opcode.LIST, 0, 16, ListRequest(1234).encode(), deadline_ms=2000),
        "list_tombstones": encode_frame(
            Opcode.LIST, 0, 16, ListRequest(1234, ListKind.TOMBSTONES, 77, 100, 6).encode(),
            deadline_ms=2000, **VERSION,
        ),
        "list_response": encode_frame(Opcode.LIST, DONE, 16, page.encode(), count=1),
    }


@pytest.mark.parametrize("name", sorted(golden_frames()))
def test_frame_is_byte_for_byte_what_was_frozen(name: str) -> None:
    frozen: dict[str, str] = json.loads(GOLDEN.read_text())
    assert golden_frames()[name].hex() == frozen[name]


def test_no_frozen_frame_lost_its_maker() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(golden_frames())


def test_all_frozen_frames_read_back_as_one_stream_in_each_direction() -> None:
    frozen: dict[str, str] = json.loads(GOLDEN.read_text())
    for responses in (False, True):
        stream = [bytes.fromhex(h) for h in frozen.values()]
        stream = [data for data in stream if bool(data[6] & Flag.RESPONSE) is responses]
        reader = FrameReader(responses=responses)
        events = reader.feed(b"".join(stream))
        reader.finish()
        assert sum(isinstance(event, Frame) for event in events) == len(stream)


def test_worked_example_in_the_document_is_the_frozen_one() -> None:
    text = DOCUMENT.read_text()
    frozen: dict[str, str] = json.loads(GOLDEN.read_text())
    blocks = dict(re.findall(r"<!-- frame: (\w+) -->\n```\n(.*?)```", text, re.DOTALL))
    assert {"put", "put_response", "get", "get_response_hit"} <= set(blocks)
    for name, block in blocks.items():
        digits = "".join(line.split("|")[0] for line in block.splitlines())
        assert re.sub(r"\s", "", digits) == frozen[name], name


if __name__ == "__main__":
    print(json.dumps({name: data.hex() for name, data in golden_frames().items()}, indent=1))
