"""`Client`: the blocking face and the eventfd face. Every method may be called from any thread.

Every call returns by its deadline (C3). Statuses of single keys are values; only wrong arguments
raise (`CallerError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from memkv import _hotpath
from memkv.client.attach import Attachment
from memkv.client.block_watch import BlockWatch
from memkv.client.buffers import (
    Region,
    Scatter,
    check_scatters,
    multi_segments,
    single_segments,
)
from memkv.client.calls import Operation, ResultT
from memkv.client.drive import run_to_end
from memkv.client.events import Completion, EventFace
from memkv.client.operations import (
    delete_operation,
    exists_operation,
    get_operation,
    pin_operation,
    prefetch_operation,
    put_operation,
    why_operation,
)
from memkv.client.options import DEFAULT_PUT, ConnectOptions, PutOptions
from memkv.client.prefix import by_node, leading
from memkv.client.ranges import ByteRange, ranges_operation
from memkv.client.reasons import RequestReasons
from memkv.client.requests import Requests
from memkv.client.routing import Key, Keys
from memkv.client.short_way import get_one
from memkv.client.statistics import ClientStatistics
from memkv.errors import CallerError
from memkv.limits import SMALL_PAYLOAD_BYTES_MAX
from memkv.reasons import MissReason
from memkv.status import Status

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Client:
    """A connection to one pool as one tenant. Made by `memkv.connect()`.

    It does not survive `fork()`: in the child it is closed, every call misses at once, and the
    parent's goes on undisturbed. A child that needs the pool connects anew; that fails, as misses,
    where gRPC was at work in another thread at the moment of the fork ("skipping fork() handlers"),
    which is rare, and which processes that are spawned instead do not meet.
    """

    def __init__(self, options: ConnectOptions, attachment: Attachment | None = None) -> None:
        """`attachment`: made elsewhere and owned by the client from now on."""
        self._attachment = attachment or Attachment(options)
        self._core = self._attachment.core
        self._deadline_ms = options.deadline_ms
        self._length_guess = SMALL_PAYLOAD_BYTES_MAX
        self._events = EventFace(self._core)

    # --- single keys --------------------------------------------------------------------------
    def put(self, key: Key, data: Buffer, options: PutOptions | None = None) -> int:
        """Store one block; 0 or a negative Status. `data` must not change until it returns."""
        view = memoryview(data).cast("B")
        scatter = ((_hotpath.address_of(view), view.nbytes),)
        return self._put([key], [scatter], options)[0]

    def get(self, key: Key) -> bytes | None:
        """Return one block, or None when it is not there (or not in time, or not intact)."""
        for _ in range(2):
            data = _hotpath.new_bytes(self._length_guess)
            lengths: dict[int, int] = {}
            address, size_bytes = _hotpath.address_of(data), len(data)
            result = self._get_short(key, address, size_bytes)
            if result is None:
                result = self._get([key], [((address, size_bytes),)], lengths)[0]
            if result >= 0:
                self._length_guess = max(result, SMALL_PAYLOAD_BYTES_MAX)
                return data if result == len(data) else data[:result]
            if result != Status.BUFFER_TOO_SMALL:
                return None
            self._length_guess = lengths[0]
        return None

    def remove(self, key: Key) -> int:
        """Delete one block; see `batch_remove`."""
        return self.batch_remove([key])[0]

    # --- batches ------------------------------------------------------------------------------
    def batch_get_into(
        self, keys: Sequence[Key], ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Read blocks into memory at `ptrs` of `sizes` bytes.

        Returns bytes read a key, or a negative Status; on anything but success the content of
        that key's buffer is undefined. The buffers are free again when this returns, except for
        QUARANTINED ones.
        """
        if len(keys) == len(ptrs) == len(sizes) == 1:
            result = self._get_short(keys[0], ptrs[0], sizes[0])
            if result is not None:
                return [result]
        return self._get(keys, single_segments(ptrs, sizes))

    def batch_get_into_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> list[int]:
        """Like `batch_get_into` with several pieces of memory a key, filled in order."""
        return self._get(keys, multi_segments(ptrs, sizes))

    def batch_get_ranges(
        self, keys: Sequence[Key], ranges: Sequence[Sequence[ByteRange]],
        ptrs: Sequence[int], sizes: Sequence[int],
    ) -> list[int]:
        """Read parts of blocks: `ranges[k]` is a list of (offset, length) in block k.

        The parts are written back to back into the buffer of their key. All parts of a key come
        from one put. Returns bytes read a key, or a negative Status (INVALID: beyond the end).
        """
        keys_, requests = self._begin(keys)
        scatters = single_segments(ptrs, sizes)
        check_scatters(scatters, len(keys))
        if requests is None or keys_ is None:
            return [Status.UNAVAILABLE] * len(keys)
        results = self._run(ranges_operation(requests, keys_, ranges, scatters), requests)
        self._core.counters.count_gets(results)
        return results

    def batch_put_from(
        self, keys: Sequence[Key], ptrs: Sequence[int], sizes: Sequence[int],
        options: PutOptions | None = None,
    ) -> list[int]:
        """Store blocks from memory; 0 or a negative Status a key. First complete put wins."""
        return self._put(keys, single_segments(ptrs, sizes), options)

    def batch_put_from_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> list[int]:
        """Like `batch_put_from` with several pieces of memory a key, stored in order."""
        return self._put(keys, multi_segments(ptrs, sizes), options)

    def batch_is_exist(self, keys: Sequence[Key], lease_ms: int = 0) -> list[int]:
        """Return 1, 0 or a negative Status a key.

        `lease_ms` > 0 protects the found blocks from eviction that long; 0 renews nothing.
        """
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [Status.UNAVAILABLE] * len(keys)
        return self._run(exists_operation(requests, hashed, lease_ms), requests)

    def match_prefix(self, keys: Sequence[Key]) -> int:
        """Return how many leading keys are stored; one round trip to each owner, in parallel."""
        return leading(self.batch_is_exist(keys))

    def match_prefix_by_node(self, keys: Sequence[Key]) -> dict[str, int]:
        """Return which node holds how many of the leading keys that are stored, for a router that
        looks for the engine nearest to them. The sum is `match_prefix`."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return {}
        found = self._run(exists_operation(requests, hashed, 0), requests)
        return by_node(requests.route(), hashed, leading(found))

    def prefetch(self, keys: Sequence[Key]) -> list[int]:
        """Have the owners bring blocks from flash into their DRAM, where a get of the next seconds
        finds them. Returns at once.

        A key's result: 2 in DRAM, 1 on its way, 0 not stored, negative: it will not be done (BUSY,
        UNSUPPORTED by an older node, ...). Best effort: a later get says what came of it.
        """
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = self._run(prefetch_operation(requests, hashed), requests)
        self._core.counters.count_prefetches(results)
        return results

    def why(self, keys: Sequence[Key]) -> list[MissReason]:
        """Say why blocks are not there, or PRESENT. Nodes remember what left lately only, and
        nothing over a restart: NEVER_STORED may also mean long ago."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [MissReason.UNAVAILABLE] * len(keys)
        return self._run(why_operation(requests, hashed), requests)

    def batch_remove(self, keys: Sequence[Key]) -> list[int]:
        """Delete blocks; 0 a key once no later lookup can hit (C7), else UNAVAILABLE: repeat."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [Status.UNAVAILABLE] * len(keys)
        return self._run(delete_operation(requests, hashed), requests)

    def pin(self, keys: Sequence[Key], ttl_s: int) -> list[int]:
        """Keep blocks from eviction for `ttl_s` seconds; QUOTA beyond the tenant's pin share."""
        if ttl_s < 1:
            raise CallerError(f"ttl_s must be at least 1 second, not {ttl_s}; unpin() to end a pin")
        return self._pin(keys, ttl_s)

    def unpin(self, keys: Sequence[Key]) -> list[int]:
        """End pins early."""
        return self._pin(keys, 0)

    # --- memory -------------------------------------------------------------------------------
    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int:
        """Announce memory that many calls will use; 0.

        With `fd` (a memfd sealed against shrinking, or a file, mapped at `ptr` from `fd_offset`)
        workers on this machine read and write it directly, where they can be reached through
        their Unix sockets; waits until those that are connected know, at most for a deadline. The
        fd is duplicated. Where there are RDMA devices it is registered with them, which pins it.
        """
        self._core.register(Region(ptr, size, fd, fd_offset), wait=True)
        return Status.OK

    def register_dmabuf(self, fd: int, offset: int, length: int, *, ptr: int) -> int:
        """Announce memory of another device, a GPU's say, that calls will name as [ptr, ptr +
        length); 0.

        `fd` is its dma-buf (for CUDA: cuMemGetHandleForAddressRange), `offset` where `ptr` lies in
        it. Gets are written into it by RDMA alone, without a copy in host memory: where a worker
        cannot be reached so, they are UNAVAILABLE. No CPU can check what arrives there, so the node
        checks the block instead. Puts from it are UNAVAILABLE: their sums must be made by whoever
        can read it. Raises VerbsError with the reason where kernel or NIC cannot do it.
        """
        region = Region(ptr, length, None, 0, is_foreign=True)
        self._core.register_dmabuf(region, fd, offset, wait=True)
        return Status.OK

    def unregister_buffer(self, ptr: int) -> int:
        """Forget memory announced by `register_buffer`; 0. No call may be using it."""
        self._core.unregister(ptr)
        return Status.OK

    # --- events -------------------------------------------------------------------------------
    @property
    def event_fd(self) -> int:
        """Readable when `completions()` may have something. Owned by the client."""
        return self._core.engine.event_fd

    def submit_get_into(
        self, keys: Sequence[Key], ptrs: Sequence[int], sizes: Sequence[int]
    ) -> int:
        """Start a `batch_get_into`; return its job id. The result comes from `completions()`."""
        return self._submit_get(keys, single_segments(ptrs, sizes))

    def submit_get_into_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> int:
        """Start a `batch_get_into_multi`; return its job id."""
        return self._submit_get(keys, multi_segments(ptrs, sizes))

    def submit_put_from(
        self, keys: Sequence[Key], ptrs: Sequence[int], sizes: Sequence[int],
        options: PutOptions | None = None,
    ) -> int:
        """Start a `batch_put_from`; return its job id. The result comes from `completions()`."""
        return self._submit_put(keys, single_segments(ptrs, sizes), options)

    def submit_put_from_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> int:
        """Start a `batch_put_from_multi`; return its job id."""
        return self._submit_put(keys, multi_segments(ptrs, sizes), options)

    def submit_is_exist(self, keys: Sequence[Key], lease_ms: int = 0) -> int:
        """Start a `batch_is_exist`; return its job id."""
        hashed, requests = self._begin(keys)
        return self._events.submit_exists(hashed, requests, lease_ms, len(keys))

    def submit_prefetch(self, keys: Sequence[Key]) -> int:
        """Start a `prefetch`; return its job id. The result comes from `completions()`."""
        hashed, requests = self._begin(keys)
        return self._events.submit_prefetch(hashed, requests, len(keys))

    def submit_why(self, keys: Sequence[Key]) -> int:
        """Start a `why`; return its job id. The results are numbers of `MissReason`."""
        hashed, requests = self._begin(keys)
        return self._events.submit_why(hashed, requests, len(keys))

    def completions(self) -> list[Completion]:
        """Return finished jobs, and quarantined buffers that are free again. Never blocks."""
        return self._events.completions()

    # --- the rest -----------------------------------------------------------------------------
    def stats(self) -> ClientStatistics:
        """Return a frozen reading of this client's counters."""
        return self._core.counters.frozen(self._core.reasons.totals)

    def watch_blocks(self) -> BlockWatch:
        """Return a watcher of this tenant's blocks on all nodes, for a router: `BlockWatch.poll`
        tells what came and went. For one thread; a client may have several."""
        return BlockWatch(self._core, self._deadline_ms)

    @property
    def reasons(self) -> RequestReasons:
        """Where integrations count why blocks of a request were not there."""
        return self._core.reasons

    def wait_ready(self, timeout_ms: int) -> bool:
        """Wait until every worker of the map can be reached; False when time runs out first."""
        return self._attachment.wait_ready(timeout_ms)

    @property
    def attachment(self) -> Attachment:
        """The map, sessions and reasons behind misses: for tools and people."""
        return self._attachment

    def close(self) -> None:
        """End sessions and threads. Calls in flight end with UNAVAILABLE; buffers are free, except
        of QUARANTINED calls: `completions()` still gives those back."""
        self._attachment.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self.close()
        return False

    # --- inside -------------------------------------------------------------------------------
    def _begin(self, keys: Sequence[Key]) -> tuple[Keys | None, Requests | None]:
        """Hash the keys and take one consistent picture; Nones while nothing is known."""
        if isinstance(keys, (str, bytes)):
            raise CallerError("keys must be a list of keys, not one key")
        hashed = self._core.hash(keys)
        return hashed, None if hashed is None else self._core.requests(self._deadline_ms)

    def _run(self, operation: Operation[ResultT], requests: Requests) -> ResultT:
        return run_to_end(operation, requests.deadline_ns)

    def _get_short(self, key: Key, address: int, size_bytes: int) -> int | None:
        """Read one block, or return None without a trace: then `_get` it."""
        if address <= 0 or size_bytes <= 0:
            return None
        result = get_one(self._core, key, address, size_bytes, self._deadline_ms)
        if result is not None:
            self._core.counters.count_gets((result,))
        return result

    def _get(
        self, keys: Sequence[Key], scatters: list[Scatter], lengths: dict[int, int] | None = None
    ) -> list[int]:
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = self._run(get_operation(requests, hashed, scatters, lengths), requests)
        self._core.counters.count_gets(results)
        return results

    def _put(
        self, keys: Sequence[Key], scatters: list[Scatter], options: PutOptions | None
    ) -> list[int]:
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = self._run(
                put_operation(requests, hashed, scatters, options or DEFAULT_PUT), requests
            )
        self._core.counters.count_puts(results, scatters)
        return results

    def _submit_get(self, keys: Sequence[Key], scatters: list[Scatter]) -> int:
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        return self._events.submit_get(hashed, requests, scatters, len(keys))

    def _submit_put(
        self, keys: Sequence[Key], scatters: list[Scatter], options: PutOptions | None
    ) -> int:
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        return self._events.submit_put(
            hashed, requests, scatters, options or DEFAULT_PUT, len(keys)
        )

    def _pin(self, keys: Sequence[Key], ttl_s: int) -> list[int]:
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [Status.UNAVAILABLE] * len(keys)
        return self._run(pin_operation(requests, hashed, ttl_s), requests)
