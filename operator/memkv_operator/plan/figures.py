"""Whose figures of fill and epoch are written when. Pure; times are arguments.

They change all the time, and each write goes to everyone who watches: however many nodes a pool
has, a bounded number of them is written at a time, one slice after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NODES_PER_TURN = 30  # beside the 30 renewals of the Lease a minute, as many again


@dataclass(slots=True)
class FigureTurns:
    """Of one pool."""

    pause_s: float
    """Between two turns."""
    _due_ns: int = 0
    _after: str = ""
    """The last node that had its turn."""

    def take(self, nodes: Sequence[str], now_ns: int) -> frozenset[str] | None:
        """Return the nodes whose figures are to be written with those of the pool; None: it is not
        time. `nodes`: all of the pool."""
        if now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + int(self.pause_s * 1e9)
        in_order = sorted(nodes)
        later = [name for name in in_order if name > self._after]
        turn = (later + in_order)[: min(NODES_PER_TURN, len(in_order))]
        self._after = turn[-1] if turn else ""
        return frozenset(turn)
