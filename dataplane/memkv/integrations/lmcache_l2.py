"""LMCache's L2 adapter over a MemKV pool (LMCache 0.5.6, `lmcache server`).

    lmcache server --l1-size-gb 64 --eviction-policy LRU --l2-adapter '{"type": "plugin",
      "module_path": "memkv.integrations.lmcache_l2", "class_name": "MemKVL2Adapter",
      "adapter_params": {"endpoint": "127.0.0.1:7443"}, "shared": true}'

docs/lmcache.md says what to expect. Imported by LMCache alone: it needs LMCache to be there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase
from lmcache.v1.platform import create_event_notifier

from memkv.errors import CallerError
from memkv.integrations.lmcache_names import L2Names, MemoryLayout, ObjectKey, hashing_name
from memkv.integrations.lmcache_tasks import L2Tasks, MemoryObject, Signals
from memkv.integrations.settings import SETTING_NAMES, PoolSettings, refuse_unknown

if TYPE_CHECKING:
    from typing import Protocol

    class L1Memory(Protocol):
        """`lmcache.v1.distributed.internal_api.L1MemoryDesc`."""

        ptr: int
        size: int
        stable_registration_size: int | None


log = logging.getLogger(__name__)

WHERE = "adapter_params of MemKVL2Adapter"
OWN_NAMES = frozenset({"hash_algorithm", "layout"})


class MemKVL2AdapterConfig(L2AdapterConfigBase):  # type: ignore[misc]  # LMCache has no types here
    """What stands in `adapter_params`."""

    def __init__(
        self, pool: PoolSettings | None = None, hash_algorithm: str = "blake3", layout: str = ""
    ) -> None:
        super().__init__()
        self.pool = pool or PoolSettings()
        self.hash_algorithm = hash_algorithm
        self.layout = layout

    @classmethod
    def from_dict(cls, d: Mapping[str, object]) -> MemKVL2AdapterConfig:
        """Take the settings; ValueError for what means nothing, as LMCache expects."""
        try:
            refuse_unknown(d, SETTING_NAMES | OWN_NAMES, WHERE)
            return cls(
                PoolSettings.of(d, WHERE), str(d.get("hash_algorithm", "blake3")),
                str(d.get("layout", "")),
            )
        except CallerError as error:
            raise ValueError(str(error)) from error

    @classmethod
    def help(cls) -> str:
        return (
            "MemKV L2 adapter, adapter_params:\n"
            "- endpoint (str): HOST:PORT of the pool's metadata service; left out: MEMKV_ENDPOINT, "
            "then the pod's connection file\n"
            "- pool, tenant (str), deadline_ms, load_deadline_ms, store_backlog_bytes, ttl_s, "
            "block_bytes_max (int), durability (cached or durable), revision (str)\n"
            "- hash_algorithm (str): as the server's --hash-algorithm, default blake3\n"
            "- layout (str): a name for the stored bytes; needed with a serde, such as fp8"
        )


class MemKVL2Adapter(L2AdapterInterface):  # type: ignore[misc]  # untyped
    """One pool as L2. Its threads: the client's, and one that ends tasks."""

    def __init__(
        self, config: MemKVL2AdapterConfig, l1_memory_desc: L1Memory | None = None
    ) -> None:
        super().__init__()
        self._events = {name: create_event_notifier() for name in ("store", "lookup", "load")}
        client = config.pool.connect()
        self._attachment = client.attachment
        self._transfers = config.pool.transfers(client)
        self._tasks: L2Tasks[ObjectKey] = L2Tasks(
            self._transfers,
            L2Names(config.pool, hashing_name(config.hash_algorithm), config.layout),
            Signals(
                store_done=self._events["store"].notify,
                lookup_done=self._events["lookup"].notify,
                load_done=self._events["load"].notify,
                stored=self._notify_keys_stored,
                loaded=self._notify_keys_accessed,
            ),
        )
        if l1_memory_desc is not None:
            # A lazy allocator has pinned only the beginning so far.
            stable = l1_memory_desc.stable_registration_size
            size_bytes = l1_memory_desc.size if stable is None else stable
            if l1_memory_desc.ptr and size_bytes:
                self._transfers.register(l1_memory_desc.ptr, size_bytes)

    def get_store_event_fd(self) -> int:
        return int(self._events["store"].fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        return int(self._events["lookup"].fileno())

    def get_load_event_fd(self) -> int:
        return int(self._events["load"].fileno())

    def submit_store_task(
        self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObject]
    ) -> int:
        return self._tasks.submit_store(keys, objects)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return {
            task: L2StoreResult(outcome.success, outcome.bytes_sent)
            for task, outcome in self._tasks.pop_stores().items()
        }

    def submit_lookup_and_lock_task(
        self, keys: Sequence[ObjectKey], group_layout_descs: Mapping[int, MemoryLayout]
    ) -> int:
        return self._tasks.submit_lookup(keys, group_layout_descs)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return _bitmap(self._tasks.lookup_result(task_id))

    def submit_unlock(self, keys: Sequence[ObjectKey]) -> None:
        self._tasks.unlock(keys)

    def submit_load_task(
        self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObject]
    ) -> int:
        return self._tasks.submit_load(keys, objects)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return _bitmap(self._tasks.load_result(task_id))

    def delete(self, keys: Sequence[ObjectKey]) -> None:
        """Delete from the pool, for everybody."""
        gone, sizes = self._tasks.delete(keys)
        if gone:
            self._notify_keys_deleted(gone, sizes)

    def report_status(self) -> dict[str, object]:
        problems = self._attachment.problems()
        reasons = (("why_missed", self._transfers.missed), ("why_dropped", self._transfers.dropped))
        return {
            "is_healthy": not problems,
            "type": type(self).__name__,
            "problems": problems,
            **self._tasks.status(),
            **{name: {reason.label: count for reason, count in counted.totals.items()}
               for name, counted in reasons},
        }

    def close(self) -> None:
        """End what is under way, then the event fds."""
        self._transfers.close()
        for event in self._events.values():
            event.close()


def _bitmap(hits: list[bool] | None) -> Bitmap | None:
    if hits is None:
        return None
    bitmap = Bitmap(len(hits))
    for index, hit in enumerate(hits):
        if hit:
            bitmap.set(index)
    return bitmap
