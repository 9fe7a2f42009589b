"""What a peer cannot do to memory over soft-RoCE, at the level of verbs: all bytes are compared
after each try. A refused try ends both queue pairs, so each try has a pair of its own.

soft-RoCE of Linux 6.1 keeps the bounds of regions, not those of windows within them.
MEMKV_GUESSES_S: how long keys are guessed, 10,000 at most; the default is for everyday.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator

import pytest

from memkv.rdma.driver import PyVerbs
from memkv.rdma.verbs import REMOTE, Access, Completion, Device, Peer, QueuePair
from memkv.testing.rdma_pool import CLIENT_DEVICE, NODE_DEVICE
from memkv.testing.verbs_ends import OPEN, End, wait

TRIES = 100
GUESSES = 10_000
GUESSES_S = float(os.environ.get("MEMKV_GUESSES_S", "20"))
ROOM = 64 * 1024
LENGTH = 4096
SECRET = b"\x5a"
Pair = tuple[QueuePair, QueuePair]


class Scene:
    """An attacker and a victim, whose memory is full of one byte and must stay so."""

    def __init__(self, attacker: Device, victim: Device, access: Access) -> None:
        self.attacker = End(attacker, ROOM)
        self.victim = End(victim, ROOM, region=access)
        self.victim.memory.fill(SECRET)

    def pair(self, access: Access = Access.LOCAL_WRITE | REMOTE) -> Pair:
        """Return connected queue pairs of attacker and victim; `access`: what the latter allows."""
        ends = self.attacker, self.victim
        opened = [
            end.device.open_queue_pair(end.port.number, end.gid.index, 4, rights)
            for end, rights in zip(ends, (Access.LOCAL_WRITE, access), strict=True)
        ]
        for own, (end, other) in zip(opened, zip(reversed(ends), reversed(opened), strict=True),
                                     strict=True):
            port = end.port
            own.connect(
                Peer(other.number, other.sequence, end.gid.value, port.lid, port.mtu_bytes)
            )
        return opened[0], opened[1]

    def try_once(
        self, key: int, address: int, *, read: bool, access: Access = Access.LOCAL_WRITE | REMOTE
    ) -> list[Completion]:
        """Post one request by a pair of its own; return its completion."""
        mine, theirs = self.pair(access)
        post = mine.read if read else mine.write
        try:
            post(1, self.attacker.address, LENGTH, self.attacker.region.local_key, address, key)
            return wait(mine, 1)
        finally:
            mine.close()
            theirs.close()

    @property
    def is_untouched(self) -> bool:
        return (
            self.victim.memory.bytes[:] == SECRET * ROOM
            and not any(self.attacker.memory.bytes[:LENGTH])
        )

    def close(self) -> None:
        self.attacker.close()
        self.victim.close()


@pytest.fixture(scope="module")
def devices() -> Iterator[tuple[Device, Device]]:
    """A node's and a client's."""
    verbs = PyVerbs()
    node, client = verbs.open(NODE_DEVICE), verbs.open(CLIENT_DEVICE)
    yield node, client
    client.close()
    node.close()


def closed_window(scene: Scene) -> tuple[int, int]:
    """The key of a window that was bound, used and closed, in the old way of a timeout."""
    window = scene.victim.bound(Access.REMOTE_WRITE | Access.REMOTE_READ, 0, ROOM)
    key = window.remote_key
    window.close()
    return key, scene.victim.address


def other_queue_pair(scene: Scene) -> tuple[int, int]:
    """A window that is bound, but on another queue pair than the one that uses its key."""
    window = scene.victim.bound(Access.REMOTE_WRITE | Access.REMOTE_READ, 0, ROOM)
    return window.remote_key, scene.victim.address


def before_the_region(scene: Scene) -> tuple[int, int]:
    return scene.victim.region.remote_key, scene.victim.address - LENGTH


def across_its_end(scene: Scene) -> tuple[int, int]:
    return scene.victim.region.remote_key, scene.victim.address + ROOM - LENGTH + 1


def far_away(scene: Scene) -> tuple[int, int]:
    return scene.victim.region.remote_key, scene.victim.address + (1 << 30)


def next_key(scene: Scene) -> tuple[int, int]:
    """Keys of soft-RoCE are an index and eight random bits."""
    return scene.victim.region.remote_key ^ 1, scene.victim.address


@pytest.mark.parametrize(
    "trick",
    [closed_window, other_queue_pair, before_the_region, across_its_end, far_away, next_key],
)
def test_a_peer_is_refused(
    devices: tuple[Device, Device], trick: Callable[[Scene], tuple[int, int]]
) -> None:
    node, client = devices
    scene = Scene(node, client, OPEN)
    # Windows are bound by a queue pair that works.
    scene.attacker.queue_pair.connect(scene.victim.peer())
    scene.victim.queue_pair.connect(scene.attacker.peer())
    try:
        key, address = trick(scene)
        for number in range(TRIES):
            (completion,) = scene.try_once(key, address, read=bool(number % 2))
            assert completion.error, f"try {number} was let through"
        assert scene.is_untouched
    finally:
        scene.close()


def test_a_region_of_another_protection_domain_is_out_of_reach(
    devices: tuple[Device, Device],
) -> None:
    """Each pool of a client has a domain of its own: another pool's nodes have nothing there."""
    node, client = devices
    elsewhere = PyVerbs().open(CLIENT_DEVICE)
    scene, other = Scene(node, client, OPEN), End(elsewhere, ROOM)
    other.memory.fill(SECRET)
    try:
        for number in range(TRIES):
            (completion,) = scene.try_once(
                other.region.remote_key, other.address, read=bool(number % 2)
            )
            assert completion.error
        assert other.memory.bytes[:] == SECRET * ROOM
        assert scene.is_untouched
    finally:
        scene.close()
        other.close()
        elsewhere.close()


def test_guessed_keys_open_nothing_of_a_node(devices: tuple[Device, Device]) -> None:
    """A client tries keys on a node's queue pair: those near the node's own, and any."""
    node, client = devices
    scene = Scene(client, node, Access.LOCAL_WRITE)
    assert scene.victim.region.remote_key == 0
    near = scene.victim.region.local_key
    end, tried = time.monotonic() + GUESSES_S, 0
    try:
        while tried < GUESSES and time.monotonic() < end:
            key = near ^ (tried // 2) if tried % 2 else secrets.randbits(32)
            (completion,) = scene.try_once(
                key, scene.victim.address, read=bool(tried % 4 > 1), access=Access.NONE
            )
            assert completion.error, f"key {key:#x} opened something"
            tried += 1
        assert scene.is_untouched
    finally:
        scene.close()
    print(f"\n{tried} keys guessed, 0 bytes read or written")
    assert tried > TRIES
