"""One operator process: watches always, leads when it is elected."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

from memkv.clock import Clock, SystemClock
from memkv.errors import MemKVError
from memkv.metadata.http import PlainHttpServer, Route, metrics_page, probe_page
from memkv.metadata.kubernetes.api_server import ApiServer, Observer, connect_api_server
from memkv.metadata.kubernetes.errors import NotFound
from memkv_operator.api.names import MEMKV_NODES, POOLS, SHARD_MAPS
from memkv_operator.bugs import BugLog
from memkv_operator.kube.leadership import Leadership
from memkv_operator.kube.objects import Objects
from memkv_operator.kube.side_api import SideApi
from memkv_operator.nodes.admin import Dial, GrpcNodeAdmin
from memkv_operator.nodes.agent_admin import DialAgent, GrpcAgentAdmin
from memkv_operator.plan.heartbeats import Heartbeats
from memkv_operator.run.agents import Agents
from memkv_operator.run.heartbeats import HeartbeatReader
from memkv_operator.run.kopf_watch import KopfWatch, MakeEventWatch
from memkv_operator.run.metrics import OperatorMetrics, PoolCollector
from memkv_operator.run.reconciler import Reconciler
from memkv_operator.run.scope import Scope
from memkv_operator.run.settings import Settings
from memkv_operator.run.view import ClusterView
from memkv_operator.run.watching import Watches
from memkv_operator.run.work_queue import WorkQueue

log = logging.getLogger("memkv.operator")

BEAT_S = 0.5
SILENT_S = 60.0  # an event loop that is stuck for so long will not come back
SYNC_STEP_S = 0.05
TAKES_OVER_S = 15.0  # until the publishers of a new leader know which nodes answer them
REST_S_MAX = 2.0  # of a pool after a look at it, which rests as long as the look took
Connect = Callable[[Observer], Awaitable[ApiServer]]
WORKERS = 4  # pools looked at side by side; each mostly waits for the API server


class Operator:
    """Everything of one process."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock | None = None,
        dial: Dial = GrpcNodeAdmin,
        dial_agent: DialAgent = GrpcAgentAdmin,
        connect: Connect = connect_api_server,
        make_event_watch: MakeEventWatch = KopfWatch,
        *,
        lease_aside: bool = False,
    ) -> None:
        """`dial` and `dial_agent`: how nodes and agents are reached; `connect`: how the API server
        is. `lease_aside`: whether requests for the Lease have a thread of their own."""
        self._settings = settings
        self._clock = clock or SystemClock()
        self._dial = dial
        self._dial_agent = dial_agent
        self._connect = connect
        self._make_event_watch = make_event_watch
        self._lease_aside = lease_aside
        self.metrics = OperatorMetrics(self._clock)
        self.view = ClusterView(self._concerns)
        self.metrics.registry.register(PoolCollector(self.view))
        self._queue: WorkQueue | None = None
        self._watches: Watches | None = None
        self._scope: Scope | None = None
        self._beat_ns = self._clock.monotonic_ns()
        self._bugs = BugLog(log)
        self._leadership: Leadership | None = None
        self._reconciler: Reconciler | None = None
        self._took_over_ns = 0
        self.leads = False
        self.http_port = 0

    async def run(self) -> None:
        """Run until cancelled. MemKVError when it cannot go on: leadership lost, other rights."""
        http = PlainHttpServer(self._settings.http_host, self._settings.http_port, self._routes())
        self.http_port = http.port
        api = await self._connect(self.metrics.requested)
        try:
            await self._wait_for_kinds(api)
            await self._run_with(api)
        finally:
            await api.close()
            await asyncio.to_thread(http.stop)

    def look_at(self, key: str) -> None:
        """Have a pool looked at now, if this process leads."""
        if self.leads and self._queue is not None:
            self._queue.add(key)

    async def _run_with(self, api: ApiServer) -> None:
        assert self._scope is not None
        self._queue = WorkQueue(self._clock)
        self._watches = watches = Watches(
            api,
            self.view,
            self._settings.namespaces,
            self._clock,
            self.metrics.heard_of,
            self._settings.list_again_s,
            self._make_event_watch,
        )
        reader = HeartbeatReader(Objects(api), self._clock, self._suspects)
        tasks = [
            asyncio.create_task(watches.run()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._scope.keep(self._settings.namespaces)),
            asyncio.create_task(reader.run()),
            asyncio.create_task(self._lead(api, watches, reader.heartbeats)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # Work first, the watches it needs last.
            for task in reversed(tasks):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _wait_for_kinds(self, api: ApiServer) -> None:
        """kopf watches only kinds that exist when it starts."""
        objects, said = Objects(api), False
        self._scope = scope = Scope(objects, self._settings.namespaces)
        while True:
            try:
                readable = await scope.readable()
                for resource in (POOLS, MEMKV_NODES, SHARD_MAPS):
                    await objects.check_served(resource, next(iter(readable), ""))
                self._settings = replace(self._settings, namespaces=readable)
                return
            except MemKVError as error:
                level = logging.WARNING if not said else logging.DEBUG
                said = True
                hint = "; install the CRDs of the chart" if isinstance(error, NotFound) else ""
                log.log(level, "waiting for the API server: %s%s", error, hint)
                self._beat_ns = self._clock.monotonic_ns()
                await asyncio.sleep(BEAT_S)

    # --- leading -----------------------------------------------------------------------------

    def _suspects(self) -> frozenset[str]:
        """Return the nodes whose kubelets' Leases are to be read: nobody's at rest."""
        if self._reconciler is None:
            late = self._leadership is not None and self._leadership.is_leader_late
            return self.view.nodes_of_pools() if late else frozenset()
        led_s = (self._clock.monotonic_ns() - self._took_over_ns) / 1e9
        known = self.view.nodes_of_pools() if led_s < TAKES_OVER_S else frozenset()
        return known | self._reconciler.suspects

    async def _lead(self, api: ApiServer, watches: Watches, heartbeats: Heartbeats) -> None:
        while not watches.synced:
            await asyncio.sleep(SYNC_STEP_S)
        objects = Objects(api)
        side = SideApi(lambda: self._connect(self.metrics.requested)) if self._lease_aside else None
        leadership = Leadership(self._settings.lease, Objects(side or api), self._clock)
        self._leadership = leadership
        try:
            await leadership.lead(
                lambda transitions: self._work(api, objects, transitions, heartbeats)
            )
        finally:
            if side is not None:
                await side.close()

    async def _work(
        self, api: ApiServer, objects: Objects, transitions: int, heartbeats: Heartbeats
    ) -> None:
        queue = self._queue
        assert queue is not None
        agents = Agents(
            api,
            self._settings.lease.namespace,
            self._dial_agent,
            self._clock,
            self.view,
            self._concerns,
            self._settings.agent_interval_s,
        )
        reconciler = Reconciler(
            self._settings,
            self.view,
            objects,
            agents,
            self._dial,
            transitions,
            self._clock,
            queue.add,
            heartbeats,
            self.metrics.show_ends,
            self.metrics.reconciles.labels("bug").inc,
        )
        self._reconciler, self._took_over_ns = reconciler, self._clock.monotonic_ns()
        self.leads = True
        self.metrics.leader.set(1)
        for key in self.view.pools:
            queue.add(key)
        tasks = [asyncio.create_task(self._serve(queue, reconciler)) for _ in range(WORKERS)]
        tasks.append(asyncio.create_task(self._resync(queue, reconciler)))
        tasks.append(asyncio.create_task(agents.run()))
        try:
            await asyncio.wait({*tasks, reconciler.broken}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, reconciler.broken):
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await reconciler.stop()
            self._reconciler = None
            self.leads = False
            self.metrics.leader.set(0)

    async def _serve(self, queue: WorkQueue, reconciler: Reconciler) -> None:
        while True:
            key = await queue.take()
            self.metrics.depth.set(queue.depth)
            begun_ns = self._clock.monotonic_ns()
            try:
                with self.metrics.seconds.time():
                    await reconciler.reconcile(key)
            except MemKVError as error:
                log.warning("pool %s: %s", key, error)
                self.metrics.reconciles.labels("failed").inc()
                queue.failed(key)
            except Exception as error:
                # What nobody foresaw about one pool must not end the work on all others.
                self._bugs.say(
                    key,
                    error,
                    f"pool {key}: this is a bug in the operator, please report it; other pools go "
                    "on",
                )
                self.metrics.reconciles.labels("bug").inc()
                queue.failed(key)
            else:
                self._bugs.over(key)
                self.metrics.reconciles.labels("ok").inc()
                took_s = (self._clock.monotonic_ns() - begun_ns) / 1e9
                # A large pool that changes all the time is looked at half of the time.
                queue.succeeded(key, min(REST_S_MAX, took_s))

    async def _resync(self, queue: WorkQueue, reconciler: Reconciler) -> None:
        pruned = False
        while True:
            await asyncio.sleep(self._settings.resync_s)
            try:
                if not pruned:
                    await reconciler.prune()
                pruned = True
            except MemKVError as error:
                log.warning("what is left of pools that are gone stays for now: %s", error)
            for key in list(self.view.pools):
                queue.add(key)

    def _concerns(self, key: str) -> None:
        if self.leads and self._queue is not None:
            self._queue.add(key, 0.05)

    # --- probes ------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            self._beat_ns = self._clock.monotonic_ns()
            await asyncio.sleep(BEAT_S)
            late_s = (self._clock.monotonic_ns() - self._beat_ns) / 1e9 - BEAT_S
            self.metrics.late.observe(max(0.0, late_s))

    def _routes(self) -> dict[str, Route]:
        return {
            "/metrics": lambda: metrics_page(self.metrics.registry),
            "/healthz": lambda: probe_page(*self._health()),
            "/readyz": lambda: probe_page(*self._readiness()),
        }

    def _health(self) -> tuple[bool, str]:
        silent_s = (self._clock.monotonic_ns() - self._beat_ns) / 1e9
        if silent_s > SILENT_S:
            return False, f"the event loop is stuck for {silent_s:.0f} s"
        trouble = self._watches.trouble if self._watches is not None else ""
        return not trouble, trouble or "ok"

    def _readiness(self) -> tuple[bool, str]:
        watches = self._watches
        if watches is None or not watches.synced or not watches.alive:
            return False, "the cluster was not read yet"
        return True, "leads" if self.leads else "stands by"


def run_operator(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. MemKVError when the process must start anew."""
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    operator = Operator(settings, lease_aside=True)
    running = asyncio.create_task(operator.run())
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
