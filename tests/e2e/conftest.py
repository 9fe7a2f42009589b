"""One real pool for all tests that do not end it: a metadata service and two nodes."""

from collections.abc import Iterator

import pytest

import memkv
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan

READY_MS = 60_000


@pytest.fixture(scope="session")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPool]:
    plan = PoolPlan(tmp_path_factory.mktemp("shared"), 2, 256 * MIB, 64 * MIB)
    with LocalPool(plan) as pool:
        yield pool


@pytest.fixture
def pool(shared_pool: LocalPool) -> Iterator[LocalPool]:
    """The shared pool, whole before and after each test."""
    yield shared_pool
    shared_pool.wait_complete(READY_MS / 1000)


@pytest.fixture
def client(pool: LocalPool) -> Iterator[memkv.Client]:
    with memkv.connect(pool.endpoint) as made:
        assert made.wait_ready(READY_MS)
        yield made
