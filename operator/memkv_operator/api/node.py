"""MemKVNode: one node of a pool."""

from dataclasses import dataclass
from enum import Enum

from memkv.metadata.kubernetes.json_values import JsonObject, Reader
from memkv_operator.api.meta import ObjectMeta, read_meta


class WantedState(Enum):
    """What people want of a node, by MemKVNode.spec.state."""

    ACTIVE = "Active"
    CORDONED = "Cordoned"
    DRAINING = "Draining"
    REMOVED = "Removed"


@dataclass(frozen=True, slots=True)
class MemKVNode:
    """A MemKVNode."""

    meta: ObjectMeta
    node_name: str
    state: WantedState
    status: JsonObject
    approved_drives: frozenset[str] = frozenset()
    """Fingerprints of drives that may be formatted."""


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
    )
