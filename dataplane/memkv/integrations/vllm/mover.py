"""Moves blocks between an engine's cache and the pool, without a thread and without waiting.

The engine calls `poll` once a step; whatever ended since then makes room for what comes next. Loads
go before stores. A load ends at its first block that cannot be had: what comes after it is of no
use. Nothing is reported as over while a buffer of it may still be written: a QUARANTINED block
keeps its load or store open until the client gives the buffer back. Loads in parts (pipeline.py)
are waited for and given up by who began them; they need memory that copies what it loads.
"""

from __future__ import annotations

import select
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memkv.client.events import Completion
from memkv.client.options import BlockHint, PutOptions
from memkv.errors import MemKVError, RetryLater
from memkv.integrations.arena import HeaderPages
from memkv.integrations.blocks import BlockFormat, judge
from memkv.integrations.keys import block_key
from memkv.integrations.vllm.memory import Batch, BlockMemory
from memkv.integrations.vllm.messages import FailedLoad, Transfer
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.limits import BLOCK_HEADER_BYTES
from memkv.reasons import MissReason, reason_of
from memkv.status import Status

LANDING_WAIT_MS = 1
FORMATS_MAX = 1024  # kept ready: adapters and salts of one engine


class MoverClient(Protocol):
    """What of a client the mover needs."""

    @property
    def event_fd(self) -> int: ...
    def submit_get_into_multi(
        self, keys: Sequence[bytes], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> int: ...
    def submit_put_from_multi(
        self, keys: Sequence[bytes], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> int: ...
    def completions(self) -> list[Completion]: ...


@dataclass
class Fate:
    """What came of a load so far; the parts of one load share it."""

    first_missing: int | None = None
    reason: MissReason = MissReason.PRESENT

    def fail(self, number: int, reason: MissReason) -> None:
        if self.is_wanted(number):
            self.first_missing, self.reason = number, reason

    def is_wanted(self, number: int) -> bool:
        """Blocks behind a missing one are of no use."""
        return self.first_missing is None or number < self.first_missing

    def failed_load(self, request_id: str) -> FailedLoad | None:
        if self.first_missing is None:
            return None
        return FailedLoad(request_id, self.first_missing, self.reason.label)


@dataclass
class Move:
    """One load or store in progress. Its blocks are in the order of their numbers."""

    transfer: Transfer
    is_load: bool
    began_ns: int
    is_part: bool = False
    fate: Fate = field(default_factory=Fate)
    next: int = 0
    batches: int = 0
    """That were begun and are not over."""
    awaited: list[int] = field(default_factory=list)
    """First block numbers of calls that the client has not ended."""
    landed: list[Batch] = field(default_factory=list)
    """Of a part: what `precede` has to be said of."""
    is_given_up: bool = False

    @property
    def has_more(self) -> bool:
        """Are there blocks to be asked for?"""
        blocks = self.transfer.blocks
        return (
            not self.is_given_up and self.next < len(blocks)
            and self.fate.is_wanted(blocks[self.next].number)
        )

    @property
    def is_over(self) -> bool:
        return not self.batches and not self.has_more

    @property
    def is_settled(self) -> bool:
        """Is all on its way to its place that will be and is of use?"""
        return not self.has_more and not any(map(self.fate.is_wanted, self.awaited))


@dataclass(eq=False)
class _Call:
    """One batch, from its preparation to the return of its last buffer."""

    move: Move
    blocks: list[PlacedBlock]
    batch: Batch
    size_bytes: int
    headers: list[int]
    formats: list[BlockFormat]
    has_own_pages: bool
    """Are its headers in pages that nobody else uses?"""
    held: set[int] = field(default_factory=set)
    """Headers of its QUARANTINED blocks: where their buffers begin."""
    is_settled: bool = False
    """Has its move nothing to wait for any more?"""


@dataclass
class Ended:
    """What `poll` saw the end of."""

    loads: list[Transfer] = field(default_factory=list)
    failed: list[FailedLoad] = field(default_factory=list)
    """Of those loads."""
    stores: list[Transfer] = field(default_factory=list)


class Mover:
    """Of one worker. Used by one thread."""

    def __init__(
        self, client: MoverClient, memory: BlockMemory, pages: HeaderPages, rank: int, *,
        batch_bytes: int, in_flight_bytes: int, load_deadline_ms: int, now_ns: Callable[[], int],
    ) -> None:
        self._client = client
        self._news = select.poll()  # select() takes no descriptor over 1023
        self._news.register(client.event_fd, select.POLLIN)
        self._memory = memory
        self._pages = pages
        self._rank = rank
        self._batch_bytes = batch_bytes
        self._in_flight_bytes_max = in_flight_bytes
        self._load_deadline_ns = load_deadline_ms * 1_000_000
        self._now_ns = now_ns
        self._loads: deque[Move] = deque()
        self._stores: deque[Move] = deque()
        self._preparing: list[_Call] = []
        self._calls: dict[int, _Call] = {}
        self._landing: list[_Call] = []
        self._quarantined: list[_Call] = []
        self._held: Counter[int] = Counter()
        """How many buffers that begin there were not given back yet."""
        self._in_flight_bytes = 0
        self._formats: dict[tuple[bytes, int], BlockFormat] = {}
        self._counts: dict[str, float] = {}

    def load(self, transfer: Transfer) -> None:
        """Begin to fill the places of a transfer."""
        self._loads.append(Move(transfer, True, self._now_ns()))

    def load_part(self, transfer: Transfer, fate: Fate) -> Move:
        """Begin to fill the places of one part of a load, after those that were begun before."""
        move = Move(transfer, True, self._now_ns(), True, fate)
        self._loads.append(move)
        return move

    def give_up(self, move: Move) -> None:
        """Whatever of a part still comes touches no place any more. Its buffers are the memory's
        until the client ends their calls."""
        move.is_given_up = True

    def store(self, transfer: Transfer) -> None:
        """Begin to store what lies in the places of a transfer; nobody may write there until it is
        over."""
        self._stores.append(Move(transfer, False, self._now_ns()))

    @property
    def is_busy(self) -> bool:
        return bool(self._loads or self._stores)

    @property
    def has_late_writers(self) -> bool:
        """May somebody still write into memory of calls that are over for their moves?"""
        return bool(self._quarantined)

    def take_counts(self) -> dict[str, float]:
        """Return what was counted since the last call."""
        counts, self._counts = self._counts, {}
        return counts

    def count(self, name: str, count: float = 1) -> None:
        """Add to what `take_counts` returns."""
        self._counts[name] = self._counts.get(name, 0) + count

    def poll(self, wait_ms: int = 0) -> Ended:
        """Go on with everything; return what is over. Waits at most `wait_ms` for news."""
        self.advance()
        if wait_ms and self.is_busy and not self._is_any_over():
            self.advance(wait_ms)
        return self._take_ended()

    def advance(self, wait_ms: float = 0) -> None:
        """Go on with everything, after waiting at most `wait_ms` for news."""
        if wait_ms and self._landing:
            wait_ms = min(wait_ms, LANDING_WAIT_MS)  # of copies the client has no news
        if wait_ms:
            self._news.poll(wait_ms)
        for completion in self._client.completions():
            if completion.job_id:
                self._complete(self._calls.pop(completion.job_id), completion.results)
            else:
                self._give_back(completion.released)
        landed = [call for call in self._landing if call.batch.is_landed()]
        for call in landed:
            self._landing.remove(call)
            self._settle(call)
        for moves in (self._loads, self._stores):
            for move in moves:
                self._begin(move)
        for call in [call for call in self._preparing if call.batch.is_ready()]:
            self._preparing.remove(call)
            self._submit(call)

    def _is_any_over(self) -> bool:
        return any(move.is_over for moves in (self._loads, self._stores) for move in moves)

    def _take_ended(self) -> Ended:
        ended = Ended()
        for move in [move for move in self._loads if move.is_over]:
            self._loads.remove(move)
            if move.is_part:
                continue
            ended.loads.append(move.transfer)
            self.count("loads")
            self.count("load_seconds", (self._now_ns() - move.began_ns) / 1e9)
            failed = move.fate.failed_load(move.transfer.request_id)
            if failed is not None:
                self.count("loads_failed")
                ended.failed.append(failed)
        for move in [move for move in self._stores if move.is_over]:
            self._stores.remove(move)
            ended.stores.append(move.transfer)
        return ended

    def _begin(self, move: Move) -> None:
        """Begin batches of a move while there is room."""
        while move.has_more:
            if move.is_load and self._now_ns() - move.began_ns > self._load_deadline_ns:
                move.fate.fail(move.transfer.blocks[move.next].number, MissReason.TIMEOUT)
                return
            call = self._prepare(move)
            if call is None:
                return
            move.next += len(call.blocks)
            move.batches += 1
            move.awaited.append(call.blocks[0].number)
            self._in_flight_bytes += call.size_bytes
            self._preparing.append(call)

    def _prepare(self, move: Move) -> _Call | None:
        blocks: list[PlacedBlock] = []
        size_bytes = 0
        for block in move.transfer.blocks[move.next :]:
            size = self._memory.payload_bytes[block.group] + BLOCK_HEADER_BYTES
            if blocks and (
                size_bytes + size > self._batch_bytes or not move.fate.is_wanted(block.number)
            ):
                break
            blocks.append(block)
            size_bytes += size
        # One batch always fits, however large its blocks are. A step that waits for parts waits for
        # no stores: the memory that they are copied through limits them.
        is_full = self._in_flight_bytes + size_bytes > self._in_flight_bytes_max
        if self._in_flight_bytes and is_full and not move.is_part:
            return None
        formats = [self._format(move.transfer, block) for block in blocks]
        headers = None if move.is_load else self._shared_headers(formats)
        has_own_pages = headers is None
        if headers is None:
            headers = self._own_headers(formats)
        if headers is None:
            return None
        begin = self._memory.begin_get if move.is_load else self._memory.begin_put
        batch = begin(blocks)
        if batch is None:
            if has_own_pages:
                self._pages.give_back(headers)
            return None
        return _Call(move, blocks, batch, size_bytes, headers, formats, has_own_pages)

    def _shared_headers(self, formats: list[BlockFormat]) -> list[int] | None:
        """Return pages for a put; None when there were too many adapters and salts to share."""
        try:
            return [self._pages.of_put(block_format) for block_format in formats]
        except RetryLater:
            return None

    def _own_headers(self, formats: list[BlockFormat]) -> list[int] | None:
        """Return pages with headers that a get overwrites; None while there are not so many."""
        pages = self._pages.take(len(formats))
        for page, block_format in zip(pages or (), formats, strict=bool(pages)):
            self._pages.view(page)[:] = block_format.header
        return pages

    def _submit(self, call: _Call) -> None:
        name = call.move.transfer.names[self._rank]
        keys = [block_key(name, block.block_hash, block.group) for block in call.blocks]
        ptrs = [
            [header, *addresses]
            for header, (addresses, _) in zip(call.headers, call.batch.pieces, strict=True)
        ]
        sizes = [[BLOCK_HEADER_BYTES, *sizes] for _, sizes in call.batch.pieces]
        try:
            self._calls[self._begin_call(call, keys, ptrs, sizes)] = call
        except MemKVError:  # a bug, and still no reason for an engine to end
            self._complete(call, [Status.INTERNAL] * len(keys))

    def _begin_call(
        self, call: _Call, keys: list[bytes], ptrs: list[list[int]], sizes: list[list[int]]
    ) -> int:
        if call.move.is_load:
            return self._client.submit_get_into_multi(keys, ptrs, sizes)
        transfer = call.move.transfer
        hints = [
            BlockHint(transfer.prefix_id, block.number, transfer.session_id)
            for block in call.blocks
        ]
        return self._client.submit_put_from_multi(keys, ptrs, sizes, PutOptions(hints=hints))

    def _complete(self, call: _Call, results: Sequence[int]) -> None:
        for header, result in zip(call.headers, results, strict=True):
            if result == Status.QUARANTINED:
                call.held.add(header)
                self._held[header] += 1
        call.move.awaited.remove(call.blocks[0].number)
        if call.move.is_given_up:
            pass  # the places are the engine's again
        elif call.move.is_load:
            if not call.batch.land(self._judge(call, results)):
                call.move.fate.fail(call.blocks[0].number, MissReason.OTHER)
            if call.move.is_part:
                call.move.landed.append(call.batch)
        else:
            self._count_stored(call, results)
        if call.held:
            self._quarantined.append(call)
        if not call.held or call.batch.is_private:
            self._landing.append(call)

    def _judge(self, call: _Call, results: Sequence[int]) -> list[bool]:
        arrived = []
        for block, header, block_format, result in zip(
            call.blocks, call.headers, call.formats, results, strict=True
        ):
            verdict = judge(result, self._pages.view(header), block_format)
            arrived.append(verdict.is_hit)
            if verdict.is_hit:
                self.count("load_blocks")
                self.count("load_bytes", block_format.payload_bytes)
            else:
                self.count(f"load_missed_{verdict.reason.label}")
                call.move.fate.fail(block.number, verdict.reason)
        return arrived

    def _count_stored(self, call: _Call, results: Sequence[int]) -> None:
        for block_format, result in zip(call.formats, results, strict=True):
            if result >= 0:
                self.count("store_blocks")
                self.count("store_bytes", block_format.payload_bytes)
            else:
                self.count("stores_dropped")
                self.count(f"store_dropped_{reason_of(result).label}")

    def _give_back(self, released: Sequence[int]) -> None:
        """Buffers of QUARANTINED blocks are free again. Puts of one format begin at one header, so
        a call is over only when no call waits for any of its headers."""
        self._held.subtract(released)
        for call in list(self._quarantined):
            if any(self._held[header] > 0 for header in call.held):
                continue
            self._quarantined.remove(call)
            call.held.clear()
            if call.is_settled:
                self._release(call)
            elif call not in self._landing:
                self._landing.append(call)

    def _settle(self, call: _Call) -> None:
        """Its blocks are where they belong, or never will be. What a late writer may still touch is
        kept back, and no move waits for it where that is no memory of the engine."""
        call.is_settled = True
        call.move.batches -= 1
        if not call.held:
            self._release(call)

    def _release(self, call: _Call) -> None:
        call.batch.close()
        if call.has_own_pages:
            self._pages.give_back(call.headers)
        self._in_flight_bytes -= call.size_bytes

    def _format(self, transfer: Transfer, block: PlacedBlock) -> BlockFormat:
        name = transfer.names[self._rank]
        known = self._formats.get((name.digest, block.group))
        if known is None:
            if len(self._formats) >= FORMATS_MAX:
                self._formats.clear()
            known = BlockFormat.of(
                name, self._memory.payload_bytes[block.group], group=block.group
            )
            self._formats[name.digest, block.group] = known
        return known
