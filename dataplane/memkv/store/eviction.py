"""Eviction: which blocks of a segment about to be erased deserve to be written again.

The store evicts a segment at a time, oldest first within its queue. A policy sees the live blocks
of that segment and returns the ones to keep, at most `credit_bytes` of them. Pinned blocks never
come here: they are always kept.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Candidate(NamedTuple):
    """A live block of the segment being reclaimed."""

    position: int  # in the segment's list
    stamp: int  # access clock at its last use; heads of prefixes are younger than their tails
    depth: int  # in its prefix
    size_bytes: int  # on flash


class EvictionPolicy(Protocol):
    """Chooses what survives. Must be a pure function of its arguments."""

    def keep(
        self, candidates: Sequence[Candidate], horizon: int, credit_bytes: int
    ) -> list[Candidate]:
        """Return the candidates to write again, the most wanted first.

        `horizon` is the access clock when the segment was filled: a stamp beyond it means that the
        block was used since.
        """


class LruTailsFirst:
    """Keep what was used since the segment was filled, youngest and nearest to the root first."""

    def keep(
        self, candidates: Sequence[Candidate], horizon: int, credit_bytes: int
    ) -> list[Candidate]:
        """Return the used candidates that fit the credit."""
        used = [c for c in candidates if stamp_after(c.stamp, horizon)]
        used.sort(key=lambda c: ((c.stamp - horizon) & _STAMP_MASK, -c.depth), reverse=True)
        kept = []
        for candidate in used:
            if candidate.size_bytes <= credit_bytes:
                credit_bytes -= candidate.size_bytes
                kept.append(candidate)
        return kept


_STAMP_MASK = 0xFFFFFFFF


def stamp_after(stamp: int, horizon: int) -> bool:
    """Say whether a 32-bit stamp is younger than the horizon, modulo 2**32."""
    return 0 < ((stamp - horizon) & _STAMP_MASK) < 1 << 31
