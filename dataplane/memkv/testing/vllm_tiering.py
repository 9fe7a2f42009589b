"""vLLM's real tiering manager with a MemKV pool behind its real host cache; only the GPU is played.

The manager, its primary tier, the shared mapping, the factory that loads the tier, requests and
their block hashes are vLLM's. What a GPU worker does, filling and reading rows of the host cache,
is done by whoever holds a `TieredCache`.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadingEvent,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.request import Request

from memkv.integrations.vllm_tier.manager import MemKVSecondaryTier
from memkv.integrations.vllm_tier.metrics import READS

BLOCK_TOKENS = 16
BLOCKS_PER_CHUNK = 4
BLOCK_BYTES = 64 * 1024
STEP_S = 0.002  # a model's step takes longer
WAIT_S = 60.0
HASH = "sha256_cbor"

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class EngineShape:
    """What a test may change of an engine."""

    model: str = "tests/model"
    dtype: str = "bfloat16"
    group_tokens: tuple[int, ...] = (BLOCK_TOKENS,)
    blocks_per_chunk: int = BLOCKS_PER_CHUNK
    block_bytes: int = BLOCK_BYTES
    tp: int = 1
    order: str = "LBNHC"
    canonical: bool = False
    chunks: int = 64
    events: bool = True

    def config(self, tier: Mapping[str, object]) -> OffloadingConfig:
        """Return the engine's configuration as vLLM hands it to its tiers."""
        chunk_bytes = self.block_bytes * self.tp * self.blocks_per_chunk
        return OffloadingConfig(
            groups=tuple(
                OffloadingGroupConfig(
                    tokens_per_block=tokens, layer_names=(f"layers.{number}",), group_id=number
                )
                for number, tokens in enumerate(self.group_tokens)
            ),
            worker_kv_bytes_per_block=self.block_bytes,
            enable_kv_cache_events=self.events,
            extra_config={
                "spec_name": "TieringOffloadingSpec",
                "cpu_bytes_to_use": chunk_bytes * self.chunks,
                "secondary_tiers": [{
                    "type": "MemKVSecondaryTier",
                    "module_path": "memkv.integrations.vllm_tier", **tier,
                }],
            },
            engine_id=f"memkv-test-{uuid.uuid4()}",
            model=OffloadingModelConfig(name=self.model, dtype=self.dtype),
            cache=OffloadingCacheConfig(
                tokens_per_hash=min(self.group_tokens), blocks_per_chunk=self.blocks_per_chunk
            ),
            parallel=OffloadingParallelConfig(
                rank=0, world_size=self.tp, tp_size=self.tp, pp_size=1, pcp_size=1, dcp_size=1,
                data_parallel_index=0, data_parallel_size=1, data_parallel_rank_local=None,
                is_parallelism_agnostic=self.canonical,
            ),
            canonical_layout=self.canonical,
            kv_cache_layout=self.order,
        )


@dataclass
class Looked:
    """What a request found. `found[n]`: the bytes of its n-th chunk; None for a miss."""

    found: list[bytes | None]
    steps: int
    seconds: float


@dataclass
class Slowest:
    """The longest single call of the manager: nothing may hold up the scheduler's thread."""

    seconds: float = 0.0
    call: str = ""

    def timed(self, call: Callable[..., ResultT], *arguments: object) -> ResultT:
        began = time.monotonic()
        try:
            return call(*arguments)
        finally:
            took = time.monotonic() - began
            if took > self.seconds:
                self.seconds, self.call = took, call.__name__


@dataclass
class TieredCache:
    """One engine's offloading. Not thread-safe, as the engine's scheduler is not."""

    tier_options: Mapping[str, object]
    shape: EngineShape = field(default_factory=EngineShape)
    slowest: Slowest = field(default_factory=Slowest)

    def __post_init__(self) -> None:
        init_none_hash(get_hash_fn_by_name(HASH))
        self.spec = OffloadingSpecFactory.create_spec(self.shape.config(self.tier_options))
        self.manager = self.spec.get_manager()
        (tier,) = self.manager.secondary_tiers
        assert isinstance(tier, MemKVSecondaryTier)
        self.tier = tier
        self.rows: memoryview = self.manager.primary_tier.get_kv_memoryview().cast("B")
        self.row_bytes = int(self.spec.kv_bytes_per_chunk)
        self.counts: dict[tuple[str, tuple[str, ...]], float] = {}

    # --- the engine's side --------------------------------------------------------------------
    def chunks(
        self, name: str, count: int, *, group: int = 0, salt: str = "",
        adapter: LoRARequest | None = None,
    ) -> list[OffloadKey]:
        """Return vLLM's names of the chunks of a prompt that `name` stands for."""
        tokens = self.shape.group_tokens[group] * self.shape.blocks_per_chunk
        hash_tokens = min(self.shape.group_tokens)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        request = Request(
            name, [(seed + n) % 50_000 for n in range(count * tokens)],
            SamplingParams(max_tokens=1), None, cache_salt=salt or None, lora_request=adapter,
            block_hasher=get_request_block_hasher(hash_tokens, get_hash_fn_by_name(HASH)),
        )
        step = tokens // hash_tokens
        hashes = request.block_hashes[step - 1 :: step]
        assert len(hashes) == count
        return [make_offload_key(block_hash, group) for block_hash in hashes]

    def content(self, key: OffloadKey, version: int = 0) -> bytes:
        """Return bytes that belong to a chunk, as a model would compute them."""
        return hashlib.shake_128(bytes(key) + bytes([version])).digest(self.row_bytes)

    def step(self, new: Iterable[str] = ()) -> None:
        """End one step of the scheduler."""
        context = ScheduleEndContext(new_req_ids=list(new), preempted_req_ids=[])
        self._timed(self.manager.on_schedule_end, context)
        stats = self._timed(self.manager.get_stats)
        if stats is not None:
            for name, values in stats.data["data"].items():
                for labels, value in values.items():
                    if isinstance(value, (int, float)):
                        old = self.counts.get((name, labels), 0)
                        is_gauge = stats.data["types"][name] == "gauge"
                        self.counts[name, labels] = value if is_gauge else old + value
        time.sleep(STEP_S)

    def settle(self, timeout_s: float = WAIT_S) -> None:
        """Step until nothing is under way."""
        end = time.monotonic() + timeout_s
        self.step()
        while self._timed(self.manager.has_pending_work):
            assert time.monotonic() < end, "transfers do not end"
            self.step()

    def store(
        self, name: str, keys: Sequence[OffloadKey], *, settle: bool = True
    ) -> None:
        """Have a request compute chunks and offload them."""
        context = ReqContext(req_id=f"store-{name}-{uuid.uuid4()}")
        for number, key in enumerate(keys):
            context.set_offload_key_position(key, (number + 1) * self.tier._names.tokens(0))
        self._timed(self.manager.on_new_request, context)
        output = self._timed(self.manager.prepare_store, keys, context)
        assert output is not None, "the host cache is full"
        for key, row in zip(output.keys_to_store, output.store_spec.block_ids, strict=True):
            self._row(int(row))[:] = self.content(key)
        if output.keys_to_store:
            self._timed(self.manager.complete_store, output.keys_to_store, context)
        self._timed(self.manager.on_request_finished, context)
        if settle:
            self.settle()

    def look(
        self, name: str, keys: Sequence[OffloadKey], *, between: Callable[[], None] | None = None,
        timeout_s: float = WAIT_S, context: ReqContext | None = None,
    ) -> Looked:
        """Have a request look for chunks until each is there or is not, and read what is there.
        `between` is called once, after the pool was asked and before its answer is used."""
        context = context or ReqContext(req_id=f"look-{name}-{uuid.uuid4()}")
        self._timed(self.manager.on_new_request, context)
        began, steps = time.monotonic(), 0
        while True:
            states = [self._timed(self.manager.lookup, key, context) for key in keys]
            self.step()
            steps += 1
            if not set(states) & {LookupResult.RETRY, LookupResult.HIT_PENDING}:
                break
            assert time.monotonic() - began < timeout_s, f"still {states} after {steps} steps"
            if between is not None and LookupResult.RETRY in states:
                between()
                between = None
        seconds = time.monotonic() - began
        hits = [key for key, state in zip(keys, states, strict=True) if state is LookupResult.HIT]
        found = dict(zip(hits, self._read(hits, context), strict=True))
        self._timed(self.manager.on_request_finished, context)
        self.step([context.req_id])
        return Looked([found.get(key) for key in keys], steps, seconds)

    def forget(self) -> None:
        """Empty the host cache, as after a wake-up or new weights."""
        self.manager.reset_cache()
        getattr(self.manager, "on_reset_flushed", lambda: None)()

    def events(self) -> list[OffloadingEvent]:
        return list(self.manager.take_events())

    def count(self, name: str, *labels: str) -> float:
        """Return what a counter of vLLM has reached, over all series whose labels end so."""
        return sum(
            value for (found, values), value in self.counts.items()
            if found == name and values[len(values) - len(labels) :] == labels
        )

    def reads(self, chunks: int, timeout_s: float = WAIT_S) -> dict[str, float]:
        """Step until so many chunks are counted as read or missed, since reasons come after the
        misses; return the counts by reason."""
        end = time.monotonic() + timeout_s
        while True:
            found: dict[str, float] = {}
            for (name, labels), value in self.counts.items():
                if name == READS:
                    found[labels[-1]] = found.get(labels[-1], 0) + value
            if sum(found.values()) >= chunks:
                return found
            assert time.monotonic() < end, f"{found} of {chunks} chunks"
            self.step()

    def close(self) -> None:
        self.rows.release()
        self.manager.shutdown()

    def __enter__(self) -> TieredCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------
    def _row(self, number: int) -> memoryview:
        return self.rows[number * self.row_bytes : (number + 1) * self.row_bytes]

    def _timed(self, call: Callable[..., ResultT], *arguments: object) -> ResultT:
        return self.slowest.timed(call, *arguments)

    def _read(self, keys: Sequence[OffloadKey], context: ReqContext) -> list[bytes]:
        if not keys:
            return []
        spec = self._timed(self.manager.prepare_load, keys, context)
        rows = [bytes(self._row(int(row))) for row in spec.block_ids]
        self._timed(self.manager.complete_load, keys, context)
        return rows
