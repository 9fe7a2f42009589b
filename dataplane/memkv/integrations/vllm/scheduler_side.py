"""The connector in the engine's scheduler: what is looked up, loaded and stored, and when the
engine may reuse blocks that are being stored.

Blocks that a store reads are held by a reference of their own (`BlockPool.touch`), so that neither
the end of a request nor its preemption frees them early, and no request waits for its stores.

With `pipeline_layers` the engine takes blocks for computed while they are being loaded: it offers
them to other requests, and computes more from them. So until the load is over nobody else gets
them, and nothing of the request is stored; when it fails, the engine's prefix cache forgets them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from memkv.errors import CallerError
from memkv.integrations.blocks import PAYLOAD_BYTES_MAX
from memkv.integrations.hints import session_id_of, wishes_in
from memkv.integrations.keys import Adapter, Namespace, Rank
from memkv.integrations.reasons import RequestReasons
from memkv.integrations.vllm.adapters import Adapters, Hasher, HashesWithoutAdapter
from memkv.integrations.vllm.lookups import LookupClient, Lookups
from memkv.integrations.vllm.messages import FailedLoad, Orders, RankFormat, Results, Transfer
from memkv.integrations.vllm.planner import NULL_BLOCK, CacheShape, PlacedBlock, RequestPlan
from memkv.integrations.vllm.settings import Settings
from memkv.reasons import MissReason

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.memkv")


class Names(Protocol):
    """Gives the blocks of a request their namespaces, one for each rank."""

    def namespaces(
        self, formats: Sequence[RankFormat], ranks: Sequence[tuple[Rank, ...]],
        adapter: Adapter | None, salt: str,
    ) -> tuple[Namespace, ...]: ...


@dataclass
class _Known:
    """What is kept of one request."""

    request: Request
    plan: RequestPlan
    names: tuple[Namespace, ...]
    does_load: bool
    does_store: bool
    session_id: bytes
    preemptions: int = 0
    loading: list[PlacedBlock] = field(default_factory=list)
    """Blocks that were loaded, or are on their way."""
    local_tokens: int = 0
    layered_job: int | None = None
    """A load that its layers wait for in the step under way."""


@dataclass
class _Layered:
    """A load that layers wait for, from its order to the end of its step."""

    request_id: str
    hashes: list[bytes]
    """The engine's own, of the blocks."""
    places: list[int]
    """Of the request's blocks, from the first one."""
    missing_ranks: int
    stores: list[Transfer] = field(default_factory=list)
    """Of what the step computes, once it is known to be right."""
    first_missing: int | None = None


class SchedulerSide:
    """Of one engine. Used by its scheduler's thread."""

    def __init__(
        self, client: LookupClient, settings: Settings, names: Names, shape: CacheShape,
        ranks: Sequence[tuple[Rank, ...]], hasher: Hasher, *, loads: bool, stores: bool,
    ) -> None:
        """`ranks`: of each worker, in the order of their (pp, tp) ranks. `hasher`: the engine's."""
        self._client = client
        self._settings = settings
        self._names = names
        self._shape = self._uncut = shape
        self._ranks = ranks
        self._hasher = hasher
        self._adapters = Adapters()
        self._does_load, self._does_store = loads, stores
        self._formats: list[RankFormat] = []
        # A lease as long as a load may take: what was found is not evicted before it is read.
        self._lookups = Lookups(
            client, settings.load_deadline_ms, settings.lookup_deadline_ms, time.monotonic_ns
        )
        self._requests: dict[str, _Known] = {}
        self._orders = Orders()
        self._pool: BlockPool | None = None
        self._pool_blocks_max = 0
        self._next_job = 1
        self._held: dict[int, tuple[list[int], int]] = {}
        """Store jobs: the blocks that they hold, and how many ranks have not finished."""
        self._held_blocks = 0
        self._layered: dict[int, _Layered] = {}
        self._arriving: Counter[bytes] = Counter()
        """Hashes of their blocks."""
        self._reasons = RequestReasons()
        self._said: set[str] = set()
        self._counts: dict[str, float] = {}

    def set_formats(self, formats: list[RankFormat]) -> None:
        """The workers have their caches: from now on blocks can be named. What no pool could hold
        keeps the engine from sharing, not from computing."""
        reason = _why_not(formats, len(self._ranks), self._uncut.block_tokens)
        if reason is not None:
            logger.error("MemKV is off, everything is computed: %s", reason)
        self._formats = [] if reason is not None else formats
        if self._formats and self._settings.pipeline_layers:
            self._shape = self._uncut.cut(len(formats[0].payload_bytes))

    def bind_pool(self, pool: BlockPool) -> None:
        self._pool = pool
        self._pool_blocks_max = int(pool.num_gpu_blocks * self._settings.store_share)

    # --- a request's way ----------------------------------------------------------------------
    def begin(self, request: Request) -> None:
        """A request arrived: ask for its blocks before anybody waits for the answer."""
        if self._formats:
            self._ask(self._known(request))

    def matched(self, request: Request, computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens can be loaded, None while that is not known."""
        if not self._formats:
            return 0, False
        known = self._known(request)
        plan = known.plan
        if request.num_preemptions != known.preemptions:
            known.preemptions = request.num_preemptions
            plan.forget_answer()
        known.local_tokens = computed_tokens
        if self._has_arriving(request, computed_tokens):
            return None, False
        if not plan.is_answered:
            if not self._lookups.is_asked(request.request_id) and not self._ask(known):
                plan.unanswered(computed_tokens)
                return 0, False
            answer = self._lookups.take(request.request_id)
            if answer is None:
                return None, False
            for reason, count in answer.reasons.items():
                self._reasons.note(request.request_id, reason, count)
                self._count(f"lookup_{reason.label}", count)
            if answer.is_known:
                plan.answer(answer.present)
            else:
                plan.unanswered(computed_tokens)
        tokens = plan.matched(computed_tokens) if known.does_load else 0
        return tokens, tokens > 0 and not self._settings.pipeline_layers

    def allocated(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        """The engine chose places for tokens that it wants loaded."""
        known = self._requests.get(request.request_id)
        if known is None or external_tokens == 0:
            return
        wanted = known.plan.load(known.local_tokens, external_tokens, blocks.get_block_ids())
        known.loading = wanted
        transfer = self._transfer(known, wanted)
        if self._settings.pipeline_layers:
            self._orders.layered.append(transfer)
            self._expect(known, transfer, blocks.get_block_ids()[0])
        else:
            self._orders.loads.append(transfer)
        self._count("hit_tokens", external_tokens)

    def build_orders(self, output: SchedulerOutput) -> Orders:
        """Return what the workers do in this step."""
        if self._formats:
            self._lookups.end_step()
            self._note_explained()
            for request_id, tokens in output.num_scheduled_tokens.items():
                self._order_store(request_id, tokens, output)
        orders, self._orders = self._orders, Orders()
        orders.is_idle = output.total_num_scheduled_tokens == 0
        return orders

    def take_results(self, results: Results) -> None:
        """Let go of stored blocks; remember which loads failed."""
        for job, ranks in results.stored.items():
            blocks, missing = self._held[job]
            if missing > ranks:
                self._held[job] = (blocks, missing - ranks)
            else:
                del self._held[job]
                self._let_go(blocks)
        for load in results.failed.values():
            self._load_failed(load)
        for job, ranks in results.layered.items():
            self._layered_over(job, ranks)
        for name, count in results.counts.items():
            self._count(name, count)

    def finished(self, request: Request) -> Mapping[str, int]:
        """A request is over; return what was counted of its blocks: by reason, and bytes."""
        self._lookups.collect()
        self._note_explained()
        self._lookups.drop(request.request_id)
        known = self._requests.pop(request.request_id, None)
        counts = {
            reason.label: count
            for reason, count in self._reasons.take(request.request_id).items() if count
        }
        if known is not None and known.loading:
            counts["loaded_bytes"] = sum(
                one.payload_bytes[block.group] for one in self._formats for block in known.loading
            )
        logger.debug("request %s: blocks in the pool by reason: %s", request.request_id, counts)
        return counts

    @property
    def is_holding(self) -> bool:
        """Are blocks held for stores? They are let go in a step, so steps must go on."""
        return bool(self._held)

    def take_counts(self) -> dict[str, float]:
        """Return what was counted since the last call."""
        counts, self._counts = self._counts, {}
        return counts

    def close(self) -> None:
        self._client.close()

    # --- inside -------------------------------------------------------------------------------
    def _known(self, request: Request) -> _Known:
        known = self._requests.get(request.request_id)
        if known is None:
            wishes = wishes_in(request.kv_transfer_params)
            known = _Known(
                request, RequestPlan(self._shape, self._hashes(request)), self._name(request),
                does_load=self._does_load and wishes.get("load") is not False,
                does_store=self._does_store and wishes.get("store") is not False,
                session_id=session_id_of(wishes),
            )
            if not known.names:
                known.does_load = known.does_store = False
                self._count("requests_not_shared")
            self._requests[request.request_id] = known
        return known

    def _name(self, request: Request) -> tuple[Namespace, ...]:
        """Return the namespaces of a request; none when they cannot be said: what users send must
        not end an engine."""
        try:
            return self._names.namespaces(
                self._formats, self._ranks, self._adapters.of(request), request.cache_salt or ""
            )
        except CallerError as error:
            logger.debug("request %s is not shared: %s", request.request_id, error)
            if str(error) not in self._said:  # once, not with each request of an adapter
                self._said.add(str(error))
                logger.warning("requests are not shared: %s", error)
            return ()

    def _hashes(self, request: Request) -> Sequence[bytes]:
        if request.lora_request is None:
            found: Sequence[bytes] = request.block_hashes
            return found
        return HashesWithoutAdapter(request, self._hasher)

    def _ask(self, known: _Known) -> bool:
        """Ask the pool, if there is anything to ask for."""
        count = known.plan.wanted(known.request.num_tokens) if known.does_load else 0
        if not count:
            return False
        self._lookups.ask(
            known.request.request_id, known.names, known.plan.hashes(count),
            len(self._shape.windows),
        )
        return True

    def _order_store(self, request_id: str, tokens: int, output: SchedulerOutput) -> None:
        known = self._requests.get(request_id)
        if known is None or not known.does_store:
            return
        computed = known.request.num_computed_tokens + tokens
        if not known.plan.has_to_store(computed):
            return
        places = output.kv_connector_block_state.get_block_ids(request_id)
        wanted = known.plan.store(computed, places)
        if not wanted:
            return
        blocks = sorted({block.place for block in wanted} - {NULL_BLOCK})
        if self._held_blocks + len(blocks) > self._pool_blocks_max:
            # Storing must never take the engine's memory away from requests.
            self._count("stores_dropped", len(wanted))
            return
        transfer = self._transfer(known, wanted)
        self._hold(transfer.job, blocks)
        if known.layered_job is None:
            self._orders.stores.append(transfer)
        else:
            self._layered[known.layered_job].stores.append(transfer)

    def _has_arriving(self, request: Request, computed_tokens: int) -> bool:
        """Has the engine found blocks whose load may still fail?"""
        if not self._arriving:
            return False
        found = request.block_hashes[: computed_tokens // self._shape.block_tokens]
        return any(block_hash in self._arriving for block_hash in found)

    def _expect(self, known: _Known, transfer: Transfer, places: list[int]) -> None:
        numbers = {block.number for block in transfer.blocks}
        hashes = [known.request.block_hashes[number] for number in numbers]
        self._layered[transfer.job] = _Layered(
            known.request.request_id, hashes, list(places), len(self._ranks)
        )
        self._arriving.update(hashes)
        known.layered_job = transfer.job

    def _layered_over(self, job: int, ranks: int) -> None:
        load = self._layered[job]
        load.missing_ranks -= ranks
        if load.missing_ranks:
            return
        del self._layered[job]
        self._arriving -= Counter(load.hashes)
        known = self._requests.get(load.request_id)
        if known is not None and known.layered_job == job:
            known.layered_job = None
        if load.first_missing is None:
            self._orders.stores += load.stores
            return
        for store in load.stores:  # computed from what was not there
            blocks, _ = self._held.pop(store.job)
            self._let_go(blocks)
        assert self._pool is not None
        # The request may end before it has computed them again.
        self._pool.evict_blocks(set(load.places[load.first_missing :]) - {NULL_BLOCK})

    def _transfer(self, known: _Known, blocks: list[PlacedBlock]) -> Transfer:
        job, self._next_job = self._next_job, self._next_job + 1
        first = known.plan.hashes(1)[0] if known.plan.hashes(1) else b""
        return Transfer(
            job, known.request.request_id, known.names, first[:8].ljust(8, b"\0"), blocks,
            known.session_id,
        )

    def _hold(self, job: int, blocks: list[int]) -> None:
        assert self._pool is not None, "blocks are computed before the engine bound its pool"
        self._pool.touch([self._pool.blocks[block] for block in blocks])
        self._held[job] = (blocks, len(self._ranks))
        self._held_blocks += len(blocks)

    def _let_go(self, blocks: list[int]) -> None:
        assert self._pool is not None
        self._held_blocks -= len(blocks)
        # Tails first, as the engine does, so that heads of prompts are evicted last.
        self._pool.free_blocks(self._pool.blocks[block] for block in reversed(blocks))

    def _note_explained(self) -> None:
        for explained in self._lookups.take_explained():
            for reason in explained.reasons:
                if reason == MissReason.PRESENT:  # somebody has stored it since
                    continue
                self._count(f"missed_{reason.label}")
                if explained.request_id in self._requests:
                    self._reasons.note(explained.request_id, MissReason.UNEXPLAINED, -1)
                    self._reasons.note(explained.request_id, reason)

    def _load_failed(self, load: FailedLoad) -> None:
        known = self._requests.get(load.request_id)
        reason = MissReason[load.reason.upper()]
        logger.warning("request %s: loading ended at block %d: %s; the rest is computed",
                       load.request_id, load.first_missing, load.reason)
        for layered in self._layered.values():
            if layered.request_id == load.request_id:
                layered.first_missing = load.first_missing
        if known is not None:
            known.plan.load_failed(load.first_missing)
            known.loading = [
                block for block in known.loading if block.number < load.first_missing
            ]
            self._reasons.note(load.request_id, reason)

    def _count(self, name: str, count: float = 1) -> None:
        self._counts[name] = self._counts.get(name, 0) + count


def _why_not(formats: Sequence[RankFormat], ranks: int, block_tokens: int) -> str | None:
    if len(formats) != ranks:
        return f"{ranks - len(formats)} of {ranks} workers did not say what their blocks are"
    largest = max(size for one in formats for size in one.payload_bytes)
    if largest <= PAYLOAD_BYTES_MAX:
        return None
    fits = block_tokens * PAYLOAD_BYTES_MAX // largest
    return (
        f"a block of {block_tokens} tokens has {largest} bytes, and at most {PAYLOAD_BYTES_MAX} "
        f"fit an object: choose a --block-size below {fits + 1}, or cut it by pipeline_layers"
    )
