"""The demo's warm ratio leaves nothing out."""

from memkv.demo.report import Outage


def outage(durable: int, replaced: int, served: int) -> Outage:
    return Outage("node-2", 500, 20, 2, 3.0, durable, replaced, served)


def test_all_that_was_there_is_expected_back() -> None:
    assert outage(200, 0, 200).warm_ratio == 1.0
    assert outage(200, 0, 196).warm_ratio == 0.98


def test_blocks_stored_anew_prove_nothing_and_count_as_missing() -> None:
    assert outage(200, 10, 190).warm_ratio == 0.95


def test_a_node_that_had_nothing_was_not_warm() -> None:
    assert outage(0, 0, 0).warm_ratio == 0.0
