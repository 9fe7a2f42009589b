"""Which of the namespaces to be watched can be read. One that is gone, its Role with it, or whose
rights are missing, must not keep the others from being looked after."""

import asyncio
import logging
from collections.abc import Sequence

from memkv.errors import MemKVError, RetryLater
from memkv.metadata.kubernetes.errors import Forbidden
from memkv_operator.api.names import POOLS
from memkv_operator.kube.objects import Objects

log = logging.getLogger("memkv.operator.watch")

PROBE_S = 30.0


class Scope:
    """The namespaces of one process."""

    def __init__(self, objects: Objects, namespaces: Sequence[str]) -> None:
        """No namespaces: all, which is never narrowed."""
        self._objects = objects
        self._namespaces = tuple(namespaces)
        self._said: set[str] = set()

    async def readable(self) -> tuple[str, ...]:
        """Return those that can be read, at least one of them. MemKVError when the API server does
        not say."""
        if not self._namespaces:
            return ()
        while True:
            found = [name for name in self._namespaces if await self._may_read(name)]
            if found:
                return tuple(found)
            await asyncio.sleep(PROBE_S)

    async def keep(self, watched: Sequence[str]) -> None:
        """Return never. RetryLater when others than these can be read by now: the process starts
        anew, and watches those."""
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                now = await self.readable()
            except MemKVError as error:
                log.info("namespaces are looked at again later: %s", error)
                continue
            if set(now) != set(watched):
                names = ", ".join(sorted(set(now) ^ set(watched)))
                raise RetryLater(f"rights in {names} have changed: starting anew to go by them")

    async def _may_read(self, namespace: str) -> bool:
        try:
            await self._objects.check_served(POOLS, namespace)
        except Forbidden as error:
            if namespace not in self._said:
                self._said.add(namespace)
                log.warning(
                    "namespace %s is left out: %s. Make it (kubectl create namespace %s) and have "
                    "its Role made by helm upgrade; or take it out of watchNamespaces",
                    namespace,
                    error,
                    namespace,
                )
            return False
        self._said.discard(namespace)
        return True
