"""memkv.v1.MetadataService over grpc.aio: one map, given to whoever asks and whoever watches.

A watcher gets the newest map there is when its stream can take it; maps in between are skipped,
never queued. A server without a newer map than the watcher has says so by bookmarks. Losing the
source of maps does not make the server unready: an old map is better than none.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol, cast
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from memkv import limits
from memkv.clock import Clock
from memkv.errors import CallerError, ConfigError, RetryLater
from memkv.metadata.callers import (
    Anyone,
    Authenticator,
    Caller,
    Forbidden,
    Presented,
    Unauthenticated,
)
from memkv.metadata.certificates import TlsFiles, names_of, open_port
from memkv.metadata.endpoint import SERVER_OPTIONS, check_exposure, is_loopback, join_endpoint
from memkv.metadata.tickets import TicketIssuer
from memkv.shardmap import MapVersion, ShardMap, map_to_proto
from memkv.shardmap.codec import version_from_proto, version_to_proto
from memkv.tenant import tenant_tag
from memkv.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN
from memkv.wire.ticket import TicketRefused
from memkv_proto import metadata_pb2 as pb
from memkv_proto import metadata_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from memkv_proto.metadata_pb2_grpc import _ServicerContext as Context  # in the stubs only

SERVICE = "memkv.v1.MetadataService"
DATA_PROTOCOL_MIN = PROTOCOL_MIN
DATA_PROTOCOL_MAX = PROTOCOL_MAX
BOOKMARK_JITTER = 0.1  # of the interval: watchers that came together do not stay together


class HealthService(Protocol):
    """The part of the asyncio health servicer that is used; its types are not published."""

    async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Change what is answered for a service."""

    async def enter_graceful_shutdown(self) -> None:
        """Answer NOT_SERVING from now on."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and how one metadata server listens."""

    pool: str
    host: str = "127.0.0.1"
    port: int = 7443
    """0: any free one."""
    tls: TlsFiles | None = None
    asks_certificate: bool = True
    """With TLS: clients need a certificate of the CA. False where they bring tokens."""
    insecure: bool = False
    reflection: bool = False
    bookmark_interval_ms: int = limits.BOOKMARK_INTERVAL_MS
    watchers_max: int = limits.WATCHERS_MAX


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """Counts since the server was made, and what is open now."""

    watchers: int = 0
    snapshots: int = 0
    bookmarks: int = 0
    tickets: int = 0
    refused: int = 0
    """Calls for another pool, with another protocol, over a limit or without the right."""


class TenantDropper(Protocol):
    """Drops tenants: the publisher's side of the call."""

    async def drop(self, tenant_tag: bytes) -> ShardMap:
        """Return a map that everyone took over in which the tenant's blocks are gone. RetryLater
        when that cannot be said in time."""


class MapFeed:
    """The newest map, and a wake-up for those who wait for a newer one. For one event loop."""

    def __init__(self) -> None:
        self.latest: ShardMap | None = None
        self.closed = False
        self._changed = asyncio.Event()

    def publish(self, shard_map: ShardMap) -> None:
        """Make this the newest map."""
        self.latest = shard_map
        self._wake()

    def close(self) -> None:
        """Wake everyone for the last time."""
        self.closed = True
        self._wake()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a wake-up; False when the time passed without one."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Counters:
    def __init__(self) -> None:
        self.watchers = 0
        self.snapshots = 0
        self.bookmarks = 0
        self.tickets = 0
        self.refused = 0


class MetadataServicer(pb_grpc.MetadataServiceServicer):
    """Answers the three calls from a feed."""

    def __init__(
        self,
        config: ServerConfig,
        feed: MapFeed,
        issuer: TicketIssuer,
        clock: Clock,
        source: random.Random,
        dropper: TenantDropper | None,
        authenticator: Authenticator,
    ) -> None:
        self._config = config
        self.authenticator = authenticator
        self._dropper = dropper
        self._feed = feed
        self._issuer = issuer
        self._clock = clock
        self._random = source
        self.counters = _Counters()

    async def GetShardMap(  # noqa: N802  the name is gRPC's
        self, request: pb.GetShardMapRequest, context: "Context"
    ) -> pb.GetShardMapResponse:
        await self._caller(context)
        await self._check_pool(request.pool, context)
        latest = self._feed.latest
        if latest is None:
            await self._refuse(
                context,
                grpc.StatusCode.UNAVAILABLE,
                f"pool {request.pool} has no map yet: its nodes have not all answered; see "
                "`memkv nodes`",
            )
        self.counters.snapshots += 1
        return pb.GetShardMapResponse(shard_map=map_to_proto(latest))

    async def WatchShardMap(  # noqa: N802  the name is gRPC's
        self, request: pb.WatchShardMapRequest, context: "Context"
    ) -> AsyncIterator[pb.WatchShardMapResponse]:
        await self._caller(context)
        await self._check_pool(request.pool, context)
        await self._check_protocol(request, context)
        if self.counters.watchers >= self._config.watchers_max:
            await self._refuse(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.counters.watchers} watchers, the most this server takes: add a replica "
                "with --follow",
            )
        self.counters.watchers += 1
        try:
            async for event in self._events(request):
                yield event
        finally:
            self.counters.watchers -= 1

    async def GetTicket(  # noqa: N802  the name is gRPC's
        self, request: pb.GetTicketRequest, context: "Context"
    ) -> pb.GetTicketResponse:
        caller = await self._caller(context)
        await self._check_pool(request.pool, context)
        try:
            ticket = self._issuer.issue(request.pool, request.tenant, caller, peer=request.peer)
        except CallerError as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TicketRefused as error:
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(error))
        self.counters.tickets += 1
        return pb.GetTicketResponse(
            ticket=ticket.encode(),
            tenant=ticket.tenant,
            tenant_salt=ticket.salt,
            expires_at=Timestamp(seconds=ticket.expires_s),
        )

    async def DropTenant(  # noqa: N802  the name is gRPC's
        self, request: pb.DropTenantRequest, context: "Context"
    ) -> pb.DropTenantResponse:
        caller = await self._caller(context)
        await self._check_pool(request.pool, context)
        if not is_on_this_machine(str(context.peer()), self._config.host):
            await self._refuse(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "a tenant is dropped from the machine that the publisher runs on: run the command "
                "there",
            )
        if not caller.any_tenant and request.tenant != caller.tenant:
            await self._refuse(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller.subject} may drop its own tenant {caller.tenant!r} only: for others use "
                "the certificate of the metadata service",
            )
        if self._dropper is None:
            await self._refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "this process only follows: name the endpoint of the pool's publisher",
            )
        try:
            tag = tenant_tag(request.tenant)
            shard_map = await self._dropper.drop(tag)
        except CallerError as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except RetryLater as error:
            await self._refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.DropTenantResponse(
            version=version_to_proto(shard_map.version),
            generation=shard_map.tenant_generations[tag],
        )

    async def _events(
        self, request: pb.WatchShardMapRequest
    ) -> AsyncIterator[pb.WatchShardMapResponse]:
        known = version_from_proto(request.last_applied) if request.last_applied.epoch else None
        digest = bytes(request.last_digest)
        greeted = False
        while not self._feed.closed:
            latest = self._feed.latest
            if latest is not None and _is_news(latest, known, digest):
                known, digest, greeted = latest.version, latest.digest, True
                self.counters.snapshots += 1
                yield pb.WatchShardMapResponse(snapshot=map_to_proto(latest))
            elif not greeted:
                # At once, so that a watcher with the newest map knows that it is attached.
                greeted = True
                yield self._bookmark(latest)
            elif not await self._feed.changed(self._pause_s()):
                yield self._bookmark(self._feed.latest)
        pause_ms = self._random.randrange(limits.GO_AWAY_SPREAD_MS)
        yield pb.WatchShardMapResponse(go_away=pb.GoAway(reconnect_after_ms=pause_ms))

    def _pause_s(self) -> float:
        spread = 1 - BOOKMARK_JITTER * self._random.random()
        return self._config.bookmark_interval_ms * spread / 1000

    def _bookmark(self, latest: ShardMap | None) -> pb.WatchShardMapResponse:
        self.counters.bookmarks += 1
        version = version_to_proto(latest.version) if latest is not None else None
        return pb.WatchShardMapResponse(
            bookmark=pb.Bookmark(
                version=version,
                server_time=Timestamp(seconds=self._clock.wall_s()),
                interval_ms=self._config.bookmark_interval_ms,
            )
        )

    async def _caller(self, context: "Context") -> Caller:
        """Return who calls, or end the call."""
        try:
            return await self.authenticator.caller(presented_by(context))
        except Unauthenticated as error:
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except Forbidden as error:
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(error))
        except RetryLater as error:
            await self._refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))

    async def _check_pool(self, pool: str, context: "Context") -> None:
        if pool != self._config.pool:
            await self._refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"no pool {pool!r} here, this server knows {self._config.pool!r}: check the "
                "endpoint and the pool's name",
            )

    async def _check_protocol(self, request: pb.WatchShardMapRequest, context: "Context") -> None:
        low, high = request.protocol_min or DATA_PROTOCOL_MIN, request.protocol_max
        if low > DATA_PROTOCOL_MAX or (high or DATA_PROTOCOL_MAX) < DATA_PROTOCOL_MIN:
            await self._refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this pool speaks data protocol {DATA_PROTOCOL_MIN} to {DATA_PROTOCOL_MAX}, the "
                f"caller {low} to {high}: upgrade the older side",
            )

    async def _refuse(self, context: "Context", code: grpc.StatusCode, message: str) -> NoReturn:
        self.counters.refused += 1
        await context.abort(code, message)


def _is_news(latest: ShardMap, known: MapVersion | None, digest: bytes) -> bool:
    if known is None or not known.same_lineage(latest.version):
        return True
    if known.newer_than(latest.version):
        return False  # this replica lags behind the one the watcher had before
    return latest.version.newer_than(known) or latest.digest != digest


def presented_by(context: "Context") -> Presented:
    """Return what a call brought along to prove itself."""
    bearer = ""
    for key, value in context.invocation_metadata() or ():
        kind, _, token = str(value).partition(" ") if key == "authorization" else ("", "", "")
        if kind.lower() == "bearer":
            bearer = token.strip()
    # The stubs say bytes; what comes are lists of them.
    verified = cast("Mapping[str, Iterable[bytes]]", context.auth_context())
    # As gRPC writes it ("ipv4:HOST", "ipv6:[HOST]"): it only tells callers apart.
    return Presented(bearer, names_of(verified), str(context.peer()).rpartition(":")[0])


def is_on_this_machine(peer: str, listening: str) -> bool:
    """Return whether a gRPC peer ("ipv4:HOST:PORT", "ipv6:[HOST]:PORT") is a process beside this
    one: it comes from loopback, or from the very address that it called."""
    _, _, address = unquote(peer).partition(":")
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return bool(host) and (is_loopback(host) or host == listening)


class MetadataServer:
    """A listening MetadataService with health and, where asked for, reflection."""

    def __init__(
        self,
        config: ServerConfig,
        issuer: TicketIssuer,
        clock: Clock,
        source: random.Random | None = None,
        dropper: TenantDropper | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        """`dropper`: None where nothing is published; `authenticator`: None to believe everyone."""
        check_exposure("the metadata service", config.host, config.tls, insecure=config.insecure)
        self._config = config
        self.feed = MapFeed()
        self._servicer = MetadataServicer(
            config, self.feed, issuer, clock, source or random.Random(), dropper,
            authenticator or Anyone(),
        )  # fmt: skip
        aio = health.aio  # type: ignore[attr-defined]  # its stubs lack the asyncio half
        self._health: HealthService = aio.HealthServicer()
        self._server = grpc.aio.server(options=list(SERVER_OPTIONS))
        self._ready = False
        self.port = 0

    @property
    def endpoint(self) -> str:
        """HOST:PORT in use."""
        return join_endpoint(self._config.host, self.port)

    @property
    def ready(self) -> bool:
        """Whether there is a map to serve."""
        return self._ready

    def authenticate_by(self, authenticator: Authenticator) -> None:
        """Find out by this one who calls, before `start`."""
        self._servicer.authenticator = authenticator

    async def start(self) -> None:
        """Listen. ConfigError when the port is taken."""
        pb_grpc.add_MetadataServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        address = join_endpoint(self._config.host, self._config.port)
        try:
            self.port = open_port(
                self._server, address, self._config.tls,
                asks_certificate=self._config.asks_certificate,
            )  # fmt: skip
        except RuntimeError as error:
            raise ConfigError(
                f"the metadata service cannot listen on {address}: another process has the port, "
                "or the address is not this machine's"
            ) from error
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def publish(self, shard_map: ShardMap) -> None:
        """Give this map to everyone from now on."""
        self.feed.publish(shard_map)
        if not self._ready:
            self._ready = True
            await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float = 10) -> None:
        """Send watchers away, finish what runs, and stop listening."""
        await self._health.enter_graceful_shutdown()
        self.feed.close()
        await self._server.stop(grace_s)

    def statistics(self) -> ServerStatistics:
        """Return counts since the server was made."""
        c = self._servicer.counters
        return ServerStatistics(c.watchers, c.snapshots, c.bookmarks, c.tickets, c.refused)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)
