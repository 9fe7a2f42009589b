"""Windows of the fake devices: who may use them, and what ends them."""

from collections.abc import Callable
from errno import EINVAL

import pytest

from memkv.rdma.verbs import REMOTE, Access, Completion, VerbsError
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs
from memkv.testing.verbs_ends import OPEN, End, Ends

MIB = 1 << 20
FIRST, LENGTH = 4096, 10_000
WRITE, READ = Access.REMOTE_WRITE, Access.REMOTE_READ
REFUSED = Completion(1, "remote access error", False)
UNBOUND = Completion(1, "memory window bind error", False)

# operation, access of the window, first byte, length, whether it may
USES = {
    "write all of it": ("write", WRITE, FIRST, LENGTH, True),
    "read all of it": ("read", READ, FIRST, LENGTH, True),
    "write by both rights": ("write", REMOTE, FIRST, LENGTH, True),
    "write by a window for reading": ("write", READ, FIRST, LENGTH, False),
    "read by a window for writing": ("read", WRITE, FIRST, LENGTH, False),
    "one byte before": ("write", WRITE, FIRST - 1, LENGTH, False),
    "one byte more": ("write", WRITE, FIRST, LENGTH + 1, False),
    "elsewhere in its region": ("read", READ, 20 * FIRST, 9, False),
}


@pytest.mark.parametrize("case", USES)
def test_uses(ends: Ends, case: str) -> None:
    operation, access, first, length, may = USES[case]
    client, server = ends.client, ends.server
    window = client.bound(access, FIRST, LENGTH)
    client.memory.fill(b"client-2")
    before = client.memory.bytes[:], server.memory.bytes[:]
    post = server.write if operation == "write" else server.read
    post(client, length, first=first, key=window.remote_key)
    assert server.wait() == [Completion(1, "", False) if may else REFUSED]
    changed = (client.memory.bytes[:], server.memory.bytes[:]) != before
    assert changed == may


def test_a_region_need_not_be_open_itself(ends: Ends) -> None:
    client, server = ends.make(
        lambda device, size: End(device, size, Access.LOCAL_WRITE | Access.WINDOWS)
    )
    window = client.bound(WRITE, FIRST, LENGTH)
    server.write(client, LENGTH, first=FIRST, key=window.remote_key)
    server.done()


def test_other_queue_pairs_cannot_use_it(ends: Ends) -> None:
    _, other = ends.make()
    window = ends.client.bound(WRITE, FIRST, LENGTH)
    other.write(ends.client, 9, first=FIRST, key=window.remote_key)
    assert other.wait() == [REFUSED]
    ends.server.write(ends.client, 9, first=FIRST, key=window.remote_key)
    ends.server.done()


def test_each_binding_has_a_key_of_its_own(ends: Ends) -> None:
    client, server = ends.client, ends.server
    keys = set()
    window = client.window()
    for _ in range(300):
        client.queue_pair.bind(1, window, client.region, client.address, 9, WRITE)
        client.queue_pair.invalidate(2, window)
        assert [completion.error for completion in client.wait(2)] == ["", ""]
        keys.add(window.remote_key)
    assert len(keys) == 300
    server.write(client, 9, key=min(keys))
    assert server.wait() == [REFUSED]


def invalidate(client: End) -> int:
    window = client.bound(WRITE, FIRST, LENGTH)
    client.queue_pair.invalidate(1, window)
    client.done()
    return window.remote_key


def close(client: End) -> int:
    window = client.bound(WRITE, FIRST, LENGTH)
    window.close()
    window.close()
    return window.remote_key


def bind_later(client: End) -> int:
    return client.window().remote_key


@pytest.mark.parametrize("end", [invalidate, close, bind_later])
def test_an_unbound_window_opens_nothing(ends: Ends, end: Callable[[End], int]) -> None:
    ends.server.write(ends.client, 9, first=FIRST, key=end(ends.client))
    assert ends.server.wait() == [REFUSED]
    assert ends.client.memory.bytes[:] == bytes(MIB)


# --- what cannot be bound ----------------------------------------------------------------------

BINDINGS = {
    # access of the region, of the window, first byte, length
    "a region without WINDOWS": (Access.LOCAL_WRITE | REMOTE, WRITE, 0, 9),
    "a region that cannot be written": (Access.WINDOWS, WRITE, 0, 9),
    "one byte before": (OPEN, WRITE, -1, 9),
    "one byte beyond": (OPEN, READ, MIB - 8, 9),
}


@pytest.mark.parametrize("case", BINDINGS)
def test_bindings_refused(fabric: FakeFabric, ends: Ends, case: str) -> None:
    region_access, access, first, length = BINDINGS[case]
    client = ends.client
    region = client.register(region_access)
    window = client.window()
    client.queue_pair.bind(1, window, region, client.address + first, length, access)
    client.queue_pair.bind(2, window, client.region, client.address, 9, WRITE)
    assert client.wait(2) == [UNBOUND, Completion(2, "WR flush error", True)]
    ends.server.write(client, 9, key=window.remote_key)
    fabric.settle()
    assert ends.server.queue_pair.poll() == [], "its peer is broken and answers nothing"


def test_a_region_for_reading_can_have_a_window_for_reading(ends: Ends) -> None:
    region = ends.client.register(Access.WINDOWS)
    ends.client.bound(READ, 0, 9, region)


def test_a_bound_window_cannot_be_bound(ends: Ends) -> None:
    client = ends.client
    window = client.bound(WRITE, FIRST, LENGTH)
    client.queue_pair.bind(1, window, client.region, client.address, 9, WRITE)
    assert client.wait() == [UNBOUND]


def test_windows_regions_and_queue_pairs_of_other_domains(fabric: FakeFabric, ends: Ends) -> None:
    other = FakeVerbs(fabric, ["client0"]).open("client0")
    region = other.register(ends.client.address, MIB, OPEN)
    for one, another in (
        (other.allocate_window(), region), (other.allocate_window(), None), (None, region),
    ):  # fmt: skip
        client, _ = ends.make()
        window = one or client.window()
        address = (ends.client if another else client).address
        client.queue_pair.bind(1, window, another or client.region, address, 9, WRITE)
        assert client.wait() == [UNBOUND]
    other.close()


@pytest.mark.parametrize("access", [Access.NONE, Access.LOCAL_WRITE | WRITE, Access.WINDOWS])
def test_rights_that_no_window_has(ends: Ends, access: Access) -> None:
    client = ends.client
    with pytest.raises(VerbsError) as caught:
        client.queue_pair.bind(1, client.window(), client.region, client.address, 9, access)
    assert caught.value.number == EINVAL


def test_a_closed_window_or_region_cannot_be_bound(ends: Ends) -> None:
    closed = ends.client.window()
    closed.close()
    ends.client.queue_pair.bind(1, closed, ends.client.region, ends.client.address, 9, WRITE)
    assert ends.client.wait() == [UNBOUND]
    client, _ = ends.make()
    region = client.register(OPEN)
    region.close()
    client.queue_pair.bind(1, client.window(), region, client.address, 9, WRITE)
    assert client.wait() == [UNBOUND]


# --- what cannot be ended ----------------------------------------------------------------------


def test_only_a_bound_window_can_be_invalidated(ends: Ends) -> None:
    ends.client.queue_pair.invalidate(1, ends.client.window())
    assert ends.client.wait() == [UNBOUND]


def test_only_the_queue_pair_that_bound_it_can_invalidate_it(ends: Ends) -> None:
    window = ends.client.bound(WRITE, FIRST, LENGTH)
    other, _ = ends.make()
    other.queue_pair.invalidate(1, window)
    assert other.wait() == [UNBOUND]
    ends.server.write(ends.client, 9, first=FIRST, key=window.remote_key)
    ends.server.done()


def test_a_flushed_invalidation_revokes_nothing_but_close_does(ends: Ends) -> None:
    client = ends.client
    window = client.bound(WRITE, FIRST, LENGTH)
    client.queue_pair.fail()
    client.queue_pair.invalidate(2, window)
    assert client.wait() == [Completion(2, "WR flush error", True)]
    with pytest.raises(VerbsError, match="bound"):
        client.region.close()
    window.close()
    client.region.close()


def test_a_region_with_windows_stays(ends: Ends) -> None:
    client, server = ends.client, ends.server
    windows = [client.bound(WRITE, 0, 9), client.bound(WRITE, 9, 9)]
    for window in windows:
        with pytest.raises(VerbsError) as caught:
            client.region.close()
        assert caught.value.number == EINVAL
        server.write(client, 9, key=client.region.remote_key)
        server.done()
        window.close()
    client.region.close()
    server.write(client, 9)
    assert server.wait() == [REFUSED]


def test_closing_a_queue_pair_revokes_its_windows(ends: Ends) -> None:
    window = ends.client.bound(WRITE, FIRST, LENGTH)
    _, server = ends.make()
    ends.client.queue_pair.close()
    ends.client.region.close()
    server.write(ends.client, 9, first=FIRST, key=window.remote_key)
    assert server.wait() == [REFUSED]
    other, server = ends.make()
    other.queue_pair.bind(1, window, other.region, other.address, 9, WRITE)
    other.done()
    server.write(other, 9, key=window.remote_key)
    server.done()
