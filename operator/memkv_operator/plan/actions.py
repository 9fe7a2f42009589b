"""What a plan may ask for. Each action is safe to repeat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from memkv.metadata.kubernetes.json_values import Manifest
from memkv_operator.api.names import MEMKV_NODES
from memkv_operator.render.children import Child


@dataclass(frozen=True, slots=True)
class ApplyChild:
    """Write a child by server-side apply."""

    child: Child


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Delete an object, if it still is the one with this UID."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ApplyNode:
    """Make a MemKVNode, or mend what the operator states of it."""

    name: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class WriteNodeStatus:
    """Replace the status of a MemKVNode."""

    name: str
    status: Manifest


@dataclass(frozen=True, slots=True)
class WritePoolStatus:
    """Replace the status of the pool."""

    status: Manifest


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Put the pool's finalizer there, or take it away."""

    present: bool


@dataclass(frozen=True, slots=True)
class DropAnnotation:
    """Take an annotation off the pool, if nobody has written to the pool meanwhile."""

    name: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete a data-plane pod, so that its DaemonSet makes it from the newest template."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class AnnotateNode:
    """Say on a Node whether it may be rebooted."""

    name: str
    safe: bool


Action: TypeAlias = (
    ApplyChild
    | DeleteObject
    | ApplyNode
    | WriteNodeStatus
    | WritePoolStatus
    | SetFinalizer
    | DropAnnotation
    | DeletePod
    | AnnotateNode
)


AT_ONCE = 8  # writes on their way side by side: what one pool may ask of the API server


def side_by_side(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """Yield actions in their order, those together that may go on side by side: a pool of hundreds
    of nodes has as many MemKVNodes, each with at most one action in a plan."""
    batch: list[Action] = []
    for action in actions:
        alone = not isinstance(action, ApplyNode | WriteNodeStatus)
        if batch and (alone or len(batch) == AT_ONCE):
            yield batch
            batch = []
        if alone:
            yield [action]
        else:
            batch.append(action)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Event:
    """Something that people should hear of once."""

    warning: bool
    reason: str
    message: str
    record: str = ""
    """As `record_of`: what keeps it from being said again, once it is written."""
    about: str = ""
    """The condition that changed: one reason may be of several."""


def record_of(action: Action) -> str | None:
    """Return what an action writes by which the next plan knows what was said: the name of a
    MemKVNode or of an annotation, "" for the pool, None for nothing of the kind."""
    match action:
        case WritePoolStatus() | SetFinalizer():
            return ""
        case ApplyNode(name) | WriteNodeStatus(name) | DeleteObject(MEMKV_NODES.kind, name):
            return name
        case DropAnnotation(name):
            return name
        case _:
            return None
