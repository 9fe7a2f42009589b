"""Fixtures of the store's tests."""

import pytest

from memkv.testing.store_bench import Bench


@pytest.fixture
def bench() -> Bench:
    """A small store on a simulated drive, open."""
    bench = Bench()
    bench.open()
    return bench
