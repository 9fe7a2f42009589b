"""Feeds: who watches hears of everything, or that something was missed."""

import struct

import pytest

from memkv import keys
from memkv.limits import FEED_EVENTS_MAX, FEED_IDLE_MS
from memkv.store import feed_reader, feeds
from memkv.store.feeds import EVENT, REMOVED, STORED, FeedPage
from memkv.tenant import Tenant
from memkv.testing.store_bench import Bench


class Watcher:
    """Follows one tenant, as a client does."""

    def __init__(self, bench: Bench, tenant: Tenant | None = None) -> None:
        self.bench = bench
        self.tenant = tenant or bench.tenant
        self.generation = self.event = 0
        self.gaps = 0
        self.held: set[bytes] = set()

    def page(self, limit: int = 100) -> FeedPage:
        page = self.bench.store.feeds.events(self.tenant, self.generation, self.event, limit)
        assert page is not None
        self.generation, self.event = page.generation, page.next_event
        return page

    def follow(self, limit: int = 100) -> None:
        """Read until there is nothing new."""
        while True:
            page = self.page(limit)
            if page.is_gap:
                self.gaps += 1
                self.held.clear()
                self.snapshot()
            elif not page.events:
                return
            self.apply(page.events)

    def snapshot(self) -> None:
        handle = 0
        while True:
            page = self.bench.store.feeds.blocks(self.tenant, handle)
            self.apply(page.events)
            handle = page.next_handle
            if not handle:
                return

    def apply(self, events: bytes) -> None:
        for digest, _, _, kind in EVENT.iter_unpack(events):
            assert kind in (STORED, REMOVED)
            (self.held.add if kind == STORED else self.held.discard)(digest)


def there(bench: Bench, names: list[str], tenant: Tenant | None = None) -> set[bytes]:
    found = bench.store.exists(tenant or bench.tenant, keys.block_ids(names))
    return {
        keys.block_id(name)[:16]
        for name, (stored,) in zip(names, struct.iter_unpack("<i", found), strict=True) if stored
    }


def test_a_new_watcher_starts_with_a_snapshot(bench: Bench) -> None:
    bench.fill(5)
    watcher = Watcher(bench)
    watcher.follow()
    assert watcher.gaps == 1
    assert watcher.held == there(bench, [f"fill-{n}" for n in range(5)])


def test_it_hears_of_everything_after_that(bench: Bench) -> None:
    watcher = Watcher(bench)
    watcher.follow()
    names = [f"fill-{number}" for number in range(150)]
    for name in names:
        bench.put(name)
        watcher.follow(limit=3)
    bench.delete(names[-1])
    bench.put("short", ttl_s=1)
    bench.clock.advance_ms(1000)
    bench.get("short")
    watcher.follow()
    assert bench.evicted
    assert watcher.gaps == 1
    assert watcher.held == there(bench, names)


def test_events_carry_hints_of_the_put(bench: Bench) -> None:
    watcher = Watcher(bench)
    watcher.page()
    request = bench.request("a")._replace(prefix_id=b"prefix-1", depth=7)
    put = bench.store.begin_put(bench.tenant, request, bench.deadline_ns)
    assert not isinstance(put, int)
    put.payload[:] = bench.data("a")
    put.commit()
    assert EVENT.unpack(watcher.page().events) == (keys.block_id("a")[:16], b"prefix-1", 7, STORED)
    watcher.held.clear()
    page = bench.store.feeds.blocks(bench.tenant, 0)
    assert EVENT.unpack(page.events) == (keys.block_id("a")[:16], bytes(8), 7, STORED)


def test_tenants_hear_of_their_own_blocks_alone(bench: Bench) -> None:
    other = Tenant.named("other")
    mine, theirs = Watcher(bench), Watcher(bench, other)
    for watcher in (mine, theirs):
        watcher.follow()
    bench.put("a")
    bench.put("b", other)
    for watcher in (mine, theirs):
        watcher.follow()
    assert mine.held == there(bench, ["a"])
    assert theirs.held == there(bench, ["b"], other)


def test_who_is_slow_is_told_and_gets_a_snapshot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "FEED_EVENTS_MAX", 8)
    slow, fast = Watcher(bench), Watcher(bench)
    for watcher in (slow, fast):
        watcher.follow()
    for number in range(30):
        bench.put(f"{number}")
        fast.follow()
    slow.follow()
    assert (fast.gaps, slow.gaps) == (1, 2)
    assert slow.held == fast.held == there(bench, [f"{number}" for number in range(30)])


def test_the_ring_keeps_exactly_its_last_events(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "FEED_EVENTS_MAX", 8)
    for behind, is_gap in ((8, False), (9, True)):
        watcher = Watcher(bench)
        watcher.follow()
        for number in range(behind):
            bench.put(f"{behind}-{number}")
        page = watcher.page()
        assert page.is_gap is is_gap
        assert len(page.events) == (0 if is_gap else 8 * EVENT.size)


def test_a_long_snapshot_comes_in_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_reader, "FEED_PAGE_MAX", 4)
    bench.fill(10)
    watcher = Watcher(bench)
    watcher.follow()
    assert watcher.held == there(bench, [f"fill-{n}" for n in range(10)])
    assert bench.store.feeds.blocks(bench.tenant, 0).next_handle == 4


@pytest.mark.parametrize("how", ["slot purged", "slot dropped", "tenant purged"])
def test_blocks_that_leave_without_their_names_are_a_gap(bench: Bench, how: str) -> None:
    bench.fill(5)
    watcher = Watcher(bench)
    watcher.follow()
    slots = [keys.slot_of(keys.block_id(f"fill-{n}")) for n in range(3)]
    if how == "slot purged":
        bench.store.purge_slots(slots)
    elif how == "slot dropped":
        bench.store.drop_slots(slots)
    else:
        bench.store.purge_tenant(bench.tenant.tag)
    watcher.follow()
    assert watcher.gaps == 2
    assert watcher.held == there(bench, [f"fill-{n}" for n in range(5)])


def test_another_open_store_is_another_generation(bench: Bench) -> None:
    bench.fill(3)
    watcher = Watcher(bench)
    watcher.follow()
    bench.reopen()
    bench.put("later")
    watcher.follow()
    assert watcher.held == there(bench, ["later", *[f"fill-{n}" for n in range(3)]])


def test_without_questions_nothing_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "FEEDS_MAX", 1)
    watcher = Watcher(bench)
    watcher.follow()
    core = bench.store._core
    owner = core.tenants.named("default")
    assert owner.feed is not None
    other = Tenant.named("other")
    assert bench.store.feeds.events(other, 0, 0, 10) is None
    bench.clock.advance_ms(FEED_IDLE_MS + 1)
    assert bench.store.feeds.events(other, 0, 0, 10) is not None
    assert owner.feed is None
    bench.put("unheard")


def test_a_feed_takes_a_fixed_amount_of_memory(bench: Bench) -> None:
    Watcher(bench).follow()
    bench.fill(20)
    feed = bench.store._core.tenants.named("default").feed
    assert feed is not None
    assert len(feed.ring) == FEED_EVENTS_MAX * 32
