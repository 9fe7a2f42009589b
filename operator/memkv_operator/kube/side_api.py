"""An API server's connection in a thread and an event loop of its own: its requests are sent and
answered however much there is to do on the loop of their caller."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject


class SideApi:
    """Implements ApiServer. One request crosses to the thread once and back once, where one on a
    busy loop waits for its turn at every step of the exchange."""

    def __init__(self, connect: Callable[[], Awaitable[ApiServer]]) -> None:
        """`connect` is called in the thread, at the first request. The thread ends with `close`."""
        self._connect = connect
        self._api: ApiServer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lease", daemon=True)
        self._thread.start()

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        """As ApiServer."""
        request = self._request(method, path, query, body, content_type)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(request, self._loop))

    def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        """Not for this: events would cross one by one."""
        raise NotImplementedError(f"watch {path} on the caller's own loop")

    async def close(self) -> None:
        """As ApiServer."""
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        await asyncio.wrap_future(closing)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    # --- in the thread -----------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: JsonObject | None,
        content_type: str,
    ) -> JsonObject:
        if self._api is None:
            self._api = await self._connect()
        return await self._api.request(method, path, query, body, content_type)

    async def _close(self) -> None:
        if self._api is not None:
            await self._api.close()
