"""The connector beside the engine's model: moves blocks between its cache and the pool."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memkv.integrations.arena import HeaderPages, Registrar
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory, cut_layers
from memkv.integrations.vllm.gpu_direct import DmabufClient, direct_or_copied
from memkv.integrations.vllm.memory import BlockMemory, CopiedLoads, InPlaceMemory
from memkv.integrations.vllm.messages import FailedLoad, Orders, RankFormat, Results, Transfer
from memkv.integrations.vllm.mover import Mover, MoverClient
from memkv.integrations.vllm.pipeline import StepLoads
from memkv.integrations.vllm.planner import NULL_BLOCK
from memkv.integrations.vllm.settings import (
    BATCH_BYTES,
    LAYER_BATCH_BYTES,
    STAGING_BYTES,
    Settings,
)
from memkv.limits import BLOCK_HEADER_BYTES

if TYPE_CHECKING:
    import torch
    from vllm.v1.kv_cache_interface import KVCacheConfig

IDLE_WAIT_MS = 2  # of a step without tokens; a new request is late by no more than this
CLOSE_WAIT_MS = 5_000  # for stores in flight when the engine ends
HEADER_PAGES_MIN = 64


class WorkerClient(MoverClient, Registrar, DmabufClient, Protocol):
    """What of a client a worker needs."""

    def close(self) -> None: ...


@dataclass
class Polled:
    """What ended since the last step."""

    received: set[str]
    """Requests whose loads are over."""
    failed_requests: set[str]
    invalid_places: set[int]
    """Places of one cache group that were not filled."""


class WorkerSide:
    """Of one worker. Used by the thread that runs its model."""

    def __init__(
        self, client: WorkerClient, settings: Settings, rank: int, *, stores: bool
    ) -> None:
        """`stores`: False where another rank holds the same bytes and stores them."""
        self._client = client
        self._settings = settings
        self._rank = rank
        self._does_store = stores
        self._mover: Mover | None = None
        self._pages: HeaderPages | None = None
        self._memory: BlockMemory | None = None
        self._loading: dict[str, int] = {}
        """Requests with loads, and how many."""
        self._results = Results()
        self._invalid: set[int] = set()
        self._do_places_tell = True
        self._part_of: dict[str, int] = {}
        """Of each layer; empty where layers do not wait."""
        self._unhooked_parts: set[int] = set()
        self._step: StepLoads | None = None

    def register(
        self, caches: Mapping[str, torch.Tensor], config: KVCacheConfig, groups: Sequence[int],
        kernels: Sequence[str], hooked: Collection[str] = (), *, is_full: bool = True,
        elements: Mapping[str, str],
    ) -> RankFormat:
        """The cache is there; return what its blocks are. `hooked`: layers that call
        `wait_for_layer`. `is_full`: there is one group, and its blocks are kept from the first.
        `elements`: as `rank_format` has them."""
        memory = cache_memory(self._client, caches, config, groups, self._settings)
        part_of = {}
        if self._settings.pipeline_layers:
            (group,) = groups
            part_of = layer_parts(caches, config, group, self._settings.pipeline_layers)
        self.use(memory, part_of, hooked, do_places_tell=is_full)
        return rank_format(
            caches, config, groups, memory, kernels, self._settings.pipeline_layers,
            elements=elements,
        )

    def use(
        self, memory: BlockMemory, part_of: Mapping[str, int] | None = None,
        hooked: Collection[str] = (), *, do_places_tell: bool = True,
    ) -> None:
        """Move blocks of this memory from now on. `do_places_tell`: the engine can go on behind a
        missing place; it cannot where places are numbered for each group anew, so that they do not
        say what failed, or where a window lets go of the blocks that it would need."""
        smallest = min(memory.payload_bytes) + BLOCK_HEADER_BYTES
        # A batch is never larger than what may be in flight, or its blocks wait for pages for ever.
        in_flight_bytes = max(self._settings.in_flight_bytes, _batch_bytes(self._settings))
        pages = max(HEADER_PAGES_MIN, in_flight_bytes // smallest)
        self._memory = memory
        self._do_places_tell = do_places_tell
        self._part_of = dict(part_of or {})
        self._unhooked_parts = {self._part_of[name] for name in self._part_of.keys() - set(hooked)}
        self._pages = HeaderPages(self._client, pages)
        self._mover = Mover(
            self._client, memory, self._pages, self._rank, batch_bytes=_batch_bytes(self._settings),
            in_flight_bytes=self._settings.in_flight_bytes,
            load_deadline_ms=self._settings.load_deadline_ms, now_ns=time.monotonic_ns,
        )

    def begin_loads(self, orders: Orders) -> None:
        """Begin what this step's requests wait for."""
        for transfer in orders.loads:
            self._loading[transfer.request_id] = self._loading.get(transfer.request_id, 0) + 1
            self._moving.load(transfer)
        if orders.layered:
            self._step = StepLoads(
                self._moving, orders.layered, len(self._memory_in_use.payload_bytes),
                deadline_ms=self._settings.load_deadline_ms, now_ns=time.monotonic_ns,
            )
            for part in sorted(self._unhooked_parts):
                self._step.wait(part)

    def wait_for_layer(self, name: str) -> None:
        """A layer is about to read its cache: wait for its part of this step's loads."""
        if self._step is not None and name in self._part_of:
            self._step.wait(self._part_of[name])

    def begin_stores(self, orders: Orders) -> None:
        """The step's forward is done (or its end is what the memory waits for): begin to store."""
        self._end_step(orders)
        for transfer in orders.stores:
            if self._does_store:
                self._moving.store(transfer)
            else:
                self._stored(transfer)

    def poll(self, orders: Orders) -> Polled:
        """Go on with everything. Waits a moment when the engine has nothing to compute."""
        polled = Polled(set(), set(), set())
        if self._mover is None:
            return polled
        self._end_step(orders)
        polled.invalid_places, self._invalid = self._invalid, set()
        ended = self._mover.poll(IDLE_WAIT_MS if orders.is_idle else 0)
        failed = {load.request_id: load for load in ended.failed}
        for transfer in ended.loads:
            self._loaded(transfer, failed.get(transfer.request_id), polled)
        for transfer in ended.stores:
            self._stored(transfer)
        return polled

    def take_results(self) -> Results | None:
        """Return what the scheduler's side has to know, if anything."""
        if self._mover is not None:
            self._results.counts = self._mover.take_counts()
        found = self._results
        if not (found.stored or found.layered or found.failed or found.counts):
            return None
        results, self._results = self._results, Results()
        return results

    def close(self) -> None:
        """Wait for stores in flight, then end. No memory of the engine is used afterwards."""
        if self._mover is not None:
            until = time.monotonic() + CLOSE_WAIT_MS / 1_000
            while self._mover.is_busy and time.monotonic() < until:
                self._mover.poll(IDLE_WAIT_MS)
            if self._mover.is_busy or self._mover.has_late_writers:  # the memory stays mapped
                self._client.close()
                return
        if self._pages is not None:
            self._pages.close()
        if self._memory is not None:
            self._memory.close()
        self._client.close()

    # --- inside -------------------------------------------------------------------------------
    @property
    def _moving(self) -> Mover:
        assert self._mover is not None, "the engine has no cache yet"
        return self._mover

    @property
    def _memory_in_use(self) -> BlockMemory:
        assert self._memory is not None, "the engine has no cache yet"
        return self._memory

    def _end_step(self, orders: Orders) -> None:
        """The layers have computed, with what was there. Stores of what they computed wait for the
        results (scheduler_side.py), so that nothing is stored of a request whose load failed."""
        if self._step is None:
            return
        failed = {load.request_id: load for load in self._step.end()}
        self._step = None
        self._results.failed.update(failed)
        for transfer in orders.layered:
            self._results.layered[transfer.job] = 1
            load = failed.get(transfer.request_id)
            if load is not None:
                self._invalid.update(_places_from(transfer, load.first_missing))

    def _loaded(self, transfer: Transfer, failed: FailedLoad | None, polled: Polled) -> None:
        self._loading[transfer.request_id] -= 1
        if not self._loading[transfer.request_id]:
            del self._loading[transfer.request_id]
            polled.received.add(transfer.request_id)
        if failed is None:
            return
        self._results.failed[transfer.request_id] = failed
        if self._do_places_tell:
            polled.invalid_places.update(_places_from(transfer, failed.first_missing))
        else:
            polled.failed_requests.add(transfer.request_id)

    def _stored(self, transfer: Transfer) -> None:
        self._results.stored[transfer.job] = 1


def _places_from(transfer: Transfer, number: int) -> set[int]:
    return {block.place for block in transfer.blocks if block.number >= number}


def _batch_bytes(settings: Settings) -> int:
    return LAYER_BATCH_BYTES if settings.pipeline_layers else BATCH_BYTES


def cache_memory(
    client: WorkerClient, caches: Mapping[str, torch.Tensor], config: KVCacheConfig,
    groups: Sequence[int], settings: Settings,
) -> BlockMemory:
    """Return the engine's cache as the client uses it: in place where a CPU reaches it, else (or
    where the user wants it) through an arena. Loads that layers wait for always go through one: the
    end of a step gives their places back, whatever the client still writes."""
    tensors = [
        [caches[name] for name in _layer_names(caches, config, group)] for group in groups
    ]
    runs = [
        BlockRuns(part, config.num_blocks) for group in tensors
        for part in cut_layers([layer_memory(one) for one in group], settings.pipeline_layers)[0]
    ]
    every = [one for group in tensors for one in group]
    is_reached = not settings.staging_bytes and all(one.device.type == "cpu" for one in every)
    if is_reached and not settings.pipeline_layers:
        return InPlaceMemory(runs)
    from memkv.integrations.vllm.staging import StagedMemory

    staged = StagedMemory(
        client, runs, every, config.num_blocks,
        arena_bytes=settings.staging_bytes or STAGING_BYTES, slot_bytes=_batch_bytes(settings),
    )
    if is_reached:
        return CopiedLoads(staged, InPlaceMemory(runs))
    if settings.gpu_direct:
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in every}
        spans = [(address, storage.nbytes()) for address, storage in storages.items()]
        return direct_or_copied(client, runs, spans, staged, time.monotonic_ns)
    return staged


def layer_parts(
    caches: Mapping[str, torch.Tensor], config: KVCacheConfig, group: int, layers_a_part: int
) -> dict[str, int]:
    """Return the number of each layer's part."""
    names = _layer_names(caches, config, group)
    _, parts = cut_layers([layer_memory(caches[name]) for name in names], layers_a_part)
    return dict(zip(names, parts, strict=True))


def _layer_names(
    caches: Mapping[str, torch.Tensor], config: KVCacheConfig, group: int
) -> list[str]:
    return [name for name in config.kv_cache_groups[group].layer_names if name in caches]


def layer_memory(cache: torch.Tensor) -> LayerMemory:
    """Return where a layer's cache lies."""
    return LayerMemory(
        cache.data_ptr(), tuple(cache.shape), tuple(cache.stride()), cache.element_size()
    )


def rank_format(
    caches: Mapping[str, torch.Tensor], config: KVCacheConfig, groups: Sequence[int],
    memory: BlockMemory, kernels: Sequence[str], layers_a_part: int = 0, *,
    elements: Mapping[str, str],
) -> RankFormat:
    """Describe a worker's blocks. `kernels`: who gives the bytes their meaning, such as
    "CPU_ATTN/amx": the same shape means other bytes elsewhere. `layers_a_part`: where blocks are
    stored in parts, so that engines that cut otherwise, or not at all, have other names.
    `elements`: what the elements of each layer are, where its tensor knows only their size."""
    names = [_layer_names(caches, config, group) for group in groups]
    dtypes = {name: _dtype(caches[name], elements.get(name)) for group in names for name in group}
    several = len(set(dtypes.values())) > 1
    layouts = []
    for group in names:
        layers = [
            _layer_layout(caches[name]) + (f":{dtypes[name]}" if several else "") for name in group
        ]
        counted = [
            f"{layers.count(layer)}x{layer}" for layer in dict.fromkeys(layers)
        ]
        layouts.append("+".join(counted))
    cut = f";layers={layers_a_part}" if layers_a_part else ""
    return RankFormat(
        layout=f"vllm:{'+'.join(sorted(set(kernels)))}/{'/'.join(layouts)}{cut}",
        kv_dtype="+".join(sorted(set(dtypes.values()))),
        payload_bytes=memory.payload_bytes,
    )


def _dtype(cache: torch.Tensor, said: str | None) -> str:
    """Name a layer's elements: those of one byte as the engine calls them."""
    if cache.element_size() > 1 or said in (None, "auto"):
        return str(cache.dtype).removeprefix("torch.")
    assert said is not None
    return said


def _layer_layout(cache: torch.Tensor) -> str:
    """Name a layer's axes behind the block, in the order in which they lie in memory."""
    axes = sorted(
        zip("HNC", cache.shape[1:], cache.stride()[1:], strict=False),
        key=lambda axis: -axis[2],
    )
    return ".".join(f"{name}{length}" for name, length, _ in axes)


assert NULL_BLOCK == 0
