"""Limits by name: what this machine could do at best, measured beside each figure."""

from collections.abc import Sequence
from typing import Protocol

from memkv.bench import memory_limit
from memkv.bench.disk_limit import DiskLimit, fio_missing
from memkv.bench.stream_limit import BareStream


class Limit(Protocol):
    """Something that can be measured for a while."""

    name: str

    def measure(self, seconds: float) -> float:
        """Return GB/s; 0 when it is not known."""

    def close(self) -> None: ...


class StreamLimit:
    """A bare Python TCP stream with the same checksum."""

    def __init__(self, size_bytes: int) -> None:
        self.name = "bare stream"
        self._stream = BareStream(size_bytes)

    def measure(self, seconds: float) -> float:
        return self._stream.measure(seconds).gbps

    def close(self) -> None:
        self._stream.close()


class FioLimit:
    """fio on the pool's file system. `kind` is "randread" or "randwrite"."""

    def __init__(self, disk: DiskLimit, kind: str) -> None:
        missing = fio_missing()
        self.name = f"unknown ({missing})" if missing else f"fio {kind}"
        self._disk = disk
        self._kind = kind
        self._missing = bool(missing)

    def measure(self, seconds: float) -> float:
        return 0.0 if self._missing else self._disk.measure_gbps(self._kind, seconds)

    def close(self) -> None:
        self._disk.remove()


class MemoryLimit:
    """memcpy of a block, then xxh3_128 over it."""

    name = "memcpy + xxh3_128"

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def measure(self, seconds: float) -> float:
        return memory_limit.measure_gbps(self._size_bytes, seconds)

    def close(self) -> None:
        """Holds nothing."""


class SmallestOf:
    """The smallest of several limits, each measured for the whole time in every turn.

    Unknown when one of them is: the smaller of two figures needs both.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self.name = "smaller of " + " and ".join(limit.name for limit in limits)

    def measure(self, seconds: float) -> float:
        return min([limit.measure(seconds) for limit in self._limits])

    def close(self) -> None:
        for limit in self._limits:
            limit.close()
