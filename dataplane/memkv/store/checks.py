"""The checks that stand between flash and a caller, by name.

All are on. Crash tests switch one off at a time and must then find a wrong answer: a check that can
be removed without a test noticing is not known to work.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Checks:
    """What is checked before bytes count as a block."""

    payload_sum: bool = True
    """Chunk sums and root: torn or rotten payload."""
    header_sum: bool = True
    """Sums of metadata: rotten expiry, kind, lists."""
    offset: bool = True
    """The record says it lies where it was read: misdirected reads and writes."""
    generation: bool = True
    """Segment sequence and nonce: records of an earlier life of the segment, forged records."""
    block_id: bool = True
    """The whole id, of which the index knows 128 bits."""
    tenant: bool = True
    """The tenant's tag."""


ALL_CHECKS = Checks()
