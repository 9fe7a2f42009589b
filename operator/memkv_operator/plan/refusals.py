"""Children that could not be written, and why."""

from memkv.errors import MemKVError
from memkv.metadata.kubernetes.errors import Forbidden, Invalid
from memkv_operator.plan.preflight import Finding
from memkv_operator.plan.strangers import NameTaken
from memkv_operator.render.children import Child


def refusal_of(child: Child, error: MemKVError | None) -> Finding | None:
    """Return what is said of a child that was refused, None when something else is the matter. What
    was applied before stays, and so does everything else of the pool."""
    if isinstance(error, NameTaken):
        return Finding("NameTaken", str(error), False)
    if not isinstance(error, Invalid | Forbidden):
        return None
    return Finding(
        "ApplyFailed",
        f"the API server refuses {child.resource.kind} {child.name}: {error}; correct the part of "
        "the spec that it comes from (podTemplate, resources, tolerations), or what refuses it",
        False,
    )
