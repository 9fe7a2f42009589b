"""What a reader keeps of a call and of each read under way."""

from collections.abc import Sequence

from memkv.limits import BLOCK_ID_BYTES, SECTOR_BYTES
from memkv.store.arena import Extent
from memkv.store.direct import ENDS_BYTES, Target
from memkv.store.records import Place
from memkv.store.segments import Segment
from memkv.store.tenants import TenantState


class Flight:
    """One read under way."""

    __slots__ = (
        "attempts", "block_id", "extent", "owner", "place", "position", "sectors", "segment",
        "target", "views", "wanted",
    )  # fmt: skip

    def __init__(
        self, position: int, owner: TenantState, block_id: bytes, segment: Segment, place: Place,
        extent: Extent, sectors: int, target: Target | None,
    ) -> None:  # fmt: skip
        self.position = position
        self.owner = owner
        self.block_id = block_id
        self.segment = segment
        self.place = place
        self.extent = extent
        self.sectors = sectors
        self.target = target
        """Set when only the ends of the record go to `extent`."""
        self.views = [extent.view] if target is None else _around(extent, target, sectors)
        self.attempts = 1
        self.wanted = True


class Batch:
    """One call of `read`."""

    __slots__ = (
        "ahead", "background", "deadline_ns", "flights", "guard_fd", "ids", "is_guarded",
        "max_lengths", "owner", "stalled", "targets", "todo", "verify",
    )  # fmt: skip

    def __init__(
        self, owner: TenantState, ids: bytes, max_lengths: Sequence[int] | None,
        deadline_ns: int, verify: bool,
    ) -> None:  # fmt: skip
        self.owner = owner
        self.ids = ids
        self.max_lengths = max_lengths
        self.deadline_ns = deadline_ns
        self.verify = verify
        self.background = False
        self.ahead = False
        """Nobody asked for it yet: it is counted apart."""
        self.targets: Sequence[Target | None] | None = None
        self.guard_fd = -1
        self.is_guarded = False
        self.stalled = False
        self.todo = list(range(len(ids) // BLOCK_ID_BYTES - 1, -1, -1))  # taken from the end
        self.flights: set[int] = set()

    def block_id(self, position: int) -> bytes:
        return self.ids[position * BLOCK_ID_BYTES : (position + 1) * BLOCK_ID_BYTES]

    def target(self, position: int, sectors: int) -> Target | None:
        """Return the memory that the record may be read straight into."""
        target = self.targets[position] if self.targets is not None else None
        return target if target is not None and target.takes(sectors) else None

    def too_small(self, position: int, length: int) -> bool:
        return self.max_lengths is not None and length > self.max_lengths[position]

def _around(extent: Extent, target: Target, sectors: int) -> list[memoryview]:
    """Return where the sectors of a record go whose ends alone go to `extent`."""
    body = sectors * SECTOR_BYTES - ENDS_BYTES
    return [extent.view[:SECTOR_BYTES], *target.first(body), extent.view[SECTOR_BYTES:]]
