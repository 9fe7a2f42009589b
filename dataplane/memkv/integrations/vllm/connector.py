"""`MemKVConnector`: the class that vLLM loads. Only here the engine's classes are subclassed.

Nothing in here waits beyond the limits of settings.py, and nothing raises into the engine's step:
what cannot be had from the pool is computed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.integrations.vllm.engine import (
    attention_kernels,
    block_hasher,
    cache_shape,
    element_names,
    hooked_layers,
    keeps_all_blocks,
    parallel_ranks,
    rank_of_worker,
    why_not,
    why_not_pipelined,
)
from memkv.integrations.vllm.identity import Identity
from memkv.integrations.vllm.messages import Orders, RankFormat, Results
from memkv.integrations.vllm.scheduler_side import SchedulerSide
from memkv.integrations.vllm.settings import Settings
from memkv.integrations.vllm.stats import MemKVPromMetrics, MemKVStats
from memkv.integrations.vllm.worker_side import Polled, WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.memkv")


class StepOrders(KVConnectorMetadata):  # type: ignore[misc]  # engines have no types here
    """Orders for the workers, as the engine carries them."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders


class StepResults(KVConnectorWorkerMetadata):  # type: ignore[misc]  # engines have no types here
    """Results of the workers, as the engine carries and merges them."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepResults:
        assert isinstance(other, StepResults)
        return StepResults(self.results.merge(other.results))


class WorkerFormat(KVConnectorHandshakeMetadata):  # type: ignore[misc]  # untyped
    """What a worker's blocks are, as the engine carries it."""

    def __init__(self, rank_format: RankFormat) -> None:
        self.rank_format = rank_format


class MemKVConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]  # untyped
    """Keeps the KV of an engine in a MemKV pool. One instance in the scheduler, one in each
    worker."""

    _cache_hit_source = CacheHitSource.DISK

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._settings = Settings.of(transfer.kv_connector_extra_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._format: RankFormat | None = None
        self._polled = Polled(set(), set(), set())
        self._busy_seconds = 0.0
        self._groups = tuple(kv_cache_config.prefix_cacheable_group_ids)
        reason = why_not(vllm_config, kv_cache_config)
        if reason is not None:
            logger.error("MemKV is off, everything is computed: %s", reason)
            return
        if transfer.kv_load_failure_policy != "recompute":
            logger.warning(
                "kv_load_failure_policy is %r: requests whose blocks vanish from the pool will "
                'fail. Say "recompute".', transfer.kv_load_failure_policy,
            )
        if self._settings.pipeline_layers:
            reason = why_not_pipelined(vllm_config, kv_cache_config)
            if reason is not None:
                logger.error("pipeline_layers is ignored: %s", reason)
                self._settings = replace(self._settings, pipeline_layers=0)
        if role == KVConnectorRole.SCHEDULER:
            shape = cache_shape(kv_cache_config)
            self._scheduler = SchedulerSide(
                self._connect(self._settings.lookup_deadline_ms), self._settings,
                Identity(vllm_config, self._settings, shape.block_tokens), shape,
                parallel_ranks(vllm_config, kv_cache_config),
                block_hasher(vllm_config, kv_cache_config),
                loads=bool(transfer.is_kv_consumer), stores=bool(transfer.is_kv_producer),
            )

    def _connect(self, deadline_ms: int) -> Client:
        settings = self._settings
        return Client(ConnectOptions.resolve(
            settings.endpoint, settings.pool, settings.tenant, deadline_ms, None
        ))

    @property
    def requires_kv_delivery(self) -> bool:
        """A store that is dropped is a miss later, nothing else."""
        return False

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: object) -> bool:
        """Waking up moves the cache, and transfers would go on where it was."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layers that wait are no part of a graph."""
        return bool(extra_config.get("pipeline_layers"))

    # --- worker -------------------------------------------------------------------------------
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config = self._kv_cache_config
        if why_not(self._vllm_config, config) is not None:
            return
        rank, is_first = rank_of_worker(self._vllm_config, config)
        self._worker = WorkerSide(
            self._connect(self._settings.deadline_ms), self._settings, rank, stores=is_first
        )
        self._format = self._worker.register(
            kv_caches, config, self._groups, attention_kernels(self._vllm_config),
            hooked_layers(self._vllm_config), is_full=keeps_all_blocks(config),
            elements=element_names(self._vllm_config),
        )

    def get_handshake_metadata(self) -> WorkerFormat | None:
        return None if self._format is None else WorkerFormat(self._format)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: object) -> None:
        if self._worker is not None:
            with self._timed():
                self._worker.begin_loads(self._step_orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Without `pipeline_layers` loads end between steps: a request whose blocks are missing is
        in no step, and no layer waits."""
        if self._worker is not None and self._settings.pipeline_layers:
            with self._timed():
                self._worker.wait_for_layer(layer_name)

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: object, **kwargs: object
    ) -> None:
        """A block is stored whole, after the step that completed it."""

    def wait_for_save(self) -> None:
        if self._worker is not None:
            with self._timed():
                self._worker.begin_stores(self._step_orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._worker is None:
            return KVConnectorTransferResults()
        with self._timed():
            self._polled = self._worker.poll(self._step_orders)
        return KVConnectorTransferResults(
            finished_recving=self._polled.received, failed_recving=self._polled.failed_requests
        )

    def get_finished(
        self, finished_req_ids: set[str]
    ) -> tuple[set[str] | None, set[str] | None]:
        results = self.get_transfer_results(finished_req_ids)
        return results.finished_sending, results.finished_recving

    def get_block_ids_with_load_errors(self) -> set[int]:
        places, self._polled.invalid_places = self._polled.invalid_places, set()
        return places

    def build_connector_worker_meta(self) -> StepResults | None:
        results = None if self._worker is None else self._worker.take_results()
        if results is None:
            return None
        results.counts["busy_seconds"], self._busy_seconds = self._busy_seconds, 0.0
        return StepResults(results)

    @property
    def _step_orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepOrders)
        return metadata.orders

    # --- scheduler ----------------------------------------------------------------------------
    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: Mapping[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        formats = [metadata[rank] for rank in sorted(metadata)]
        if self._scheduler is not None:
            self._scheduler.set_formats([
                found.rank_format for found in formats if isinstance(found, WorkerFormat)
            ])

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        if self._scheduler is not None:
            self._scheduler.bind_pool(gpu_block_pool)

    def on_new_request(self, request: Request) -> None:
        if self._scheduler is not None:
            with self._timed():
                self._scheduler.begin(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        with self._timed():
            return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        if self._scheduler is not None:
            with self._timed():
                self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepOrders:
        if self._scheduler is None:
            return StepOrders(Orders())
        with self._timed():
            return StepOrders(self._scheduler.build_orders(scheduler_output))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        found = connector_output.kv_connector_worker_meta
        if self._scheduler is not None and isinstance(found, StepResults):
            with self._timed():
                self._scheduler.take_results(found.results)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is None:
            return False, None
        counts = self._scheduler.finished(request)
        return False, {"memkv": dict(counts)} if self._settings.report else None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.is_holding

    # --- both ---------------------------------------------------------------------------------
    def get_kv_connector_stats(self) -> MemKVStats | None:
        """What workers counted came with their results, so the scheduler's side has all of it."""
        counts = {} if self._scheduler is None else self._scheduler.take_counts()
        if not counts:
            return None
        counts["busy_seconds"] = counts.get("busy_seconds", 0) + self._busy_seconds
        self._busy_seconds = 0.0
        return MemKVStats(data=counts)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> MemKVStats:
        return MemKVStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> MemKVPromMetrics:
        return MemKVPromMetrics(*arguments)

    def shutdown(self) -> None:
        for side in (self._worker, self._scheduler):
            if side is not None:
                side.close()
        self._worker = self._scheduler = None

    def _timed(self) -> _Timed:
        return _Timed(self)


class _Timed:
    """Counts what the connector costs the engine's thread."""

    def __init__(self, connector: MemKVConnector) -> None:
        self._connector = connector
        self._begin_ns = 0

    def __enter__(self) -> None:
        self._begin_ns = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        self._connector._busy_seconds += (time.thread_time_ns() - self._begin_ns) / 1e9
