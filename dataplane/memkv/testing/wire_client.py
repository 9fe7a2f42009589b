"""A small blocking client of the data protocol over plain sockets, for tests of nodes.

It hides nothing: tests see each frame, and may send what no real client would.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from memkv.checksum import seal, verify_payload
from memkv.local.sockets import connect
from memkv.status import Status
from memkv.tenant import Tenant
from memkv.testing.encrypted_address import EncryptedAddress
from memkv.wire.client_session import ClientSession
from memkv.wire.frame import HEADER_BYTES, Frame, FrameReader, encode_frame, parse_header
from memkv.wire.items import (
    Durability,
    GetResult,
    PutItem,
    RangesItem,
    decode_get_result,
    decode_pull_result,
    encode_get_request,
    encode_pull_request,
    encode_put_item,
    encode_ranges_request,
)
from memkv.wire.local import (
    LocalGetItem,
    Part,
    RegisterRequest,
    decode_registered,
    encode_local_get,
    encode_local_put,
    encode_unregister,
)
from memkv.wire.messages import (
    HelloRequest,
    HelloResponse,
    ListPage,
    ListRequest,
    Statuses,
    decode_statuses,
    encode_keys,
    error_text,
    status_of,
    unpack_statuses,
)
from memkv.wire.opcodes import Flag, Opcode, Transport
from memkv.wire.ticket import CLIENT_RIGHTS, Rights, anonymous_ticket

SOCKET_TIMEOUT_S = 20.0  # a test that waits longer has found a hang
DEADLINE_MS = 5_000


class RequestFailed(Exception):
    """A response with a negative header status."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(f"{status.name}: {text}")
        self.status = status


class Wire:
    """One connection: frames out, frames in."""


    def __init__(self, address: tuple[str, int] | Path) -> None:
        if isinstance(address, Path):
            self.socket = connect(address, SOCKET_TIMEOUT_S)
        else:
            self.socket = socket.create_connection(address, timeout=SOCKET_TIMEOUT_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(address, EncryptedAddress):
            self.socket = address.tls.wrap_socket(
                self.socket, server_hostname=address.server_name
            )
        self._next_id = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_with_fds(self, data: bytes, fds: Sequence[int]) -> None:
        """Send a frame and pass descriptors with it (Unix sockets)."""
        assert socket.send_fds(self.socket, [data], list(fds)) == len(data)

    def receive_exactly(self, length: int) -> bytes:
        """Raises EOFError when the node closed the connection."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            received = self.socket.recv_into(view)
            if not received:
                raise EOFError("the node closed the connection")
            view = view[received:]
        return bytes(data)

    def receive(self) -> tuple[Frame, bytes]:
        """Return the next frame and its payload."""
        start = self.receive_exactly(HEADER_BYTES)
        header = parse_header(start, responses=True)
        [frame] = FrameReader(responses=True).feed(start + self.receive_exactly(header.body_bytes))
        assert isinstance(frame, Frame)
        return frame, self.receive_exactly(header.payload_bytes)

    def answer(self) -> Frame:
        """Return the next frame. Raises RequestFailed when it fails the whole request."""
        frame, _ = self.receive()
        if frame.header.status < 0:
            raise RequestFailed(status_of(frame.header.status), error_text(frame.body))
        return frame

    def is_closed_by_peer(self) -> bool:
        """Wait for the end of the stream; anything else that arrives means no."""
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True


@dataclass(frozen=True, slots=True)
class Block:
    """A block to put: its id, its bytes, and how."""

    block_id: bytes
    data: bytes
    durability: int = Durability.CACHED
    ttl_s: int = 0


@dataclass(frozen=True, slots=True)
class Got:
    """One item of a GET response with its bytes."""

    result: GetResult
    payload: bytes

    @property
    def status(self) -> Status:
        return status_of(self.result.status)


class Lane(Wire):
    """A bound payload lane."""

    def __init__(
        self, address: tuple[str, int] | Path, session: ClientSession, tenant: Tenant, *,
        express: bool,
    ) -> None:  # fmt: skip
        super().__init__(address)
        self.tenant = tenant
        self.send(session.encode_lane_hello(express=express))
        self.answer()

    def pull(self, ids: bytes, *, tag: bytes = b"", map_epoch: int = 0) -> list[Got]:
        """Pull blocks of a tenant, this session's by default; in order of arrival."""
        body = encode_pull_request(tag or self.tenant.tag, ids)
        self.send(
            encode_frame(
                Opcode.PULL,
                0,
                self.new_id(),
                body,
                count=len(ids) // 32,
                deadline_ms=DEADLINE_MS,
                map_epoch=map_epoch,
            )
        )
        items: list[Got] = []
        while True:
            frame, payload = self.receive()
            if frame.header.status < 0:
                raise RequestFailed(status_of(frame.header.status), error_text(frame.body))
            items.append(Got(decode_pull_result(frame.body).block, payload))
            if frame.header.flags & Flag.LAST:
                return items

    def register(self, request: RegisterRequest, fds: Sequence[int]) -> bool:
        """Pass descriptors with a REGISTER. Raises RequestFailed."""
        self.send_with_fds(
            encode_frame(
                Opcode.REGISTER, 0, self.new_id(), request.encode(), deadline_ms=DEADLINE_MS
            ),
            fds,
        )
        return decode_registered(self.answer().body)

    def unregister(self, number: int) -> None:
        """Raises RequestFailed."""
        body = encode_unregister(number)
        self.send(
            encode_frame(Opcode.UNREGISTER, 0, self.new_id(), body, deadline_ms=DEADLINE_MS)
        )
        self.answer()

    def local_get(
        self, items: Sequence[LocalGetItem], *, flags: int = 0, deadline_ms: int = DEADLINE_MS
    ) -> dict[int, Got]:
        """Have blocks placed; return what the node says of each. Raises RequestFailed."""
        body = encode_local_get(items)
        self.send(
            encode_frame(
                Opcode.LOCAL_GET,
                flags,
                self.new_id(),
                body,
                count=len(items),
                deadline_ms=deadline_ms,
            )
        )
        return self.receive_items()

    def local_put(
        self, block_id: bytes, parts: Sequence[Part], data: bytes, *, length: int | None = None
    ) -> list[Status]:
        """Put a block that lies in `parts` and should be `data`."""
        made = seal(data, block_id, self.tenant.tag)
        item = PutItem(block_id, length or made.length, made.root, made.sums)
        self.send(
            encode_frame(
                Opcode.LOCAL_PUT,
                Flag.LAST,
                self.new_id(),
                encode_local_put(item, parts),
                count=1,
                deadline_ms=DEADLINE_MS,
            )
        )
        return self.receive_statuses()

    def get_frame(
        self,
        ids: bytes,
        max_length: int = 16 << 20,
        *,
        flags: int = 0,
        deadline_ms: int = DEADLINE_MS,
        map_epoch: int = 0,
    ) -> bytes:
        count = len(ids) // 32
        body = encode_get_request(ids, [max_length] * count)
        return encode_frame(
            Opcode.GET,
            flags,
            self.new_id(),
            body,
            count=count,
            deadline_ms=deadline_ms,
            map_epoch=map_epoch,
        )

    def get(
        self,
        ids: bytes,
        max_length: int = 16 << 20,
        *,
        flags: int = 0,
        deadline_ms: int = DEADLINE_MS,
        map_epoch: int = 0,
    ) -> dict[int, Got]:
        """Return what came by index, each hit verified."""
        self.send(
            self.get_frame(
                ids, max_length, flags=flags, deadline_ms=deadline_ms, map_epoch=map_epoch
            )
        )
        got = self.receive_items()
        for index, item in got.items():
            if item.status is Status.OK:
                block_id = ids[32 * index : 32 * index + 32]
                assert verify_payload(
                    item.payload,
                    block_id,
                    self.tenant.tag,
                    item.result.length,
                    item.result.sums,
                    item.result.root,
                ), "wrong bytes"
        return got

    def get_ranges(
        self, items: Sequence[RangesItem], deadline_ms: int = DEADLINE_MS
    ) -> dict[int, Got]:
        self.send(
            encode_frame(
                Opcode.GET_RANGES,
                0,
                self.new_id(),
                encode_ranges_request(items),
                count=len(items),
                deadline_ms=deadline_ms,
            )
        )
        return self.receive_items()

    def receive_items(self) -> dict[int, Got]:
        """Read a whole GET response. Raises RequestFailed."""
        got: dict[int, Got] = {}
        while True:
            frame, payload = self.receive()
            header = frame.header
            if header.status < 0:
                raise RequestFailed(status_of(header.status), error_text(frame.body))
            result = decode_get_result(frame.body, hints=bool(header.flags & Flag.HINTS))
            assert result.index not in got
            got[result.index] = Got(result, payload)
            if header.flags & Flag.LAST:
                return got

    def put_frames(
        self,
        blocks: Sequence[Block],
        *,
        deadline_ms: int = DEADLINE_MS,
        tag: bytes | None = None,
        map_epoch: int = 0,
    ) -> list[bytes]:
        """Return the frames of a batch, each with its payload."""
        request_id = self.new_id()
        frames: list[bytes] = []
        for position, block in enumerate(blocks):
            made = seal(block.data, block.block_id, tag or self.tenant.tag)
            item = PutItem(
                block.block_id,
                made.length,
                made.root,
                made.sums,
                durability=block.durability,
                ttl_s=block.ttl_s,
            )
            flags = Flag.LAST if position == len(blocks) - 1 else Flag.NONE
            frames.append(
                encode_frame(
                    Opcode.PUT,
                    flags,
                    request_id,
                    encode_put_item(item),
                    count=1,
                    deadline_ms=deadline_ms,
                    payload_bytes=made.length,
                    map_epoch=map_epoch,
                )
                + block.data
            )
        return frames

    def put(
        self, blocks: Sequence[Block], *, deadline_ms: int = DEADLINE_MS, map_epoch: int = 0
    ) -> list[Status]:
        frames = self.put_frames(blocks, deadline_ms=deadline_ms, map_epoch=map_epoch)
        self.send(b"".join(frames))
        return self.receive_statuses()

    def receive_statuses(self) -> list[Status]:
        frame = self.answer()
        return [
            status_of(value)
            for value in unpack_statuses(decode_statuses(frame.header, frame.body).values)
        ]


class WireClient:
    """A session: its control connection, and lanes on demand."""

    def __init__(
        self,
        address: tuple[str, int],
        pool: str,
        tenant: str = "default",
        *,
        rights: Rights = CLIENT_RIGHTS,
        now_s: int = 1,
        ticket: bytes = b"",
    ) -> None:
        """`ticket`: shown instead of an unsigned one."""
        self.address = address
        self.tenant = Tenant.named(tenant)
        ticket = ticket or anonymous_ticket(pool, tenant, now_s, rights=rights).encode()
        transports = Transport.TCP | Transport.LOCAL
        self.session = ClientSession(
            HelloRequest(os.urandom(16), pool, ticket, transports=transports)
        )
        self.control = Wire(address)
        self.lanes: list[Lane] = []
        self.granted = self.hello()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for wire in [*self.lanes, self.control]:
            wire.close()

    def hello(self) -> HelloResponse:
        """Open the session, or renew it. Raises SessionRefused."""
        self.control.send(self.session.encode_hello())
        frame, _ = self.control.receive()
        return self.session.hello_answered(*frame)

    def lane(self, *, express: bool = False) -> Lane:
        """Open another lane."""
        lane = Lane(self.address, self.session, self.tenant, express=express)
        self.lanes.append(lane)
        return lane

    def local_lane(self) -> Lane:
        """Open a lane to the worker's Unix socket."""
        lane = Lane(Path(self.granted.local_path), self.session, self.tenant, express=False)
        self.lanes.append(lane)
        return lane

    def request(
        self,
        opcode: int,
        body: bytes = b"",
        count: int = 0,
        *,
        deadline_ms: int = DEADLINE_MS,
        map_epoch: int = 0,
    ) -> Frame:
        """Send one control request and return its response. Raises RequestFailed."""
        self.control.send(
            encode_frame(
                opcode,
                0,
                self.control.new_id(),
                body,
                count=count,
                deadline_ms=deadline_ms,
                map_epoch=map_epoch,
            )
        )
        return self.control.answer()

    def statuses(
        self,
        opcode: int,
        ids: bytes,
        argument: int = 0,
        *,
        deadline_ms: int = DEADLINE_MS,
        map_epoch: int = 0,
    ) -> Statuses:
        body = encode_keys(argument, ids)
        frame = self.request(
            opcode, body, len(ids) // 32, deadline_ms=deadline_ms, map_epoch=map_epoch
        )
        return decode_statuses(*frame)

    def exists(self, ids: bytes, map_epoch: int = 0) -> list[int]:
        return list(
            unpack_statuses(self.statuses(Opcode.EXISTS, ids, map_epoch=map_epoch).values)
        )

    def delete(self, ids: bytes, map_epoch: int = 0) -> list[int]:
        return list(
            unpack_statuses(self.statuses(Opcode.DELETE, ids, map_epoch=map_epoch).values)
        )

    def pin(self, ids: bytes, ttl_s: int) -> list[int]:
        return list(unpack_statuses(self.statuses(Opcode.PIN, ids, ttl_s).values))

    def stat(self) -> dict[str, Any]:
        facts = json.loads(self.request(Opcode.STAT).body)
        assert isinstance(facts, dict)
        return facts

    def list_page(self, request: ListRequest, map_epoch: int = 0) -> ListPage:
        frame = self.request(Opcode.LIST, request.encode(), map_epoch=map_epoch)
        return ListPage.decode(frame.body, frame.header.item_count)

    def goodbye(self) -> None:
        self.request(Opcode.GOODBYE)
