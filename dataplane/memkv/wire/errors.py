"""What can be wrong with bytes from a peer. Each message names the likely cause and the fix.

Every class is a `memkv.errors.ProtocolError`: after one of them nothing on that connection can be
trusted, so it is closed; where the peer can still be told, it gets an error frame first.
"""

from typing import ClassVar

from memkv.errors import ProtocolError
from memkv.status import Status


class WireError(ProtocolError):
    """Base of the errors below.

    `status` goes into the error frame; `request_id` and `opcode` are those of the offending frame
    where its header could be read, else 0.
    """

    status: ClassVar[Status] = Status.PROTOCOL

    def __init__(self, message: str, *, request_id: int = 0, opcode: int = 0) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.opcode = opcode


class BadMagic(WireError):
    """The bytes are not a MemKV frame at all."""


class VersionSkew(WireError):
    """A frame of a layout this build does not read, or no common protocol version."""


class BadSum(WireError):
    """Header or body changed on the way."""


class Oversized(WireError):
    """A length or count over its limit."""


class Truncated(WireError):
    """The stream ended, or a body ended, before it was complete."""


class UnknownOpcode(WireError):
    """An operation or a flag this protocol version does not have."""


class MalformedBody(WireError):
    """The body does not have the layout its header promises."""


class OutOfState(WireError):
    """A frame that is not allowed in this state of the connection."""


class UnexpectedResponse(WireError):
    """A response that answers no outstanding request."""
