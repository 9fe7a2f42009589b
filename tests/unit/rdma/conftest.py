"""A fabric without devices, and two connected ends on it."""

from collections.abc import Iterator

import pytest

from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.verbs_ends import Ends


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    """Checked at the end: nothing is open, nothing was misused."""
    with FakeFabric(seed=7) as fabric:
        yield fabric
        assert fabric.open_objects() == {}
        assert fabric.complaints == []


@pytest.fixture
def ends(fabric: FakeFabric) -> Iterator[Ends]:
    """A server writes and reads; the client's memory is open to it."""
    client, server = FakeVerbs(fabric, ["client0"]), FakeVerbs(fabric, ["server0"])
    with Ends((client, "client0"), (server, "server0")) as ends:
        ends.server.memory.fill(b"server-1")
        yield ends
