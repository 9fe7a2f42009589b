"""Conditions (metav1.Condition): when they change, and when their time does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memkv.metadata.kubernetes.json_values import JsonValue, Manifest, Reader

TRUE = "True"
FALSE = "False"
MESSAGE_CHARS_MAX = 1024  # a list of a thousand node names helps nobody; the schema takes 32768
CUT = " ..."


@dataclass(frozen=True, slots=True)
class Condition:
    """One statement about an object."""

    type: str
    status: str
    reason: str
    message: str
    observed_generation: int = 0
    last_transition: str = ""
    """When the status changed last, RFC 3339."""

    @property
    def holds(self) -> bool:
        """Whether it is True."""
        return self.status == TRUE

    def manifest(self) -> Manifest:
        """Return it as Kubernetes wants it."""
        return {
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": self.observed_generation,
            "lastTransitionTime": self.last_transition,
        }


def condition(type_: str, holds: bool, reason: str, message: str = "") -> Condition:
    """Return a condition without time."""
    return Condition(type_, TRUE if holds else FALSE, reason, shortened(message))


def joined(parts: Sequence[str], chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """Return parts as one message, cut between them: "and 2 more" says how many are left out."""
    for shown in range(len(parts), 0, -1):
        more = f"; and {len(parts) - shown} more" if shown < len(parts) else ""
        text = "; ".join(parts[:shown]) + more
        if len(text) <= chars_max:
            return text
    more = f"; and {len(parts) - 1} more" if len(parts) > 1 else ""
    return shortened("".join(parts[:1]), chars_max - len(more)) + more


def shortened(text: str, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """Return a text, cut after a whole word where it is too long."""
    if len(text) <= chars_max:
        return text
    kept = text[: chars_max - len(CUT) + 1]
    return (kept.rpartition(" ")[0] or kept[:-1]).rstrip() + CUT


def read_conditions(status: Reader) -> dict[str, Condition]:
    """Return the conditions of a status by type."""
    read = [
        Condition(
            item.text("type"),
            item.text("status"),
            item.text("reason"),
            item.text("message"),
            item.integer("observedGeneration"),
            item.text("lastTransitionTime"),
        )
        for item in status.objects("conditions")
    ]
    return {found.type: found for found in read}


def merged(
    before: Mapping[str, Condition], now: Iterable[Condition], generation: int, time: str
) -> list[JsonValue]:
    """Return the list to write, ordered by type. A time changes only with its status.

    Conditions that nobody states any more go.
    """
    after: list[JsonValue] = []
    for stated in sorted(now, key=lambda one: one.type):
        old = before.get(stated.type)
        kept = old is not None and old.status == stated.status and bool(old.last_transition)
        since = old.last_transition if old is not None and kept else time
        after.append(
            Condition(
                stated.type, stated.status, stated.reason, stated.message, generation, since
            ).manifest()
        )
    return after


def by_type(conditions: Sequence[Condition]) -> dict[str, Condition]:
    """Return conditions by type."""
    return {one.type: one for one in conditions}
