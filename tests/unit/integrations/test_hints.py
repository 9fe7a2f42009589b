"""Hints from chains of keys."""

from memkv.client.options import NO_HINT, PutOptions
from memkv.integrations.hints import hints_of, short_id


def test_a_chain_has_one_prefix_and_growing_depth() -> None:
    hints = hints_of([b"head", b"next", b"tail"], session=b"chat 7")
    assert [hint.depth for hint in hints] == [0, 1, 2]
    assert {hint.prefix_id for hint in hints} == {short_id(b"head")}
    assert {hint.session_id for hint in hints} == {short_id(b"chat 7")}


def test_the_tail_of_a_chain_keeps_its_place() -> None:
    chain = [b"head", b"next", b"tail"]
    assert hints_of(chain, first=2) == hints_of(chain)[2:]


def test_prompts_of_one_head_belong_together() -> None:
    one, other = hints_of([b"head", b"a"]), hints_of([b"head", b"b"])
    assert one == other
    assert hints_of([b"another", b"a"])[0].prefix_id != one[0].prefix_id


def test_nothing_is_no_hint() -> None:
    assert hints_of([]) == []
    assert short_id(b"") == NO_HINT.session_id


def test_they_are_what_puts_take() -> None:
    chain = [b"head", b"tail"]
    options = PutOptions(hints=hints_of(chain))
    assert options.hint_of(1, 2).depth == 1
