"""What the demo asks a node that came back: silence is asked about again, a miss is a miss."""

from pathlib import Path
from typing import cast

from memkv import _hotpath, pattern
from memkv.client.sync import Client
from memkv.demo.replay import BLOCK_BYTES, Replay
from memkv.demo.story import Demo, DemoPlan
from memkv.demo.trace import read_trace
from memkv.localpool.pool import LocalNode, LocalPool, PoolPlan
from memkv.status import Status

KEYS = [f"block {number}" for number in range(4)]


class SlowToAnswer:
    """Gives block 0 at once, and the others as `answers` say, call by call."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self.answers = answers

    def register_buffer(self, address: int, size: int) -> int:
        return 0

    def batch_get_into(self, keys: list[str], places: list[int], sizes: list[int]) -> list[int]:
        results = []
        for key, place, size in zip(keys, places, sizes, strict=True):
            waiting = self.answers.get(key, [])
            results.append(waiting.pop(0) if waiting else size)
            if results[-1] > 0:
                pattern.fill(_hotpath.memory_at(place, size), pattern.seed_of(key))
        return results


def check(directory: Path, answers: dict[str, list[int]]) -> int:
    requests = list(read_trace(None, 100))
    demo = Demo(DemoPlan(directory), requests, lambda done, text: None)
    node: LocalNode = LocalPool(PoolPlan(directory, 1, BLOCK_BYTES * 256)).nodes[0]
    replay = Replay(cast(Client, SlowToAnswer(answers)))
    served, tally = demo._check_warm(replay, KEYS, node, 0.5)
    assert tally.wrong_bytes == 0
    assert replay.tally is not tally, "these gets are no part of the replay"
    return served


def test_silence_is_asked_about_again(tmp_path: Path) -> None:
    answers: dict[str, list[int]] = {
        KEYS[1]: [Status.TIMEOUT], KEYS[2]: [Status.TIMEOUT, Status.UNAVAILABLE],
        KEYS[3]: [Status.BUSY],
    }  # fmt: skip
    assert check(tmp_path, answers) == len(KEYS)


def test_a_miss_is_one_at_once(tmp_path: Path) -> None:
    answers: dict[str, list[int]] = {KEYS[1]: [Status.MISS], KEYS[2]: [Status.CORRUPT]}
    assert check(tmp_path, answers) == 2
