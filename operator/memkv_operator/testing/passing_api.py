"""A way to the API server that passes everything on, for tests that step in somewhere."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as ApiServer gets it."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: JsonObject | None = None
    content_type: str = "application/json"

    @property
    def writes_map(self) -> bool:
        """Whether it publishes a shard map."""
        return "memkvshardmaps" in self.path and self.method in ("PUT", "POST")


class PassingApi:
    """Implements ApiServer on another one. `send` is where a subclass steps in."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api

    async def send(self, call: Call) -> JsonObject:
        """Send one request on and return its answer."""
        return await self.api.request(
            call.method, call.path, call.query, call.body, call.content_type
        )

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        """As ApiServer."""
        return await self.send(Call(method, path, query, body, content_type))

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        """As ApiServer."""
        async for event in self.api.watch(path, query):
            yield event

    async def close(self) -> None:
        """As ApiServer."""
        await self.api.close()
