"""`memkv metadata`: publishes a pool's map from polls of its nodes, or follows who does.

One event loop. The publisher's state is on disk before anyone sees the map made from it; where that
fails, the map waits and the write is tried again.
"""

import asyncio
import contextlib
import json
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from memkv import limits
from memkv.clock import Clock, SystemClock
from memkv.errors import ConfigError, PeerGone, ProtocolError, RetryLater
from memkv.metadata.access import AccessConfig, open_access
from memkv.metadata.certificate_metric import CertificateCollector
from memkv.metadata.certificates import ClientTls
from memkv.metadata.endpoint import (
    check_exposure,
)
from memkv.metadata.facts import reports_of
from memkv.metadata.files import StateFile, write_durably
from memkv.metadata.http import Page, PlainHttpServer, metrics_page, probe_page
from memkv.metadata.metrics import MetadataCollector, MetadataFigures
from memkv.metadata.node_calls import NodeCalls
from memkv.metadata.publisher import Outcome, Publisher, PublisherConfig, PublisherState, Reason
from memkv.metadata.roster import LossPolicy
from memkv.metadata.server import MetadataServer, ServerConfig
from memkv.metadata.tickets import issuer_of
from memkv.metadata.watch import MapWatcher, WatchConfig
from memkv.shardmap import ShardMap

log = logging.getLogger("memkv.metadata")

WHAT_TO_DO = {
    Reason.MASS_LOSS_SUSPECTED: ": so many nodes vanished at once that the network is likelier to"
    " be broken. Bring them back; if they are gone for good, start this with --accept-mass-loss",
    Reason.NO_LIVE_WORKERS: ": clients keep the last map; start the nodes, or check --nodes",
}
DROP_STEP_S = 0.05  # between looks at who took the map over
POLL_TIMEOUT_S = 1.0  # a node that needs longer for a few hundred bytes is not well


@dataclass(frozen=True, slots=True)
class MetadataConfig:
    """What one metadata process does: `state_file` and `nodes`, or `follow`, or `kubernetes`."""

    server: ServerConfig
    nodes: tuple[str, ...] = ()
    """Admin endpoints, HOST:PORT, of the pool's nodes."""
    state_file: Path | None = None
    follow: tuple[str, ...] = ()
    """Metadata endpoints to take the map from; then nothing is published here."""
    kubernetes: bool = False
    """Take the map from the pool's MemKVShardMap; then nothing is published here."""
    slots: int = limits.SLOTS_DEFAULT
    moving_slots_percent_max: int = limits.MAX_MOVING_SLOTS_PERCENT_DEFAULT
    move_timeout_s: int = limits.MOVE_TIMEOUT_S
    first_map_wait_ms: int = 10_000
    poll_interval_ms: int = limits.FACTS_POLL_INTERVAL_MS
    loss: LossPolicy = field(default_factory=LossPolicy)
    admin_tls: ClientTls | None = None
    """Towards the nodes."""
    follow_tls: ClientTls | None = None
    """Towards the metadata services that are followed."""
    access: AccessConfig = field(default_factory=AccessConfig)
    ticket_key: Path | None = None
    """Private key that signs tickets; None: they are unsigned, for loopback."""
    salt_secret: Path | None = None
    """Secret of the tenants' salts, the same at every replica; None: salts hide nothing."""
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    """Plain HTTP for /metrics, /healthz and /readyz; 0: any free port; None: none."""
    ready_file: Path | None = None
    """Gets the endpoints in use as JSON once the process listens."""

    @property
    def publishes(self) -> bool:
        """Whether maps are made here."""
        return not self.follow and not self.kubernetes

    def check(self) -> None:
        """Raise ConfigError for what cannot work, before anything listens."""
        self.access.check(has_tls=self.server.tls is not None)
        if not self.publishes and (self.nodes or self.state_file):
            raise ConfigError(
                "a replica follows and publishes nothing: drop --publish, or what it follows"
            )
        if self.publishes and (not self.nodes or self.state_file is None):
            raise ConfigError("publishing needs the admin endpoints of nodes and a state file")
        if self.http_port is not None:
            # Figures only, and kubelet must reach them, so no TLS is asked for.
            insecure = self.server.insecure or self.server.tls is not None
            check_exposure("/metrics", self.http_host, None, insecure=insecure)


class MetadataProcess:
    """Everything of one metadata process, on one event loop."""

    def __init__(self, config: MetadataConfig, clock: Clock | None = None) -> None:
        config.check()
        self._config = config
        self._clock = clock or SystemClock()
        self.server = MetadataServer(
            config.server,
            issuer_of(config.ticket_key, config.salt_secret, self._clock),
            self._clock,
            dropper=self if config.publishes else None,
        )
        self._publisher: Publisher | None = None
        self._state_file: StateFile | None = None
        self._watcher: MapWatcher | None = None
        self._http: PlainHttpServer | None = None
        self._unstored: PublisherState | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._opened = contextlib.AsyncExitStack()
        self._polls = self._poll_failures = 0
        self._outcome = Outcome(None, ())
        self._logged: tuple[Reason, ...] = ()

    async def start(self) -> None:
        """Listen, and begin to publish or to follow."""
        config = self._config
        self.server.authenticate_by(
            await open_access(config.access, config.server.pool, self._clock, self._opened)
        )
        if self._config.follow:
            await self.server.start()
            self._follow(asyncio.get_running_loop())
        elif self._config.kubernetes:
            await self._follow_kubernetes()
        else:
            self._prepare_publisher()
            await self.server.start()
            self._tasks = [asyncio.create_task(self._poll(node)) for node in self._config.nodes]
            self._tasks.append(asyncio.create_task(self._publish()))
        if self._config.http_port is not None:
            self._http = PlainHttpServer(
                self._config.http_host, self._config.http_port, self._routes()
            )
        if self._config.ready_file is not None:
            write_durably(self._config.ready_file, json.dumps(self.addresses()).encode())
        log.info("serving pool %s at %s", self._config.server.pool, self.server.endpoint)

    def addresses(self) -> dict[str, object]:
        """Return what is served where."""
        return {
            "endpoint": self.server.endpoint,
            "pool": self._config.server.pool,
            "http_port": self._http.port if self._http is not None else None,
        }

    async def stop(self) -> None:
        """Stop everything in order: watchers are told first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        await self.server.stop(grace_s=1)
        await self._opened.aclose()
        if self._http is not None:
            await asyncio.to_thread(self._http.stop)
        if self._state_file is not None:
            self._state_file.release()

    async def failed(self) -> None:
        """Return never, or raise what ended a task of this process: a bug."""
        if self._tasks:
            await asyncio.gather(*self._tasks)
        await asyncio.Event().wait()

    # --- publishing --------------------------------------------------------------------------

    def _prepare_publisher(self) -> None:
        path = self._config.state_file
        assert path is not None
        self._state_file = StateFile(path)
        publisher_config = PublisherConfig(
            nodes=len(self._config.nodes),
            slots=self._config.slots,
            moving_slots_percent_max=self._config.moving_slots_percent_max,
            move_timeout_s=self._config.move_timeout_s,
            first_map_wait_ms=self._config.first_map_wait_ms,
            loss=self._config.loss,
        )
        self._publisher = Publisher(
            publisher_config, self._state_file.read(), self._now_ms()
        )

    async def _poll(self, node: str) -> None:
        """Ask one node for its facts again and again."""
        publisher, healthy = self._publisher, True
        assert publisher is not None
        calls = NodeCalls(node, self._config.admin_tls)
        try:
            while True:
                self._polls += 1
                try:
                    answer = await calls.facts(POLL_TIMEOUT_S)
                    reports = reports_of(answer, self._config.server.pool)
                    publisher.answered(node, reports, self._now_ms())
                    problem = ""
                except (PeerGone, ProtocolError) as error:
                    self._poll_failures += 1
                    publisher.failed(node)
                    problem = str(error)
                if healthy != (not problem):
                    healthy = not problem
                    log.log(
                        logging.INFO if healthy else logging.WARNING,
                        "node %s %s",
                        node,
                        "answers" if healthy else f"does not answer: {problem}",
                    )
                await asyncio.sleep(self._config.poll_interval_ms / 1000)
        finally:
            await calls.close()

    async def _publish(self) -> None:
        """Make, store and show maps."""
        publisher, file = self._publisher, self._state_file
        assert publisher is not None
        assert file is not None
        while True:
            self._outcome = publisher.step(self._now_ms(), self._clock.wall_s())
            self._log(self._outcome)
            self._unstored = self._outcome.state or self._unstored
            if self._unstored is not None:
                stored = self._unstored
                try:
                    await asyncio.to_thread(file.write, stored)
                except OSError as error:
                    log.error(
                        "cannot store the map in %s (%s), so it is not published: free space or "
                        "make the folder writable; trying again",
                        file.path,
                        error.strerror,
                    )
                else:
                    self._unstored = None
                    await self.server.publish(stored.shard_map)
            await asyncio.sleep(min(0.2, self._config.poll_interval_ms / 2000))

    async def drop(self, tenant_tag: bytes) -> ShardMap:
        """As `TenantDropper`. In two rounds: a worker that heard of the first may still get copies
        from one that has not. When all have, what is left anywhere goes with the second."""
        shard_map = await self._raise_generation(tenant_tag)
        log.info("a tenant is being dropped with map %s", shard_map.version)
        return await self._raise_generation(tenant_tag)

    async def _raise_generation(self, tenant_tag: bytes) -> ShardMap:
        """Return the published map with a higher generation, once everyone took it over."""
        publisher, started_ms = self._publisher, self._now_ms()
        before = self.server.feed.latest
        if publisher is None or before is None:
            raise RetryLater("there is no map yet, and nothing to drop")
        publisher.drop_tenant(tenant_tag)
        wanted = before.tenant_generations.get(tenant_tag, 0) + 1
        raised: ShardMap | None = None
        while True:
            latest = self.server.feed.latest or before
            if raised is None and latest.tenant_generations.get(tenant_tag, 0) >= wanted:
                raised = latest
            if raised is not None and not publisher.lagging(raised.version.epoch):
                return raised
            if self._now_ms() - started_ms > limits.DROP_TENANT_WAIT_MS:
                raise RetryLater(_still_waiting(publisher, raised))
            await asyncio.sleep(DROP_STEP_S)

    def _log(self, outcome: Outcome) -> None:
        if outcome.state is not None:
            shard_map = outcome.state.shard_map
            log.info(
                "map %s (%s): %d workers, %d slots moving, %d waiting",
                shard_map.version,
                ", ".join(reason.value for reason in outcome.reasons),
                len(shard_map.workers),
                len(shard_map.moving),
                outcome.slots_waiting,
            )
        elif outcome.reasons and outcome.reasons != self._logged:
            for reason in outcome.reasons:
                log.warning("map unchanged: %s%s", reason.value, WHAT_TO_DO.get(reason, ""))
        self._logged = outcome.reasons

    # --- following ---------------------------------------------------------------------------

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        def on_map(shard_map: ShardMap) -> None:
            with contextlib.suppress(RuntimeError):  # the loop closed while a map came in
                asyncio.run_coroutine_threadsafe(self.server.publish(shard_map), loop)

        config = self._config
        self._watcher = MapWatcher(
            WatchConfig(
                config.follow,
                config.server.pool,
                f"replica-{config.server.host}:{config.server.port}",
                config.follow_tls,
                config.server.insecure,
            ),
            self._clock,
            on_map,
        )
        self._watcher.start()

    async def _follow_kubernetes(self) -> None:
        from memkv.metadata.kubernetes.api_server import connect_api_server
        from memkv.metadata.kubernetes.source import ShardMapSource

        api = await connect_api_server()
        await self.server.start()
        source = ShardMapSource(api, self._config.server.pool, self.server.publish, self._clock)
        self._tasks = [asyncio.create_task(source.run())]

    # --- figures -----------------------------------------------------------------------------

    def figures(self) -> MetadataFigures:
        """Return what the metrics show."""
        census = self._publisher.census if self._publisher is not None else None
        return MetadataFigures(
            self.server.statistics(),
            self.server.feed.latest,
            census is not None and census.frozen,
            self._outcome.slots_waiting,
            self._polls,
            self._poll_failures,
        )

    def _routes(self) -> dict[str, Callable[[], Page]]:
        registry = CollectorRegistry()
        registry.register(MetadataCollector(self.figures))
        if self._config.server.tls is not None:
            registry.register(CertificateCollector(self._config.server.tls, "metadata"))
        return {
            "/metrics": lambda: metrics_page(registry),
            "/healthz": lambda: probe_page(True, "ok"),
            "/readyz": lambda: probe_page(
                self.server.ready, "ok" if self.server.ready else "no map yet"
            ),
        }

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000


def _still_waiting(publisher: Publisher, raised: ShardMap | None) -> str:
    if raised is None:
        return "the map cannot be stored, so nothing was dropped; the log says why. Try again"
    names = sorted({worker.node_name for worker in publisher.lagging(raised.version.epoch)})
    return (
        f"{', '.join(names)} did not forget the tenant's blocks yet, and will when they answer; "
        "look at `memkv nodes`, and run this again to be sure"
    )


def run_metadata(
    config: MetadataConfig, clock: Clock | None = None,
    started: Callable[[dict[str, object]], None] = lambda addresses: None,
) -> None:  # fmt: skip
    """Run until SIGTERM or SIGINT; `started` gets the addresses in use. ConfigError when it cannot
    start."""
    asyncio.run(_run(config, clock, started))


async def _run(
    config: MetadataConfig, clock: Clock | None, started: Callable[[dict[str, object]], None]
) -> None:
    stopping = asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
    process = MetadataProcess(config, clock)
    waiting: list[asyncio.Task[object]] = []
    try:
        await process.start()
        started(process.addresses())
        waiting += [asyncio.create_task(stopping.wait()), asyncio.create_task(process.failed())]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await process.stop()
