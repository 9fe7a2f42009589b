"""Batches that workers move themselves: how they are dealt, and whose windows are whose."""

from typing import cast

import pytest

from memkv._hotpath import Job, LaneGroup
from memkv.client.calls import Outcome
from memkv.client.native import WindowRequest
from memkv.client.placed import RDMA, Batch, PartsOf, deal, dealt
from memkv.client.rdma_side import RdmaLane
from memkv.limits import FRAME_BODY_BYTES_MAX, MIB
from memkv.rdma.verbs import Window
from memkv.wire.local import Part
from memkv.wire.opcodes import LOCAL_PART_BYTES, PUT_ITEM_BYTES


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (7, 3), (8, 4), (1024, 1), (1025, 1)])
def test_deal_keeps_order_and_is_even(count: int, parts: int) -> None:
    cut = deal(list(range(count)), parts)
    assert [position for some in cut for position in some] == list(range(count))
    sizes = [len(some) for some in cut]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 1024


def test_small_batches_stay_whole_and_large_ones_use_each_lane() -> None:
    small: PartsOf = {n: (Part(1, 0, 4096),) for n in range(8)}
    assert dealt(small, list(small), 4) == [list(range(8))]
    large: PartsOf = {n: (Part(1, 0, 4 * MIB),) for n in range(8)}
    assert [len(some) for some in dealt(large, list(large), 4)] == [2, 2, 2, 2]


def test_no_frame_is_longer_than_a_frame_may_be() -> None:
    many: PartsOf = {n: (Part(1, 0, 8),) * 256 for n in range(600)}
    frames = dealt(many, list(many), 1)
    assert [position for some in frames for position in some] == list(range(600))
    for some in frames:
        assert len(some) * (PUT_ITEM_BYTES + 256 * LOCAL_PART_BYTES) <= FRAME_BODY_BYTES_MAX


class _Windows:
    """Stands in for a lane that closes windows."""

    def __init__(self) -> None:
        self.closed: list[object] = []
        self.lane = self

    def close_windows(self, windows: list[object]) -> None:
        self.closed += windows


def test_a_request_for_some_of_a_batch_closes_the_windows_of_those_alone() -> None:
    """While a slot moves a batch is two requests: one may end before the other."""
    strict = _Windows()
    windows = {0: ["a"], 1: ["b", "c"], 2: ["d"]}
    batch = Batch(
        RDMA, cast(LaneGroup, None), cast(Outcome, None), [0, 1, 2], {},
        cast(RdmaLane, strict), cast(dict[int, list[Window]], windows),
    )  # fmt: skip
    request = batch.request(cast(Job, None), [0, 2])
    assert isinstance(request, WindowRequest)
    request.settled()
    assert strict.closed == ["a", "d"]
