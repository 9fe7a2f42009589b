"""Answers about chunks: asked once, believed as long as a request lives, never waited for."""

import pytest

from memkv.integrations.vllm_tier.lookups import Lookups

A, B, C = b"chunk-a", b"chunk-b", b"chunk-c"
DEADLINE_MS = 250


class Asked:
    """A `Lookups` whose questions and time a test sees."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, list[bytes]]] = []
        self.late: list[str] = []
        self.now_ms = 0
        self.lookups = Lookups(
            lambda request, chunks: self.questions.append((request, chunks)),
            DEADLINE_MS, lambda: self.now_ms * 1_000_000, self.late.append,
        )

    def look(self, request: str, *chunks: bytes) -> list[bool | None]:
        return [self.lookups.look(chunk, request) for chunk in chunks]


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_a_step_asks_once_for_all_that_is_new(asked: Asked) -> None:
    assert asked.look("one", A, B) == [None, None]
    assert asked.look("two", B, C) == [None, None]
    assert asked.questions == []
    asked.lookups.flush()
    assert asked.questions == [("one", [A, B]), ("two", [C])]
    asked.lookups.flush()
    assert asked.look("one", A, B) == [None, None]
    asked.lookups.flush()
    assert len(asked.questions) == 2, "what is under way is not asked again"


def test_an_answer_is_for_every_request_that_asked(asked: Asked) -> None:
    asked.look("one", A, B)
    asked.look("two", A)
    asked.lookups.flush()
    asked.lookups.answer([A, B], [True, False])
    assert asked.look("one", A, B) == [True, False]
    assert asked.look("two", A) == [True]


def test_no_answer_is_a_miss_by_the_deadline(asked: Asked) -> None:
    asked.look("one", A)
    asked.lookups.flush()
    asked.now_ms = DEADLINE_MS
    assert asked.look("one", A) == [None]
    asked.now_ms = DEADLINE_MS + 1
    assert asked.look("one", A) == [False]
    assert asked.late == ["one"]
    asked.lookups.answer([A], [True])
    assert asked.look("one", A) == [False], "the engine computes it already"


def test_a_failed_load_is_a_miss_until_the_request_is_over(asked: Asked) -> None:
    asked.look("one", A)
    asked.lookups.flush()
    asked.lookups.answer([A], [True])
    asked.lookups.mark_missing([A, C])
    for _ in range(3):
        assert asked.look("one", A) == [False]
        asked.lookups.flush()
    asked.lookups.drop("one")
    assert asked.look("two", A) == [None]
    asked.lookups.flush()
    assert asked.questions == [("one", [A]), ("two", [A])]


def test_what_was_stored_meanwhile_is_there(asked: Asked) -> None:
    asked.look("one", A)
    asked.lookups.flush()
    asked.lookups.answer([A], [False])
    asked.lookups.mark_present([A, B])
    assert asked.look("two", A, B) == [True, None]


def test_an_answer_for_a_request_that_is_over_is_dropped(asked: Asked) -> None:
    asked.look("one", A)
    asked.lookups.flush()
    asked.lookups.drop("one")
    asked.lookups.answer([A], [True])
    assert asked.look("two", A) == [None]


def test_a_question_survives_the_request_that_had_it_first(asked: Asked) -> None:
    asked.look("one", A, B)
    asked.look("two", A)
    asked.lookups.drop("one")
    asked.lookups.flush()
    assert [chunks for _, chunks in asked.questions] == [[A]]
    asked.lookups.drop("never seen")
