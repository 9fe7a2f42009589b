"""Keeps somebody informed of a collection of objects: list, then watch, for ever.

A watch goes on from the last resource version, so nothing is missed while a stream is replaced.
When the server has forgotten that version (410) the collection is listed again, and the listener
gets it whole: what vanished in between is missing there.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Protocol

from memkv.clock import Clock
from memkv.errors import MemKVError, ProtocolError
from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.errors import Gone, TooMany, error_of
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv.metadata.kubernetes.listing import Listing, list_all

log = logging.getLogger("memkv.kubernetes")

WATCH_S = 300  # then the server ends the stream, and load spreads over its replicas
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 30.0
STABLE_S = 30  # a stream that lasted so long was well: the next failure waits the least again


class Listener(Protocol):
    """Who is kept informed. Called on the event loop, and must not wait."""

    def replaced(self, listing: Listing) -> None:
        """The collection was exactly this at the version of the listing."""

    def changed(self, item: JsonObject) -> None:
        """An object is new or has changed."""

    def deleted(self, item: JsonObject) -> None:
        """An object is gone; this is its last state."""


class Reflector:
    """Watches one path."""

    def __init__(
        self,
        api: ApiServer,
        path: str,
        query: Mapping[str, str],
        listener: Listener,
        clock: Clock,
        source: random.Random | None = None,
    ) -> None:
        """`query`: labelSelector or fieldSelector, if not all objects are wanted."""
        self._api = api
        self._path = path
        self._query = dict(query)
        self._listener = listener
        self._clock = clock
        self._random = source or random.Random()
        self._version = ""
        self._failures = 0
        self.synced = asyncio.Event()
        """Set once the collection was listed."""

    async def run(self) -> None:
        """Go on until cancelled. No error of the API server ends it."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except Gone:
                self._version = ""
                await self._pause(None)
            except MemKVError as error:
                log.warning("watching %s: %s", self._path, error)
                await self._pause(error)

    async def _list(self) -> None:
        listing = await list_all(self._api, self._path, self._query)
        self._version = listing.version
        self._listener.replaced(listing)
        self.synced.set()

    async def _watch(self) -> None:
        query = {
            **self._query,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        started_ns = self._clock.monotonic_ns()
        try:
            async for event in self._api.watch(self._path, query):
                self._take(Reader(event))
        finally:
            if self._clock.monotonic_ns() - started_ns > STABLE_S * 1_000_000_000:
                self._failures = 0

    def _take(self, event: Reader) -> None:
        kind, item = event.text("type"), event.object("object")
        if kind == "ERROR":
            message = item.text("message").encode()
            raise error_of(item.integer("code", 500), message, None, f"WATCH {self._path}")
        if kind in ("ADDED", "MODIFIED"):
            self._listener.changed(item.value)
        elif kind == "DELETED":
            self._listener.deleted(item.value)
        elif kind != "BOOKMARK":
            raise ProtocolError(f"the API server sent a watch event of type {kind!r}")
        self._version = item.object("metadata").text("resourceVersion") or self._version
        self._failures = 0

    async def _pause(self, error: Exception | None) -> None:
        """Full jitter: a thousand watchers of a server that came back do not come at once."""
        ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        pause_s = ceiling_s * self._random.random()
        if isinstance(error, TooMany):
            pause_s += error.retry_after_s
        await asyncio.sleep(pause_s)
