"""What nodes say of the keys of tickets, and what is said to people of a change of them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from memkv.shardmap import ShardMap
from memkv_operator.api.conditions import Condition, condition
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.ownership import nodes_in_map
from memkv_operator.plan.preflight import named


class KeyPhase(Enum):
    """How far the change of a key is (`identity.ticket_keys`). Values are reasons."""

    STEADY = "Valid"
    ANNOUNCED = "TicketKeyAnnounced"
    RETIRING = "TicketKeyRetiring"
    REVOKED = "TicketKeyRevoked"


@dataclass(frozen=True, slots=True)
class TicketsView:
    """A change of the key as its last look found it."""

    phase: KeyPhase = KeyPhase.STEADY
    waiting: Sequence[str] = ()
    """Nodes in service that do not go by the keys of this phase, by name."""
    informed: bool = True
    """Whether nodes were asked at all."""
    ends: str = ""
    """When the phase ends at the earliest, RFC 3339; empty: not everyone has its keys yet."""


def keys_said(
    seen: Mapping[str, NodeSeen], shard_map: ShardMap | None
) -> dict[str, frozenset[str]]:
    """Return the ids of the keys that each node in service takes: of those that answer, and of
    those that the map needs, whether they answer now or not.

    A node that missed one poll still takes what it said in the last one: only another process
    could take less, and its pod is another one, or has the files and the spec that it had.
    """
    said = {name: frozenset[str]() for name in nodes_in_map(shard_map)}
    for name, one in seen.items():
        if one.facts is not None and (one.reachable or name in said):
            said[name] = one.facts.ticket_keys
    return said


def ticket_keys_valid(view: TicketsView) -> Condition:
    """Return the condition of a pool with tickets."""
    phase, nodes = view.phase, named(list(view.waiting)) if view.informed else "the nodes' answers"
    holds = True
    if phase is KeyPhase.STEADY:
        message = ""
    elif phase is KeyPhase.REVOKED and nodes:
        holds = False
        message = (
            f"a key was revoked, and its tickets may still open sessions: waiting for {nodes} to "
            "refuse them"
        )
    elif phase is KeyPhase.REVOKED:
        message = "a key was revoked: all nodes refuse its tickets, and clients renew theirs"
    elif nodes or not view.ends:
        message = (
            "the key that signs tickets is being replaced: waiting for "
            f"{nodes or 'the Secrets of pods'} to have the keys of this phase"
        )
        if view.waiting:
            message += "; a node of an earlier version does not say which it has: update it"
    elif phase is KeyPhase.ANNOUNCED:
        message = f"all nodes take the next key; it signs tickets after {view.ends}"
    else:
        message = f"the next key signs; tickets of the one before are taken until {view.ends}"
    return condition("TicketKeysValid", holds, phase.value, message)
