"""Tasks of LMCache's L2 adapter: submitted by its two controller threads, ended by the pool.

Everything but LMCache's own types, so that it is tested without LMCache.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from memkv.errors import CallerError
from memkv.integrations.blocks import BlockFormat
from memkv.integrations.lmcache_names import Dtype, L2Names, MemoryLayout, ObjectKey
from memkv.integrations.parts import Part
from memkv.integrations.stores import Stored
from memkv.integrations.transfers import Transfers
from memkv.limits import LEASE_MS_MAX
from memkv.status import Status

KeyT = TypeVar("KeyT", bound=ObjectKey)

KINDS_PER_GROUP_MAX = 8  # layouts remembered for deletes; one a model, some while dtypes change


class MemoryObject(Protocol):
    """`lmcache.v1.memory_management.MemoryObj`."""

    @property
    def data_ptr(self) -> int: ...
    def get_size(self) -> int: ...
    def get_shapes(self) -> Sequence[Sequence[int]]: ...
    def get_dtypes(self) -> Sequence[Dtype]: ...
    def set_used_size(self, n: int) -> None: ...


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """`success`: every object is in the pool now. `bytes_sent`: of those that were not before."""

    success: bool
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class Signals(Generic[KeyT]):
    """What tasks tell the adapter, on the thread of the jobs."""

    store_done: Callable[[], None]
    lookup_done: Callable[[], None]
    load_done: Callable[[], None]
    stored: Callable[[list[KeyT], list[int]], None]
    """Keys that are new in the pool, and their sizes."""
    loaded: Callable[[list[KeyT]], None]


class L2Tasks(Generic[KeyT]):
    """Thread-safe. No method waits, but `delete`; none raises for what a pool does.

    A lookup's lock is a lease on the blocks. It ends by itself, so nothing can be left locked, and
    an unlock has nothing to fail at. A load of what was evicted all the same is a miss.
    """

    def __init__(self, transfers: Transfers, names: L2Names, signals: Signals[KeyT]) -> None:
        self._transfers = transfers
        self._names = names
        self._signals = signals
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._stores: dict[int, StoreOutcome] = {}
        self._lookups: dict[int, list[bool]] = {}
        self._loads: dict[int, list[bool]] = {}
        self._under_way: Counter[str] = Counter()
        self._locked: Counter[KeyT] = Counter()
        self._layouts: defaultdict[object, dict[object, MemoryLayout]] = defaultdict(dict)

    # --- store --------------------------------------------------------------------------------
    def submit_store(self, keys: Sequence[KeyT], objects: Sequence[MemoryObject]) -> int:
        task = self._begin("store")
        taken = list(zip(keys, objects, strict=True))
        sizes = [memory.get_size() for memory in objects]

        def ended(outcomes: list[Stored]) -> None:
            new = [i for i, outcome in enumerate(outcomes) if outcome is Stored.NEW]
            sent = [sizes[i] for i in new]
            with self._lock:
                self._under_way["store"] -= 1
                self._stores[task] = StoreOutcome(Stored.DROPPED not in outcomes, sum(sent))
            if new:
                self._signals.stored([taken[i][0] for i in new], sent)
            self._signals.store_done()

        try:
            parts = [self._parts(key, memory) for key, memory in taken]
        except CallerError:  # nothing that a block could hold
            ended([Stored.DROPPED] * len(taken))
        else:
            self._transfers.store(parts, ended)
        return task

    def pop_stores(self) -> dict[int, StoreOutcome]:
        """Return the stores that have ended, once."""
        with self._lock:
            ended, self._stores = self._stores, {}
        return ended

    # --- lookup -------------------------------------------------------------------------------
    def submit_lookup(self, keys: Sequence[KeyT], layouts: Mapping[int, MemoryLayout]) -> int:
        task = self._begin("lookup")
        taken = list(keys)

        def ended(found: list[bool]) -> None:
            with self._lock:
                self._under_way["lookup"] -= 1
                self._locked.update(key for key, hit in zip(taken, found, strict=True) if hit)
                self._lookups[task] = found
            self._signals.lookup_done()

        names = [self._keys(key, layouts.get(key.object_group_id)) for key in taken]
        asked = [number for number, parts in enumerate(names) if parts]

        def answered(found: list[bool]) -> None:
            hits = dict(zip(asked, found, strict=True))
            ended([hits.get(number, False) for number in range(len(taken))])

        self._transfers.lookup(
            [names[number] for number in asked], answered, lease_ms=LEASE_MS_MAX
        )
        return task

    def lookup_result(self, task: int) -> list[bool] | None:
        """Return the hits of an ended lookup, once."""
        with self._lock:
            return self._lookups.pop(task, None)

    def unlock(self, keys: Sequence[KeyT]) -> None:
        """Count locks down; the leases end by themselves."""
        with self._lock:
            for key in keys:
                if self._locked[key] > 1:
                    self._locked[key] -= 1
                else:
                    del self._locked[key]

    # --- load ---------------------------------------------------------------------------------
    def submit_load(self, keys: Sequence[KeyT], objects: Sequence[MemoryObject]) -> int:
        task = self._begin("load")
        taken = list(zip(keys, objects, strict=True))

        def ended(found: list[BlockFormat | None]) -> None:
            hits = [key for (key, _), block in zip(taken, found, strict=True) if block]
            if self._names.is_layout_fixed:
                _narrow(taken, found)
            if hits:
                self._signals.loaded(hits)
            with self._lock:
                self._under_way["load"] -= 1
                self._loads[task] = [block is not None for block in found]
            self._signals.load_done()

        try:
            parts = [self._parts(key, memory) for key, memory in taken]
        except CallerError:
            ended([None] * len(taken))
        else:
            self._transfers.load(parts, ended, shorter=self._names.is_layout_fixed)
        return task

    def load_result(self, task: int) -> list[bool] | None:
        """Return the hits of an ended load, once."""
        with self._lock:
            return self._loads.pop(task, None)

    # --- the rest -----------------------------------------------------------------------------
    def delete(self, keys: Sequence[KeyT]) -> tuple[list[KeyT], list[int]]:
        """Delete objects of every layout seen; return which are gone, and their sizes. Waits."""
        flat: list[tuple[KeyT, int, bytes]] = []
        for key in keys:
            with self._lock:
                layouts = list(self._layouts[_group_of(key)].values())
            for layout in layouts:
                kind = self._names.kind(key, layout.shapes, layout.dtypes)
                flat += [(key, kind.payload_bytes, name) for name in kind.keys(key.chunk_hash)]
        if not flat:
            return [], []
        results = self._transfers.remove([name for _, _, name in flat])
        kept = {
            key for (key, _, _), result in zip(flat, results, strict=True) if result != Status.OK
        }
        gone = {key: size for key, size, _ in flat if key not in kept}
        return list(gone), list(gone.values())

    def status(self) -> dict[str, object]:
        """Return figures for people."""
        with self._lock:
            return {
                "tasks_under_way": dict(+self._under_way),
                "locked_keys": len(self._locked),
            }

    # --- inside -------------------------------------------------------------------------------
    def _begin(self, what: str) -> int:
        with self._lock:
            self._under_way[what] += 1
            return next(self._ids)

    def _parts(self, key: KeyT, memory: MemoryObject) -> list[Part]:
        shapes, dtypes = memory.get_shapes(), memory.get_dtypes()
        self._remember(key, _Layout(shapes, dtypes))
        size_bytes = memory.get_size()
        kind = self._names.kind(key, shapes, dtypes, size_bytes)
        return kind.parts(key.chunk_hash, [(memory.data_ptr, size_bytes)])

    def _keys(self, key: KeyT, layout: MemoryLayout | None) -> list[bytes]:
        if layout is None:
            return []
        self._remember(key, layout)
        try:
            return self._names.kind(key, layout.shapes, layout.dtypes).keys(key.chunk_hash)
        except CallerError:
            return []

    def _remember(self, key: KeyT, layout: MemoryLayout) -> None:
        shapes = tuple(tuple(shape) for shape in layout.shapes)
        with self._lock:
            seen = self._layouts[_group_of(key)]
            if len(seen) < KINDS_PER_GROUP_MAX:
                seen.setdefault((shapes, tuple(map(str, layout.dtypes))), layout)


@dataclass(frozen=True, slots=True)
class _Layout:
    shapes: Sequence[Sequence[int]]
    dtypes: Sequence[Dtype]


def _group_of(key: ObjectKey) -> object:
    return (key.model_name, key.kv_rank, key.object_group_id)


def _narrow(
    taken: Sequence[tuple[ObjectKey, MemoryObject]], found: Sequence[BlockFormat | None]
) -> None:
    """Tell each object how much of it is used: what serdes made may be shorter than its room."""
    for (_, memory), block in zip(taken, found, strict=True):
        if block is not None and block.payload_bytes != memory.get_size():
            memory.set_used_size(block.payload_bytes)
