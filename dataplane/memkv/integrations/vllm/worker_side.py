"""The connector beside the engine's model: moves blocks between its cache and the pool."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memkv.integrations.arena import HeaderPages, Registrar
from memkv.integrations.vllm.geometry import BlockRuns, LayerMemory
from memkv.integrations.vllm.memory import BlockMemory, InPlaceMemory
from memkv.integrations.vllm.messages import FailedLoad, Orders, RankFormat, Results, Transfer
from memkv.integrations.vllm.mover import Mover, MoverClient
from memkv.integrations.vllm.planner import NULL_BLOCK
from memkv.integrations.vllm.settings import BATCH_BYTES, STAGING_BYTES, Settings
from memkv.limits import BLOCK_HEADER_BYTES

if TYPE_CHECKING:
    import torch
    from vllm.v1.kv_cache_interface import KVCacheConfig

IDLE_WAIT_MS = 2  # of a step without tokens; a new request is late by no more than this
CLOSE_WAIT_MS = 5_000  # for stores in flight when the engine ends
HEADER_PAGES_MIN = 64


class WorkerClient(MoverClient, Registrar, Protocol):
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
        self._is_one_group = True

    def register(
        self, caches: Mapping[str, torch.Tensor], config: KVCacheConfig, groups: Sequence[int],
        kernels: Sequence[str],
    ) -> RankFormat:
        """The cache is there; return what its blocks are."""
        memory = cache_memory(self._client, caches, config, groups, self._settings)
        self.use(memory)
        return rank_format(caches, config, groups, memory, kernels)

    def use(self, memory: BlockMemory) -> None:
        """Move blocks of this memory from now on."""
        smallest = min(memory.payload_bytes) + BLOCK_HEADER_BYTES
        pages = max(HEADER_PAGES_MIN, self._settings.in_flight_bytes // smallest)
        self._memory = memory
        self._is_one_group = len(memory.payload_bytes) == 1
        self._pages = HeaderPages(self._client, pages)
        self._mover = Mover(
            self._client, memory, self._pages, self._rank, batch_bytes=BATCH_BYTES,
            in_flight_bytes=self._settings.in_flight_bytes,
            load_deadline_ms=self._settings.load_deadline_ms, now_ns=time.monotonic_ns,
        )

    def begin_loads(self, orders: Orders) -> None:
        """Begin what this step's requests wait for."""
        for transfer in orders.loads:
            self._loading[transfer.request_id] = self._loading.get(transfer.request_id, 0) + 1
            self._moving.load(transfer)

    def begin_stores(self, orders: Orders) -> None:
        """The step's forward is done (or its end is what the memory waits for): begin to store."""
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
        if not (self._results.stored or self._results.failed or self._results.counts):
            return None
        results, self._results = self._results, Results()
        return results

    def close(self) -> None:
        """Wait for stores in flight, then end. No memory of the engine is used afterwards."""
        if self._mover is not None:
            until = time.monotonic() + CLOSE_WAIT_MS / 1_000
            while self._mover.is_busy and time.monotonic() < until:
                self._mover.poll(IDLE_WAIT_MS)
            if self._mover.is_busy:  # somebody may still write there: the memory stays mapped
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

    def _loaded(self, transfer: Transfer, failed: FailedLoad | None, polled: Polled) -> None:
        self._loading[transfer.request_id] -= 1
        if not self._loading[transfer.request_id]:
            del self._loading[transfer.request_id]
            polled.received.add(transfer.request_id)
        if failed is None:
            return
        self._results.failed[transfer.request_id] = failed
        if self._is_one_group:
            polled.invalid_places.update(
                block.place for block in transfer.blocks if block.number >= failed.first_missing
            )
        else:
            # Places are numbered for each group anew, so places alone do not say what failed.
            polled.failed_requests.add(transfer.request_id)

    def _stored(self, transfer: Transfer) -> None:
        self._results.stored[transfer.job] = 1


def cache_memory(
    client: WorkerClient, caches: Mapping[str, torch.Tensor], config: KVCacheConfig,
    groups: Sequence[int], settings: Settings,
) -> BlockMemory:
    """Return the engine's cache as the client uses it: in place where a CPU reaches it, else (or
    where the user wants it) through an arena."""
    tensors = [
        [caches[name] for name in config.kv_cache_groups[group].layer_names if name in caches]
        for group in groups
    ]
    runs = [BlockRuns([layer_memory(one) for one in group], config.num_blocks) for group in tensors]
    every = [one for group in tensors for one in group]
    if not settings.staging_bytes and all(one.device.type == "cpu" for one in every):
        return InPlaceMemory(runs)
    from memkv.integrations.vllm.staging import StagedMemory

    return StagedMemory(
        client, runs, every, config.num_blocks,
        arena_bytes=settings.staging_bytes or STAGING_BYTES, slot_bytes=BATCH_BYTES,
    )


def layer_memory(cache: torch.Tensor) -> LayerMemory:
    """Return where a layer's cache lies."""
    return LayerMemory(
        cache.data_ptr(), tuple(cache.shape), tuple(cache.stride()), cache.element_size()
    )


def rank_format(
    caches: Mapping[str, torch.Tensor], config: KVCacheConfig, groups: Sequence[int],
    memory: BlockMemory, kernels: Sequence[str],
) -> RankFormat:
    """Describe a worker's blocks. `kernels`: who gives the bytes their meaning, such as
    "CPU_ATTN/amx": the same shape means other bytes elsewhere."""
    layouts = []
    for group in groups:
        names = [name for name in config.kv_cache_groups[group].layer_names if name in caches]
        layers = [_layer_layout(caches[name]) for name in names]
        counted = [
            f"{layers.count(layer)}x{layer}" for layer in dict.fromkeys(layers)
        ]
        layouts.append("+".join(counted))
    first = caches[config.kv_cache_groups[groups[0]].layer_names[0]]
    return RankFormat(
        layout=f"vllm:{'+'.join(sorted(set(kernels)))}/{'/'.join(layouts)}",
        kv_dtype=str(first.dtype).removeprefix("torch."),
        payload_bytes=memory.payload_bytes,
    )


def _layer_layout(cache: torch.Tensor) -> str:
    """Name a layer's axes behind the block, in the order in which they lie in memory."""
    axes = sorted(
        zip("HNC", cache.shape[1:], cache.stride()[1:], strict=False),
        key=lambda axis: -axis[2],
    )
    return ".".join(f"{name}{length}" for name, length, _ in axes)


assert NULL_BLOCK == 0
