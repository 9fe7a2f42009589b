"""The fake devices: what a cut in mid-transfer leaves, and what is noticed of it."""

import threading
from collections.abc import Callable
from errno import EBADF, ENOMEM

import pytest

from memkv.rdma.verbs import Access, Completion, EventKind, VerbsError
from memkv.testing.fake_verbs import FakeFabric, Piece
from memkv.testing.verbs_ends import End, Ends

MIB = 1 << 20
PIECE = 64 << 10
DEADLINE_S = 20.0


def start(fabric: FakeFabric, ends: Ends, pieces: int = 3) -> None:
    """Have the server's WRITE of all its memory stop after some pieces; another one waits."""
    fabric.hold(after_pieces=pieces)
    ends.server.write(ends.client, MIB, work=1)
    ends.server.write(ends.client, MIB, work=2)
    fabric.settle()
    assert ends.client.memory.bytes[: pieces * PIECE] == ends.server.memory.bytes[: pieces * PIECE]
    assert ends.client.memory.bytes[pieces * PIECE :] == bytes(MIB - pieces * PIECE)


CUTS: dict[str, Callable[[End, End], None]] = {
    "the client closes its queue pair": lambda client, server: client.queue_pair.close(),
    "the client fails its queue pair": lambda client, server: client.queue_pair.fail(),
    "the server closes its queue pair": lambda client, server: server.queue_pair.close(),
    "the server fails its queue pair": lambda client, server: server.queue_pair.fail(),
    "the client's region is closed": lambda client, server: client.region.close(),
    "the server's region is closed": lambda client, server: server.region.close(),
    "the client's device is closed": lambda client, server: client.device.close(),
    "the server's device is closed": lambda client, server: server.device.close(),
}


@pytest.mark.parametrize("cut", CUTS)
def test_nothing_touches_memory_after_a_cut(fabric: FakeFabric, ends: Ends, cut: str) -> None:
    start(fabric, ends)
    CUTS[cut](ends.client, ends.server)
    ends.client.memory.fill(b"reused")
    content = ends.client.memory.bytes[:]
    fabric.release()
    fabric.settle()
    assert ends.client.memory.bytes[:] == content


@pytest.mark.parametrize("how", ["invalidate", "close"])
def test_a_window_that_ends_cuts(fabric: FakeFabric, ends: Ends, how: str) -> None:
    client, server = ends.client, ends.server
    window = client.bound(Access.REMOTE_WRITE, 0, MIB)
    fabric.hold(after_pieces=3)
    server.write(client, MIB, key=window.remote_key)
    fabric.settle()
    if how == "close":
        window.close()
    else:
        client.queue_pair.invalidate(2, window)
        client.done()
    client.memory.fill(b"reused")
    content = client.memory.bytes[:]
    fabric.release()
    assert server.wait() == [Completion(1, "remote access error", False)]
    assert client.memory.bytes[:] == content


@pytest.mark.parametrize("cut", ["close", "fail", "region"])
def test_a_cut_waits_for_the_piece_in_progress(fabric: FakeFabric, ends: Ends, cut: str) -> None:
    """The piece is held while it is on its way; the cut must not return before it is through."""
    on_its_way, go_on, returned = threading.Event(), threading.Event(), threading.Event()

    def inside(piece: Piece) -> None:
        on_its_way.set()
        assert go_on.wait(DEADLINE_S)

    cuts = {
        "close": ends.client.queue_pair.close,
        "fail": ends.client.queue_pair.fail,
        "region": ends.client.region.close,
    }

    def run() -> None:
        cuts[cut]()
        returned.set()

    fabric.knobs.inside = inside
    ends.server.write(ends.client, MIB)
    assert on_its_way.wait(DEADLINE_S)
    thread = threading.Thread(target=run)
    thread.start()
    assert not returned.wait(0.05), "it returned while a piece was on its way"
    assert ends.client.memory.bytes[:PIECE] == bytes(PIECE)
    go_on.set()
    assert returned.wait(DEADLINE_S)
    thread.join()
    assert ends.client.memory.bytes[:PIECE] == ends.server.memory.bytes[:PIECE]
    assert ends.client.memory.bytes[PIECE:] == bytes(MIB - PIECE)


def test_a_hook_may_cut_between_pieces(fabric: FakeFabric, ends: Ends) -> None:
    def between(piece: Piece) -> None:
        if piece.done_bytes == 5 * PIECE:
            ends.client.queue_pair.close()

    fabric.knobs.between = between
    ends.server.write(ends.client, MIB)
    fabric.settle()
    assert ends.client.memory.bytes[6 * PIECE - 1 : 6 * PIECE + 1] == b"1\0"


def test_a_hook_that_raises_is_noted(fabric: FakeFabric, ends: Ends) -> None:
    def between(piece: Piece) -> None:
        raise ValueError("mistake")

    fabric.knobs.between = between
    ends.server.write(ends.client, 9)
    ends.server.done()
    fabric.settle()
    assert fabric.complaints == ["a hook raised ValueError('mistake')"]
    fabric.complaints.clear()


# --- what the requester learns -------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "fail"])
def test_a_write_to_a_gone_peer_never_completes(fabric: FakeFabric, ends: Ends, end: str) -> None:
    server = ends.server
    start(fabric, ends)
    CUTS[f"the client {end}s its queue pair"](ends.client, server)
    fabric.release()
    fabric.settle()
    assert server.queue_pair.poll() == []
    server.queue_pair.fail()
    assert server.wait(2) == [
        Completion(1, "WR flush error", True), Completion(2, "WR flush error", True),
    ]  # fmt: skip


def test_retries_run_out_when_a_test_says_so(fabric: FakeFabric, ends: Ends) -> None:
    start(fabric, ends)
    other_client, other_server = ends.make()
    other_server.write(other_client, 9, work=3)
    ends.client.queue_pair.close()
    fabric.exhaust_retries()
    assert ends.server.wait(2) == [
        Completion(1, "retry exceeded error", False), Completion(2, "WR flush error", True),
    ]  # fmt: skip
    fabric.release()
    other_server.done()


def test_what_is_posted_to_a_failed_queue_pair_is_flushed(ends: Ends) -> None:
    ends.server.queue_pair.fail()
    ends.server.queue_pair.fail()
    ends.server.write(ends.client, 9, work=5)
    assert ends.server.wait() == [Completion(5, "WR flush error", True)]
    assert ends.client.memory.bytes[:9] == bytes(9)


def test_a_closed_queue_pair_takes_nothing(ends: Ends) -> None:
    pair = ends.server.queue_pair
    pair.close()
    pair.close()
    for call in (pair.arm, pair.poll, pair.fail, lambda: ends.server.write(ends.client, 9)):
        with pytest.raises(VerbsError) as caught:
            call()
        assert caught.value.number == EBADF


def test_a_broken_queue_pair_tells_only_when_it_shall(fabric: FakeFabric, ends: Ends) -> None:
    ends.server.write(ends.client, 9, key=0)
    ends.server.wait()
    assert ends.client.device.events() == []
    fabric.knobs.tells_of_broken_queue_pairs = True
    _, server = ends.make()
    server.write(ends.client, 9, key=0)
    server.wait()
    assert [event.kind for event in ends.client.device.events()] == [EventKind.QUEUE_PAIR_BROKEN]
    assert ends.server.device.events() == []


# --- faults on the way ---------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_lie_changes_one_bit_of_one_transfer(
    fabric: FakeFabric, ends: Ends, operation: str
) -> None:
    client, server = ends.client, ends.server
    source, target = (server, client) if operation == "write" else (client, server)
    post = server.write if operation == "write" else server.read
    client.memory.fill(b"client-2")
    content = source.memory.bytes[:]
    setattr(fabric.knobs, f"flip_{operation}s", 1)
    changed = []
    for _ in range(2):
        post(client, MIB)
        server.done()
        pairs = zip(target.memory.bytes[:], content, strict=True)
        changed.append([one ^ other for one, other in pairs if one != other])
    assert len(changed[0]) == 1
    assert changed[0][0].bit_count() == 1
    assert changed[1] == []
    assert source.memory.bytes[:] == content


def test_dropped_completions_keep_their_place(fabric: FakeFabric, ends: Ends) -> None:
    fabric.knobs.drop_completions = 2
    for work in range(16):
        ends.server.write(ends.client, 9, work=work)
    fabric.settle()
    assert [completion.work for completion in ends.server.queue_pair.poll()] == [*range(2, 16)]
    for work in range(14):
        ends.server.write(ends.client, 9, work=work)
    with pytest.raises(VerbsError) as caught:
        ends.server.write(ends.client, 9)
    assert caught.value.number == ENOMEM


def test_a_delay_lies_between_pieces(fabric: FakeFabric, ends: Ends) -> None:
    seen: list[int] = []
    fabric.knobs.delay_s = 0.001
    fabric.knobs.piece_bytes = 100_000
    fabric.knobs.between = lambda piece: seen.append(piece.size_bytes)
    ends.server.write(ends.client, 250_000)
    ends.server.done()
    fabric.settle()
    assert seen == [100_000, 100_000, 50_000]
    assert fabric.moved_bytes == {"write": 250_000, "read": 0}
