"""Why requests missed: `Client.reasons` of the client that an integration uses."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from memkv.client.reasons import RequestReasons
from memkv.reasons import MissReason, reason_of

__all__ = ["Explainer", "RequestReasons", "note_results"]


class Explainer(Protocol):
    """What of a client is needed."""

    @property
    def reasons(self) -> RequestReasons: ...

    def why(self, keys: Sequence[str | bytes]) -> list[MissReason]: ...


def note_results(
    client: Explainer, request: Hashable, keys: Sequence[str | bytes], results: Sequence[int],
    explained_max: int = 1,
) -> None:
    """Count what came of the blocks of a request: hits, and misses by reason.

    `results`: of a get or an exists (where 0 is a miss). Of misses that say nothing by themselves
    the nodes are asked about the first `explained_max`: the first missing block of a prompt says
    why the others were not looked for. That is a round trip: not in an engine's step.
    """
    unexplained: list[str | bytes] = []
    for key, result in zip(keys, results, strict=True):
        reason = MissReason.UNEXPLAINED if result == 0 else reason_of(result)
        if reason is MissReason.UNEXPLAINED and len(unexplained) < explained_max:
            unexplained.append(key)
        else:
            client.reasons.note(request, reason)
    if unexplained:
        for reason in client.why(unexplained):
            client.reasons.note(request, reason)
