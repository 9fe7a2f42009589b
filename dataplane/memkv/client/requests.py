"""Requests of one operation: frames, native jobs and the lanes they go on.

A batch for one worker is split over its lanes: small payloads go on the express lane whole, large
ones are dealt to the bulk lanes in parts, so that reading flash for one part overlaps sending
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memkv._hotpath import Job, LaneGroup
from memkv.client.buffers import Scatter, scatter_bytes
from memkv.client.calls import Call
from memkv.client.native import NativeRequest
from memkv.client.operations import Started
from memkv.client.options import CopyOptions, PutOptions
from memkv.client.ranges import ByteRange
from memkv.client.routing import Keys
from memkv.client.session import Lanes, WorkerSession
from memkv.client.statistics import ClientCounters
from memkv.limits import (
    BULK_PART_BYTES_MIN,
    ITEMS_PER_FRAME_MAX,
    SMALL_PAYLOAD_BYTES_MAX,
)
from memkv.shardmap.cache import Route
from memkv.status import Status
from memkv.wire.frame import encode_frame
from memkv.wire.hints import Hint
from memkv.wire.items import (
    NO_ROOT,
    Durability,
    PutItem,
    RangesItem,
    encode_get_request,
    encode_put_item,
    encode_ranges_request,
)
from memkv.wire.messages import encode_keys
from memkv.wire.opcodes import RESPONSE_LIMITS, Flag, Opcode

if TYPE_CHECKING:
    from memkv.client.core import ClientCore, Routes


class Requests:
    """The workers as one operation sees them: one picture of the pool, one deadline.

    Implements `operations.Workers` and `ranges.RangeWorkers`. The picture only changes by hints
    that this operation learns.
    """

    def __init__(
        self, core: ClientCore, routes: Routes, tenant_tag: bytes, deadline_ns: int
    ) -> None:
        self.counters: ClientCounters = core.counters
        self.deadline_ns = deadline_ns
        self._core = core
        self._routes = routes
        self._tenant_tag = tenant_tag

    # --- the picture --------------------------------------------------------------------------
    def route(self) -> Route:
        return self._routes.route

    def learn(self, hint: Hint) -> int | None:
        self.counters.wrong_owner += 1
        routes = self._core.learn(hint)
        # Hints only append workers, so indexes handed out before stay right; a whole new map
        # that came in meanwhile does not fit this operation and waits for the next one.
        if routes is None or routes.route.version != self._routes.route.version:
            return None
        self._routes = routes
        return routes.route.owner_index(hint.slot)

    def copy_to_owner(
        self, keys: Keys, position: int, scatter: Scatter, size_bytes: int, previous: int
    ) -> None:
        slot = keys.slots[2 * position : 2 * position + 2]
        self._core.copies.add(
            keys.id_of(position), slot, scatter, size_bytes, self._routes, previous
        )

    # --- payload ------------------------------------------------------------------------------
    def start_get(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        verify: bool,
    ) -> Started:
        session, lanes = self._lanes(worker)
        if isinstance(lanes, Status):
            return lanes
        flags = Flag.VERIFY if verify else Flag.NONE
        calls = []
        for epoch, group, part in self._reads(worker, keys, lanes, positions, scatters):
            buffers = [scatters[position] for position in part]
            body = encode_get_request(
                keys.ids_of(part), [scatter_bytes(scatter) for scatter in buffers]
            )
            job = Job.get(
                self._frame(Opcode.GET, flags, body, len(part), epoch), buffers,
                self._tenant_tag, self.deadline_ns,
            )
            calls.append(
                Call(NativeRequest(group, job), part, session, worker, buffers, verify)
            )
        return calls

    def start_get_ranges(
        self, worker: int, keys: Keys, positions: list[int],
        ranges: Sequence[Sequence[ByteRange]], scatters: Sequence[Scatter],
    ) -> Started:
        session, lanes = self._lanes(worker)
        if isinstance(lanes, Status):
            return lanes
        calls = []
        for epoch, group, part in self._reads(worker, keys, lanes, positions, scatters):
            buffers = [scatters[position] for position in part]
            body = encode_ranges_request(
                [RangesItem(keys.id_of(position), tuple(ranges[position])) for position in part]
            )
            job = Job.get_ranges(
                self._frame(Opcode.GET_RANGES, Flag.NONE, body, len(part), epoch), buffers,
                self._tenant_tag, self.deadline_ns,
            )
            calls.append(Call(NativeRequest(group, job), part, session, worker, buffers))
        return calls

    def start_put(
        self, worker: int, keys: Keys, positions: list[int], scatters: Sequence[Scatter],
        options: PutOptions,
    ) -> Started:
        session, lanes = self._lanes(worker)
        if isinstance(lanes, Status):
            return lanes
        durability = Durability.DURABLE if options.durability == "durable" else Durability.CACHED
        if isinstance(options, CopyOptions):
            durability = Durability.COPY
        calls = []
        for group, part in self._parts(lanes, positions, scatters):
            buffers = [scatters[position] for position in part]
            items = []
            for position, scatter in zip(part, buffers, strict=True):
                hint = options.hint_of(position, keys.count)
                items.append(encode_put_item(PutItem(
                    keys.id_of(position), scatter_bytes(scatter), NO_ROOT, b"", hint.prefix_id,
                    hint.session_id, options.ttl_s or 0, hint.depth, durability,
                )))
            job = Job.put(
                self._frame(Opcode.PUT, Flag.NONE, b"".join(items), len(part)), buffers,
                self._tenant_tag, self.deadline_ns,
            )
            calls.append(Call(NativeRequest(group, job), part, session, worker, buffers))
        return calls

    # --- control ------------------------------------------------------------------------------
    def start_exists(
        self, worker: int, keys: Keys, positions: list[int], lease_ms: int, *,
        by_this_map: bool = False,
    ) -> Started:
        epoch = self._routes.route.version.epoch if by_this_map else None
        return self._control(Opcode.EXISTS, worker, keys, positions, lease_ms, epoch)

    def start_delete(self, worker: int, keys: Keys, positions: list[int]) -> Started:
        return self._control(Opcode.DELETE, worker, keys, positions, 0)

    def start_pin(self, worker: int, keys: Keys, positions: list[int], ttl_s: int) -> Started:
        return self._control(Opcode.PIN, worker, keys, positions, ttl_s)

    def _control(
        self, opcode: Opcode, worker: int, keys: Keys, positions: list[int], argument: int,
        epoch: int | None = None,
    ) -> Started:
        session, lanes = self._lanes(worker)
        if isinstance(lanes, Status):
            return lanes
        if opcode == Opcode.EXISTS and epoch is None:
            groups = self._by_need(worker, keys, positions)
        else:
            groups = [(epoch, positions)]
        calls = []
        for needed, group in groups:
            for start in range(0, len(group), ITEMS_PER_FRAME_MAX):
                part = group[start : start + ITEMS_PER_FRAME_MAX]
                body = encode_keys(argument, keys.ids_of(part))
                job = Job.exchange(
                    self._frame(opcode, Flag.NONE, body, len(part), needed),
                    RESPONSE_LIMITS[opcode].body_bytes_max, self.deadline_ns,
                )
                calls.append(Call(NativeRequest(lanes.control, job), part, session, worker))
        return calls

    # --- inside -------------------------------------------------------------------------------
    def _lanes(self, worker: int) -> tuple[WorkerSession, Lanes | Status]:
        session = self._routes.session(worker)
        return session, session.lanes_or_status()

    def _by_need(
        self, worker: int, keys: Keys, positions: list[int]
    ) -> list[tuple[int | None, list[int]]]:
        """Split keys to read by the epoch that `worker` must know for its answers to count."""
        route = self._routes.route
        if not route.needed:
            return [(0, positions)]
        groups: dict[int | None, list[int]] = {}
        for position in positions:
            slot = keys.slot_of(position)
            needed = route.needed.get(slot, 0)
            # What a previous owner has was never out of its hands.
            if needed and route.owner_index(slot) != worker:
                needed = 0
            groups.setdefault(needed, []).append(position)
        return list(groups.items())

    def _reads(
        self, worker: int, keys: Keys, lanes: Lanes, positions: list[int],
        scatters: Sequence[Scatter],
    ) -> list[tuple[int | None, LaneGroup, list[int]]]:
        return [
            (epoch, group, part)
            for epoch, some in self._by_need(worker, keys, positions)
            for group, part in self._parts(lanes, some, scatters)
        ]

    def _frame(
        self, opcode: Opcode, flags: Flag, body: bytes, count: int, epoch: int | None = None
    ) -> bytes:
        """Return a request; `epoch`: another one than that of the map in use."""
        version = self._routes.route.version
        return encode_frame(
            opcode, flags, 0, body, count=count,
            map_epoch=version.epoch if epoch is None else epoch, map_term=version.term,
        )

    def _parts(
        self, lanes: Lanes, positions: list[int], scatters: Sequence[Scatter]
    ) -> list[tuple[LaneGroup, list[int]]]:
        total_bytes = sum([scatter_bytes(scatters[position]) for position in positions])
        if total_bytes <= SMALL_PAYLOAD_BYTES_MAX:
            # While a lost express lane comes back, bulk lanes serve small payloads as well.
            small = lanes.express if lanes.express.lanes_open else lanes.bulk
            return [(small, positions)]
        parts = min(
            len(positions), max(1, lanes.bulk.lanes_open), -(-total_bytes // BULK_PART_BYTES_MIN)
        )
        return [(lanes.bulk, part) for part in _deal(positions, parts)]


def _deal(positions: list[int], parts: int) -> list[list[int]]:
    """Cut into contiguous parts of nearly equal length, none over a frame's limit."""
    parts = max(parts, -(-len(positions) // ITEMS_PER_FRAME_MAX))
    size, extra = divmod(len(positions), parts)
    cut, start = [], 0
    for index in range(parts):
        end = start + size + (1 if index < extra else 0)
        cut.append(positions[start:end])
        start = end
    return cut


