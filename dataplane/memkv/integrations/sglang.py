"""SGLang's HiCache storage backend over a MemKV pool (SGLang 0.5.23).

    python -m sglang.launch_server ... --enable-hierarchical-cache \\
      --hicache-mem-layout page_first_direct --hicache-io-backend direct \\
      --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
        "backend_name": "memkv", "module_path": "memkv.integrations.sglang",
        "class_name": "MemKVHiCacheStorage", "interface_v1": 1, "endpoint": "127.0.0.1:7443"}'

docs/sglang.md says what to expect. Imported by SGLang alone: it needs SGLang to be there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    PoolHitPolicy,
    PoolTransferResult,
)

from memkv.integrations.blocks import BlockFormat
from memkv.integrations.keys import Namespace
from memkv.integrations.parts import ObjectKind, Part
from memkv.integrations.settings import SETTING_NAMES, PoolSettings
from memkv.integrations.sglang_names import (
    KV,
    HostPool,
    StorageConfig,
    leading,
    page_hash,
    page_hints,
    page_namespace,
    restorable,
)
from memkv.integrations.stores import Stored
from memkv.integrations.transfers import Waited

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WHERE = "hicache-storage-backend-extra-config"
OTHERS_NAMES = frozenset({
    "backend_name", "module_path", "class_name", "interface_v1", "prefetch_threshold",
    "prefetch_timeout_base", "prefetch_timeout_per_ki_token", "prefetch_timeout_max",
    "hicache_storage_pass_prefix_keys", "tp_lcm_size",
})  # fmt: skip
"""Read by SGLang itself, or by its loader."""


class Config(StorageConfig, Protocol):
    extra_config: Mapping[str, object] | None


class PrefixInfo(Protocol):
    """`HiCacheStorageExtraInfo`."""

    prefix_keys: list[str] | None


class SideTransfer(Protocol):
    """`PoolTransfer`."""

    name: str
    keys: list[str] | None
    host_indices: torch.Tensor | None
    hit_policy: object


@dataclass(frozen=True, slots=True)
class _Pages:
    """A registered host pool and the namespace of its pages."""

    pool: HostPool
    namespace: Namespace


class MemKVHiCacheStorage(HiCacheStorage):  # type: ignore[misc]  # SGLang has no types here
    """Pages of the host cache in a pool. Called by SGLang's storage threads, which wait for it:
    each request to the pool has its deadline, and a load of many pages `load_deadline_ms`.

    A page whose get is late is written by nobody any more when this returns.
    """

    def __init__(self, storage_config: Config, kwargs: Mapping[str, object] | None = None) -> None:
        extra = dict(storage_config.extra_config or {})
        if unknown := sorted(extra.keys() - SETTING_NAMES - OTHERS_NAMES):
            # Later versions of SGLang may read names of their own there, so this is no error.
            log.warning("%s: MemKV knows no %s", WHERE, ", ".join(unknown))
        self._config = storage_config
        self._settings = PoolSettings.of(extra, WHERE)
        self._way = "zero-copy" if extra.get("interface_v1") else "flat"
        client = self._settings.connect()
        self._attachment = client.attachment
        self._transfers = self._settings.transfers(client)
        self._pages: dict[str, _Pages] = {}
        self._page_sizes: dict[str, int] = {}

    # --- memory -------------------------------------------------------------------------------
    def register_mem_pool_host(self, mem_pool_host: HostPool) -> None:
        """Take the host cache; its memory is registered here, once."""
        super().register_mem_pool_host(mem_pool_host)
        self._take_pool(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: HostPool, host_pool_name: str) -> None:
        """Take a side pool of a hybrid model."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(host_pool_name) != KV:
            self._take_pool(str(host_pool_name), host_pool)

    def _take_pool(self, name: str, pool: HostPool) -> None:
        way = self._way if name == KV else "zero-copy"
        self._pages[name] = _Pages(
            pool, page_namespace(self._settings, self._config, pool, name, way)
        )
        for tensor in _tensors(getattr(pool, "kv_buffer", None)):
            self._transfers.register(tensor.data_ptr(), tensor.nbytes)

    # --- zero copy ----------------------------------------------------------------------------
    def batch_get_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: PrefixInfo | None = None
    ) -> list[bool]:
        return self._load(self._parts(KV, keys, host_indices))

    def batch_set_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: PrefixInfo | None = None
    ) -> list[bool]:
        return self._store(self._parts(KV, keys, host_indices), keys, extra_info)

    def batch_exists(self, keys: Sequence[str], extra_info: PrefixInfo | None = None) -> int:
        """Return how many leading pages are there."""
        return leading(self._lookup(KV, keys))

    # --- side pools ---------------------------------------------------------------------------
    def batch_exists_v2(
        self, keys: Sequence[str], pool_transfers: Sequence[SideTransfer] | None = None,
        extra_info: PrefixInfo | None = None,
    ) -> PoolTransferResult:
        has_kv = getattr(self._pages[KV].pool, "kv_buffer", None) is not None
        pages = self.batch_exists(keys, extra_info) if has_kv else len(keys)
        found = {KV: pages} if pages else {}
        lengths = list(range(1, pages + 1))
        for transfer in pool_transfers or ():
            if not lengths:
                break
            name, trailing = str(transfer.name), None
            if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
                trailing = len(transfer.keys or ())
            elif transfer.hit_policy != PoolHitPolicy.ALL_PAGES:
                lengths = []  # nothing is claimed of what is not understood
                break
            theirs = restorable(pages, self._lookup(name, keys[:pages]), trailing)
            if theirs:
                found[name] = theirs[-1]
            lengths = [length for length in lengths if length in set(theirs)]
        return PoolTransferResult(lengths[-1] if lengths else 0, found, lengths)

    def batch_get_v2(
        self, transfers: Sequence[SideTransfer], extra_info: PrefixInfo | None = None
    ) -> dict[str, list[bool]]:
        return {
            transfer.name: self._load(
                self._parts(str(transfer.name), transfer.keys or (), transfer.host_indices)
            )
            for transfer in transfers
        }

    def batch_set_v2(
        self, transfers: Sequence[SideTransfer], extra_info: PrefixInfo | None = None
    ) -> dict[str, list[bool]]:
        return {
            transfer.name: self._store(
                self._parts(str(transfer.name), transfer.keys or (), transfer.host_indices),
                transfer.keys or (), extra_info,
            )
            for transfer in transfers
        }

    # --- pages copied by SGLang ---------------------------------------------------------------
    def get(
        self, key: str, target_location: torch.Tensor | None = None, target_sizes: object = None
    ) -> torch.Tensor | None:
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self, keys: Sequence[str], target_locations: Sequence[torch.Tensor | None] | None = None,
        target_sizes: object = None,
    ) -> list[torch.Tensor | None]:
        """Fill tensors, whole and contiguous ones; None for each page that is not there."""
        targets = list(target_locations or [None] * len(keys))
        hits = self._load([
            self._flat(key, target) for key, target in zip(keys, targets, strict=True)
        ])
        return [target if hit else None for target, hit in zip(targets, hits, strict=True)]

    def set(
        self, key: str, value: torch.Tensor | None = None, target_location: object = None,
        target_sizes: object = None,
    ) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self, keys: Sequence[str], values: Sequence[torch.Tensor | None] | None = None,
        target_locations: object = None, target_sizes: object = None,
    ) -> bool:
        """Store tensors; True when all of them are in the pool."""
        kept = [value if value is None else value.contiguous() for value in values or ()]
        if len(kept) != len(keys):
            return False
        return all(self._store(
            [self._flat(key, value) for key, value in zip(keys, kept, strict=True)], keys, None
        ))

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # --- the rest -----------------------------------------------------------------------------
    def clear(self) -> None:
        """Blocks of a pool are shared and go by eviction: nothing is removed here."""
        log.warning("a MemKV pool is not cleared from one engine: its blocks belong to all of them")

    def report_status(self) -> dict[str, object]:
        """Return figures for people: problems, and why pages were missed or dropped."""
        reasons = (("why_missed", self._transfers.missed), ("why_dropped", self._transfers.dropped))
        return {
            "problems": self._attachment.problems(),
            **{name: {reason.label: count for reason, count in counted.totals.items()}
               for name, counted in reasons},
        }

    def close(self) -> None:
        self._transfers.close()

    # --- inside -------------------------------------------------------------------------------
    def _kind(self, name: str, page_bytes: int) -> ObjectKind:
        return ObjectKind(
            self._pages[name].namespace, page_bytes,
            part_bytes_max=self._settings.part_bytes_max,
        )

    def _parts(
        self, name: str, keys: Sequence[str], host_indices: torch.Tensor | None
    ) -> list[list[Part]]:
        """Return the memory of pages as parts; an empty list for what is no page."""
        pool = self._pages[name].pool
        if host_indices is None or len(host_indices) != len(keys) * _slots(pool):
            log.error("%d pages of pool %s with %s indices", len(keys), name,
                      None if host_indices is None else len(host_indices))
            return [[] for _ in keys]
        if not keys:
            return []
        pointers, sizes = pool.get_page_buffer_meta(host_indices)
        count = len(pointers) // len(keys)
        parts = []
        for number, key in enumerate(keys):
            own = slice(number * count, (number + 1) * count)
            pieces = [
                piece for address, size in zip(pointers[own], sizes[own], strict=True)
                for piece in _pieces(address, size)
            ]
            kind = self._kind(name, sum(size for _, size in pieces))
            parts.append(kind.parts(page_hash(key), pieces))
        return parts

    def _flat(self, key: str, tensor: torch.Tensor | None) -> list[Part]:
        if tensor is None or not tensor.nbytes or not tensor.is_contiguous():
            return []
        kind = self._kind(KV, tensor.nbytes)
        return kind.parts(page_hash(key), [(tensor.data_ptr(), tensor.nbytes)])

    def _page_bytes(self, name: str) -> int:
        """Return the size of a page of a pool, as its memory says it."""
        import torch

        pool = self._pages[name].pool
        if name == KV and self._way == "flat":
            return int(pool.get_dummy_flat_data_page().nbytes)
        pointers, sizes = pool.get_page_buffer_meta(torch.arange(_slots(pool)))
        return sum(
            size for place, one in zip(pointers, sizes, strict=True)
            for _, size in _pieces(place, one)
        )

    def _lookup(self, name: str, keys: Sequence[str]) -> list[bool]:
        if name not in self._pages:
            return [False] * len(keys)
        if name not in self._page_sizes:
            self._page_sizes[name] = self._page_bytes(name)
        kind = self._kind(name, self._page_sizes[name])
        waited: Waited[list[bool]] = Waited()
        self._transfers.lookup([kind.keys(page_hash(key)) for key in keys], waited)
        return waited.result()

    def _load(self, objects: list[list[Part]]) -> list[bool]:
        waited: Waited[list[BlockFormat | None]] = Waited()
        self._transfers.load([parts for parts in objects if parts], waited)
        hits = iter(waited.result())
        return [next(hits) is not None if parts else False for parts in objects]

    def _store(
        self, objects: list[list[Part]], keys: Sequence[str], extra_info: PrefixInfo | None
    ) -> list[bool]:
        hints = page_hints(keys, extra_info.prefix_keys if extra_info is not None else None)
        waited: Waited[list[Stored]] = Waited()
        self._transfers.store(
            [parts for parts in objects if parts], waited, options=self._settings.put_options,
            hints=[hint for hint, parts in zip(hints, objects, strict=True) if parts],
        )
        outcomes = iter(waited.result())
        return [next(outcomes) is not Stored.DROPPED if parts else False for parts in objects]


def _slots(pool: HostPool) -> int:
    """Return how many indices a page has: tokens as the engine counts them."""
    return int(getattr(pool, "logical_page_size", None) or pool.page_size)


def _pieces(address: object, size: object) -> Iterable[tuple[int, int]]:
    """Some pools give one address a page and buffer, some a list of them."""
    if isinstance(address, Sequence) and isinstance(size, Sequence):
        return [(int(one), int(length)) for one, length in zip(address, size, strict=True)]
    return [(int(address), int(size))]  # type: ignore[call-overload]  # numbers


def _tensors(buffer: object) -> list[torch.Tensor]:
    if buffer is None:
        return []
    return list(buffer) if isinstance(buffer, (list, tuple)) else [buffer]
