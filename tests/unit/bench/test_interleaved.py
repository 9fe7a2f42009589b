"""Figures and limits in turns, and what the programs that measure limits print."""

import pytest

from memkv.limits import MIB
from memkv.testing.guest_limits import parse_write_bandwidth
from memkv.testing.interleaved import Figure, Measure, compare, table

PRINTED = """
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 2097152    30               23.09              17.29  \t\t   0.000009
"""


def scripted(order: list[str], name: str, values: list[float]) -> Measure:
    left = iter(values)

    def measure() -> float:
        order.append(name)
        return next(left)

    return measure


def test_each_turn_has_a_ratio_of_its_own_to_the_lesser_limit() -> None:
    order: list[str] = []
    results = compare(
        {
            "drive": scripted(order, "drive", [4.0, 1.0, 10.0]),
            "wire": scripted(order, "wire", [2.0, 2.0, 5.0]),
        },
        [
            Figure("get", scripted(order, "get", [1.0, 0.9, 4.0]), ("drive", "wire")),
            Figure("hit", scripted(order, "hit", [2.0, 2.0, 2.0]), ("wire",)),
        ],
        turns=3,
    )
    assert [pair.ratio for pair in results["get"].pairs] == [0.5, 0.9, 0.8]
    assert results["get"].ratio == 0.8
    assert results["hit"].ratio == 1.0
    there, back = ["drive", "wire", "get", "hit"], ["hit", "get", "wire", "drive"]
    assert order == [*there, *back, *there]
    assert "0.80  0.50 0.90 0.80" in table(results)


def test_a_limit_of_nothing_is_no_ratio() -> None:
    results = compare({"drive": lambda: 0.0}, [Figure("get", lambda: 1.0, ("drive",))], turns=1)
    assert results["get"].ratio == 0


def test_write_bandwidth_is_read_from_its_line() -> None:
    assert parse_write_bandwidth(PRINTED, 2 * MIB) == pytest.approx(17.29 * MIB / 1e9)
    with pytest.raises(ValueError, match="no line for 65536"):
        parse_write_bandwidth(PRINTED, 65536)
