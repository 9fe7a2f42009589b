"""The decision tables of recovery cover every input, each by exactly one case."""

import itertools

import pytest

from memkv.store import recovery_table
from memkv.store.layout import Kind
from memkv.store.records import Flaw
from memkv.store.recovery_table import (
    RECORD_CASES,
    SEGMENT_CASES,
    SegmentAction,
    SegmentFacts,
    segment_action,
)


@pytest.mark.parametrize("bits", list(itertools.product([False, True], repeat=4)))
def test_exactly_one_case_matches(bits: tuple[bool, ...]) -> None:
    facts = SegmentFacts(*bits)
    matching = [case for case in SEGMENT_CASES if case.matches(facts)]
    assert len(matching) == 1
    assert segment_action(facts) is matching[0].action


def test_every_judgement_has_an_action() -> None:
    assert set(RECORD_CASES) == set(Kind) | set(Flaw)


def test_only_a_whole_matching_footer_is_believed() -> None:
    believed = [
        bits
        for bits in itertools.product([False, True], repeat=4)
        if segment_action(SegmentFacts(*bits)) is SegmentAction.LOAD
    ]
    assert believed == [(False, True, True, True), (True,) * 4]


def test_the_docstring_names_every_case() -> None:
    doc = recovery_table.__doc__ or ""
    assert all(f"| {case.label} " in doc for case in SEGMENT_CASES)
    assert all(f"| {item.name} |" in doc for item in RECORD_CASES)
