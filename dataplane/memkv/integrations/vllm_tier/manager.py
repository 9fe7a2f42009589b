"""`MemKVSecondaryTier`: the class that vLLM loads. Only here the engine's classes are subclassed.

All methods run in the scheduler's thread, between two steps of the model, so none of them waits:
work is handed to another thread, and what ended is collected in `get_finished_jobs`. Only
`drain_jobs` and `shutdown` wait, as vLLM wants it. A chunk that cannot be had is a miss: the engine
computes it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadKey,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from memkv import _hotpath
from memkv.integrations.hints import session_id_of, wishes_in
from memkv.integrations.vllm_tier.chunks import ChunkMover, Ended, Job
from memkv.integrations.vllm_tier.engine import chunk_names
from memkv.integrations.vllm_tier.hints import block_hint, wanted_chunks
from memkv.integrations.vllm_tier.lookups import Lookups
from memkv.integrations.vllm_tier.metrics import Counted, definitions
from memkv.integrations.vllm_tier.naming import split
from memkv.integrations.vllm_tier.regions import spans_of
from memkv.integrations.vllm_tier.settings import TierSettings
from memkv.reasons import MissReason

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )
    from vllm.v1.kv_offload.base import (
        OffloadingMetricMetadata,
        OffloadingSpec,
        ReqContext,
        ScheduleEndContext,
    )
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
    from vllm.v1.kv_offload.tiering.base import TransferJob

    from memkv.client.options import BlockHint

logger = logging.getLogger("vllm.memkv")

DRAIN_COMPLAINT_S = 5.0  # vLLM's own tiers complain after as long


class _Head(bytes):
    """Of a request: the first chunk that it asked for, which all prompts that begin alike share."""


class MemKVSecondaryTier(SecondaryTierManager):  # type: ignore[misc]  # vLLM has no types here
    """Keeps chunks of the host cache in a MemKV pool."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self, offloading_spec: OffloadingSpec, primary_kv_view: memoryview, tier_type: str,
        backpressure_detector: BackpressureDetector | None = None, **options: object,
    ) -> None:
        """`options`: see `TierSettings`. Raises CallerError for what means nothing; a pool that is
        away does not keep the engine from starting."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        settings = TierSettings.of(options)
        self._settings = settings
        self.locality = Locality(settings.locality)
        self._row_bytes = int(self.block_size_bytes)
        self._names = chunk_names(offloading_spec, self._row_bytes, settings)
        self._events: list[OffloadingEvent] | None = None
        if settings.enable_kv_events:
            if offloading_spec.kv_events_config.enable_kv_cache_events:
                self._events = []
            else:
                logger.warning("enable_kv_events: KV cache events are off in this engine")
        self._client = settings.pool.connect()
        base = _hotpath.address_of(primary_kv_view)
        self._share_memory(base, primary_kv_view.nbytes)
        self._transfers = settings.pool.transfers(self._client)
        self._mover = ChunkMover(
            self._transfers, self._names, base, self._row_bytes,
            store_bytes_max=int(primary_kv_view.nbytes * settings.store_share),
            put_options=settings.pool.put_options,
        )
        self._answers: deque[tuple[list[bytes], list[bool]]] = deque()
        self._lookups = Lookups(
            self._ask, settings.lookup_deadline_ms, time.monotonic_ns, self._note_late
        )
        self._counted = Counted(settings.pool.pool)

    # --- lookups ------------------------------------------------------------------------------
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        if req_context.kv_hints is not None and self._names.is_known:
            self._prefetch(wanted_chunks(req_context.kv_hints.actions))
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if not self._names.is_known:
            return LookupResult.MISS
        if req_context.get_state(_Head) is None:
            req_context.set_state(_Head(key))
        is_there = self._lookups.look(bytes(key), req_context.req_id)
        if is_there is None:
            return LookupResult.RETRY
        return LookupResult.HIT if is_there else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._take_answers()
        self._lookups.flush()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.drop(req_context.req_id)
        counts = self._transfers.missed.take(req_context.req_id)
        self._transfers.dropped.take(req_context.req_id)
        if counts:
            logger.debug("request %s: chunks by reason: %s", req_context.req_id,
                         {reason.label: count for reason, count in counts.items()})

    # --- jobs ---------------------------------------------------------------------------------
    def submit_load(self, job_metadata: TransferJob) -> None:
        self._mover.load(self._job(job_metadata))

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._mover.store(self._job(job_metadata, self._hints(job_metadata)))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        self._take_answers()
        results = []
        for ended in self._mover.take_ended():
            if ended.job.is_load:
                # Until its requests are over, or they would order the same load for ever.
                self._lookups.mark_missing(ended.of(False))
            else:
                self._lookups.mark_present(ended.of(True))
                self._announce(ended.of(True))
                self._feed_back(ended)
            results.append(JobResult(
                ended.job.number, ended.is_whole,
                successful_keys=[OffloadKey(chunk) for chunk in ended.of(True)] or None,
                transfer_time=ended.seconds, transfer_bytes=sum(ended.moved) * self._row_bytes,
            ))
        return results

    def drain_jobs(self) -> None:
        self._mover.drain(DRAIN_COMPLAINT_S, lambda count: logger.warning(
            "%d transfers have not ended; the engine waits for them", count
        ))

    def shutdown(self) -> None:
        """Ends what is under way. The engine's memory is not used afterwards."""
        self._transfers.close()

    # --- for people ---------------------------------------------------------------------------
    def take_events(self) -> Iterable[OffloadingEvent]:
        if self._events is None:
            return ()
        events, self._events = self._events, []
        return events

    def get_stats(self) -> OffloadingConnectorStats | None:
        return self._counted.take(self._transfers.missed.totals, self._transfers.dropped.totals)

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        return definitions()

    @classmethod
    def config_info_keys(cls, tier_config: dict[str, Any]) -> tuple[str, ...]:
        return ("memkv_pool", "memkv_tenant", "memkv_locality")

    def config_info(self) -> Mapping[str, str | int | float | bool]:
        pool = self._settings.pool
        return {
            "memkv_pool": pool.pool, "memkv_tenant": pool.tenant,
            "memkv_locality": self._settings.locality,
        }

    # --- inside -------------------------------------------------------------------------------
    def _share_memory(self, base: int, size_bytes: int) -> None:
        """Announce the host cache once: to NICs, and by its file to workers on this machine."""
        if not self._settings.share_memory:
            self._client.register_buffer(base, size_bytes)
            return
        for span in spans_of(base, size_bytes):
            fd = span.open()
            if fd is None:
                self._client.register_buffer(span.address, span.size_bytes)
                logger.warning("share_memory: %d bytes of the host cache have no file with a name",
                               span.size_bytes)
                continue
            try:
                self._client.register_buffer(
                    span.address, span.size_bytes, fd=fd, fd_offset=span.offset
                )
            finally:
                os.close(fd)

    def _ask(self, request: str, chunks: list[bytes]) -> None:
        # A lease as long as a load may take: what was found is not evicted before it is read.
        self._transfers.lookup(
            [self._names.keys(chunk) for chunk in chunks],
            lambda found: self._answers.append((chunks, found)),
            lease_ms=self._settings.pool.load_deadline_ms, request=request,
        )

    def _take_answers(self) -> None:
        while self._answers:
            self._lookups.answer(*self._answers.popleft())

    def _note_late(self, request: str) -> None:
        self._transfers.missed.note(request, MissReason.TIMEOUT)

    def _prefetch(self, chunks: list[bytes]) -> None:
        if chunks:
            keys = [key for chunk in chunks for key in self._names.keys(chunk)]
            self._client.submit_prefetch(keys)
            self._counted.prefetched(len(chunks))

    def _job(self, job: TransferJob, hints: list[BlockHint] | None = None) -> Job:
        return Job(
            int(job.job_id), bool(job.is_promotion), [bytes(key) for key in job.keys],
            [int(row) for row in job.chunk_ids], str(job.req_context.req_id), hints or (),
        )

    def _hints(self, job: TransferJob) -> list[BlockHint]:
        context = job.req_context
        head = context.get_state(_Head) or b""
        session_id = session_id_of(wishes_in(context.kv_transfer_params))
        return [
            block_hint(
                head, context.get_offload_key_position(key),
                self._names.tokens(split(key)[1]), session_id,
            )
            for key in job.keys
        ]

    def _announce(self, chunks: list[bytes]) -> None:
        if self._events is not None and chunks:
            self._events.append(OffloadingEvent(
                [OffloadKey(chunk) for chunk in chunks], self.medium, removed=False,
                locality=self.locality,
            ))

    def _feed_back(self, ended: Ended) -> None:
        """vLLM tells its detector of stores that succeeded; up to 0.32 of no others, so that a pool
        that answers nothing would look idle."""
        detector = self.bp_detector
        if detector is None or ended.is_whole or hasattr(detector, "on_store_failed"):
            return
        seconds = max(ended.seconds, self._settings.pool.deadline_ms / 1_000)
        detector.on_store_completed(seconds, len(ended.job.chunks) * self._row_bytes)
