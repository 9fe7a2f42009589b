"""Which children to write: those that are missing, changed, or changed by somebody else."""

from collections.abc import Mapping, Sequence

from memkv.metadata.kubernetes.json_values import FieldInvalid, JsonObject, JsonValue, Reader
from memkv_operator.api.meta import read_meta
from memkv_operator.api.names import SPEC_HASH
from memkv_operator.api.quantity import bytes_of
from memkv_operator.plan.actions import Action, ApplyChild, DeleteObject
from memkv_operator.render.children import Child

Live = Mapping[tuple[str, str], JsonObject]


def child_actions(children: Sequence[Child], live: Live, owner_uid: str) -> list[Action]:
    """Return what makes the live children those that are wanted.

    `live`: by (kind, name) what exists of the kinds that are rendered and carries the pool's
    label. What the pool does not own is left alone.
    """
    wanted = {child.key for child in children}
    actions: list[Action] = [
        ApplyChild(child) for child in children if not unchanged(live.get(child.key), child)
    ]
    for key, manifest in sorted(live.items()):
        meta = read_meta(Reader(manifest))
        if key not in wanted and owner_uid in meta.owners and not meta.deleting:
            actions.append(DeleteObject(key[0], meta.name, meta.uid))
    return actions


def unchanged(live: JsonObject | None, child: Child) -> bool:
    """Return whether the live object is what was rendered, and nobody changed a field of it."""
    if live is None:
        return False
    meta = read_meta(Reader(live))
    return meta.annotations.get(SPEC_HASH) == child.spec_hash and covers(live, child.manifest)


def covers(live: JsonValue, wanted: JsonValue) -> bool:
    """Return whether `live` has every field of `wanted`; it may have more, as defaults."""
    if wanted == live:  # most parts of most children, at each look
        return True
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return live is None and not wanted
        return all(covers(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, str):
        return (not wanted and live is None) or _same_quantity(live, wanted)
    if isinstance(wanted, Sequence):
        if not isinstance(live, Sequence) or isinstance(live, str):
            return live is None and not wanted
        return len(live) == len(wanted) and all(map(covers, live, wanted))
    return not wanted and live is None


def _same_quantity(live: JsonValue, wanted: str) -> bool:
    """The API server writes quantities in its own way: "0.5" becomes "500m"."""
    try:
        return isinstance(live, str) and bytes_of(live) == bytes_of(wanted)
    except FieldInvalid:
        return False
