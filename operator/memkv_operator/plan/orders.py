"""What each node of a pool shall be. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from memkv.wire.signed import TicketKey
from memkv_operator.plan.membership import Member
from memkv_operator.plan.quotas import Sharing, WorkerQuota


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that a node is told, in the planner's words."""

    draining: bool = False
    quotas: tuple[WorkerQuota, ...] = ()
    ticket_keys: tuple[TicketKey, ...] = ()
    """Of tickets that are good, and those that have ended whatever the node's own files say."""


def orders_of(
    members: Sequence[Member], sharing: Sharing, ticket_keys: Sequence[TicketKey]
) -> dict[str, Order]:
    """Return what each member shall be, by name."""
    keys = tuple(ticket_keys)
    return {
        member.name: Order(member.draining, sharing.by_node.get(member.name, ()), keys)
        for member in members
    }
