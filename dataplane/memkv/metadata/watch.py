"""The watching side of the metadata service: a thread that keeps a MapCache up to date.

Used by clients and by node supervisors. The map in use never goes away because the service does;
the thread tries again, with full jitter, so that it is attached at most a few seconds after the
service is back.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from memkv import limits
from memkv.clock import Clock
from memkv.errors import CallerError, ConfigError, MemKVError, PeerGone, RetryLater
from memkv.metadata.certificates import ClientTls
from memkv.metadata.endpoint import (
    UNARY_TIMEOUT_S,
    call_metadata,
    connect_ms,
    is_loopback,
    open_channel,
    split_endpoint,
)
from memkv.shardmap import (
    MapCache,
    MapInvalid,
    MapVersion,
    Offer,
    OwnerHint,
    Route,
    ShardMap,
    map_from_proto,
)
from memkv.shardmap.codec import version_from_proto, version_to_proto
from memkv_proto import metadata_pb2 as pb
from memkv_proto import metadata_pb2_grpc as pb_grpc

OnMap = Callable[[ShardMap], None]


class MetadataRefused(MemKVError):
    """The metadata service answered and will not serve this caller. Its message says why."""


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """Whom to watch, as whom."""

    endpoints: Sequence[str]
    """HOST:PORT of replicas; the next one is tried when one fails."""
    pool: str
    client_id: str
    tls: ClientTls | None = None
    insecure: bool = False
    """A network without TLS is trusted: a new lineage is taken from it."""
    protocol_min: int = 1
    protocol_max: int = 1
    backoff_ms_min: int = limits.RECONNECT_BACKOFF_MS_MIN
    backoff_ms_max: int = limits.RECONNECT_BACKOFF_MS_MAX

    def trusted(self, endpoint: str) -> bool:
        """Return whether a server there proved itself, or is on this machine."""
        host, _ = split_endpoint(endpoint)
        return self.tls is not None or self.insecure or is_loopback(host)


@dataclass(frozen=True, slots=True)
class TicketGrant:
    """A ticket and what comes with it."""

    ticket: bytes
    tenant: str
    tenant_salt: bytes
    expires_s: int
    """Wall clock; renew when a quarter of the time has passed."""


@dataclass(frozen=True, slots=True)
class WatchStatistics:
    """What the watcher did since it was made."""

    connected: bool
    """Whether a stream is open and gave at least one event."""
    attempts: int
    failures: int
    go_aways: int
    last_error: str


class Randomness(Protocol):
    """Source of jitter."""

    def random(self) -> float:
        """Return a number from 0 to below 1."""


def backoff_ms(failures: int, low_ms: int, high_ms: int, source: Randomness) -> float:
    """Return how long to wait after `failures` failures in a row: full jitter."""
    ceiling_ms = min(high_ms, low_ms << min(failures, 16))
    return ceiling_ms * source.random()


class MapWatcher:
    """Watches one pool's map. Thread-safe.

    `on_map` is called in a thread of the watcher for each map that came into use, in order, never
    under a lock; it must not block for long. Errors it raises are a bug and end the process's
    thread, so it must not raise.
    """

    def __init__(
        self,
        config: WatchConfig,
        clock: Clock,
        on_map: OnMap | None = None,
        *,
        kept: ShardMap | None = None,
        fallback: Callable[[], ShardMap | None] | None = None,
        source: Randomness | None = None,
    ) -> None:
        """`kept`: the map of an earlier run, used until a better one comes.

        `fallback` is asked once, in a thread of the watcher, when no server gave a map soon.
        """
        if not config.endpoints:
            raise CallerError("no metadata endpoint given; HOST:PORT of at least one is needed")
        for endpoint in config.endpoints:
            split_endpoint(endpoint)
        self._config = config
        self._clock = clock
        self._on_map = on_map or (lambda shard_map: None)
        self._fallback = fallback
        self._random: Randomness = source or random.Random()
        self._cache = MapCache()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._call: Stream | None = None
        self._connected = False
        self._attempts = self._failures = self._failures_in_a_row = self._go_aways = 0
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="memkv-map-watch", daemon=True)
        self._watchdog = threading.Thread(
            target=self._watch_silence, name="memkv-map-watchdog", daemon=True
        )
        if kept is not None:
            self._cache.offer(kept, trusted=False)

    def start(self) -> None:
        """Begin to watch."""
        if self.route is not None:
            self._on_map(self.route.shard_map)
        self._thread.start()
        self._watchdog.start()

    def stop(self) -> None:
        """End the watch and wait for its threads."""
        self._stopping.set()
        with self._lock:
            call = self._call
            self._changed.notify_all()
        if call is not None:
            call.cancel()
        for thread in (self._thread, self._watchdog):
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    @property
    def route(self) -> Route | None:
        """What to send requests by; None: no map yet, every key is a miss."""
        return self._cache.route

    @property
    def cache(self) -> MapCache:
        """The cache, for its statistics and age. Change it through the watcher only."""
        return self._cache

    def learn(self, hint: OwnerHint) -> bool:
        """Pass on what a WRONG_OWNER answer said."""
        with self._lock:
            return self._cache.learn(hint)

    def wait_for_map(self, timeout_s: float) -> Route | None:
        """Wait for the first map; None when none came in time."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._cache.route is not None or self._stopping.is_set(), timeout_s
            )
            return self._cache.route

    def wait_for_epoch(self, epoch: int, timeout_s: float) -> bool:
        """Wait until a map of at least this epoch is in use."""

        def reached() -> bool:
            current = self._cache.shard_map
            return current is not None and current.version.epoch >= epoch

        with self._changed:
            return self._changed.wait_for(lambda: reached() or self._stopping.is_set(), timeout_s)

    def statistics(self) -> WatchStatistics:
        """Return what the watcher did since it was made."""
        with self._lock:
            return WatchStatistics(
                self._connected, self._attempts, self._failures, self._go_aways, self._last_error
            )

    # --- the watching thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            endpoint = self._config.endpoints[self._attempts % len(self._config.endpoints)]
            with self._lock:
                self._attempts += 1
            pause_ms = self._watch_once(endpoint)
            self._stopping.wait(pause_ms / 1000)

    def _watch_once(self, endpoint: str) -> float:
        """Watch until the stream ends; return how long to pause, in ms."""
        pause_ms: float | None = None
        error = "the stream ended"
        try:
            wait_ms = connect_ms(self._failures_in_a_row)
            with open_channel(endpoint, self._config.tls, wait_ms) as channel:
                pause_ms = self._consume(channel, self._config.trusted(endpoint))
        except grpc.RpcError as failure:
            error = _describe(failure)
        except ConfigError as failure:
            error = str(failure)
        with self._lock:
            self._connected = False
            self._call = None
            if pause_ms is not None:
                return pause_ms
            self._failures += 1
            self._failures_in_a_row += 1
            self._last_error = f"{endpoint}: {error}"
            self._changed.notify_all()
            low, high = self._config.backoff_ms_min, self._config.backoff_ms_max
            return backoff_ms(self._failures_in_a_row - 1, low, high, self._random)

    def _consume(self, channel: grpc.Channel, trusted: bool) -> float | None:
        """Take events until the server says goodbye (returns its pause) or something is wrong."""
        headers = call_metadata(self._config.tls)
        call: Stream = pb_grpc.MetadataServiceStub(channel).WatchShardMap(
            self._request(), metadata=headers
        )
        with self._lock:
            self._call = call
        if self._stopping.is_set():
            call.cancel()
        for event in call:
            with self._lock:
                self._failures_in_a_row = 0
                self._connected = True
                now_ns = self._clock.monotonic_ns()
                self._cache.heard(now_ns, event.bookmark.interval_ms or None)
                self._changed.notify_all()
            kind = event.WhichOneof("payload")
            if kind == "go_away":
                with self._lock:
                    self._go_aways += 1
                return min(event.go_away.reconnect_after_ms, self._config.backoff_ms_max)
            if kind == "snapshot" and self._take(event.snapshot, trusted) is Offer.DIVERGED:
                call.cancel()
                # Again, without a version to resume from; a server that flaps is not hammered.
                return float(self._config.backoff_ms_min)
        return None

    def _take(self, message: pb.ShardMap, trusted: bool) -> Offer:
        with self._changed:
            try:
                shard_map = map_from_proto(message)
            except MapInvalid as error:
                self._last_error = str(error)
                return self._cache.offer_undecodable()
            result = self._cache.offer(shard_map, trusted=trusted)
            self._changed.notify_all()
        if result is Offer.APPLIED:
            self._on_map(shard_map)
        return result

    def _request(self) -> pb.WatchShardMapRequest:
        request = pb.WatchShardMapRequest(
            pool=self._config.pool,
            client_id=self._config.client_id,
            protocol_min=self._config.protocol_min,
            protocol_max=self._config.protocol_max,
        )
        current = self._cache.shard_map
        if current is not None:
            request.last_applied.CopyFrom(version_to_proto(current.version))
            request.last_digest = current.digest
        return request

    def _watch_silence(self) -> None:
        """Break a stream that missed its bookmarks: the server may hang, or its host be gone."""
        self._fall_back()
        while not self._stopping.is_set():
            with self._changed:
                call = self._call if self._connected else None
                if call is None or not self._cache.stale(self._clock.monotonic_ns()):
                    self._changed.wait(limits.RECONNECT_BACKOFF_MS_MAX / 1000)
                    continue
            call.cancel()
            with self._changed:
                self._changed.wait(limits.RECONNECT_BACKOFF_MS_MAX / 1000)

    def _fall_back(self) -> None:
        """Go by the map of an earlier run when the first try failed, or says nothing."""
        if self._fallback is None:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: self.route is not None or self._failures or self._stopping.is_set(),
                limits.MAP_FALLBACK_MS / 1000,
            )
        if self.route is not None or (shard_map := self._fallback()) is None:
            return
        with self._changed:
            applied = self._cache.offer(shard_map, trusted=False) is Offer.APPLIED
            self._changed.notify_all()
        if applied:
            self._on_map(shard_map)


class Stream(Protocol):
    """The part of a gRPC stream that the watcher uses."""

    def __iter__(self) -> Iterator[pb.WatchShardMapResponse]:
        """Yield events until the stream ends."""

    def cancel(self) -> object:
        """End the stream from this side."""


def fetch_map(
    endpoint: str, pool: str, *, tls: ClientTls | None = None, timeout_s: float = UNARY_TIMEOUT_S
) -> ShardMap:
    """Return the newest map. PeerGone, RetryLater, MetadataRefused or MapInvalid."""
    request = pb.GetShardMapRequest(pool=pool)
    with open_channel(endpoint, tls) as channel:
        stub = pb_grpc.MetadataServiceStub(channel)
        headers = call_metadata(tls)
        try:
            response = stub.GetShardMap(request, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:
            raise _translated(endpoint, error) from error
    return map_from_proto(response.shard_map)


def fetch_ticket(
    endpoint: str,
    pool: str,
    tenant: str,
    *,
    peer: bool = False,
    tls: ClientTls | None = None,
    timeout_s: float = UNARY_TIMEOUT_S,
) -> TicketGrant:
    """Return a ticket for a tenant, or with `peer` one for moves between nodes. PeerGone,
    RetryLater, MetadataRefused, or ConfigError for a CA, certificate or token that is unfit."""
    request = pb.GetTicketRequest(pool=pool, tenant=tenant, peer=peer)
    with open_channel(endpoint, tls) as channel:
        stub = pb_grpc.MetadataServiceStub(channel)
        headers = call_metadata(tls)
        try:
            response = stub.GetTicket(request, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:
            raise _translated(endpoint, error) from error
    return TicketGrant(
        bytes(response.ticket),
        response.tenant,
        bytes(response.tenant_salt),
        response.expires_at.seconds,
    )


def drop_tenant(
    endpoint: str, pool: str, tenant: str, *, tls: ClientTls | None = None
) -> MapVersion:
    """Forget all blocks of a tenant; return the map that says so once no lookup can hit one.

    PeerGone or RetryLater: it may be half done, and goes on; call again. MetadataRefused.
    """
    request = pb.DropTenantRequest(pool=pool, tenant=tenant)
    timeout_s = 2 * limits.DROP_TENANT_WAIT_MS / 1000 + UNARY_TIMEOUT_S
    with open_channel(endpoint, tls) as channel:
        stub = pb_grpc.MetadataServiceStub(channel)
        headers = call_metadata(tls)
        try:
            response = stub.DropTenant(request, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:
            raise _translated(endpoint, error) from error
    return version_from_proto(response.version)


_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

_NOT_YET = ("has no map yet", "run this again", "Try again")  # it is there, and asks for patience


def _translated(endpoint: str, error: grpc.RpcError) -> MemKVError:
    code = error.code() if isinstance(error, grpc.Call) else None
    message = f"metadata service at {endpoint}: {_describe(error)}"
    if code == grpc.StatusCode.UNAVAILABLE and any(words in message for words in _NOT_YET):
        return RetryLater(message)
    if code is None or code in _AWAY:
        return PeerGone(f"{message}; is it running, and is the endpoint right?")
    return MetadataRefused(message)


def _describe(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return repr(error)
