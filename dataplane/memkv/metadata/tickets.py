"""Who gets which ticket. On a loopback pool everyone does: whoever is on the machine is trusted."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from memkv.clock import Clock
from memkv.tenant import check_tenant_name
from memkv.wire.ticket import Ticket, anonymous_ticket

TENANT_DEFAULT = "default"
SALT_BYTES = 32


class TicketIssuer(Protocol):
    """Decides on tickets. Called from the server's event loop: must not block."""

    def issue(self, pool: str, tenant: str, subject: str) -> Ticket:
        """Return a ticket of `tenant` ("" for the caller's own).

        CallerError for an impossible name; TicketRefused (memkv.wire.ticket) when the subject may
        not use the tenant.
        """


@dataclass(frozen=True, slots=True)
class AnonymousIssuer:
    """Gives every caller an unsigned ticket, which nodes take on loopback only."""

    clock: Clock

    def issue(self, pool: str, tenant: str, subject: str) -> Ticket:
        name = tenant or TENANT_DEFAULT
        check_tenant_name(name)
        return anonymous_ticket(pool, name, self.clock.wall_s(), salt=public_salt(pool, name))


def public_salt(pool: str, tenant: str) -> bytes:
    """Return the salt of a tenant of a pool without secrets.

    It keeps the block ids of tenants apart and hides nothing. Derived, so that every replica gives
    the same one and a lost state file does not make stored blocks unreachable.
    """
    return hashlib.blake2b(
        f"{pool}\0{tenant}".encode(), digest_size=SALT_BYTES, person=b"memkv-pub-salt"
    ).digest()
