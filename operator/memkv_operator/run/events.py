"""Events about pools, for people. Lost ones are no harm: conditions say the same."""

import logging
from collections.abc import Sequence

from memkv.clock import Clock
from memkv.errors import MemKVError
from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.names import EVENTS, POOLS
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import rfc3339_micro
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.actions import Event

log = logging.getLogger("memkv.operator.events")

CONTROLLER = "memkv.io/operator"
NOTE_BYTES_MAX = 1024  # the API server refuses longer ones


class EventPoster:
    """Posts events of one process."""

    def __init__(self, objects: Objects, identity: str, clock: Clock) -> None:
        self._objects = objects
        self._identity = identity
        self._clock = clock

    async def post(self, pool: Pool, events: Sequence[Event]) -> None:
        """Post each once; failures are logged."""
        for event in events:
            level = logging.WARNING if event.warning else logging.INFO
            log.log(level, "pool %s: %s: %s", pool.key, event.reason, event.message)
            try:
                await self._objects.create(EVENTS, pool.meta.namespace, self._manifest(pool, event))
            except MemKVError as error:
                log.warning("an event was not posted: %s", error)

    def _manifest(self, pool: Pool, event: Event) -> Manifest:
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "name": f"{pool.meta.name}.{self._clock.monotonic_ns():016x}",
                "namespace": pool.meta.namespace,
            },
            "eventTime": rfc3339_micro(self._clock.wall_s()),
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity[:128],
            "action": "Reconcile",
            "reason": event.reason,
            "regarding": {
                "apiVersion": POOLS.api_version,
                "kind": POOLS.kind,
                "name": pool.meta.name,
                "namespace": pool.meta.namespace,
                "uid": pool.meta.uid,
            },
            "note": note_of(pool, event.message),
            "type": "Warning" if event.warning else "Normal",
        }


def note_of(pool: Pool, message: str) -> str:
    """Return a message as the note of an event. One that is too long ends where a sentence or a
    word does, since half a command does harm, and says where the whole is."""
    if len(message.encode()) <= NOTE_BYTES_MAX:
        return message
    rest = f" ... (whole: kubectl describe mkvp -n {pool.meta.namespace} {pool.meta.name})"
    room = NOTE_BYTES_MAX - len(rest.encode())
    kept = message.encode()[:room].decode("utf-8", "ignore")
    sentences = kept.rpartition("; ")[0]
    if len(sentences) < len(kept) // 2:
        sentences = kept.rpartition(" ")[0] or kept
    return sentences + rest
