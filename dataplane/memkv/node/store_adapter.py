"""The store as transports see it (`memkv.tcp.store_api`), and its listings as the wire has them."""

from collections.abc import Callable, Sequence

from memkv.errors import InternalBug
from memkv.status import Status
from memkv.store.api import PendingPut as StorePut
from memkv.store.api import Store, StoreReader
from memkv.store.statistics import StoreStatistics
from memkv.tcp.store_api import PendingPut
from memkv.tenant import TenantScope
from memkv.wire.events import EventsPage, EventsRequest, FeedFlag, FeedKind
from memkv.wire.messages import ListEntry, ListKind, ListPage, ListRequest


class NodeStore:
    """A `BlockStore` over an open `Store`, which stays the caller's."""

    def __init__(
        self, store: Store, generation_at: Callable[[int], int] = lambda _: 0
    ) -> None:
        """`generation_at(epoch)`: a generation of the store from before it served by any map newer
        than that."""
        self._store = store
        self._generation_at = generation_at
        # No layer of Python in between where every block passes.
        self.exists = store.exists
        self.lease = store.lease
        self.begin_put = store.begin_put
        self.delete = store.delete
        self.pin = store.pin
        self.why = store.why
        self.prefetch = store.prefetch

    def new_reader(self) -> StoreReader:
        """Return a reader for one thread."""
        return self._store.new_reader()

    def statistics(self) -> StoreStatistics:
        """Return a moment of the store."""
        return self._store.statistics()

    def wait_durable(self, puts: Sequence[PendingPut], deadline_ns: int) -> list[Status]:
        """Wait until puts of this store are durable."""
        mine = [put for put in puts if isinstance(put, StorePut)]
        if len(mine) != len(puts):
            raise InternalBug("a put of another store")
        return self._store.wait_durable(mine, deadline_ns)

    def events_page(self, tenant: TenantScope, request: EventsRequest) -> EventsPage | None:
        """Return a page of a feed, or of a snapshot."""
        feeds = self._store.feeds
        if request.kind == FeedKind.BLOCKS:
            blocks = feeds.blocks(tenant, request.cursor)
            flags = FeedFlag.MORE if blocks.next_handle else FeedFlag.NONE
            return EventsPage(request.generation, blocks.next_handle, flags, blocks.events)
        page = feeds.events(tenant, request.generation, request.cursor, request.limit)
        if page is None:
            return None
        flags = FeedFlag.GAP if page.is_gap else FeedFlag.NONE
        return EventsPage(page.generation, page.next_event, flags, page.events)

    def list_page(self, request: ListRequest) -> ListPage:
        """Return a page of a slot. The cursor of tombstones is a generation.

        Pages of tombstones are cut from a list made anew each time: a delete accepted in between
        has a larger generation than all before, so it is on a later page.
        """
        if request.kind == ListKind.TOMBSTONES:
            return self._tombstones(request)
        next_cursor, blocks = self._store.list_slot(request.slot, request.cursor, request.limit)
        entries = tuple(
            ListEntry(one.block_id, one.tenant_tag, one.length, 0, one.depth, one.expiry_s)
            for one in blocks
        )
        return ListPage(request.kind, max(0, next_cursor), entries)

    def _tombstones(self, request: ListRequest) -> ListPage:
        since = max(request.cursor, self._generation_at(request.since_epoch))
        complete, found = self._store.list_tombstones(request.slot, since)
        found.sort(key=lambda tombstone: tombstone.generation)
        page, rest = found[: request.limit], found[request.limit :]
        entries = tuple(
            ListEntry(one.block_id, one.tenant_tag, 0, one.generation, 0, 0) for one in page
        )
        next_cursor = rest[0].generation if rest else 0
        return ListPage(request.kind, next_cursor, entries, complete)
