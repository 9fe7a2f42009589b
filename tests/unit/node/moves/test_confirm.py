"""Asking others at a start whether the map is still the newest."""

from collections.abc import Callable, Iterator

import pytest

from memkv import limits
from memkv.errors import PeerGone
from memkv.node.moves.confirm import is_outdated, peers_to_ask
from memkv.node.moves.peer import Peer, PeerOfAnotherLineage, TakeBlock
from memkv.shardmap import MapVersion, ShardMap, Worker, WorkerState, pack_owners
from memkv.status import Status
from memkv.wire.messages import ListKind, ListPage

ME = b"\x02" * 16


def make_map(count: int, lost: frozenset[int] = frozenset()) -> ShardMap:
    workers = tuple(
        Worker(
            bytes([n]) * 16, 1, f"n{n}", "127.0.0.1", 7070 + n,
            WorkerState.LOST if n in lost else WorkerState.ACTIVE,
        )
        for n in range(1, count + 1)
    )  # fmt: skip
    return ShardMap(MapVersion(b"L" * 16, 3, 9), 2, workers, pack_owners([1, 1]))


class Answering(Peer):
    """Has a session and nothing else."""

    def __init__(self, served: tuple[int, int]) -> None:
        self._served = served

    @property
    def served(self) -> tuple[int, int]:
        return self._served

    def pages(self, slot: int, kind: ListKind, since_epoch: int = 0) -> Iterator[ListPage]:
        raise NotImplementedError

    def pull(self, tenant_tag: bytes, ids: list[bytes], take: TakeBlock) -> list[Status]:
        raise NotImplementedError

    def close(self) -> None: ...


def connecting(answers: dict[int, tuple[int, int] | Exception]) -> Callable[..., Peer]:
    def connect(worker: Worker, version: MapVersion) -> Peer:
        answer = answers[worker.uuid[0]]
        if isinstance(answer, Exception):
            raise answer
        return Answering(answer)

    return connect


@pytest.mark.parametrize(
    ("answers", "outdated"),
    [
        ({1: (3, 9), 3: (3, 9)}, False),
        ({1: (3, 8), 3: (0, 0)}, False),
        ({1: (3, 9), 3: (3, 10)}, True),
        ({1: (4, 2), 3: PeerGone("away")}, True),
        ({1: PeerGone("away"), 3: PeerGone("away")}, False),
        ({1: (3, 9), 3: PeerOfAnotherLineage("other")}, True),
    ],
    ids=["same", "behind", "one-ahead", "ahead-by-term", "nobody-there", "another-lineage"],
)
def test_one_newer_map_is_enough(
    answers: dict[int, tuple[int, int] | Exception], outdated: bool
) -> None:
    assert is_outdated(make_map(3), ME, connecting(answers)) is outdated


def test_worker_alone_has_nobody_to_ask() -> None:
    assert not is_outdated(make_map(2, frozenset({1})), ME, connecting({}))


def test_those_after_it_are_asked_and_not_all_of_a_large_pool() -> None:
    asked = peers_to_ask(make_map(30, frozenset({4})), ME)
    assert [worker.uuid[0] for worker in asked] == [3, 5, 6, 7, 8, 9, 10, 11]
    assert len(asked) == limits.CONFIRM_PEERS_MAX
    assert [w.uuid[0] for w in peers_to_ask(make_map(3), b"\x03" * 16)] == [1, 2]
