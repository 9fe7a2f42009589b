"""What every `memkv.rdma.verbs.Verbs` must do, as cases that need two ends and no test framework.

`CASES` are for all devices. `STRICT_CASES` are what NICs keep and soft-RoCE does not (kernel 6.1):
the bounds of windows, and protection domains of what is bound. Each case gets fresh `Ends` and
raises AssertionError. Error texts differ between devices: only that there is one is looked at.
"""

import select
from collections.abc import Callable
from errno import EFAULT, ENOMEM
from functools import partial

from memkv.rdma.verbs import REMOTE, Access, Completion, VerbsError
from memkv.testing.verbs_ends import OPEN, End, Ends, wait

LENGTH = 300_001
PIECE = 4096
LOCAL, WRITE, READ = Access.LOCAL_WRITE, Access.REMOTE_WRITE, Access.REMOTE_READ
GUESSES = 20
SILENCE_S = 0.1

Case = Callable[[Ends], None]


def check(is_so: bool, text: str) -> None:
    """Raise unless it is so; unlike `assert`, also under `python -O`."""
    if not is_so:
        raise AssertionError(text)


def fails(completions: list[Completion], flushed: int = 0) -> None:
    """Require one refused request and then so many flushed ones."""
    states = [(bool(one.error), one.is_flushed) for one in completions]
    expected = [(True, False)] + [(True, True)] * flushed
    check(states == expected, f"one refusal and {flushed} flushed wanted: {completions}")


def raises(call: Callable[[], object], text: str) -> VerbsError:
    """Require a VerbsError."""
    try:
        call()
    except VerbsError as error:
        return error
    raise AssertionError(f"not refused: {text}")


# --- transfers -----------------------------------------------------------------------------------


def writes_exactly(ends: Ends) -> None:
    """A WRITE changes its range and nothing beside it."""
    client, server = ends.client, ends.server
    server.memory.fill(b"server-1")
    server.write(client, LENGTH, first=5)
    server.done()
    content = client.memory.bytes[:]
    check(content[5 : LENGTH + 5] == server.memory.bytes[:LENGTH], "other bytes came")
    check(not any(content[:5] + content[LENGTH + 5 :]), "neighbours were touched")


def reads_exactly(ends: Ends) -> None:
    """A READ brings its range and changes nothing beside it."""
    client, server = ends.client, ends.server
    client.memory.fill(b"client-2")
    server.read(client, LENGTH, first=3)
    server.done()
    content = server.memory.bytes[:]
    check(content[:LENGTH] == client.memory.bytes[3 : LENGTH + 3], "other bytes came")
    check(not any(content[LENGTH:]), "neighbours were touched")


def completes_in_order(ends: Ends) -> None:
    """Completions carry the numbers of their requests, in the order of posting."""
    works = [5, 1 << 40, 0, 7, (1 << 64) - 1]
    for work in works:
        ends.server.write(ends.client, 1000, work=work)
    done = ends.server.wait(len(works))
    check(done == [Completion(work, "", False) for work in works], str(done))


def tells_once_after_arm(ends: Ends) -> None:
    """`event_fd` is readable after a completion that came after `arm`, until the next `arm`."""
    pair = ends.server.queue_pair

    def is_readable(seconds: float = 0) -> bool:
        return bool(select.select([pair.event_fd], [], [], seconds)[0])

    check(not is_readable(), "readable before anything was posted")
    pair.arm()
    ends.server.write(ends.client, 9)
    check(is_readable(20), "a completion did not make it readable")
    check(len(pair.poll()) == 1, "readable without a completion")
    pair.arm()
    check(not is_readable(), "still readable after `arm`")
    check(not pair.poll(), "a completion came twice")


# --- keys and rights -----------------------------------------------------------------------------


def refuses(client: End, server: End, operation: str, first: int) -> None:
    """Require that a remote access is refused, flushes what follows, and touches nothing."""
    client.memory.fill(b"client-2")
    before = client.memory.bytes[:], server.memory.bytes[:]
    post = server.write if operation == "write" else server.read
    post(client, 9, work=1, first=first)
    post(client, 9, work=2, first=first)
    fails(server.wait(2), flushed=1)
    check((client.memory.bytes[:], server.memory.bytes[:]) == before, "bytes were moved")
    client.read(server, 9, key=0)
    (completion,) = client.wait()
    check(completion.is_flushed, "the side that refused is not in error")


def refuses_by_rights(ends: Ends) -> None:
    """Regions and queue pairs open only what their flags say, within their bounds."""
    for operation, region, pair, first in (
        ("write", LOCAL | READ, LOCAL | REMOTE, 0),
        ("read", LOCAL | WRITE, LOCAL | REMOTE, 0),
        ("write", OPEN, LOCAL | READ, 0),
        ("read", OPEN, LOCAL | WRITE, 0),
        ("write", OPEN, LOCAL | REMOTE, -1),
        ("write", OPEN, LOCAL | REMOTE, ends.size_bytes - 8),
        ("read", OPEN, LOCAL | REMOTE, ends.size_bytes * 3),
    ):
        client, server = ends.make(
            partial(End, region=region, queue_pair=pair),
            partial(End, region=LOCAL, queue_pair=LOCAL),
        )
        refuses(client, server, operation, first)


def has_no_remote_key_without_rights(ends: Ends) -> None:
    """A region without remote rights is reached by no key."""
    client, server = ends.make(partial(End, region=LOCAL))
    check(client.region.remote_key == 0, "it has a remote key")
    server.write(client, 9, key=client.region.local_key)
    fails(server.wait())
    check(not any(client.memory.bytes[:9]), "bytes were moved")


def closes_regions(ends: Ends) -> None:
    """The key of a closed region opens nothing; guesses near a key open nothing."""
    closed = ends.client.register(OPEN)
    keys = [closed.remote_key]
    closed.close()
    closed.close()
    near = ends.client.region.remote_key
    keys += [near + offset for offset in range(1 << 8, GUESSES << 8, 1 << 8)]
    for key in keys:
        _, server = ends.make()
        server.write(ends.client, 9, key=key & 0xFFFFFFFF)
        fails(server.wait())
    check(not any(ends.client.memory.bytes[:]), "bytes were moved")


def refuses_registrations(ends: Ends) -> None:
    """REMOTE_WRITE needs LOCAL_WRITE, and memory has to be there."""
    device, address = ends.client.device, ends.client.address
    raises(lambda: device.register(address, 4096, WRITE), "REMOTE_WRITE without LOCAL_WRITE")
    error = raises(lambda: device.register(1 << 40, 4096, LOCAL), "memory that is not mapped")
    check(error.number in (EFAULT, ENOMEM), f"errno {error.number}")


def refuses_local_accesses(ends: Ends) -> None:
    """A READ needs a region that may be written, a WRITE one of this key; the peer stays well."""
    client, server = ends.make(server=partial(End, region=Access.NONE))
    client.memory.fill(b"client-2")
    server.read(client, 9)
    fails(server.wait())
    check(not any(server.memory.bytes[:9]), "bytes were moved")
    client.bound(WRITE, 0, PIECE)


# --- windows -------------------------------------------------------------------------------------


def window_is_used_and_invalidated(ends: Ends) -> None:
    """A window opens its range to its queue pair until it is invalidated."""
    client, server = ends.make(partial(End, region=LOCAL | Access.WINDOWS))
    server.memory.fill(b"server-1")
    keys = []
    for _ in range(3):
        window = client.bound(WRITE, PIECE, PIECE)
        keys.append(window.remote_key)
        server.write(client, PIECE, first=PIECE, key=window.remote_key)
        server.done()
        client.queue_pair.invalidate(2, window)
        client.done()
    check(len(set(keys)) == 3, f"keys came back at once: {keys}")
    check(client.memory.bytes[PIECE : 2 * PIECE] == server.memory.bytes[:PIECE], "other bytes")
    client.memory.fill(b"\0")
    server.write(client, PIECE, first=PIECE, key=keys[-1])
    fails(server.wait())
    check(not any(client.memory.bytes[:]), "written through an ended window")


def window_is_revoked_by_close(ends: Ends) -> None:
    """`close` ends a window whatever the state of its queue pair; until then its region stays."""
    client, server = ends.client, ends.server
    window = client.bound(WRITE, 0, PIECE)
    raises(client.region.close, "closing a region with a bound window")
    client.queue_pair.fail()
    client.queue_pair.invalidate(2, window)
    check(client.wait()[0].is_flushed, "an invalidation went through on a failed queue pair")
    window.close()
    window.close()
    client.region.close()
    check(not server.queue_pair.poll(), "the server has completions of nothing")


def window_is_for_one_queue_pair(ends: Ends) -> None:
    """Another queue pair of the same domain cannot use a window, nor the wrong operation."""
    _, other = ends.make()
    window = ends.client.bound(WRITE, 0, PIECE)
    other.write(ends.client, 9, key=window.remote_key)
    fails(other.wait())
    ends.server.write(ends.client, 9, key=window.remote_key)
    ends.server.done()
    ends.server.read(ends.client, 9, key=window.remote_key)
    fails(ends.server.wait())


def window_needs_a_fit_region(ends: Ends) -> None:
    """Binding needs WINDOWS, LOCAL_WRITE for writing, and bounds."""
    for region_access, first in (
        (LOCAL | REMOTE, 0),
        (Access.WINDOWS, 0),
        (OPEN, ends.size_bytes - 8),
    ):
        client, _ = ends.make()
        region = client.register(region_access)
        window = client.window()
        address = client.address + first
        try:
            client.queue_pair.bind(1, window, region, address, 9, WRITE)
        except VerbsError:
            continue  # refused at once is as good
        fails(client.wait())


# --- cuts ----------------------------------------------------------------------------------------


def fails_and_closes(ends: Ends) -> None:
    """After `fail` what is posted is flushed; after `close` nothing can be posted."""
    pair = ends.server.queue_pair
    pair.fail()
    ends.server.write(ends.client, 9, work=5)
    check([(one.work, one.is_flushed) for one in ends.server.wait()] == [(5, True)], "not flushed")
    pair.close()
    pair.close()
    raises(lambda: ends.server.write(ends.client, 9), "posting to a closed queue pair")
    fresh = End(ends.client_device, PIECE)
    raises(lambda: fresh.write(ends.server, 9), "posting before connecting")
    fresh.close()
    raises(lambda: ends.client.queue_pair.connect(ends.server.peer()), "connecting twice")


def fences(ends: Ends) -> None:
    """Once the client's queue pair is closed or failed, its memory is its own."""
    cuts = 0
    for how in ("close", "fail") * 5:
        client, server = ends.make()
        for work in range(8):
            server.write(client, ends.size_bytes, work=work)
        server.wait(1)
        if how == "close":
            client.queue_pair.close()
        else:
            client.queue_pair.fail()
        client.memory.fill(b"reused")
        content = client.memory.bytes[:]
        try:
            wait(server.queue_pair, 7, SILENCE_S)
        except TimeoutError:
            cuts += 1
        check(client.memory.bytes[:] == content, f"late bytes after {how}")
        server.queue_pair.fail()
    check(cuts > 0, "no WRITE was cut: take more memory")


# --- what soft-RoCE does not keep ----------------------------------------------------------------


def window_has_bounds(ends: Ends) -> None:
    """A window opens no byte beyond its range."""
    for first, length in ((PIECE - 1, 9), (PIECE, PIECE + 1), (20 * PIECE, 9)):
        client, server = ends.make()
        window = client.bound(WRITE, PIECE, PIECE)
        server.write(client, length, first=first, key=window.remote_key)
        fails(server.wait())
        check(not any(client.memory.bytes[:]), "bytes were moved")


CASES: list[Case] = [
    writes_exactly, reads_exactly, completes_in_order, tells_once_after_arm, refuses_by_rights,
    has_no_remote_key_without_rights, closes_regions, refuses_registrations,
    refuses_local_accesses, window_is_used_and_invalidated, window_is_revoked_by_close,
    window_is_for_one_queue_pair, window_needs_a_fit_region, fails_and_closes, fences,
]  # fmt: skip
STRICT_CASES: list[Case] = [window_has_bounds]
