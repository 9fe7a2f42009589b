"""An API server of Kubernetes in memory: enough for the verbs that MemKV uses, and for faults.

It knows no schemas and no rights. What is like the real one: resource versions and compare-and-swap
by them, generations, UIDs with preconditions, apply as a merge that writes nothing when nothing
changes, a status apart from the rest, finalizers, garbage collection by owner, watches with
bookmarks and 410. tests/apiserver runs the operator against the real one.
"""

import asyncio
import functools
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from memkv.metadata.kubernetes.errors import Conflict, Gone, Invalid, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject

Object = dict[str, Any]
"""Any: built by hand from JSON, and only tests look inside."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as a fault sees it."""

    number: int
    """From 1, over all requests."""
    method: str
    path: str


Fault = Callable[[Request, bool], Exception | None]
"""Given a request and whether it was done already: the error to answer with, or None."""


@dataclass(frozen=True, slots=True)
class _Place:
    collection: str
    namespace: str
    name: str
    status: bool


@dataclass(slots=True)
class FakeApiServer:
    """Implements ApiServer."""

    objects: dict[str, Object] = field(default_factory=dict)
    """By path."""
    requests: list[Request] = field(default_factory=list)
    fault: Fault = lambda request, done: None
    collects_garbage: bool = True
    now: Callable[[], str] = lambda: "2026-01-01T00:00:00Z"
    """The time that deletions get, RFC 3339."""
    watch_error: Exception | None = None
    """Ends every watch with this, once."""
    _log: defaultdict[str, list[tuple[int, str, Object]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By path of a collection: version, type and object of each event, in order."""
    _applied: dict[str, Object] = field(default_factory=dict)
    """What was applied last: fields that are not applied any more go."""
    _forgotten: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _versions: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _version: int = 0

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        """As ApiServer."""
        request = Request(len(self.requests) + 1, method, path)
        self.requests.append(request)
        self._raise(request, False)
        answer = self._answer(method, _place_of(path), query or {}, body, content_type)
        self._raise(request, True)
        await asyncio.sleep(0)
        owned: Object = copied(answer)
        return owned

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        """As ApiServer."""
        request = Request(len(self.requests) + 1, "WATCH", path)
        self.requests.append(request)
        self._raise(request, False)
        seen = int(query.get("resourceVersion", "0"))
        if seen < self._forgotten:
            raise Gone("too old resource version")
        while True:
            log = self._log[path]
            news = log[bisect_right(log, seen, key=itemgetter(0)) :]
            for version, kind, item in news:
                seen = version
                if _selected(item, query):
                    yield {"type": kind, "object": copied(item)}
            if news:
                continue
            if self.watch_error is not None:
                error, self.watch_error = self.watch_error, None
                raise error
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """As ApiServer."""

    # --- for tests ---------------------------------------------------------------------------

    @property
    def writes(self) -> list[Request]:
        """All requests that could change something."""
        return [one for one in self.requests if one.method not in ("GET", "WATCH")]

    def forget_history(self) -> None:
        """Answer 410 to watches from before now, as after a compaction."""
        self._forgotten = self._version
        self._log.clear()
        self.interrupt_watches(Gone("the watch cache was compacted"))

    def interrupt_watches(self, error: Exception) -> None:
        """End one watch with an error."""
        self.watch_error = error
        self._changed.set()

    def all_of(self, plural: str) -> list[Object]:
        """Return the objects of a kind."""
        found = sorted(self.objects.items())
        return [item for path, item in found if path.split("/")[-2] == plural]

    # --- inside ------------------------------------------------------------------------------

    def _raise(self, request: Request, done: bool) -> None:
        error = self.fault(request, done)
        if error is not None:
            raise error

    def _answer(
        self,
        method: str,
        place: _Place,
        query: Mapping[str, str],
        body: JsonObject | None,
        content_type: str,
    ) -> JsonObject:
        if method == "GET" and not place.name:
            found = [
                item
                for path, item in sorted(self.objects.items())
                if _is_in(path, place) and _selected(item, query)
            ]
            return {"items": found, "metadata": {"resourceVersion": str(self._version)}}
        given: Object = copied(dict(body or {}))
        if method == "POST":
            name = given["metadata"]["name"]
            path = f"{place.collection}/{name}"
            if path in self.objects:
                raise Conflict(f"{path} already exists")
            return self._store(path, None, given)
        path = f"{place.collection}/{place.name}"
        there = self.objects.get(path)
        if method == "PATCH" and content_type.startswith("application/apply") and not place.status:
            before = self._applied.get(path, {}) if there is not None else {}
            self._applied[path] = given
            return self._store(path, there, _merged(_without(there or {}, before, given), given))
        if there is None:
            raise NotFound(f"{path} not found")
        if method == "GET":
            return there
        if method == "DELETE":
            return self._delete(path, there, given)
        return self._change(path, there, place, given, content_type)

    def _change(
        self, path: str, there: Object, place: _Place, given: Object, content_type: str
    ) -> JsonObject:
        wanted = given.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != there["metadata"]["resourceVersion"]:
            raise Conflict(f"{path}: the object has been modified")
        if place.status:
            return self._store(path, there, {**there, "status": given.get("status", {})})
        if content_type == "application/json":
            if wanted is None:
                raise Invalid(f"{path}: metadata.resourceVersion must be specified")
            kept = {key: there[key] for key in ("status",) if key in there}
            metadata = {**given["metadata"], "uid": there["metadata"]["uid"]}
            return self._store(path, there, {**given, **kept, "metadata": metadata})
        return self._store(path, there, _merged(there, given))

    def _store(self, path: str, there: Object | None, item: Object) -> Object:
        place = _place_of(path)
        metadata = {**(there or {}).get("metadata", {}), **item.get("metadata", {})}
        if place.namespace:
            metadata["namespace"] = place.namespace
        metadata.setdefault("uid", f"uid-{len(self.requests)}-{next(self._versions)}")
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        generation = metadata.get("generation", 0 if there is None else 1)
        changed_spec = there is None or there.get("spec") != item.get("spec")
        metadata["generation"] = generation + 1 if changed_spec else generation
        new = {**item, "metadata": metadata}
        if there is not None and _same(there, new):
            return there
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            return self._remove(path, new)
        self._note("ADDED" if there is None else "MODIFIED", path, new)
        self.objects[path] = new
        return new

    def _delete(self, path: str, there: Object, options: Object) -> Object:
        wanted = options.get("preconditions", {}).get("uid")
        if wanted is not None and wanted != there["metadata"]["uid"]:
            raise Conflict(f"{path}: the UID in the precondition does not match")
        if there["metadata"].get("finalizers"):
            metadata = {**there["metadata"], "deletionTimestamp": self.now()}
            return self._store(path, there, {**there, "metadata": metadata})
        return self._remove(path, there)

    def _remove(self, path: str, item: Object) -> Object:
        self.objects.pop(path, None)
        self._note("DELETED", path, item)
        uid = item["metadata"]["uid"]
        if self.collects_garbage:
            for owned, other in list(self.objects.items()):
                owners = other["metadata"].get("ownerReferences", [])
                if any(owner["uid"] == uid for owner in owners):
                    self._delete(owned, other, {})
        return item

    def _note(self, kind: str, path: str, item: Object) -> None:
        self._version = next(self._versions)
        item["metadata"]["resourceVersion"] = str(self._version)
        place = _place_of(path)
        snapshot = copied(item)
        everywhere = place.collection.replace(f"/namespaces/{place.namespace}", "")
        for where in {place.collection, everywhere}:
            self._log[where].append((self._version, kind, snapshot))
        self._changed.set()


def copied(value: Any) -> Any:
    """Return a copy of JSON that shares nothing that can change. Several times as fast as
    `copy.deepcopy`, and most of the time of a simulated cluster went there."""
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list | tuple) else value


@functools.cache
def _place_of(path: str) -> _Place:
    parts = path.strip("/").split("/")
    head = 2 if parts[0] == "api" else 3
    rest = parts[head:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
        collection = "/" + "/".join([*parts[:head], "namespaces", namespace, rest[0]])
    else:
        collection = "/" + "/".join([*parts[:head], rest[0]])
    return _Place(collection, namespace, rest[1] if len(rest) > 1 else "", rest[2:] == ["status"])


def _is_in(path: str, place: _Place) -> bool:
    collection, _, _ = path.rpartition("/")
    if place.namespace:
        return collection == place.collection
    there = _place_of(path)
    return collection.replace(f"/namespaces/{there.namespace}", "") == place.collection


def _selected(item: Object, query: Mapping[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if labels.get(key) != value:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = part.partition("=")
        if key == "metadata.name" and item["metadata"]["name"] != value:
            return False
    return True


def _merged(there: Object, given: Object) -> Object:
    merged = dict(there)
    for key, value in given.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(there.get(key), dict):
            merged[key] = _merged(there[key], value)
        else:
            merged[key] = copied(value)
    return merged


def _without(there: Object, before: Object, given: Object) -> Object:
    kept = dict(there)
    for key, value in before.items():
        if key not in given:
            kept.pop(key, None)
        elif all(isinstance(one, dict) for one in (value, kept.get(key), given[key])):
            kept[key] = _without(kept[key], value, given[key])
    return kept


def _same(one: Object, other: Object) -> bool:
    def bare(item: Object) -> Object:
        metadata = {k: v for k, v in item["metadata"].items() if k != "resourceVersion"}
        return {**item, "metadata": metadata}

    return bare(one) == bare(other)
