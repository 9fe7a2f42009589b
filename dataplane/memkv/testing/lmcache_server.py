"""LMCache's storage manager as `lmcache server` makes it: its L1, both controllers, our adapter."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lmcache.v1.distributed.api import (
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import parse_args
from lmcache.v1.distributed.storage_manager import StorageManager

from memkv.integrations.lmcache_l2 import MemKVL2Adapter
from memkv.limits import MIB
from memkv.testing.waiting import eventually

LAYOUT = MemoryLayoutDesc([torch.Size([2, 4, 256, 256])], [torch.bfloat16])  # 1 MiB
WAIT_S = 60


class Server:
    def __init__(self, manager: StorageManager) -> None:
        self.manager = manager

    @property
    def adapter(self) -> MemKVL2Adapter:
        """The adapter itself, without a serde around it."""
        ((_, adapter),) = self.manager.l2_adapters()
        adapter = getattr(adapter, "inner_adapter", adapter)
        assert isinstance(adapter, MemKVL2Adapter)
        return adapter

    def write(self, keys: Sequence[ObjectKey], layout: MemoryLayoutDesc = LAYOUT) -> None:
        """Put objects into L1, as a worker does; the store controller takes them from there."""
        objects = self.manager.reserve_write(list(keys), layout)
        assert len(objects) == len(keys)
        for key, memory in objects.items():
            memory.raw_tensor[: memory.get_size()].copy_(content(key, layout))
        self.manager.finish_write(list(keys))

    def stored(self, count: int) -> bool:
        """Whether `count` objects have gone to the pool, or were there."""
        reasons = self.adapter.report_status()["why_dropped"]
        assert isinstance(reasons, dict)
        return bool(reasons.get("present", 0) >= count)

    def prefetch(
        self, keys: Sequence[ObjectKey], layout: MemoryLayoutDesc = LAYOUT, *, exact: bool = True
    ) -> tuple[int, int]:
        """Return how many objects came from L1 and from L2; `exact`: checks every byte of them."""
        spec = PrefetchTaskSpec([GroupedObjectKeys(list(keys), 0, layout)])
        handle = self.manager.submit_prefetch_task(spec)
        assert self.manager.wait_prefetch_status(handle, WAIT_S)
        result = self.manager.query_prefetch_status(handle)
        assert result is not None
        hits = [key for i, key in enumerate(keys) if result.hit_cells[0].test(i)]
        if hits:
            with self.manager.read_prefetched_results(hits) as objects:
                assert objects is not None
                for key, memory in zip(hits, objects, strict=True):
                    found = memory.raw_tensor[: memory.get_size()]
                    assert not exact or torch.equal(found, content(key, layout))
            self.manager.finish_read_prefetched(hits)
        return result.l1_hit_count, result.l2_hit_count


def content(key: ObjectKey, layout: MemoryLayoutDesc) -> torch.Tensor:
    """Return the bytes that belong to a key."""
    size_bytes = sum(
        shape.numel() * dtype.itemsize
        for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True)
    )
    generator = torch.Generator().manual_seed(int.from_bytes(key.chunk_hash[:7], "big"))
    return torch.randint(0, 256, (size_bytes,), dtype=torch.uint8, generator=generator)


def object_keys(name: str, count: int, **more: object) -> list[ObjectKey]:
    fields: dict[str, object] = {"model_name": "llama", "kv_rank": 0x01000100, **more}
    return [
        ObjectKey(chunk_hash=f"{name}-{number:04d}".encode().rjust(32, b"."), **fields)
        for number in range(count)
    ]


@contextmanager
def server(
    endpoint: str, *, serde: dict[str, object] | None = None, **params: object
) -> Iterator[Server]:
    """Start one from its command line."""
    adapter = {
        "type": "plugin", "module_path": "memkv.integrations.lmcache_l2",
        "class_name": "MemKVL2Adapter", "adapter_params": {"endpoint": endpoint, **params},
        "shared": True, **({"serde": serde} if serde else {}),
    }  # fmt: skip
    config = parse_args([
        "--l1-size-gb", "0.25", "--no-l1-use-lazy", "--eviction-policy", "LRU",
        "--l2-adapter", json.dumps(adapter),
    ])
    manager = StorageManager(config)
    try:
        yield Server(manager)
    finally:
        manager.close()


def wait_stored(one: Server, count: int) -> None:
    eventually(lambda: one.stored(count), f"a store of {count} objects", WAIT_S)


assert sum(s.numel() * 2 for s in LAYOUT.shapes) == MIB
