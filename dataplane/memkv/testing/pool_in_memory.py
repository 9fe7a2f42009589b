"""A client whose pool is a dictionary: for integrations that use the event face."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Sequence

from memkv.client.events import Completion
from memkv.client.options import PutOptions
from memkv.reasons import MissReason
from memkv.status import Status


class PoolInMemory:
    """Jobs end when the test says so (`end`), or at once with `is_prompt`.

    `spoil(key)` may give a status for a key that is got or put; None lets it be as it is.
    """

    def __init__(self, *, is_prompt: bool = True) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.hints: dict[bytes, object] = {}
        self.is_prompt = is_prompt
        self.spoil: Callable[[bytes], int | None] = lambda key: None
        self.waiting: list[tuple[int, Callable[[], list[int]]]] = []
        self.jobs: list[tuple[str, list[bytes]]] = []
        self.begins: list[int] = []
        """Where each key's buffer begins: what `release` gives back."""
        self.leases_ms: list[int] = []
        self.is_closed = False
        self._finished: list[Completion] = []
        self._ids = itertools.count(1)
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)

    # --- the face -----------------------------------------------------------------------------
    def register_buffer(
        self, ptr: int, size: int, *, fd: int | None = None, fd_offset: int = 0
    ) -> int:
        return 0

    def register_dmabuf(self, fd: int, offset: int, length: int, *, ptr: int) -> int:
        return 0

    def unregister_buffer(self, ptr: int) -> int:
        return 0

    def submit_is_exist(self, keys: Sequence[bytes], lease_ms: int = 0) -> int:
        self.leases_ms.append(lease_ms)
        return self._submit("exist", keys, lambda: [
            self._status(key, 1 if key in self.blocks else 0) for key in keys
        ])

    def submit_why(self, keys: Sequence[bytes]) -> int:
        return self._submit("why", keys, lambda: [
            MissReason.PRESENT if key in self.blocks else MissReason.NEVER_STORED for key in keys
        ])

    def submit_get_into_multi(
        self, keys: Sequence[bytes], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> int:
        self.begins += [pieces[0] for pieces in ptrs]
        return self._submit("get", keys, lambda: [
            self._get(*one) for one in zip(keys, ptrs, sizes, strict=True)
        ])

    def submit_put_from_multi(
        self, keys: Sequence[bytes], ptrs: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]],
        options: PutOptions | None = None,
    ) -> int:
        if options is not None:
            self.hints.update(zip(keys, options.hints, strict=True))
        self.begins += [pieces[0] for pieces in ptrs]
        return self._submit("put", keys, lambda: [
            self._put(*one) for one in zip(keys, ptrs, sizes, strict=True)
        ])

    def completions(self) -> list[Completion]:
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        self.is_closed = True

    # --- the test's side ----------------------------------------------------------------------
    def end(self) -> None:
        """End all jobs that wait."""
        waiting, self.waiting = self.waiting, []
        for job, run in waiting:
            self._finished.append(Completion(job, run()))

    def release(self, *addresses: int) -> None:
        """Give back buffers of QUARANTINED keys."""
        self._finished.append(Completion(0, [], addresses))

    # --- inside -------------------------------------------------------------------------------
    def _submit(self, kind: str, keys: Sequence[bytes], run: Callable[[], list[int]]) -> int:
        job = next(self._ids)
        self.jobs.append((kind, list(keys)))
        self.waiting.append((job, run))
        if self.is_prompt:
            self.end()
        return job

    def _status(self, key: bytes, found: int) -> int:
        spoiled = self.spoil(key)
        return found if spoiled is None else spoiled

    def _get(self, key: bytes, ptrs: Sequence[int], sizes: Sequence[int]) -> int:
        block = self.blocks.get(key)
        status = self._status(key, Status.MISS if block is None else len(block))
        if block is None or status < 0:
            return status
        if len(block) > sum(sizes):
            return Status.BUFFER_TOO_SMALL
        offset = 0
        for ptr, size in zip(ptrs, sizes, strict=True):
            piece = block[offset : offset + size]
            ctypes.memmove(ptr, piece, len(piece))
            offset += size
        return status

    def _put(self, key: bytes, ptrs: Sequence[int], sizes: Sequence[int]) -> int:
        status = self._status(key, 0)
        if status >= 0:
            pieces = [ctypes.string_at(ptr, size) for ptr, size in zip(ptrs, sizes, strict=True)]
            self.blocks.setdefault(key, b"".join(pieces))
        return status
