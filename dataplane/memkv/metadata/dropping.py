"""Tenants that a pool does not name any more: their blocks become misses. Pure.

In two rounds: a worker that heard of the first may still get copies from one that has not. When all
have, what is left anywhere goes with the second. Which tenants were named is kept with the map, so
the next publisher finishes what this one began; a round more than needed does no harm.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class TenantDrops:
    """The rounds under way."""

    _first_round: dict[bytes, int] = field(default_factory=dict)
    """Tenant tag -> epoch of the map that began it."""

    def step(
        self,
        named: frozenset[bytes],
        wanted: Collection[bytes],
        epoch: int,
        all_have: Callable[[int], bool],
    ) -> tuple[frozenset[bytes], list[bytes]]:
        """Return who counts as named from now on, and whose generation the next map raises.

        `epoch`: of the next map, which is made if anyone is returned. `all_have(epoch)`: whether
        every worker that may serve goes by a map that is no older.
        """
        gone = named.difference(wanted)
        self._first_round = {tag: at for tag, at in self._first_round.items() if tag in gone}
        raised: list[bytes] = []
        done: set[bytes] = set()
        for tag in sorted(gone):
            began = self._first_round.get(tag)
            if began is None:
                self._first_round[tag] = epoch
                raised.append(tag)
            elif all_have(began):
                raised.append(tag)
                done.add(tag)
        return named.union(wanted) - done, raised
