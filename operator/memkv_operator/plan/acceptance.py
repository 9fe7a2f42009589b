"""A person's word that missing nodes are gone for good (memkv.io/accept-mass-loss). Pure.

It is for one loss. Left on the pool it would let the next one through, so it is taken away once
the map has followed: when each worker of the map is lost, or serves, or is known to live.
"""

from collections.abc import Sequence

from memkv_operator.api.names import ACCEPT_MASS_LOSS
from memkv_operator.api.pool import Pool
from memkv_operator.plan.actions import Action, DropAnnotation, Event
from memkv_operator.plan.health import MapView
from memkv_operator.plan.ownership import lost_nodes
from memkv_operator.plan.preflight import named


def accepts_mass_loss(pool: Pool) -> bool:
    """Return whether a person says that the missing nodes are gone."""
    return pool.meta.annotations.get(ACCEPT_MASS_LOSS) == "true"


def acceptance_actions(pool: Pool, view: MapView) -> tuple[Sequence[Action], Sequence[Event]]:
    """Return what ends the acceptance once it has done its work, and what is said of it."""
    if not accepts_mass_loss(pool) or not view.followed or view.problem:
        return (), ()
    lost = sorted(lost_nodes(view.shard_map))
    what = f"the map goes on without {named(lost)}" if lost else "no node is missing"
    message = (
        f"{what}, so {ACCEPT_MASS_LOSS} is taken off the pool: the next mass loss freezes the map"
    )
    said = Event(False, "MassLossAccepted", message, record=ACCEPT_MASS_LOSS)
    return (DropAnnotation(ACCEPT_MASS_LOSS),), (said,)
