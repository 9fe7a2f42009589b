"""Thousands of transfers cut at random moments, against an oracle: reused memory stays as it is.

The controls show that the oracle would see it: with fabrics that do not wait for pieces, or that
forget to look whether a queue pair is still there, late bytes are found.
"""

import random
import time
from collections.abc import Callable

import pytest

from memkv.rdma.verbs import REMOTE, Access, MemoryRegion, Peer, Window
from memkv.testing.fake_verbs import FakeFabric, FakeVerbs, Piece
from memkv.testing.fake_verbs.queue_pair import FakeQueuePair, State
from memkv.testing.verbs_ends import OPEN, Memory, wait

SLOT = 32 << 10
PIECE = 2 << 10
LANES = 4
OPERATIONS = 3000
CUTS = ("client closes", "client fails", "window closes", "region closes")


class LateBytesError(AssertionError):
    """Memory changed after its lane was fenced."""


class Lane:
    """A slot on both sides and a queue pair pair; a request at a time."""

    def __init__(self, run: "Run", index: int) -> None:
        self.run = run
        self.first = index * SLOT
        self.region: MemoryRegion | None = None
        self.window: Window | None = None
        self.expected = bytes(SLOT)
        self.is_busy = False
        self.is_write = True
        self.connect()

    def connect(self) -> None:
        run = self.run
        self.client = run.client.open_queue_pair(1, 3, 4, Access.LOCAL_WRITE | REMOTE)
        self.server = run.server.open_queue_pair(1, 3, 4, Access.LOCAL_WRITE)
        for pair, other, gid in (
            (self.client, self.server, run.server_gid), (self.server, self.client, run.client_gid),
        ):  # fmt: skip
            pair.connect(Peer(other.number, other.sequence, gid, 0, 4096))

    def key(self, way: str) -> int:
        """Open the slot for one request, by the arena's key, a region or a window."""
        run = self.run
        if way == "arena":
            return run.arena.remote_key
        address = run.memory.address + self.first
        self.region = run.client.register(address, SLOT, OPEN)
        if way == "region":
            return self.region.remote_key
        self.window = run.client.allocate_window()
        self.client.bind(1, self.window, self.region, address, SLOT, REMOTE)
        assert not wait(self.client, 1)[0].error
        return self.window.remote_key

    def start(self, way: str) -> None:
        """Post a WRITE of new content, or a READ of what is there."""
        run = self.run
        self.is_busy = True
        self.is_write = run.random.random() < 0.8
        key = self.key(way)
        local = run.server_memory.address + self.first
        self.content = run.random.randbytes(SLOT)
        source = run.server_memory if self.is_write else run.memory
        source.bytes[self.first : self.first + SLOT] = self.content
        post = self.server.write if self.is_write else self.server.read
        post(7, local, SLOT, run.staging.local_key, run.memory.address + self.first, key)

    def finish(self) -> None:
        """Let it complete, and look at what came."""
        (completion,) = wait(self.server, 1)
        assert not completion.error, completion
        target = self.run.memory if self.is_write else self.run.server_memory
        assert target.bytes[self.first : self.first + SLOT] == self.content
        self.shut()
        self.guard()

    def cut(self, how: str) -> None:
        """Fence at once; from now on nothing may touch the slot. The server learns it later."""
        if how == "client closes":
            if self.window is not None:
                self.window.close()
            self.client.close()
        elif how == "client fails":
            self.client.fail()
        elif how == "window closes" and self.window is not None:
            self.window.close()
        else:
            if self.window is not None:
                self.window.close()
            if self.region is not None:
                self.region.close()
            else:
                self.client.close()
        self.run.cuts_in_the_middle += self.is_torn()
        self.guard()

    def is_torn(self) -> bool:
        """Whether a part of a WRITE is there."""
        slot = self.run.memory.bytes[self.first : self.first + SLOT]
        return self.is_write and slot != self.content and slot[:PIECE] == self.content[:PIECE]

    def guard(self) -> None:
        """Reuse the slot."""
        self.is_busy = False
        self.expected = bytes([self.run.random.randrange(256)]) * SLOT
        self.run.memory.bytes[self.first : self.first + SLOT] = self.expected

    def recover(self) -> None:
        """Give both sides a new queue pair."""
        self.shut()
        self.client.close()
        self.server.close()
        self.connect()

    def shut(self) -> None:
        for opened in (self.window, self.region):
            if opened is not None:
                opened.close()
        self.window = self.region = None

    def check(self) -> None:
        now = self.run.memory.bytes[self.first : self.first + SLOT]
        if not self.is_busy and now != self.expected:
            raise LateBytesError(f"slot {self.first // SLOT}")


class Run:
    """A client and a server with some lanes; everything follows from the seed but the timing."""

    def __init__(self, fabric: FakeFabric, seed: int) -> None:
        self.random = random.Random(seed)
        self.fabric = fabric
        verbs = FakeVerbs(fabric, ["client0", "server0"])
        self.client, self.server = verbs.open("client0"), verbs.open("server0")
        self.client_gid = self.client.ports()[0].gids[3].value
        self.server_gid = self.server.ports()[0].gids[3].value
        self.memory, self.server_memory = Memory(LANES * SLOT), Memory(LANES * SLOT)
        self.arena = self.client.register(self.memory.address, LANES * SLOT, OPEN)
        self.staging = self.server.register(
            self.server_memory.address, LANES * SLOT, Access.LOCAL_WRITE
        )
        self.lanes = [Lane(self, index) for index in range(LANES)]
        self.cuts = 0
        self.cuts_in_the_middle = 0

    def step(self) -> None:
        """Start a request, or finish or cut one that is on its way beside others."""
        lane = self.random.choice(self.lanes)
        if not lane.is_busy:
            lane.start(self.random.choice(("arena", "arena", "region", "window")))
        elif self.random.random() < 0.3:
            lane.finish()
        else:
            lane.cut(self.random.choice(CUTS))
            self.cuts += 1
            for _ in range(3):
                lane.check()
                time.sleep(0)
            lane.recover()
        for other in self.lanes:
            other.check()

    def close(self) -> None:
        for lane in self.lanes:
            lane.shut()
        self.client.close()
        self.server.close()
        self.fabric.close()  # a fabric that waits for nothing may still be at it
        self.memory.close()
        self.server_memory.close()


def yielding(piece: Piece) -> None:
    """Let the other thread in while a piece is on its way."""
    time.sleep(0)


def run(fabric: FakeFabric, operations: int) -> Run:
    fabric.knobs.piece_bytes = PIECE
    fabric.knobs.inside = yielding
    made = Run(fabric, seed=11)
    try:
        for _ in range(operations):
            made.step()
        fabric.settle()
        for lane in made.lanes:
            lane.check()
    finally:
        made.close()
    return made


def test_reused_memory_is_never_touched(fabric: FakeFabric) -> None:
    made = run(fabric, OPERATIONS)
    assert made.cuts > OPERATIONS // 4
    assert made.cuts_in_the_middle > made.cuts // 20, "hardly a cut was in mid-transfer"
    assert fabric.moved_bytes["read"] > 0


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeFabric, "wait_for_piece", lambda fabric: None)


def no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue pairs go on serving after `fail`."""

    def fail(pair: FakeQueuePair) -> None:
        assert pair.state is not State.CLOSED

    monkeypatch.setattr(FakeQueuePair, "fail", fail)


@pytest.mark.parametrize("mistake", [no_waiting, no_state])
def test_the_oracle_sees_fabrics_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mistake(monkeypatch)
    with FakeFabric(seed=7) as wrong, pytest.raises(LateBytesError):
        run(wrong, 20 * OPERATIONS)
