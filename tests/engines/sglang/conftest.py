"""A pool of child processes for SGLang's own classes."""

from collections.abc import Iterator

import pytest

from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A pool that no test ends."""
    plan = PoolPlan(tmp_path_factory.mktemp("pool"), 2, 512 * MIB, 128 * MIB)
    with LocalPool(plan) as pool:
        yield pool.endpoint
