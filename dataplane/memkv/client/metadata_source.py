"""Maps and tickets from the metadata service."""

from __future__ import annotations

from collections.abc import Callable

from memkv.client.options import ConnectOptions
from memkv.client.source import TicketGrant
from memkv.metadata.watch import MapWatcher, WatchConfig, fetch_ticket
from memkv.shardmap.cache import OwnerHint, Route
from memkv.shardmap.map import ShardMap
from memkv.tenant import tenant_tag

NS_PER_S = 1_000_000_000


class MetadataSource:
    """A `MapSource` over WatchShardMap and GetTicket. The last map is kept for ever (C8)."""

    def __init__(self, options: ConnectOptions, client_id: str) -> None:
        self._options = options
        self._changed: Callable[[], None] = lambda: None
        self._watcher = MapWatcher(
            WatchConfig([options.endpoint], options.pool, client_id), options.clock, self._on_map
        )

    def start(self, route_changed: Callable[[], None]) -> None:
        self._changed = route_changed
        self._watcher.start()

    @property
    def route(self) -> Route | None:
        return self._watcher.route

    @property
    def last_error(self) -> str:
        return self._watcher.statistics().last_error

    def learn(self, hint: OwnerHint) -> bool:
        return self._watcher.learn(hint)

    def fetch_ticket(self, timeout_ms: int) -> TicketGrant:
        options = self._options
        grant = fetch_ticket(
            options.endpoint, options.pool, options.tenant, timeout_s=timeout_ms / 1000
        )
        now_ns = options.clock.monotonic_ns()
        lifetime_s = max(0, grant.expires_s - options.clock.wall_s())
        return TicketGrant(
            grant.ticket, grant.tenant_salt, tenant_tag(grant.tenant),
            renew_at_ns=now_ns + lifetime_s * NS_PER_S // 4,  # tries fail for hours before it ends
            expires_at_ns=now_ns + lifetime_s * NS_PER_S,
        )

    def stop(self) -> None:
        self._watcher.stop()

    def _on_map(self, shard_map: ShardMap) -> None:
        self._changed()
