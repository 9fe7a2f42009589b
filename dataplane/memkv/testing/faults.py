"""What goes wrong on a simulated device, and how often. All chances are per operation."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances and schedules of faults; the default is an honest device that only loses power."""

    crash_kept: float = 0.4
    """Of un-flushed writes at a crash: kept whole."""
    crash_torn: float = 0.3
    """Kept in part, per 512 bytes; the rest is lost."""
    misdirected_read: float = 0.0
    """Returns what lies at another place that was written."""
    misdirected_write: float = 0.0
    """Lands at another place that was written, and is reported done."""
    lost_write: float = 0.0
    """Reported done, covered by a flush, and never there."""
    rot: float = 0.0
    """One bit of a read range changes, for good, before the read."""
    rot_in_headers: float = 0.0
    """As `rot`, in the first bytes of a sector: where metadata lies."""
    rot_bytes: tuple[int, int] = (0, 160)
    """Where in a sector `rot_in_headers` strikes."""
    rot_from: int = 0
    """The first byte of the device that rots; before it all is well."""
    fail_at: int = 0
    """The nth operation (from 1) fails; 0: none."""
    fail_errno: int = 5
    """EIO, ENOSPC, ...; 0 means a short count."""
    fail_for_good: bool = False
    """Every operation of the same kind after it fails too."""
    fail_flush: float = 0.0
    """A flush fails, and what it should have covered is lost."""
    discard_refused: float = 0.0
    """A discard fails with EOPNOTSUPP; what it named is as it was."""
    crash_at: int = 0
    """Power goes at the nth operation (from 1); 0: never."""

    @property
    def lies(self) -> bool:
        """Say whether the device may return or keep other bytes than were written."""
        chances = (self.misdirected_read, self.misdirected_write, self.lost_write, self.rot)
        return any(chances) or self.rot_in_headers > 0

    def at_nth(self, count: int) -> Self:
        """Return the same faults with the nth operation failing."""
        return replace(self, fail_at=count)


HONEST = Faults()
LYING = Faults(
    misdirected_read=0.02, misdirected_write=0.02, lost_write=0.02, rot=0.02, rot_in_headers=0.02
)
