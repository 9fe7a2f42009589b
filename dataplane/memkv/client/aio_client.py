"""`AsyncClient`: the asyncio face. One client belongs to one event loop.

Cancelling a call does not take its buffers back: the native job goes on to its end, and the client
keeps what it owns until then. Memory given by address stays the caller's duty until the deadline
plus the fence budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from memkv import _hotpath
from memkv.client.attach import Attachment
from memkv.client.buffers import Region, Scatter, check_scatters, multi_segments, single_segments
from memkv.client.calls import Operation, ResultT
from memkv.client.drive import Running, take_completion
from memkv.client.events import COMPLETIONS_PER_CALL_MAX, Completion
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
from memkv.client.statistics import ClientStatistics
from memkv.errors import CallerError
from memkv.limits import SMALL_PAYLOAD_BYTES_MAX
from memkv.reasons import MissReason
from memkv.status import Status

if TYPE_CHECKING:
    from typing_extensions import Buffer


class AsyncClient:
    """Like `memkv.Client`, with awaitable calls. Made by `memkv.aio.connect()`."""

    def __init__(self, options: ConnectOptions, attachment: Attachment) -> None:
        self._attachment = attachment
        self._core = attachment.core
        self._deadline_ms = options.deadline_ms
        self._length_guess = SMALL_PAYLOAD_BYTES_MAX
        self._alive: set[object] = set()
        self._free: list[Completion] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._core.engine.event_fd, self._on_event)

    async def put(self, key: Key, data: Buffer, options: PutOptions | None = None) -> int:
        """Store one block; 0 or a negative Status. `data` must not change until then."""
        view = memoryview(data).cast("B")
        scatter = ((_hotpath.address_of(view), view.nbytes),)
        return (await self._put([key], [scatter], options, owner=view))[0]

    async def get(self, key: Key) -> bytes | None:
        """Return one block, or None when it is not there (or not in time, or not intact)."""
        for _ in range(2):
            data = _hotpath.new_bytes(self._length_guess)
            lengths: dict[int, int] = {}
            scatter = ((_hotpath.address_of(data), len(data)),)
            result = (await self._get([key], [scatter], lengths, owner=data))[0]
            if result >= 0:
                self._length_guess = max(result, SMALL_PAYLOAD_BYTES_MAX)
                return data if result == len(data) else data[:result]
            if result != Status.BUFFER_TOO_SMALL:
                return None
            self._length_guess = lengths[0]
        return None

    async def batch_get_into(
        self, keys: Sequence[Key], ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """See `Client.batch_get_into`."""
        return await self._get(keys, single_segments(ptrs, sizes))

    async def batch_get_into_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> list[int]:
        """See `Client.batch_get_into_multi`."""
        return await self._get(keys, multi_segments(ptrs, sizes))

    async def batch_get_ranges(
        self, keys: Sequence[Key], ranges: Sequence[Sequence[ByteRange]],
        ptrs: Sequence[int], sizes: Sequence[int],
    ) -> list[int]:
        """See `Client.batch_get_ranges`."""
        scatters = single_segments(ptrs, sizes)
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = await self._run(ranges_operation(requests, hashed, ranges, scatters))
        self._core.counters.count_gets(results)
        return results

    async def batch_put_from(
        self, keys: Sequence[Key], ptrs: Sequence[int], sizes: Sequence[int],
        options: PutOptions | None = None,
    ) -> list[int]:
        """See `Client.batch_put_from`."""
        return await self._put(keys, single_segments(ptrs, sizes), options)

    async def batch_put_from_multi(
        self, keys: Sequence[Key], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> list[int]:
        """See `Client.batch_put_from_multi`."""
        return await self._put(keys, multi_segments(ptrs, sizes), options)

    async def batch_is_exist(self, keys: Sequence[Key], lease_ms: int = 0) -> list[int]:
        """See `Client.batch_is_exist`."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [Status.UNAVAILABLE] * len(keys)
        return await self._run(exists_operation(requests, hashed, lease_ms))

    async def match_prefix(self, keys: Sequence[Key]) -> int:
        """See `Client.match_prefix`."""
        return leading(await self.batch_is_exist(keys))

    async def match_prefix_by_node(self, keys: Sequence[Key]) -> dict[str, int]:
        """See `Client.match_prefix_by_node`."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return {}
        found = await self._run(exists_operation(requests, hashed, 0))
        return by_node(requests.route(), hashed, leading(found))

    async def prefetch(self, keys: Sequence[Key]) -> list[int]:
        """See `Client.prefetch`."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = await self._run(prefetch_operation(requests, hashed))
        self._core.counters.count_prefetches(results)
        return results

    async def why(self, keys: Sequence[Key]) -> list[MissReason]:
        """See `Client.why`."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [MissReason.UNAVAILABLE] * len(keys)
        return await self._run(why_operation(requests, hashed))

    async def remove(self, key: Key) -> int:
        """See `Client.remove`."""
        return (await self.batch_remove([key]))[0]

    async def batch_remove(self, keys: Sequence[Key]) -> list[int]:
        """See `Client.batch_remove`."""
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [Status.UNAVAILABLE] * len(keys)
        return await self._run(delete_operation(requests, hashed))

    async def pin(self, keys: Sequence[Key], ttl_s: int) -> list[int]:
        """See `Client.pin`."""
        if ttl_s < 1:
            raise CallerError(f"ttl_s must be at least 1 second, not {ttl_s}; unpin() to end a pin")
        return await self._pin(keys, ttl_s)

    async def unpin(self, keys: Sequence[Key]) -> list[int]:
        """See `Client.unpin`."""
        return await self._pin(keys, 0)

    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int:
        """See `Client.register_buffer`; does not wait for workers, which learn of it soon."""
        self._core.register(Region(ptr, size, fd, fd_offset), wait=False)
        return Status.OK

    def register_dmabuf(self, fd: int, offset: int, length: int, *, ptr: int) -> int:
        """See `Client.register_dmabuf`; does not wait for workers."""
        region = Region(ptr, length, None, 0, is_foreign=True)
        self._core.register_dmabuf(region, fd, offset, wait=False)
        return Status.OK

    def unregister_buffer(self, ptr: int) -> int:
        """See `Client.unregister_buffer`."""
        self._core.unregister(ptr)
        return Status.OK

    def completions(self) -> list[Completion]:
        """Return buffers of QUARANTINED results that are free again (`released`). Never blocks; of
        use after `close()` too."""
        self._on_event()
        finished, self._free = self._free, []
        return finished

    def stats(self) -> ClientStatistics:
        """Return a frozen reading of this client's counters."""
        return self._core.counters.frozen(self._core.reasons.totals)

    @property
    def reasons(self) -> RequestReasons:
        """See `Client.reasons`."""
        return self._core.reasons

    async def wait_ready(self, timeout_ms: int) -> bool:
        """See `Client.wait_ready`; other tasks go on meanwhile."""
        return await self._loop.run_in_executor(None, self._attachment.wait_ready, timeout_ms)

    @property
    def attachment(self) -> Attachment:
        """The map, sessions and reasons behind misses: for tools and people."""
        return self._attachment

    async def close(self) -> None:
        """End sessions and threads without blocking the loop."""
        if self._core.closed:
            return
        self._loop.remove_reader(self._core.engine.event_fd)
        await self._loop.run_in_executor(None, self._attachment.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        await self.close()
        return False

    # --- inside -------------------------------------------------------------------------------
    def _begin(self, keys: Sequence[Key]) -> tuple[Keys | None, Requests | None]:
        if isinstance(keys, (str, bytes)):
            raise CallerError("keys must be a list of keys, not one key")
        hashed = self._core.hash(keys)
        return hashed, None if hashed is None else self._core.requests(self._deadline_ms)

    async def _run(self, operation: Operation[ResultT], owner: object = None) -> ResultT:
        future: asyncio.Future[ResultT] = self._loop.create_future()

        def on_result(result: ResultT) -> None:
            self._alive.discard(running)
            if not future.done():
                future.set_result(result)

        running = Running(operation, on_result, owner=owner)
        self._alive.add(running)  # outlives a cancelled caller: lanes still write its buffers
        running.start()
        return await future

    def _on_event(self) -> None:
        for job in self._core.engine.completions(COMPLETIONS_PER_CALL_MAX):
            free = take_completion(job)
            if free is not None:
                self._free.append(Completion(0, [], free.addresses()))

    async def _get(
        self, keys: Sequence[Key], scatters: list[Scatter],
        lengths: dict[int, int] | None = None, owner: object = None,
    ) -> list[int]:
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = await self._run(get_operation(requests, hashed, scatters, lengths), owner)
        self._core.counters.count_gets(results)
        return results

    async def _put(
        self, keys: Sequence[Key], scatters: list[Scatter], options: PutOptions | None,
        owner: object = None,
    ) -> list[int]:
        check_scatters(scatters, len(keys))
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            results: list[int] = [Status.UNAVAILABLE] * len(keys)
        else:
            results = await self._run(
                put_operation(requests, hashed, scatters, options or DEFAULT_PUT), owner
            )
        self._core.counters.count_puts(results, scatters)
        return results

    async def _pin(self, keys: Sequence[Key], ttl_s: int) -> list[int]:
        hashed, requests = self._begin(keys)
        if hashed is None or requests is None:
            return [Status.UNAVAILABLE] * len(keys)
        return await self._run(pin_operation(requests, hashed, ttl_s))
