"""What a test may set, and what it may look at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from memkv.rdma.verbs import Access


class Piece(NamedTuple):
    """A part of a transfer, of the queue pair that asked for it. Addresses are real ones."""

    queue_pair: int
    work: int
    is_write: bool
    source: int
    destination: int
    size_bytes: int
    done_bytes: int
    """What was moved before it."""
    total_bytes: int


class Registration(NamedTuple):
    """A region as it was asked for."""

    device: str
    address: int
    size_bytes: int
    access: Access


@dataclass(slots=True)
class Knobs:
    """How the fabric misbehaves from now on. Counters count down to 0."""

    piece_bytes: int = 64 << 10
    delay_s: float = 0.0
    """Between pieces."""
    inside: Callable[[Piece], None] | None = None
    """Called by the fabric's thread while a piece is on its way: what waits for pieces waits for
    this. It must not call the fabric."""
    between: Callable[[Piece], None] | None = None
    """Called by the fabric's thread after a piece, before the next one starts. It may cut."""
    flip_writes: int = 0
    """So many of the next WRITEs arrive with one byte changed."""
    flip_reads: int = 0
    drop_completions: int = 0
    """So many of the next completions are never seen."""
    fails_at: dict[str, int] = field(default_factory=dict)
    """"region", "window" or "queue pair" -> the n-th from now fails with ENOMEM."""
    refuses: set[str] = field(default_factory=set)
    """Kinds of which none can be had now."""
    refuse_closes: dict[str, int] = field(default_factory=dict)
    """Names of devices -> so many of the next closings of their queue pairs fail with EBUSY."""
    refuse_window_closes: int = 0
    """So many of the next closings of windows fail with EBUSY."""
    close_delay_s: float = 0.0
    """How long closing a queue pair takes."""
    accepts_dmabuf: bool = False
    """Takes any file that can be mapped for a dma-buf."""
    tells_of_broken_queue_pairs: bool = False
    """Refused accesses make an event where they were refused: NICs do that, soft-RoCE does not."""
