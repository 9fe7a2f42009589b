"""Requests of one operation: frames, native jobs and the lanes they go on.

A batch for one worker is split over its lanes: small payloads go on the express lane whole, large
ones are dealt to the bulk lanes in parts, so that reading flash for one part overlaps sending
another. Blocks whose memory the worker was given go on the local lanes, without payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    FRAME_BODY_BYTES_MAX,
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
from memkv.wire.local import (
    Access,
    LocalGetItem,
    Part,
    encode_local_get,
    encode_parts,
    parts_bytes,
)
from memkv.wire.messages import encode_keys
from memkv.wire.opcodes import LOCAL_PART_BYTES, PUT_ITEM_BYTES, RESPONSE_LIMITS, Flag, Opcode

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
        calls: list[Call] = []
        if not verify:  # what came wrong is asked for another way
            shared, positions = self._shared(session, positions, scatters, Access.WRITE)
            calls = self._local_gets(session, worker, keys, shared, scatters)
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
        def item(position: int) -> bytes:
            hint = options.hint_of(position, keys.count)
            return encode_put_item(PutItem(
                keys.id_of(position), scatter_bytes(scatters[position]), NO_ROOT, b"",
                hint.prefix_id, hint.session_id, options.ttl_s or 0, hint.depth, durability,
            ))

        shared, positions = self._shared(session, positions, scatters, Access.READ)
        calls = self._local_puts(session, worker, item, shared, scatters)
        for group, part in self._parts(lanes, positions, scatters):
            buffers = [scatters[position] for position in part]
            body = b"".join([item(position) for position in part])
            job = Job.put(
                self._frame(Opcode.PUT, Flag.NONE, body, len(part)), buffers, self._tenant_tag,
                self.deadline_ns,
            )
            calls.append(Call(NativeRequest(group, job), part, session, worker, buffers))
        return calls

    # --- shared memory ------------------------------------------------------------------------
    def _shared(
        self, session: WorkerSession, positions: list[int], scatters: Sequence[Scatter],
        access: Access,
    ) -> tuple[Shared | None, list[int]]:
        """Return what goes through memory that the worker was given, and the other positions."""
        local, regions = session.local.lanes, self._core.regions
        if not session.local.is_possible or not regions.shared_count:
            return None, positions
        usable = local.shared if local is not None and local.group.lanes_open else frozenset()
        parts: dict[int, tuple[Part, ...]] = {}
        rest: list[int] = []
        for position in positions:
            located = regions.locate(scatters[position], access, usable)
            if isinstance(located, tuple):
                parts[position] = located
            else:
                self.counters.local_fallbacks += located
                rest.append(position)
        self.counters.local_keys += len(parts)
        if local is None or not parts:
            return None, rest
        return Shared(local.group, parts), rest

    def _local_gets(
        self, session: WorkerSession, worker: int, keys: Keys, shared: Shared | None,
        scatters: Sequence[Scatter],
    ) -> list[Call]:
        if shared is None:
            return []
        calls: list[Call] = []
        needs = self._by_need(worker, keys, list(shared.parts))
        for epoch, part in [(epoch, part) for epoch, some in needs for part in shared.dealt(some)]:
            items = [LocalGetItem(keys.id_of(p), shared.parts[p]) for p in part]
            body = encode_local_get(items)
            job = Job.local_get(
                self._frame(Opcode.LOCAL_GET, Flag.NONE, body, len(part), epoch),
                [_filled(scatters[p]) for p in part], self._tenant_tag, self.deadline_ns,
            )
            request = NativeRequest(shared.group, job)
            calls.append(Call(request, part, session, worker, [scatters[p] for p in part]))
        return calls

    def _local_puts(
        self, session: WorkerSession, worker: int, item: Callable[[int], bytes],
        shared: Shared | None, scatters: Sequence[Scatter],
    ) -> list[Call]:
        if shared is None:
            return []
        calls: list[Call] = []
        for part in shared.dealt(list(shared.parts)):
            items = [item(p) for p in part]
            body = b"".join(items + [encode_parts(shared.parts[p]) for p in part])
            job = Job.local_put(
                self._frame(Opcode.LOCAL_PUT, Flag.NONE, body, len(part)),
                [_filled(scatters[p]) for p in part], self._tenant_tag, self.deadline_ns,
            )
            request = NativeRequest(shared.group, job)
            calls.append(Call(request, part, session, worker, [scatters[p] for p in part]))
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
        if not positions:
            return []
        total_bytes = sum([scatter_bytes(scatters[position]) for position in positions])
        if total_bytes <= SMALL_PAYLOAD_BYTES_MAX:
            # While a lost express lane comes back, bulk lanes serve small payloads as well.
            small = lanes.express if lanes.express.lanes_open else lanes.bulk
            return [(small, positions)]
        # Where other requests keep the lanes busy, more parts are only more work in Python.
        parts = _parts_of(len(positions), lanes.bulk.lanes_idle, total_bytes)
        return [(lanes.bulk, part) for part in _deal(positions, parts)]


@dataclass(frozen=True, slots=True)
class Shared:
    """Blocks of one request that go through shared memory: positions, and the parts of each."""

    group: LaneGroup
    parts: dict[int, tuple[Part, ...]]

    def dealt(self, positions: list[int]) -> list[list[int]]:
        """Return the positions of each frame: as many as there are lanes, none over a limit."""
        total_bytes = sum([parts_bytes(self.parts[position]) for position in positions])
        dealt: list[list[int]] = []
        for part in _deal(positions, _parts_of(len(positions), self.group.lanes_open, total_bytes)):
            room = 0
            for position in part:
                size = PUT_ITEM_BYTES + len(self.parts[position]) * LOCAL_PART_BYTES
                if not room or size > room:
                    dealt.append([])
                    room = FRAME_BODY_BYTES_MAX
                dealt[-1].append(position)
                room -= size
        return dealt


def _filled(scatter: Scatter) -> Scatter:
    """Return the pieces that are not empty, as the parts of a frame have them."""
    return tuple([piece for piece in scatter if piece[1]])


def _parts_of(count: int, lanes: int, total_bytes: int) -> int:
    return min(count, max(1, lanes), -(-total_bytes // BULK_PART_BYTES_MIN))


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


