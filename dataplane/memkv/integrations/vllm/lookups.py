"""Lookups of many requests in flight: asked through the client's event face, never waited for."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memkv.client.events import Completion
from memkv.integrations.keys import Namespace, block_keys
from memkv.reasons import MissReason, reason_of
from memkv.status import Status

EXPLAINED_MAX = 64  # keys of a request that the pool is asked about: the head says what came of it
WAIT_MS = 1  # for an answer that is about to come; a step of an engine takes several


class LookupClient(Protocol):
    """What of a client lookups need."""

    @property
    def event_fd(self) -> int: ...
    def submit_is_exist(self, keys: Sequence[bytes], lease_ms: int = 0) -> int: ...
    def submit_why(self, keys: Sequence[bytes]) -> int: ...
    def completions(self) -> list[Completion]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """What one lookup found: for each group, whether each leading block is there on all ranks."""

    present: list[list[bool]]
    reasons: dict[MissReason, int]
    """Of all blocks asked for, hits as PRESENT; misses as UNEXPLAINED until they are explained."""

    @property
    def is_known(self) -> bool:
        """Somebody answered for at least one block."""
        return bool(self.reasons.keys() & {MissReason.PRESENT, MissReason.UNEXPLAINED})


@dataclass(frozen=True)
class Explained:
    """Why blocks of a request were not there, as far as the pool remembers."""

    request_id: str
    reasons: list[MissReason]


@dataclass
class _Asked:
    request_id: str
    keys: list[bytes]
    blocks: int
    groups: int
    late_ns: int


class Lookups:
    """Of one engine. Used by one thread."""

    def __init__(
        self, client: LookupClient, lease_ms: int, deadline_ms: int, now_ns: Callable[[], int]
    ) -> None:
        """`lease_ms`: found blocks are kept from eviction that long, so that loads find them."""
        self._client = client
        self._news = select.poll()  # select() takes no descriptor over 1023
        self._news.register(client.event_fd, select.POLLIN)
        self._lease_ms = lease_ms
        self._patience_ns = 2 * deadline_ms * 1_000_000
        self._now_ns = now_ns
        self._jobs: dict[int, _Asked] = {}
        self._of_request: dict[str, int] = {}
        self._answers: dict[str, Answer] = {}
        self._whys: dict[int, str] = {}
        self._explained: list[Explained] = []
        self._has_waited = False

    def ask(
        self, request_id: str, names: Sequence[Namespace], hashes: Sequence[bytes], groups: int
    ) -> None:
        """Ask for the blocks of a request on all ranks, in all groups."""
        self.drop(request_id)
        keys = [
            key for name in names for group in range(groups)
            for key in block_keys(name, hashes, group)
        ]
        job = self._client.submit_is_exist(keys, self._lease_ms)
        self._jobs[job] = _Asked(
            request_id, keys, len(hashes), groups, self._now_ns() + self._patience_ns
        )
        self._of_request[request_id] = job

    def is_asked(self, request_id: str) -> bool:
        return request_id in self._of_request

    def take(self, request_id: str) -> Answer | None:
        """Return the answer once it is there, and forget it. Waits at most WAIT_MS, and once in a
        step: an engine asks for each of its waiting requests."""
        self.collect()
        if request_id not in self._answers and request_id in self._of_request:
            if not self._has_waited:
                self._has_waited = True
                self._news.poll(WAIT_MS)
                self.collect()
            self._give_up_late(request_id)
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            del self._of_request[request_id]
        return answer

    def end_step(self) -> None:
        """The engine has chosen its requests. Takes what has come; the next step may wait again."""
        self.collect()
        self._has_waited = False

    def take_explained(self) -> list[Explained]:
        """Return explanations of misses that came since the last call: some time after answers, so
        that nobody waits for them."""
        explained, self._explained = self._explained, []
        return explained

    def drop(self, request_id: str) -> None:
        """The request is over, or is asked for anew."""
        job = self._of_request.pop(request_id, None)
        if job is not None:
            self._jobs.pop(job, None)
        self._answers.pop(request_id, None)

    def collect(self) -> None:
        """Take what has come, without waiting."""
        for completion in self._client.completions():
            asked = self._jobs.pop(completion.job_id, None)
            if asked is not None:
                self._answers[asked.request_id] = _answer(asked, completion.results)
                self._ask_why(asked, completion.results)
            elif completion.job_id in self._whys:
                self._explained.append(Explained(
                    self._whys.pop(completion.job_id), list(map(MissReason, completion.results))
                ))

    def _ask_why(self, asked: _Asked, results: Sequence[int]) -> None:
        missing = [key for key, result in zip(asked.keys, results, strict=True) if result == 0]
        if missing:
            job = self._client.submit_why(missing[:EXPLAINED_MAX])
            self._whys[job] = asked.request_id

    def _give_up_late(self, request_id: str) -> None:
        """A client answers by its deadline. This is for one that has a bug: no engine waits on."""
        asked = self._jobs.get(self._of_request[request_id])
        if asked is not None and self._now_ns() > asked.late_ns:
            self._jobs.pop(self._of_request[request_id])
            self._answers[request_id] = _answer(asked, [Status.TIMEOUT] * asked.blocks)


def _answer(asked: _Asked, results: Sequence[int]) -> Answer:
    reasons: dict[MissReason, int] = {}
    present = [[True] * asked.blocks for _ in range(asked.groups)]
    for index, result in enumerate(results):
        if result < 1:
            present[index // asked.blocks % asked.groups][index % asked.blocks] = False
        reason = MissReason.UNEXPLAINED if result == 0 else reason_of(result)
        reasons[reason] = reasons.get(reason, 0) + 1
    return Answer(present, reasons)
