"""What came and went, for those who watch: a ring of events for each tenant that somebody watches.

Watchers ask for pages (`Feeds.page`) and are told when they missed something; then they read a
snapshot of the index. A feed begins with the first question and ends when nobody asked for a while,
so that blocks of tenants without watchers cost one comparison. Everything is under the store's
lock.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from memkv.limits import FEED_EVENTS_MAX, FEED_IDLE_MS, FEEDS_MAX
from memkv.store.config import Randomness
from memkv.store.tenants import TenantState

DIGEST_BYTES = 16  # the first of a block id, as the index has it
NO_PREFIX = bytes(8)
STORED, REMOVED = 0, 1
EVENT = struct.Struct("<16s8sII")  # digest, prefix_id, depth, kind
_NS_PER_MS = 1_000_000

assert EVENT.size == 32


class FeedPage(NamedTuple):
    """Part of a feed. With `is_gap` the watcher does not know all: it takes a snapshot, and goes on
    from here."""

    generation: int
    next_event: int
    is_gap: bool
    events: bytes


class Feed:
    """The last FEED_EVENTS_MAX events of one tenant."""

    __slots__ = ("asked_ns", "first", "generation", "next", "ring")

    def __init__(self, generation: int, now_ns: int) -> None:
        self.generation = generation
        self.asked_ns = now_ns
        self.ring = bytearray(FEED_EVENTS_MAX * EVENT.size)
        self.first = 0
        """The oldest event that a watcher may go on from."""
        self.next = 0

    def add(self, kind: int, block_id: bytes, prefix_id: bytes, depth: int) -> None:
        """Note one event."""
        EVENT.pack_into(
            self.ring, self.next % FEED_EVENTS_MAX * EVENT.size, block_id, prefix_id, depth, kind
        )
        self.next += 1

    def since(self, event: int, limit: int) -> bytes:
        """Return at most `limit` events from that one on, which is still there."""
        start, end = event, min(self.next, event + limit)
        at, length = start % FEED_EVENTS_MAX * EVENT.size, (end - start) * EVENT.size
        piece = bytes(self.ring[at : at + length])
        return piece + bytes(self.ring[: length - len(piece)])


class Feeds:
    """The feeds of a store."""

    def __init__(self, random: Randomness) -> None:
        self._random = random
        self._feeds: dict[int, tuple[TenantState, Feed]] = {}

    def page(
        self, owner: TenantState, generation: int, event: int, limit: int, now_ns: int
    ) -> FeedPage | None:
        """Return what came since `event`, or a gap; None: FEEDS_MAX tenants are watched."""
        feed = owner.feed
        if feed is None:
            self._end_idle(now_ns)
            if len(self._feeds) >= FEEDS_MAX:
                return None
            feed = owner.feed = Feed(self._random.getrandbits(63) | 1, now_ns)
            self._feeds[owner.number] = owner, feed
        feed.asked_ns = now_ns
        oldest = max(feed.first, feed.next - FEED_EVENTS_MAX)
        if generation != feed.generation or not oldest <= event <= feed.next:
            return FeedPage(feed.generation, feed.next, True, b"")
        events = feed.since(event, limit)
        return FeedPage(feed.generation, event + len(events) // EVENT.size, False, events)

    def lost_track(self) -> None:
        """Blocks left whose ids nobody knew: whoever watches takes a snapshot."""
        for _, feed in self._feeds.values():
            feed.next += 1  # an event that nobody gets, so that nobody is up to date
            feed.first = feed.next

    def _end_idle(self, now_ns: int) -> None:
        oldest_ns = now_ns - FEED_IDLE_MS * _NS_PER_MS
        for number, (owner, feed) in list(self._feeds.items()):
            if feed.asked_ns < oldest_ns:
                owner.feed = None
                del self._feeds[number]
