"""The client's side of a session: the twin of `session.py`. No sockets, threads or time.

Rule: a response is believed only when it answers a request that is outstanding, with the opcode
that was sent and no more items than were asked for.
"""

from memkv import limits
from memkv.errors import RetryLater
from memkv.status import Status
from memkv.wire.errors import UnexpectedResponse, VersionSkew
from memkv.wire.frame import FrameHeader, encode_frame
from memkv.wire.messages import (
    HelloRequest,
    HelloResponse,
    LaneHello,
    error_text,
    status_of,
)
from memkv.wire.opcodes import Flag, Opcode
from memkv.wire.session import Credits


class SessionRefused(RetryLater):
    """The node answered HELLO with a negative status; `status` and the message say why."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(f"{status.name}: {text}")
        self.status = status


class NoLaneTokens(RetryLater):
    """All one-time tokens are used. Send HELLO again on the control connection for fresh ones."""


class Outstanding:
    """Requests sent on one connection and not yet answered in full."""

    def __init__(self) -> None:
        self._items_left: dict[int, tuple[int, int]] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._items_left)

    def send(self, opcode: int, items: int) -> int:
        """Register a request and return its id. `items`: frames with an item that may come back."""
        request_id = self._next_id
        self._next_id += 1
        self._items_left[request_id] = (opcode, items)
        return request_id

    def received(self, header: FrameHeader) -> bool:
        """Account for a response frame; True when it completes its request.

        Raises UnexpectedResponse.
        """
        opcode, left = self._items_left.get(header.request_id, (0, 0))
        if opcode != header.opcode:
            raise UnexpectedResponse(
                f"a response to request {header.request_id} with opcode {header.opcode}, which is "
                "not outstanding here: the node has a bug or the stream is another's; reconnect",
                request_id=header.request_id,
                opcode=header.opcode,
            )
        if header.item_count > left:
            raise UnexpectedResponse(
                f"request {header.request_id}: more items come back than were asked for: the node "
                "has a bug; compare the versions of both sides",
                request_id=header.request_id,
                opcode=header.opcode,
            )
        if header.flags & Flag.LAST:
            del self._items_left[header.request_id]
            return True
        self._items_left[header.request_id] = (opcode, left - header.item_count)
        return False


class ClientSession:
    """What a client knows of its session with one worker, from HELLO to GOODBYE."""

    def __init__(self, hello: HelloRequest) -> None:
        self.hello = hello
        self.granted: HelloResponse | None = None
        self.credits = Credits()
        self.control = Outstanding()
        self._tokens: list[bytes] = []

    @property
    def tokens_left(self) -> int:
        return len(self._tokens)

    def encode_hello(self, deadline_ms: int = limits.HANDSHAKE_TIMEOUT_MS) -> bytes:
        """Return the frame that opens the session, or renews its lane tokens."""
        request_id = self.control.send(Opcode.HELLO, 0)
        body = self.hello.encode()
        return encode_frame(Opcode.HELLO, 0, request_id, body, deadline_ms=deadline_ms)

    def hello_answered(self, header: FrameHeader, body: bytes) -> HelloResponse:
        """Take the node's answer. Raises SessionRefused, VersionSkew or another WireError."""
        self.control.received(header)
        if header.status < 0:
            raise SessionRefused(status_of(header.status), error_text(body))
        granted = HelloResponse.decode(body)
        if not self.hello.protocol_min <= granted.protocol <= self.hello.protocol_max:
            raise VersionSkew(
                f"the node chose protocol {granted.protocol}, offered were "
                f"{self.hello.protocol_min} to {self.hello.protocol_max}: upgrade the node"
            )
        if self.granted is not None and granted.session_uuid != self.granted.session_uuid:
            raise UnexpectedResponse(
                "the node renewed another session than this one: the node has a bug; reconnect"
            )
        self.granted = granted
        self.credits.window_bytes = granted.credit_bytes
        self._tokens = list(granted.lane_tokens)
        return granted

    def encode_lane_hello(
        self, *, express: bool, deadline_ms: int = limits.HANDSHAKE_TIMEOUT_MS
    ) -> bytes:
        """Return the first frame of a new lane; uses up a token. Raises NoLaneTokens."""
        if self.granted is None or not self._tokens:
            raise NoLaneTokens("no lane token left: renew the session with HELLO first")
        flags = Flag.LANE | Flag.EXPRESS if express else Flag.LANE
        body = LaneHello(self.granted.session_uuid, self._tokens.pop()).encode()
        return encode_frame(Opcode.HELLO, flags, 0, body, deadline_ms=deadline_ms)
