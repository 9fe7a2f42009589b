"""Maps and tickets from the metadata service."""

from __future__ import annotations

from collections.abc import Callable

from memkv.client.kept import KeptFiles
from memkv.client.options import ConnectOptions
from memkv.client.source import TicketGrant
from memkv.errors import RetryLater
from memkv.limits import TICKET_RENEWAL_S_MIN
from memkv.metadata.watch import MapWatcher, WatchConfig, fetch_ticket
from memkv.metadata.watch import TicketGrant as Grant
from memkv.shardmap.cache import OwnerHint, Route
from memkv.shardmap.map import ShardMap
from memkv.tenant import tenant_tag

NS_PER_S = 1_000_000_000


class MetadataSource:
    """A `MapSource` over WatchShardMap and GetTicket. The last map is kept for ever (C8)."""

    def __init__(self, options: ConnectOptions, client_id: str) -> None:
        self._options = options
        self._changed: Callable[[], None] = lambda: None
        self._kept = (
            KeptFiles(options.cache_dir, options.endpoint, options.pool, options.tenant)
            if options.cache_dir is not None
            else None
        )
        self._tls = options.credentials.tls() if options.credentials is not None else None
        self._watcher = MapWatcher(
            WatchConfig([options.endpoint], options.pool, client_id, self._tls),
            options.clock, self._on_map,
            fallback=self._kept.load_map if self._kept is not None else None,
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
        grant = self._grant(timeout_ms)
        now_ns = options.clock.monotonic_ns()
        lifetime_s = max(0, grant.expires_s - options.clock.wall_s())
        return TicketGrant(
            grant.ticket, grant.tenant_salt, tenant_tag(grant.tenant),
            # Tries may fail for hours before it ends. Where the clocks of both machines differ by
            # more than its life, a new one looks old, too, and the service is not hammered for it.
            renew_at_ns=now_ns + max(lifetime_s // 4, TICKET_RENEWAL_S_MIN) * NS_PER_S,
            expires_at_ns=now_ns + lifetime_s * NS_PER_S,
        )

    def _grant(self, timeout_ms: int) -> Grant:
        options, kept = self._options, self._kept
        try:
            grant = fetch_ticket(
                options.endpoint, options.pool, options.tenant, tls=self._tls,
                timeout_s=timeout_ms / 1000,
            )
        except RetryLater:  # nobody there; who was refused stays refused
            found = kept.load_ticket(options.clock.wall_s()) if kept is not None else None
            if found is None:
                raise
            return found
        if kept is not None:
            kept.save_ticket(grant)
        return grant

    def stop(self) -> None:
        self._watcher.stop()

    def _on_map(self, shard_map: ShardMap) -> None:
        self._changed()
        if self._kept is not None:
            self._kept.save_map(shard_map)
