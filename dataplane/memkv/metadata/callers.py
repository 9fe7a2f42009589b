"""Who calls the metadata service: what a call presented, and whom that proves.

Authentication comes before anything else a call asks: who is not known learns nothing, not even
whether the pool exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from memkv.errors import MemKVError
from memkv.wire.ticket import CLIENT_RIGHTS, Rights

ANONYMOUS = "anonymous"


class Unauthenticated(MemKVError):
    """The call proves nobody. The message names the likely cause and the fix."""


class Forbidden(MemKVError):
    """The caller is known and may not use this pool. The message says what would allow it."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What a call brought along to prove itself."""

    bearer: str = ""
    """Of the header `authorization: Bearer ...`; "" when there is none. Never logged."""
    certificate_names: Sequence[str] = ()
    """Names in the certificate that TLS verified: URIs and DNS names."""
    address: str = ""
    """Whence the call came, without its port; "" where that is not known."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose identity was proved, and what that allows."""

    subject: str
    """Such as system:serviceaccount:NAMESPACE:NAME, for tickets and logs."""
    tenant: str = ""
    """The caller's own; "": the pool's default."""
    any_tenant: bool = False
    """Whether it may ask for a ticket of any tenant; otherwise only of its own."""
    rights: Rights = CLIENT_RIGHTS


class Authenticator(Protocol):
    """Finds out who calls. Used from one event loop; answers in the time of one look-up."""

    async def caller(self, presented: Presented) -> Caller:
        """Return who it is. Raises Unauthenticated, Forbidden, or RetryLater when whoever knows is
        away."""


class Anyone:
    """Believes everybody, for a machine or a network that is trusted as a whole."""

    async def caller(self, presented: Presented) -> Caller:
        return Caller(ANONYMOUS, any_tenant=True, rights=CLIENT_RIGHTS | Rights.PEER)
