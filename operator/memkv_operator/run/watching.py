"""Keeps the view of the cluster up to date.

kopf watches what people and the cluster decide: pools, MemKVNodes and Nodes. It runs in a thread
and a loop of its own, because it cancels everything on its loop when it ends. Only raw events are
taken from it: its handlers of changes keep their state in annotations and have finalizers.

What the operator made itself is watched by label: no watch of kopf can leave out the other pods of
a cluster.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import kopf

from memkv.clock import Clock
from memkv.errors import MemKVError, PeerGone
from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.metadata.kubernetes.listing import Listing
from memkv.metadata.kubernetes.reflector import Reflector
from memkv_operator.api.names import (
    CHILDREN,
    FIELD_MANAGER,
    LABEL_MANAGED_BY,
    MEMKV_NODES,
    NODES,
    PODS,
    POOLS,
    Resource,
)
from memkv_operator.kube.objects import Objects
from memkv_operator.run.view import ClusterView

log = logging.getLogger("memkv.operator.watch")

BY_KOPF = (POOLS, MEMKV_NODES, NODES)
BY_LABEL = (PODS, *CHILDREN)
OWN = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
KOPF_START_S = 30.0

Heard = Callable[[Resource], None]
OnEvent = Callable[[Resource, str | None, JsonObject], None]
"""Kind of object, type of event (None: it was there before), the object. From any thread."""


class EventWatch(Protocol):
    """Watches the kinds of BY_KOPF."""

    @property
    def alive(self) -> bool:
        """Whether it goes on."""

    async def start(self) -> None:
        """Start, and wait until it watches. PeerGone when it does not in time."""

    async def stop(self) -> None:
        """End the watches."""


MakeEventWatch = Callable[[Sequence[str], OnEvent], EventWatch]
"""Makes one for these namespaces; none: all."""


class KopfWatch:
    """kopf in its own thread, as EventWatch."""

    def __init__(self, namespaces: Sequence[str], on_event: OnEvent) -> None:
        """`on_event` is called in kopf's thread."""
        self._namespaces = list(namespaces)
        self._on_event = on_event
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    @property
    def alive(self) -> bool:
        """As EventWatch."""
        return self._thread.is_alive()

    async def start(self) -> None:
        """As EventWatch."""
        self._thread.start()
        if not await asyncio.to_thread(self._ready.wait, KOPF_START_S):
            raise PeerGone("kopf did not begin to watch; look at its log for the reason")

    async def stop(self) -> None:
        """As EventWatch."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, KOPF_START_S)

    def _run(self) -> None:
        # At INFO it writes a line for each event of each object.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        asyncio.run(
            kopf.operator(
                registry=self._registry(),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=self._stop,
                ready_flag=self._ready,
            )
        )

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def login(settings: kopf.OperatorSettings, **_: object) -> kopf.ConnectionInfo | None:
            in_pod = kopf.login_with_service_account(settings=settings)
            return in_pod or kopf.login_with_kubeconfig(settings=settings)

        for resource in BY_KOPF:
            self._register(registry, resource)
        return registry

    def _register(self, registry: kopf.OperatorRegistry, resource: Resource) -> None:
        @kopf.on.event(
            resource.group, resource.version, resource.plural, registry=registry,
            id=resource.plural,
        )  # fmt: skip
        async def heard(event: kopf.RawEvent, **kwargs: object) -> None:
            # What was read from JSON holds nothing else; kopf's types do not say so.
            self._on_event(resource, event["type"], cast(JsonObject, event["object"]))


def kopf_settings() -> kopf.OperatorSettings:
    """Return settings that make a dead watch end and keep kopf from writing anything."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    prefix = "memkv.io"
    settings.persistence.finalizer = f"{prefix}/kopf-unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=prefix)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=prefix)
    return settings


class _OwnObjects:
    """A reflector's listener: hands one kind on to the view."""

    def __init__(self, view: ClusterView, resource: Resource, namespace: str, heard: Heard) -> None:
        self._view = view
        self._resource = resource
        self._namespace = namespace
        self._heard = heard

    def replaced(self, listing: Listing) -> None:
        self._heard(self._resource)
        self._view.replaced(self._resource, self._namespace, listing)

    def changed(self, item: JsonObject) -> None:
        self._heard(self._resource)
        self._view.changed(self._resource, item)

    def deleted(self, item: JsonObject) -> None:
        self._heard(self._resource)
        self._view.deleted(self._resource, item)


class Watches:
    """All watches of one process."""

    def __init__(
        self,
        api: ApiServer,
        view: ClusterView,
        namespaces: Sequence[str],
        clock: Clock,
        heard: Heard,
        list_again_s: float,
        make_event_watch: MakeEventWatch = KopfWatch,
    ) -> None:
        """`heard` is told of each sign of life of a watch."""
        self._objects = Objects(api)
        self._view = view
        self._heard = heard
        self._namespaces = tuple(namespaces) or ("",)
        self._list_again_s = list_again_s
        self._loop = asyncio.get_running_loop()
        self._kopf = make_event_watch(namespaces, self._from_kopf)
        self.synced = False
        """Whether the view is complete."""
        self._reflectors = [
            Reflector(
                api,
                resource.path(namespace),
                {"labelSelector": OWN},
                _OwnObjects(view, resource, namespace, heard),
                clock,
            )
            for resource in BY_LABEL
            for namespace in self._namespaces
        ]

    @property
    def alive(self) -> bool:
        """Whether watching goes on."""
        return self._kopf.alive

    async def run(self) -> None:
        """Watch until cancelled. PeerGone when kopf does not start or has ended."""
        tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        try:
            await self._kopf.start()
            for reflector in self._reflectors:
                await reflector.synced.wait()
            await self._list_all(BY_KOPF)
            self.synced = True
            while self._kopf.alive:
                await asyncio.sleep(self._list_again_s)
                await self._list_all_or_say()
            raise PeerGone("kopf has ended; its log says why")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._kopf.stop()

    async def _list_all_or_say(self) -> None:
        try:
            await self._list_all((*BY_KOPF, *BY_LABEL))
        except MemKVError as error:
            log.warning("listing again: %s", error)

    async def _list_all(self, resources: Sequence[Resource]) -> None:
        """Compare the view with what there is: kopf does not tell of what vanished unseen, and no
        watch of what it lost itself."""
        for resource in resources:
            selector = OWN if resource in BY_LABEL else ""
            for namespace in self._namespaces if resource.namespaced else ("",):
                listing = await self._objects.list(resource, namespace, selector)
                self._view.replaced(resource, namespace, listing)

    def _from_kopf(self, resource: Resource, kind: str | None, item: JsonObject) -> None:
        self._loop.call_soon_threadsafe(self._take, resource, kind, item)

    def _take(self, resource: Resource, kind: str | None, item: JsonObject) -> None:
        self._heard(resource)
        if kind == "DELETED":
            self._view.deleted(resource, item)
        else:
            self._view.changed(resource, item)
