"""Questions of those who watch a tenant's blocks; thread-safe."""

from __future__ import annotations

import struct
from typing import NamedTuple

from memkv.limits import FEED_PAGE_MAX
from memkv.store.core import StoreCore
from memkv.store.engine import Engine
from memkv.store.feeds import EVENT, NO_PREFIX, STORED, FeedPage
from memkv.tenant import TenantScope

_LISTED = struct.Struct("<16sI")


class BlocksPage(NamedTuple):
    """Part of a snapshot, as events. `next_handle` 0: this was the last part."""

    next_handle: int
    events: bytes


class FeedReader:
    """Reads feeds and snapshots of one store."""

    def __init__(self, engine: Engine, core: StoreCore) -> None:
        self._engine = engine
        self._core = core

    def events(
        self, tenant: TenantScope, generation: int, event: int, limit: int
    ) -> FeedPage | None:
        """Return what came since an event, or a gap; None: too many tenants are watched."""
        core = self._core
        with self._engine.lock:
            owner = core.tenants.get(tenant.tag, tenant.name)
            return core.feeds.page(owner, generation, event, limit, core.now_ns())

    def blocks(self, tenant: TenantScope, first_handle: int) -> BlocksPage:
        """Return the blocks among FEED_PAGE_MAX handles. What comes and goes while one pages is in
        the events since before the first page."""
        core = self._core
        with self._engine.lock:
            owner = core.tenants.get(tenant.tag, tenant.name)
            end = min(first_handle + FEED_PAGE_MAX, core.index.handles_end)
            more = end < core.index.handles_end
            listed = b""
            if first_handle < end:
                listed = core.index.blocks_of_tenant(
                    owner.number, first_handle, end, core.clock.wall_s()
                )
        found = _LISTED.iter_unpack(listed)
        events = b"".join([EVENT.pack(tag, NO_PREFIX, depth, STORED) for tag, depth in found])
        return BlocksPage(end if more else 0, events)
