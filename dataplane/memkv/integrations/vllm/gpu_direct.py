"""GPUDirect: loads that a NIC writes into the engine's cache in GPU memory.

The CUDA driver exports the cache as dma-bufs, the client registers those, and a get names the
places themselves: no byte goes through host memory. Stores are copied out as ever (staging.py), for
whoever makes a block makes its sums. Facts of the driver: CUDA driver API, "Memory Management"
(cuMemGetHandleForAddressRange), "Event Management" (cuFlushGPUDirectRDMAWrites).
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from memkv.errors import ConfigError, MemKVError
from memkv.integrations.vllm.geometry import BlockRuns
from memkv.integrations.vllm.memory import Batch, BlockMemory, InPlaceBatch, Pieces
from memkv.integrations.vllm.planner import PlacedBlock
from memkv.limits import LOCAL_PARTS_PER_ITEM_MAX

logger = logging.getLogger("vllm.memkv")

REST_NS = 5_000_000_000  # of direct loads when one brought nothing: lanes are back within that

DMA_BUF_FD = 1
DMA_BUF_SUPPORTED, FLUSH_OPTIONS, WRITES_ORDERING = 124, 117, 118  # attributes of a device
FLUSH_BY_HOST = 1
ORDERED_FOR_OWNER = 100  # kernels that begin later on this GPU see what a NIC wrote
TO_OWNER = 100
CURRENT_CONTEXT = 0


class Exporter(Protocol):
    """What of a GPU's driver direct loads need. Used with the GPU's context current."""

    def export(self, address: int, size_bytes: int) -> int:
        """Return a dma-buf of whole pages of the device's memory; the caller closes it. ConfigError
        where the driver cannot."""

    def after_model(self) -> Callable[[], bool]:
        """Return what says whether all that the model has begun until now is over."""

    def show_writes(self) -> None:
        """Have kernels that begin from now on see what a NIC has written."""


class DmabufClient(Protocol):
    """What of a client direct loads need."""

    def register_dmabuf(self, fd: int, offset: int, length: int, *, ptr: int) -> int: ...
    def unregister_buffer(self, ptr: int) -> int: ...


class CudaDriver:
    """libcuda, for the device of the current context. ConfigError where it is too old or cannot."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
            self._export = self._library.cuMemGetHandleForAddressRange
        except (OSError, AttributeError) as error:
            raise ConfigError(f"no CUDA driver of 11.7 or later: {error}") from error
        device = ctypes.c_int()
        self._check("cuCtxGetDevice", ctypes.byref(device))
        if not self._attribute(DMA_BUF_SUPPORTED, device):
            raise ConfigError(
                "the GPU's driver exports no dma-bufs: its open kernel modules do, on servers' GPUs"
            )
        self._must_flush = self._attribute(WRITES_ORDERING, device) < ORDERED_FOR_OWNER
        if self._must_flush and not self._attribute(FLUSH_OPTIONS, device) & FLUSH_BY_HOST:
            raise ConfigError("the GPU neither orders what a NIC writes nor can be told to")

    def export(self, address: int, size_bytes: int) -> int:
        fd = ctypes.c_int(-1)
        self._check(
            "cuMemGetHandleForAddressRange", ctypes.byref(fd), ctypes.c_uint64(address),
            ctypes.c_size_t(size_bytes), ctypes.c_int(DMA_BUF_FD), ctypes.c_uint64(0),
        )
        return fd.value

    def after_model(self) -> Callable[[], bool]:
        import torch

        event = torch.cuda.Event()
        event.record()
        return lambda: bool(event.query())

    def show_writes(self) -> None:
        if self._must_flush:
            self._check("cuFlushGPUDirectRDMAWrites", CURRENT_CONTEXT, TO_OWNER)

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._check("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _check(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise ConfigError(f"{name} failed: CUDA error {status}")


class DirectLoads:
    """A cache that NICs write and nobody here can read: loads in place, stores through copies."""

    def __init__(
        self, client: DmabufClient, exporter: Exporter, groups: Sequence[BlockRuns],
        storages: Sequence[tuple[int, int]], copied: BlockMemory, now_ns: Callable[[], int],
    ) -> None:
        """`storages`: addresses and bytes of all that the groups' runs lie in. `copied`: the way of
        stores, and of loads while RDMA is away; it is closed with this. MemKVError where a storage
        cannot be exported or no NIC takes it; then nothing is registered."""
        self.payload_bytes = copied.payload_bytes
        self._client = client
        self._exporter = exporter
        self._groups = groups
        self._copied = copied
        self._now_ns = now_ns
        self._rests_until_ns = 0
        self._registered: list[int] = []
        pieces = max(len(group.runs) for group in groups)
        if pieces >= LOCAL_PARTS_PER_ITEM_MAX:  # the header is one, too
            raise ConfigError(f"a block has {pieces} pieces, over {LOCAL_PARTS_PER_ITEM_MAX - 1}")
        try:
            for address, size_bytes in storages:
                self._register(address, size_bytes)
        except MemKVError:
            self._forget()
            raise

    def begin_get(self, blocks: Sequence[PlacedBlock]) -> Batch | None:
        if self._now_ns() < self._rests_until_ns:
            return self._copied.begin_get(blocks)
        pieces = [self._groups[one.group].pieces(one.place) for one in blocks]
        return DirectBatch(self, pieces, self._exporter.after_model())

    def begin_put(self, blocks: Sequence[PlacedBlock]) -> Batch | None:
        return self._copied.begin_put(blocks)

    def close(self) -> None:
        self._forget()
        self._copied.close()

    def landed(self, arrived: Sequence[bool]) -> bool:
        """A direct get is over; return whether what came can be used. One that brought nothing may
        have had no lanes, and over TCP nothing reaches a GPU: for a while loads go through host
        memory."""
        try:
            if any(arrived):
                self._exporter.show_writes()
                return True
        except ConfigError as error:
            logger.error("a load into GPU memory is computed instead: %s", error)
        self._rests_until_ns = self._now_ns() + REST_NS
        return not any(arrived)

    def _register(self, address: int, size_bytes: int) -> None:
        begin = address - address % mmap.PAGESIZE
        end = address + size_bytes
        fd = self._exporter.export(begin, end + -end % mmap.PAGESIZE - begin)
        try:
            self._client.register_dmabuf(fd, address - begin, size_bytes, ptr=address)
        finally:
            os.close(fd)
        self._registered.append(address)

    def _forget(self) -> None:
        while self._registered:
            self._client.unregister_buffer(self._registered.pop())


class DirectBatch(InPlaceBatch):
    """A get into places in GPU memory, which kernels that were begun before may still read."""

    def __init__(
        self, memory: DirectLoads, pieces: list[Pieces], may_write: Callable[[], bool]
    ) -> None:
        super().__init__(pieces)
        self._memory = memory
        self._may_write = may_write

    def is_ready(self) -> bool:
        return self._may_write()

    def land(self, arrived: Sequence[bool]) -> bool:
        return self._memory.landed(arrived)


def direct_or_copied(
    client: DmabufClient, groups: Sequence[BlockRuns], storages: Sequence[tuple[int, int]],
    copied: BlockMemory, now_ns: Callable[[], int],
    open_driver: Callable[[], Exporter] = CudaDriver,
) -> BlockMemory:
    """Return direct loads; where they cannot be had say why, and return `copied`."""
    try:
        return DirectLoads(client, open_driver(), groups, storages, copied, now_ns)
    except MemKVError as error:
        logger.error("no GPUDirect, blocks are copied through host memory: %s", error)
        return copied
