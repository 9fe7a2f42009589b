"""MemKVNode: one node of a pool."""

from dataclasses import dataclass
from enum import Enum

from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.conditions import Condition, read_conditions
from memkv_operator.api.meta import ObjectMeta, read_meta
from memkv_operator.api.times import rfc3339, seconds_of


class WantedState(Enum):
    """What people want of a node, by MemKVNode.spec.state."""

    ACTIVE = "Active"
    CORDONED = "Cordoned"
    DRAINING = "Draining"
    REMOVED = "Removed"


class RestartPhase(Enum):
    """How far the replacement of a pod is."""

    DRAINING = "Draining"
    REPLACING = "Replacing"


@dataclass(frozen=True, slots=True)
class Restart:
    """A replacement of a node's pod by the operator: noted in MemKVNode.status.restart before
    anything is done, so that an operator that takes over goes on with it."""

    phase: RestartPhase
    pod_uid: str
    """Of the pod that goes."""
    drains: bool
    """Whether the node gives its slots away until its new pod has proved itself."""
    since_s: int
    """When the phase began, seconds since 1970."""

    def manifest(self) -> Manifest:
        """Return it as MemKVNode.status.restart."""
        return {
            "phase": self.phase.value,
            "podUID": self.pod_uid,
            "drains": self.drains,
            "since": rfc3339(self.since_s),
        }


@dataclass(frozen=True, slots=True)
class MemKVNode:
    """A MemKVNode."""

    meta: ObjectMeta
    node_name: str
    state: WantedState
    status: JsonObject
    approved_drives: frozenset[str] = frozenset()
    """Fingerprints of drives that may be formatted."""
    restart: Restart | None = None

    @property
    def conditions(self) -> dict[str, Condition]:
        """What was last said of it, by type."""
        return read_conditions(Reader({"status": self.status}).object("status"))

    def holds(self, type_: str) -> bool:
        """Return whether a condition was last said to be True."""
        stated = self.conditions.get(type_)
        return stated is not None and stated.holds

    @property
    def may_stop(self) -> bool:
        """Whether its pool was last said to do without it, or to wait for it."""
        held = self.conditions.get("Held")
        waits = held is not None and held.holds and held.reason == "Maintenance"
        return waits or self.holds("Drained")

    def counted_bytes(self, uuid: str) -> int:
        """Return the capacity by which a worker was last given slots, 0 when it has none yet."""
        for worker in Reader(self.status).objects("workers"):
            if worker.text("uuid") == uuid:
                return worker.integer("countedBytes")
        return 0


def read_memkv_node(manifest: JsonObject) -> MemKVNode:
    """Return a MemKVNode. FieldInvalid for what this version does not understand."""
    reader = Reader(manifest)
    spec = reader.object("spec")
    wanted = spec.text("state", WantedState.ACTIVE.value)
    known = {state.value: state for state in WantedState}
    return MemKVNode(
        read_meta(reader),
        spec.text("nodeName"),
        known.get(wanted, WantedState.ACTIVE),
        reader.object("status").value,
        frozenset(spec.texts("approvedDrives")),
        _restart(reader.object("status").object("restart")),
    )


def _restart(restart: Reader) -> Restart | None:
    phases = {phase.value: phase for phase in RestartPhase}
    phase = phases.get(restart.text("phase"))
    if phase is None:
        return None
    return Restart(
        phase,
        restart.text("podUID"),
        restart.flag("drains"),
        seconds_of(restart.text("since")),
    )
