"""What FaultProxy does wrong, and when: requests fail by their number, watches by the number of the
event.

Requests are counted for each namespace, and events for each namespace and kind: so many pools of
one operator have each their own fault.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol


class RequestFault(Enum):
    """What becomes of a request."""

    CONFLICT = "409"
    TOO_MANY = "429"
    INTERNAL_ERROR = "500"
    UNAVAILABLE = "503"
    CUT_BEFORE = "connection cut before it was done"
    CUT_AFTER = "connection cut after it was done"

    @property
    def status(self) -> int:
        """Of the answer; 0: there is none."""
        return int(self.value) if self.value.isdigit() else 0


class WatchFault(Enum):
    """What becomes of an event, or of the stream it comes by."""

    LOST = "lost"
    DOUBLED = "doubled"
    SWAPPED = "swapped with the next"
    GONE_STATUS = "the stream ends, and its next request is answered with 410"
    GONE_EVENT = "ERROR event with 410"
    ERROR_EVENT = "ERROR event with 500"
    CUT = "connection cut in the middle of its line"
    ENDED = "stream ended in the middle of its line"
    HANGS = "nothing comes any more"

    @property
    def ends_stream(self) -> bool:
        """Whether no further event comes by this stream."""
        return self not in (WatchFault.LOST, WatchFault.DOUBLED, WatchFault.SWAPPED)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, as far as a script wants to know it."""

    method: str
    path: str
    is_watch: bool

    @property
    def namespace(self) -> str:
        """Where the object is, or which Namespace it is; "": it has none, or all are meant."""
        _, found, after = self.path.partition("/namespaces/")
        return after.partition("/")[0] if found else ""

    @property
    def plural(self) -> str:
        """The kind that is asked for, as paths name it."""
        parts = self.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[:1] == ["namespaces"] and len(parts) > 2:
            parts = parts[2:]
        return parts[0] if parts else ""


class WatchEvent(NamedTuple):
    """An event, as far as a script wants to know it."""

    plural: str
    namespace: str
    name: str
    type: str


class Script(Protocol):
    """Asked for each request and for each event of each watch."""

    def answer(self, call: Call) -> RequestFault | None:
        """Return what becomes of a request; None: it is passed on."""

    def disturb(self, event: WatchEvent) -> WatchFault | None:
        """Return what becomes of an event; None: it is passed on."""


@dataclass(slots=True)
class NthFaults:
    """A Script: one fault for each namespace at most, at a request or at an event of a number."""

    requests: dict[str, tuple[int, RequestFault]] = field(default_factory=dict)
    """Namespace -> which request, from 1, has which fault. Watches are not counted."""
    events: dict[str, tuple[str, int, WatchFault]] = field(default_factory=dict)
    """Namespace -> of which kind (plural) the event of which number has which fault; or a later
    one, where a listing told that one's news."""
    made: Counter[str] = field(default_factory=Counter)
    """Namespace -> requests so far."""
    heard: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(namespace, kind) -> events so far."""
    done: set[str] = field(default_factory=set)
    """Namespaces whose fault has come."""

    def answer(self, call: Call) -> RequestFault | None:
        """As Script."""
        where = call.namespace
        if call.is_watch or not where:
            return None
        self.made[where] += 1
        number, fault = self.requests.get(where, (0, None))
        if self.made[where] != number:
            return None
        self.done.add(where)
        return fault

    def disturb(self, event: WatchEvent) -> WatchFault | None:
        """As Script."""
        key = event.namespace, event.plural
        self.heard[key] += 1
        plural, number, fault = self.events.get(event.namespace, ("", 0, None))
        if event.plural != plural or self.heard[key] < number or event.namespace in self.done:
            return None
        self.done.add(event.namespace)
        return fault


@dataclass(slots=True)
class NthOfAll:
    """A Script: one request of all fails, watches among them; counted from 1."""

    number: int = 0
    fault: RequestFault | None = None
    made: int = 0

    def answer(self, call: Call) -> RequestFault | None:
        """As Script."""
        self.made += 1
        return self.fault if self.made == self.number else None

    def disturb(self, event: WatchEvent) -> WatchFault | None:
        """As Script."""
        return None
