"""kopf watches what people and the cluster decide: pools, MemKVNodes and Nodes.

It runs in a thread and a loop of its own, because it cancels everything on its loop when it ends.
Only raw events are taken from it: its handlers of changes keep their state in annotations and have
finalizers.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, cast

import kopf

from memkv.errors import PeerGone
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.api.names import MEMKV_NODES, NODES, POOLS, Resource

log = logging.getLogger("memkv.operator.watch")

BY_KOPF = (POOLS, MEMKV_NODES, NODES)
KOPF_START_S = 30.0

OnEvent = Callable[[Resource, str | None, JsonObject], None]
"""Kind of object, type of event (None: it was there before), the object. From any thread."""


class EventWatch(Protocol):
    """Watches the kinds of BY_KOPF."""

    @property
    def alive(self) -> bool:
        """Whether it goes on."""

    async def start(self) -> None:
        """Start, and wait until it watches. PeerGone when it does not in time."""

    async def ended(self) -> None:
        """Wait until it has ended by itself, which it should not."""

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
        self._ready: Future[None] = Future()
        self._over: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    @property
    def alive(self) -> bool:
        """As EventWatch."""
        return self._thread.is_alive()

    async def start(self) -> None:
        """As EventWatch."""
        self._thread.start()
        begun = {asyncio.wrap_future(self._ready), asyncio.wrap_future(self._over)}
        await asyncio.wait(begun, timeout=KOPF_START_S, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            raise PeerGone("kopf did not begin to watch; look at its log for the reason")

    async def ended(self) -> None:
        """As EventWatch."""
        await asyncio.wait({asyncio.wrap_future(self._over)})

    async def stop(self) -> None:
        """As EventWatch."""
        self._stop.set()
        if self.alive:
            await asyncio.to_thread(self._thread.join, KOPF_START_S)

    def _run(self) -> None:
        # At INFO it writes a line for each event of each object.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        try:
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
        except Exception as error:
            # Any answer that it does not know: 410 to a watch, half of a line, an ERROR event.
            log.warning("kopf has ended: %r", error)
        finally:
            self._over.set_result(None)

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
    settings.process.ultimate_exiting_timeout = None  # its SIGKILL would end the whole process
    prefix = "memkv.io"
    settings.persistence.finalizer = f"{prefix}/kopf-unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=prefix)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=prefix)
    return settings
