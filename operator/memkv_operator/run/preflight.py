"""Asks what no watch tells: Pod Security of a pool's namespace, and why pods cannot be made."""

import logging
from collections.abc import Mapping

from memkv.clock import Clock
from memkv.errors import MemKVError
from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.names import (
    DAEMON_SETS,
    EVENTS,
    LABEL_NODE_GROUP,
    NAMESPACES,
)
from memkv_operator.api.pool import Pool
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.preflight import ENFORCE_LABEL, LEVEL_NEEDED, Preflight

log = logging.getLogger("memkv.operator")

FRESH_S = 60.0  # while all is well
AGAIN_S = 5.0  # while something is wrong: people wait for it to go
Live = Mapping[tuple[str, str], JsonObject]


class Preflights:
    """Of all pools. Reads only, and seldom."""

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock
        self._known: dict[str, tuple[int | None, Preflight]] = {}

    async def look(self, pool: Pool, children: Live) -> Preflight:
        """Return what is known of a pool, at most FRESH_S old. What cannot be asked is not
        known, and nothing else waits for it.

        `children`: by (kind, name) what exists of it.
        """
        now_ns = self._clock.monotonic_ns()
        asked_ns, known = self._known.get(pool.key, (None, Preflight()))
        lacking = groups_without_pods(children)
        fresh_s = AGAIN_S if lacking or is_wrong(known) else FRESH_S
        if asked_ns is not None and now_ns < asked_ns + int(fresh_s * 1e9):
            return known
        found = known
        try:
            found = await self._ask(pool.meta.namespace, lacking)
        except MemKVError as error:
            log.warning("pool %s: cannot look at its namespace: %s", pool.key, error)
        self._known[pool.key] = now_ns, found
        return found

    def forget(self, key: str) -> None:
        """Drop what is known of a pool that is gone."""
        self._known.pop(key, None)

    async def _ask(self, namespace: str, lacking: Mapping[str, str]) -> Preflight:
        reasons = {
            group: await why_not_made(self._objects, namespace, name)
            for group, name in lacking.items()
        }
        level = await self._enforced_level(namespace)
        return Preflight(level, {group: reason for group, reason in reasons.items() if reason})

    async def _enforced_level(self, namespace: str) -> str:
        manifest = await self._objects.get(NAMESPACES, "", namespace)
        if manifest is None:
            return ""
        return Reader(manifest).object("metadata").text_map("labels").get(ENFORCE_LABEL, "")


async def why_not_made(objects: Objects, namespace: str, daemon_set: str) -> str:
    """Return why the newest try to make a pod of a DaemonSet failed; empty: nobody says."""
    selector = f"reason=FailedCreate,regarding.kind=DaemonSet,regarding.name={daemon_set}"
    events = await objects.list(EVENTS, namespace, field_selector=selector)
    newest = max(events.items, key=_version, default=None)
    return Reader(newest).text("note") if newest is not None else ""


def _version(manifest: JsonObject) -> int:
    version = Reader(manifest).object("metadata").text("resourceVersion")
    return int(version) if version.isdecimal() else 0


def is_wrong(preflight: Preflight) -> bool:
    """Whether there is anything to wait for."""
    return bool(preflight.failed_creates) or preflight.enforced_level not in ("", LEVEL_NEEDED)


def groups_without_pods(children: Live) -> dict[str, str]:
    """Return group -> DaemonSet of those that should have more pods than there are."""
    lacking: dict[str, str] = {}
    for (kind, name), manifest in children.items():
        status = Reader(manifest).object("status")
        wanted = status.integer("desiredNumberScheduled")
        if kind == DAEMON_SETS.kind and wanted > status.integer("currentNumberScheduled"):
            labels = Reader(manifest).object("metadata").text_map("labels")
            lacking[labels.get(LABEL_NODE_GROUP, "")] = name
    return lacking
