"""What the planner knows of a pool's certificates, and what it says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from memkv.wire.signed import TicketKey
from memkv_operator.api.conditions import Condition, condition
from memkv_operator.plan.ticket_keys import TicketsView


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with certificates: a reason, and a sentence with cause and fix."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class IdentityView:
    """A pool's certificates, as its last look found them."""

    authority: str = ""
    """Who is believed, in PEM; empty: there are no certificates (yet)."""
    faults: tuple[Fault, ...] = ()
    phase: str = ""
    """How far a change of the authority is; empty: there is none under way."""
    ticket_keys: tuple[TicketKey, ...] = ()
    """What nodes are told of keys: those whose tickets they take, and those that have ended."""
    tickets: TicketsView = field(default_factory=TicketsView)

    @property
    def blocks(self) -> bool:
        """Whether nothing can be made of the pool: what was in force goes on being so."""
        return bool(self.faults) and not self.authority


def certificates_valid(view: IdentityView) -> Condition:
    """Return the condition of a pool with TLS."""
    if view.faults:
        message = "; ".join(fault.message for fault in view.faults)
        return condition("CertificatesValid", False, view.faults[0].reason, message)
    if not view.authority:
        return condition("CertificatesValid", False, "Pending", "they are not made yet")
    if view.phase:
        message = "the authority is being replaced; the one before is believed until that is done"
        return condition("CertificatesValid", True, view.phase, message)
    return condition("CertificatesValid", True, "Valid", "")


def blocking(view: IdentityView) -> Sequence[Fault]:
    """Return what keeps the pool from being made."""
    return view.faults if view.blocks else ()
