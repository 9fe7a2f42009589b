"""A whole collection, page by page."""

from collections.abc import Mapping
from dataclasses import dataclass

from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject, Reader

PAGE_OBJECTS = 500


@dataclass(frozen=True, slots=True)
class Listing:
    """What there was."""

    items: tuple[JsonObject, ...]
    version: str
    """The resource version at which this was so: a watch goes on from it."""


async def list_all(api: ApiServer, path: str, query: Mapping[str, str]) -> Listing:
    """Return all objects of a path. Gone when they changed too much between two pages."""
    wanted = {**query, "limit": str(PAGE_OBJECTS)}
    found: list[JsonObject] = []
    while True:
        page = Reader(await api.request("GET", path, wanted))
        found += [item.value for item in page.objects("items")]
        meta = page.object("metadata")
        token = meta.text("continue")
        if not token:
            return Listing(tuple(found), meta.text("resourceVersion"))
        wanted["continue"] = token
