"""A pool of child processes, and a second engine process, for vLLM's own classes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.vllm_tiering import TieredCache

ANSWER_S_MAX = 120.0


class SecondEngine:
    """Another process with vLLM, which shares nothing with this one but the pool."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders

    def look(self, endpoint: str, name: str, count: int) -> list[str]:
        """Return of each chunk of a prompt what the other process found."""
        self._orders.send((endpoint, name, count))
        assert self._orders.poll(ANSWER_S_MAX), "the second process does not answer"
        found: list[str] = self._orders.recv()
        return found


def _serve(orders: Connection) -> None:
    while True:
        order = orders.recv()
        if order is None:
            return
        endpoint, name, count = order
        with TieredCache({"endpoint": endpoint}) as cache:
            keys = cache.chunks(name, count)
            found = cache.look(name, keys).found
            wanted = [cache.content(key) for key in keys]
        orders.send([
            "miss" if one is None else "same" if one == other else "different"
            for one, other in zip(found, wanted, strict=True)
        ])


@pytest.fixture(scope="session")
def second_engine() -> Iterator[SecondEngine]:
    """Forked while this process has no threads, sockets and clients yet: importing vLLM anew takes
    most of a minute."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    yield SecondEngine(ours)
    ours.send(None)
    process.join(ANSWER_S_MAX)
    assert process.exitcode == 0


@pytest.fixture(scope="session")
def pool(
    second_engine: SecondEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPool]:
    """A pool that tests may stop, but do not break."""
    plan = PoolPlan(tmp_path_factory.mktemp("pool") / "pool", 2, 512 * MIB, 128 * MIB)
    with LocalPool(plan) as pool:
        yield pool


@pytest.fixture(scope="session")
def endpoint(pool: LocalPool) -> str:
    return pool.endpoint
