"""Clients and workers of this process on devices in memory; at the end nothing of them is open."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from memkv import limits
from memkv.client import keeper
from memkv.client.backoff import Backoff
from memkv.limits import MIB
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.local_workers import LocalWorkers, local_workers


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    fabric = FakeFabric()
    yield fabric
    assert fabric.open_objects() == {}
    assert fabric.complaints == []
    fabric.close()


@pytest.fixture
def pool(tmp_path: Path, fabric: FakeFabric) -> Iterator[LocalWorkers]:
    """One worker with blocks of up to 2 MiB."""
    with local_workers(
        tmp_path, 1, memory_bytes=96 * MIB, block_bytes_max=2 * MIB,
        verbs=FakeVerbs(fabric, ["node0"]),
    ) as pool:  # fmt: skip
        try:
            yield pool
        finally:
            # A test that failed in the middle leaves devices that no worker could end on.
            fabric.knobs.refuse_closes.clear()
            fabric.knobs.close_delay_s = 0.0
            fabric.release()
    (tmp_path / "flash-0").unlink()


@pytest.fixture(params=[False, True], ids=["arena", "strict"])
def strict(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds to be found or tried again takes tenths of them."""
    monkeypatch.setattr(limits, "RDMA_REFRESH_MS", 100)
    monkeypatch.setattr(keeper, "IDLE_TICK_S", 0.05)
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (None, 300))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back does so at once: for tests that break hundreds of lanes."""
    monkeypatch.setattr(Backoff, "failed", lambda _: None)
    monkeypatch.setattr(keeper, "IDLE_TICK_S", 0.005)
