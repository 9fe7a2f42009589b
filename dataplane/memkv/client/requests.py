"""Requests of one operation: frames, native jobs and the lanes they go on.

A batch for one worker is split over its lanes: small payloads go on the express lane whole, large
ones are dealt to the bulk lanes in parts, so that reading flash for one part overlaps sending
another. Blocks whose memory the worker was given go on the local lanes, without payload.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING

from memkv._hotpath import Job, LaneGroup
from memkv.client.buffers import Scatter, scatter_bytes
from memkv.client.calls import Call
from memkv.client.native import NativeRequest
from memkv.client.operations import Started
from memkv.client.options import CopyOptions, PutOptions
from memkv.client.placed import (
    LOCAL,
    RDMA,
    RDMA_UNREAD,
    Batch,
    PartsOf,
    Way,
    deal,
    dealt,
    parts_of,
    windowed,
)
from memkv.client.ranges import ByteRange
from memkv.client.routing import Keys
from memkv.client.session import Lanes, WorkerSession
from memkv.client.statistics import ClientCounters
from memkv.limits import (
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
    encode_local_get,
    encode_parts,
)
from memkv.wire.messages import encode_keys
from memkv.wire.opcodes import PROTOCOL_OF_OPCODE, RESPONSE_LIMITS, Flag, Opcode

if TYPE_CHECKING:
    from memkv.client.core import ClientCore, Routes


class _EveryRegion:
    def __contains__(self, number: object) -> bool:
        return True


EVERY_REGION = _EveryRegion()
NO_REGION: frozenset[int] = frozenset()


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
        if self._core.regions.is_foreign(scatter):
            return  # it cannot be read here
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
        batches, positions = self._placed(
            session, positions, scatters, Access.WRITE, again=verify
        )
        for batch in batches:
            calls += self._placed_get(worker, keys, batch, scatters)
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
            if any(self._core.regions.is_foreign(scatters[position]) for position in part):
                group = session.rdma.nobody
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
        options: PutOptions, again: bool = False,
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

        batches, positions = self._placed(
            session, positions, scatters, Access.READ, again=again
        )
        calls = [self._placed_put(worker, item, batch, scatters) for batch in batches]
        for group, part in self._parts(lanes, positions, scatters):
            buffers = [scatters[position] for position in part]
            body = b"".join([item(position) for position in part])
            job = Job.put(
                self._frame(Opcode.PUT, Flag.NONE, body, len(part)), buffers, self._tenant_tag,
                self.deadline_ns,
            )
            calls.append(Call(NativeRequest(group, job), part, session, worker, buffers))
        return calls

    # --- payload that workers move themselves -------------------------------------------------
    def _placed(
        self, session: WorkerSession, positions: list[int], scatters: Sequence[Scatter],
        access: Access, *, again: bool = False,
    ) -> tuple[list[Batch], list[int]]:
        """Return what goes through memory that the worker knows, and the other positions.

        `again`: what came wrong goes another way, unless there is only one.
        """
        regions = self._core.regions
        batches: list[Batch] = []
        if regions.foreign_count:
            foreign = [p for p in positions if regions.is_foreign(scatters[p])]
            positions = [p for p in positions if p not in foreign]
            batches = self._foreign(session, foreign, scatters, access)
        if again:
            if session.rdma.is_possible and not session.local.is_possible:
                _, _, missed = self._located(positions, scatters, Access.NONE, NO_REGION)
                self.counters.rdma_fallbacks += missed
            return batches, positions
        if session.local.is_possible and regions.shared_count:
            found, positions = self._through_sharing(session, positions, scatters, access)
            batches += found
        elif session.rdma.is_possible and len(regions):
            found, positions = self._through_rdma(session, positions, scatters, access)
            batches += found
        return batches, positions

    def _foreign(
        self, session: WorkerSession, positions: list[int], scatters: Sequence[Scatter],
        access: Access,
    ) -> list[Batch]:
        """Memory of another device is reached over RDMA or not at all, and only written to."""
        found: list[Batch] = []
        if access is Access.WRITE and session.rdma.is_possible:
            found, positions = self._through_rdma(
                session, positions, scatters, access, RDMA_UNREAD
            )
        parts, _, _ = self._located(positions, scatters, Access.NONE, EVERY_REGION)
        frames = dealt(parts, list(parts), 1) if parts else []
        group = session.rdma.nobody
        return found + [Batch(RDMA_UNREAD, group, session.rdma, some, parts) for some in frames]

    def _through_sharing(
        self, session: WorkerSession, positions: list[int], scatters: Sequence[Scatter],
        access: Access,
    ) -> tuple[list[Batch], list[int]]:
        local = session.local.lanes
        usable = local.shared if local is not None and local.group.lanes_open else frozenset()
        parts, rest, missed = self._located(positions, scatters, access, usable)
        self.counters.local_fallbacks += missed
        self.counters.local_keys += len(parts)
        if local is None or not parts:
            return [], rest
        frames = dealt(parts, list(parts), local.group.lanes_open)
        return [Batch(LOCAL, local.group, session, some, parts) for some in frames], rest

    def _through_rdma(
        self, session: WorkerSession, positions: list[int], scatters: Sequence[Scatter],
        access: Access, way: Way = RDMA,
    ) -> tuple[list[Batch], list[int]]:
        lanes, memory = session.rdma.lanes, self._core.memory
        usable = lanes.shared if lanes is not None and lanes.open_count else frozenset()
        parts, rest, missed = self._located(positions, scatters, Access.NONE, usable)
        batches: list[Batch] = []
        if lanes is not None and memory is not None and parts:
            for some in dealt(parts, list(parts), lanes.rails):
                batch: Batch | None = Batch(way, lanes.group, session.rdma, some, parts)
                if batch is not None and lanes.strict:
                    batch = windowed(batch, lanes.next_strict(), memory, access)
                if batch is None:
                    missed += len(some)
                    rest = [*rest, *some]
                else:
                    self.counters.rdma_keys += len(some)
                    batches.append(batch)
        self.counters.rdma_fallbacks += missed
        return batches, rest

    def _located(
        self, positions: list[int], scatters: Sequence[Scatter], access: Access,
        usable: Container[int],
    ) -> tuple[PartsOf, list[int], int]:
        """Return the parts of what lies in usable regions, the other positions, and how many of
        these lie in regions that could be."""
        parts: PartsOf = {}
        rest: list[int] = []
        missed = 0
        for position in positions:
            located = self._core.regions.locate(scatters[position], access, usable)
            if isinstance(located, tuple):
                parts[position] = located
            else:
                missed += located
                rest.append(position)
        return parts, rest, missed

    def _placed_get(
        self, worker: int, keys: Keys, batch: Batch, scatters: Sequence[Scatter]
    ) -> list[Call]:
        """One call for each epoch that the answers need: nearly always one."""
        calls: list[Call] = []
        for epoch, some in self._by_need(worker, keys, batch.positions):
            body = encode_local_get([LocalGetItem(keys.id_of(p), batch.parts[p]) for p in some])
            job = batch.way.get_job(
                self._frame(batch.way.get, batch.flags, body, len(some), epoch),
                [_filled(scatters[p]) for p in some], self._tenant_tag, self.deadline_ns,
            )
            calls.append(self._placed_call(worker, batch, job, some, scatters))
        return calls

    def _placed_put(
        self, worker: int, item: Callable[[int], bytes], batch: Batch, scatters: Sequence[Scatter]
    ) -> Call:
        some = batch.positions
        items = [item(p) for p in some]
        body = b"".join(items + [encode_parts(batch.parts[p]) for p in some])
        job = batch.way.put_job(
            self._frame(batch.way.put, Flag.NONE, body, len(some)),
            [_filled(scatters[p]) for p in some], self._tenant_tag, self.deadline_ns,
        )
        return self._placed_call(worker, batch, job, some, scatters)

    @staticmethod
    def _placed_call(
        worker: int, batch: Batch, job: Job, positions: list[int], scatters: Sequence[Scatter]
    ) -> Call:
        buffers = [scatters[p] for p in positions]
        return Call(
            batch.request(job, positions), positions, batch.outcome, worker, buffers,
            has_other_way=batch.way is RDMA,
        )

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

    def start_prefetch(self, worker: int, keys: Keys, positions: list[int]) -> Started:
        return self._control(Opcode.PREFETCH, worker, keys, positions, 0)

    def start_why(self, worker: int, keys: Keys, positions: list[int]) -> Started:
        return self._control(Opcode.WHY, worker, keys, positions, 0)

    def _control(
        self, opcode: Opcode, worker: int, keys: Keys, positions: list[int], argument: int,
        epoch: int | None = None,
    ) -> Started:
        session, lanes = self._lanes(worker)
        if isinstance(lanes, Status):
            return lanes
        if session.protocol < PROTOCOL_OF_OPCODE.get(opcode, 1):
            return Status.UNSUPPORTED
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
        parts = parts_of(len(positions), lanes.bulk.lanes_idle, total_bytes)
        return [(lanes.bulk, part) for part in deal(positions, parts)]


def _filled(scatter: Scatter) -> Scatter:
    """Return the pieces that are not empty, as the parts of a frame have them."""
    return tuple([piece for piece in scatter if piece[1]])
