"""MemKVPool.status.update: how far a rolling update is."""

from dataclasses import dataclass
from enum import Enum

from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.times import rfc3339, seconds_of


class UpdatePhase(Enum):
    """Whether one node tries the new pods first, or all follow."""

    CANARY = "Canary"
    ROLLING = "Rolling"


@dataclass(frozen=True, slots=True)
class Update:
    """A rolling update that is under way. Written before the first pod goes."""

    revision: str
    """Of all templates: another one is another update."""
    phase: UpdatePhase
    canary: str
    """The node that goes first; empty: none serves that could."""
    started_s: int
    """Seconds since 1970."""

    def manifest(self) -> Manifest:
        """Return it as MemKVPool.status.update."""
        return {
            "revision": self.revision,
            "phase": self.phase.value,
            "canary": self.canary,
            "startedAt": rfc3339(self.started_s),
        }


def read_update(status: JsonObject) -> Update | None:
    """Return the update that a pool's status tells of."""
    update = Reader(status, "status").object("update")
    phases = {phase.value: phase for phase in UpdatePhase}
    phase = phases.get(update.text("phase"))
    if phase is None:
        return None
    return Update(
        update.text("revision"),
        phase,
        update.text("canary"),
        seconds_of(update.text("startedAt")),
    )
