"""Blocks whose payload the worker moves itself: through shared memory, or over RDMA.

A batch is what one frame asks for: positions of the operation, the parts of regions that each block
lies in, and the lanes it goes on. In strict mode a window is opened on each part first, on the lane
that the batch will use, and closed when the request is done.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from memkv._hotpath import Job, LaneGroup
from memkv.client.buffers import Scatter
from memkv.client.calls import Outcome
from memkv.client.native import NativeRequest, WindowRequest
from memkv.client.rdma_side import RdmaLane
from memkv.limits import BULK_PART_BYTES_MIN, FRAME_BODY_BYTES_MAX, ITEMS_PER_FRAME_MAX
from memkv.rdma.client_lane import LaneBroken, WindowPart
from memkv.rdma.client_memory import ClientMemory
from memkv.rdma.verbs import Access as DeviceAccess
from memkv.rdma.verbs import VerbsError, Window
from memkv.wire.local import Access, Part, parts_bytes
from memkv.wire.opcodes import LOCAL_PART_BYTES, PUT_ITEM_BYTES, Flag, Opcode

PartsOf = dict[int, tuple[Part, ...]]
"""By position."""

MakeJob = Callable[[bytes, Sequence[Scatter], bytes, int], Job]
"""(frame, memory, tenant tag, deadline_ns)."""


class Way(NamedTuple):
    """Operations and jobs of one way to move payload."""

    get: Opcode
    put: Opcode
    get_job: MakeJob
    put_job: MakeJob


LOCAL = Way(Opcode.LOCAL_GET, Opcode.LOCAL_PUT, Job.local_get, Job.local_put)
RDMA = Way(Opcode.RDMA_GET, Opcode.RDMA_PUT, Job.rdma_get, Job.rdma_put)


def _unread_get(
    frame: bytes, memory: Sequence[Scatter], tenant_tag: bytes, deadline_ns: int
) -> Job:
    return Job.rdma_get(frame, memory, tenant_tag, deadline_ns, unread=True)


RDMA_UNREAD = Way(Opcode.RDMA_GET, Opcode.RDMA_PUT, _unread_get, Job.rdma_put)
"""For memory that this process cannot read; its gets ask the node to check blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One frame's worth."""

    way: Way
    group: LaneGroup
    outcome: Outcome
    positions: list[int]
    parts: PartsOf
    strict: RdmaLane | None = None
    windows: dict[int, list[Window]] = field(default_factory=dict)
    """By position, where they are opened for each request on its lane."""

    @property
    def flags(self) -> Flag:
        """Of its gets."""
        return Flag.VERIFY if self.way is RDMA_UNREAD else Flag.NONE

    def request(self, job: Job, positions: Sequence[int]) -> NativeRequest:
        """Return the request for some of its positions."""
        if self.strict is None:
            return NativeRequest(self.group, job)
        windows = [window for position in positions for window in self.windows[position]]
        return WindowRequest(self.group, job, self.strict, windows)


def dealt(parts: PartsOf, positions: list[int], lanes: int) -> list[list[int]]:
    """Return the positions of each frame: as many as there are lanes, none over a limit."""
    total_bytes = sum([parts_bytes(parts[position]) for position in positions])
    frames: list[list[int]] = []
    for some in deal(positions, parts_of(len(positions), lanes, total_bytes)):
        room = 0
        for position in some:
            size = PUT_ITEM_BYTES + len(parts[position]) * LOCAL_PART_BYTES
            if not room or size > room:
                frames.append([])
                room = FRAME_BODY_BYTES_MAX
            frames[-1].append(position)
            room -= size
    return frames


def parts_of(count: int, lanes: int, total_bytes: int) -> int:
    """Return in how many frames so many bytes go best."""
    return min(count, max(1, lanes), -(-total_bytes // BULK_PART_BYTES_MIN))


def deal(positions: list[int], parts: int) -> list[list[int]]:
    """Cut into contiguous parts of nearly equal length, none over a frame's limit."""
    parts = max(parts, -(-len(positions) // ITEMS_PER_FRAME_MAX))
    size, extra = divmod(len(positions), parts)
    cut, start = [], 0
    for index in range(parts):
        end = start + size + (1 if index < extra else 0)
        cut.append(positions[start:end])
        start = end
    return cut


def windowed(
    batch: Batch, strict: RdmaLane, memory: ClientMemory, access: Access
) -> Batch | None:
    """Return a batch with a window on each of its parts, on one lane; None: it cannot be."""
    device = strict.lane.port.device_number
    wanted: list[WindowPart] = []
    for position in batch.positions:
        for region, offset, length, _ in batch.parts[position]:
            registered = memory.find(region, device)
            if registered is None:  # it was unregistered in this moment
                return None
            wanted.append(WindowPart(registered, offset, length))
    rights = DeviceAccess.REMOTE_WRITE if access is Access.WRITE else DeviceAccess.REMOTE_READ
    try:
        opened = iter(strict.lane.open_windows(wanted, rights))
    except LaneBroken:
        strict.cut()  # nobody else would notice: its node is not asked
        return None
    except VerbsError:
        return None
    windows = {p: list(itertools.islice(opened, len(batch.parts[p]))) for p in batch.positions}
    parts = {
        position: tuple([
            part._replace(key=window.remote_key)
            for part, window in zip(batch.parts[position], windows[position], strict=True)
        ])
        for position in batch.positions
    }
    return replace(batch, group=strict.group, parts=parts, strict=strict, windows=windows)
