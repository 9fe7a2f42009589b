"""An operator's connection to the API server, with faults: requests that fail by number, watch
events that are lost, doubled or out of order, and watches that end with 410.

Others who use the same server (kubelets, people) are not concerned.
"""

import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from memkv.errors import MemKVError
from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.errors import Away, Conflict, Gone, TooMany
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.testing.passing_api import Call, PassingApi

MakeError = Callable[[], MemKVError]


@dataclass(frozen=True, slots=True)
class Fault:
    """How a request fails."""

    make_error: MakeError
    done: bool
    """Whether the server did it, and only the answer was lost."""


FAULTS = {
    "409": Fault(lambda: Conflict("409"), False),
    "429": Fault(lambda: TooMany("429", 0.0), False),
    "500": Fault(lambda: Away("500"), False),
    "a timeout": Fault(lambda: Away("no answer in time"), True),
}
"""A server that answers 409 or 429 has done nothing; one that answers 500 or too late may have."""


class Disorder(Enum):
    """What becomes of a watch event."""

    LOST = "lost"
    DOUBLED = "doubled"
    SWAPPED = "swapped with the next"
    GONE = "the watch ends with 410"


class FaultyApi(PassingApi):
    """Implements ApiServer on another one."""

    def __init__(
        self,
        api: ApiServer,
        fault: Callable[[int], Fault | None] = lambda number: None,
        disorder: Callable[[], Disorder | None] = lambda: None,
    ) -> None:
        """`fault`: by the number of the request, from 1. `disorder` is asked for each event of each
        watch."""
        super().__init__(api)
        self.fault = fault
        self.disorder = disorder
        self.requests: list[str] = []
        """Method and path of each."""
        self.failed = 0

    async def send(self, call: Call) -> JsonObject:
        """As PassingApi."""
        self.requests.append(f"{call.method} {call.path}")
        fault = self.fault(len(self.requests))
        if fault is None:
            return await super().send(call)
        self.failed += 1
        if fault.done:
            await super().send(call)
        raise fault.make_error()

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        """As ApiServer."""
        held: JsonObject | None = None
        async for event in self.api.watch(path, query):
            disorder = self.disorder()
            if disorder is Disorder.LOST:
                continue
            if disorder is Disorder.GONE:
                raise Gone("too old resource version")
            if disorder is Disorder.SWAPPED and held is None:
                held = event
                continue
            yield event
            if disorder is Disorder.DOUBLED:
                yield event
            if held is not None:
                yield held
                held = None


def some_disorder(seed: int, percent: int) -> Callable[[], Disorder | None]:
    """Return a source that disturbs this share of events, in all ways alike."""
    source = random.Random(seed)
    kinds = list(Disorder)
    return lambda: source.choice(kinds) if source.randrange(100) < percent else None
