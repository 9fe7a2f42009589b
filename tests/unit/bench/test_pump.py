"""A paced load: never ahead of its pace, and one wait a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from memkv.bench.pump import Pump
from memkv.client.events import Completion
from memkv.client.sync import Client

SIZE = 1000
PACE_GBPS = 1e-3  # a job of eight blocks is due every 8 ms
SECONDS = 0.1


class PromptClient:
    """Every get has ended as soon as it was submitted."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.looks: list[int] = []
        """Jobs found by each look."""
        self._ended: list[Completion] = []
        self._jobs = 0

    def register_buffer(self, ptr: int, size: int, *, fd: int | None = None) -> int:
        return 0

    def unregister_buffer(self, ptr: int) -> int:
        return 0

    def submit_get_into(
        self, keys: Sequence[str], ptrs: Sequence[int], sizes: Sequence[int]
    ) -> int:
        self._jobs += 1
        self._ended.append(Completion(self._jobs, list(sizes)))
        return self._jobs

    def completions(self) -> list[Completion]:
        ended, self._ended = self._ended, []
        self.looks.append(len(ended))
        return ended


@pytest.fixture
def client() -> Iterator[PromptClient]:
    made = PromptClient()
    yield made
    os.close(made.event_fd)


def test_a_paced_load_is_never_ahead_and_looks_once_a_job(client: PromptClient) -> None:
    pump = Pump(cast(Client, client), SIZE)
    sample = pump.get(["a", "b"], SECONDS, PACE_GBPS)
    pump.close()
    # The first job is there at once, the others wait for their turn.
    assert 0 <= sample.size_bytes - SIZE * pump.per_job <= PACE_GBPS * 1e9 * sample.seconds
    # The eventfd stays silent here: a wait for it would not end.
    assert client.looks == [1] * len(sample.calls_us)


def test_without_a_pace_nothing_is_waited_for(client: PromptClient) -> None:
    pump = Pump(cast(Client, client), SIZE)
    sample = pump.get(["a", "b"], 0.01)
    pump.close()
    assert sample.size_bytes == SIZE * pump.per_job * len(sample.calls_us)
    assert sum(client.looks) == len(sample.calls_us)
