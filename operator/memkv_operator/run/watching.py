"""Keeps the view of the cluster up to date.

kopf watches what people and the cluster decide: pools, MemKVNodes and Nodes. What the operator made
itself is watched by label: no watch of kopf can leave out the other pods of a cluster.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

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
    PODS,
    Resource,
)
from memkv_operator.kube.objects import Objects
from memkv_operator.run.kopf_watch import BY_KOPF, EventWatch, KopfWatch, MakeEventWatch
from memkv_operator.run.view import ClusterView

log = logging.getLogger("memkv.operator.watch")

BY_LABEL = (PODS, *CHILDREN)
OWN = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
AGAIN_S_MIN, AGAIN_S_MAX = 0.5, 5.0  # before kopf, which has ended, is started anew
STABLE_S = 60.0  # kopf that went on for so long was well: the next start waits the least again

Heard = Callable[[Resource], None]


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
        self._clock = clock
        self._namespaces_of_kopf = tuple(namespaces)
        self._make_event_watch = make_event_watch
        self._kopf = self._make_kopf()
        self._kopf_began = asyncio.Event()
        self._behind: set[Resource] = set()
        """Kinds of which a listing had news, and whose watch has said nothing since."""
        self._silent: set[Resource] = set()
        """Kinds of which two listings had: their watches will not speak again."""
        self.synced = False
        """Whether the view is complete."""
        self._reflectors = [
            Reflector(
                api,
                resource.path(namespace),
                {"labelSelector": OWN},
                _OwnObjects(view, resource, namespace, self._hear),
                clock,
            )
            for resource in BY_LABEL
            for namespace in self._namespaces
        ]

    @property
    def alive(self) -> bool:
        """Whether watching goes on."""
        return self._kopf.alive

    @property
    def trouble(self) -> str:
        """Why this process should be started anew; empty: it should not."""
        if not self._silent:
            return ""
        kinds = ", ".join(sorted(resource.plural for resource in self._silent))
        return f"the watch of {kinds} tells nothing of what has changed"

    async def run(self) -> None:
        """Watch until cancelled. No error of the API server ends it."""
        tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        tasks.append(asyncio.create_task(self._keep_kopf()))
        tasks.append(asyncio.create_task(self._keep_listing()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._kopf.stop()

    def _make_kopf(self) -> EventWatch:
        return self._make_event_watch(self._namespaces_of_kopf, self._from_kopf)

    async def _keep_kopf(self) -> None:
        """Start kopf anew whenever it has ended: it bears few of the faults that a watch can have.
        What it did not hear meanwhile is listed."""
        again_s = AGAIN_S_MIN
        while True:
            begun_ns = self._clock.monotonic_ns()
            try:
                await self._kopf.start()
                if self._kopf_began.is_set():
                    await self._list_all_or_say(BY_KOPF)
                    self._behind.difference_update(BY_KOPF)  # the one that missed it has ended
                    self._silent.difference_update(BY_KOPF)
                self._kopf_began.set()
                await self._kopf.ended()
            except PeerGone as error:
                log.error("%s", error)
            await self._kopf.stop()
            if self._clock.monotonic_ns() - begun_ns > STABLE_S * 1e9:
                again_s = AGAIN_S_MIN
            log.warning("kopf is started anew in %.1f s", again_s)
            await asyncio.sleep(again_s)
            again_s = min(AGAIN_S_MAX, 2 * again_s)
            self._kopf = self._make_kopf()

    async def _keep_listing(self) -> None:
        """List everything once before the view is complete, and from time to time after it."""
        await self._kopf_began.wait()
        for reflector in self._reflectors:
            await reflector.synced.wait()
        while not await self._list_all_or_say(BY_KOPF):
            await asyncio.sleep(AGAIN_S_MIN)
        self.synced = True
        while True:
            await asyncio.sleep(self._list_again_s)
            await self._list_all_or_say((*BY_KOPF, *BY_LABEL))

    async def _list_all_or_say(self, resources: Sequence[Resource]) -> bool:
        """Return whether it could be done."""
        try:
            await self._list_all(resources)
        except MemKVError as error:
            log.warning("listing again: %s", error)
            return False
        return True

    async def _list_all(self, resources: Sequence[Resource]) -> None:
        """Compare the view with what there is: kopf does not tell of what vanished unseen, and no
        watch of what it lost itself.

        A watch that is silent because nothing happens is told from a dead one here: it has missed
        nothing. One that has is not believed again before it speaks itself.
        """
        for resource in resources:
            selector = OWN if resource in BY_LABEL else ""
            news = False
            for namespace in self._namespaces if resource.namespaced else ("",):
                listing = await self._objects.list(resource, namespace, selector)
                news = self._view.replaced(resource, namespace, listing) or news
            if news and resource in self._behind:
                self._silent.add(resource)
            if news:
                self._behind.add(resource)
            if resource not in self._behind:
                self._heard(resource)

    def _hear(self, resource: Resource) -> None:
        self._behind.discard(resource)
        self._silent.discard(resource)
        self._heard(resource)

    def _from_kopf(self, resource: Resource, kind: str | None, item: JsonObject) -> None:
        self._loop.call_soon_threadsafe(self._take, resource, kind, item)

    def _take(self, resource: Resource, kind: str | None, item: JsonObject) -> None:
        self._hear(resource)
        if kind == "DELETED":
            self._view.deleted(resource, item)
        else:
            self._view.changed(resource, item)
