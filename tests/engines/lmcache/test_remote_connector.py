"""The remote connector under LMCache's own remote backend, as a plug-in of its configuration."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.exceptions import IrrecoverableException
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

from memkv.integrations.lmcache_remote import MemKVRemoteConnector
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.waiting import eventually

SLACK_S = 30
SHAPE = torch.Size([2, 4, 256, 256])  # 1 MiB
PARTIAL = torch.Size([2, 4, 100, 256])
METADATA = LMCacheMetadata(
    "llama", 1, 1, 0, 0, kv_dtype=torch.bfloat16, kv_shape=(4, 2, 256, 4, 64), chunk_size=256
)


class Engine:
    """What an engine's process has of LMCache: memory, an event loop, the remote backend."""

    def __init__(self, backend: RemoteBackend, memory: LocalCPUBackend) -> None:
        self.backend = backend
        self.memory = memory

    @property
    def connector(self) -> MemKVRemoteConnector:
        assert self.backend.connection is not None
        wrapped = self.backend.connection.getWrappedConnector()
        assert isinstance(wrapped, MemKVRemoteConnector)
        return wrapped

    def chunk(self, key: CacheEngineKey, shape: torch.Size = SHAPE,
              fmt: MemoryFormat = MemoryFormat.KV_2LTD) -> MemoryObj:
        """Return memory with what belongs to a key; the caller owns it."""
        memory = self.memory.allocate(shape, torch.bfloat16, fmt)
        assert memory is not None
        memory.tensor.copy_(content(key, shape))
        return memory

    def put(self, keys: list[CacheEngineKey], chunks: list[MemoryObj]) -> None:
        """Store chunks and give them back; waits for the pool."""
        self.backend.batched_submit_put_task(keys, chunks)
        eventually(lambda: all(one.get_ref_count() == 1 for one in chunks), "a put", SLACK_S)
        for one in chunks:
            one.ref_count_down()

    def get(self, key: CacheEngineKey, shape: torch.Size = SHAPE) -> bool:
        """Return whether there is a hit; checks its bytes and gives it back."""
        found = self.backend.get_blocking(key)
        if found is None:
            return False
        assert found.get_shape() == shape
        assert torch.equal(found.tensor, content(key, shape))
        assert found.get_ref_count() == 1
        found.ref_count_down()
        return True

    @property
    def used_bytes(self) -> int:
        return int(self.memory.memory_allocator.pin_allocator.total_allocated_size)


def content(key: CacheEngineKey, shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(key.chunk_hash))
    return torch.randint(-100, 100, shape, generator=generator).to(torch.bfloat16)


def key_of(number: int, **more: object) -> CacheEngineKey:
    fields: dict[str, object] = {
        "model_name": "llama", "world_size": 1, "worker_id": 0, "chunk_hash": number,
        "dtype": torch.bfloat16, **more,
    }  # fmt: skip
    return CacheEngineKey(**fields)


@contextmanager
def engine(endpoint: str, *, layerwise: bool = False, scheduler: bool = False,
           **settings: object) -> Iterator[Engine]:
    settings = {
        "module_path": "memkv.integrations.lmcache_remote", "class_name": "MemKVConnectorAdapter",
        "endpoint": endpoint, **settings,
    }  # fmt: skip
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=256, local_cpu=True, max_local_cpu_size=0.1, use_layerwise=layerwise,
        remote_serde="naive", remote_storage_plugins=["memkv"], lmcache_instance_id="test",
        extra_config={
            f"remote_storage_plugin.memkv.{name}": value for name, value in settings.items()
        },
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    memory = LocalCPUBackend(config, METADATA, dst_device="cpu")
    try:
        backend = RemoteBackend(
            config, METADATA, loop, None if scheduler else memory, dst_device="cpu",
            plugin_name="memkv",
        )
        yield Engine(backend, memory)
        backend.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        memory.close()


def test_a_fresh_engine_finds_what_another_stored(endpoint: str) -> None:
    keys = [key_of(100 + number) for number in range(6)]
    with engine(endpoint) as first:
        before = first.used_bytes
        first.put(keys, [first.chunk(key) for key in keys])
        assert first.used_bytes == before
    with engine(endpoint) as second:
        before = second.used_bytes
        assert all(second.get(key) for key in keys)
        assert not second.get(key_of(99))
        found = second.backend.batched_get_blocking([*keys, key_of(99)])
        assert [one is not None for one in found] == [True] * 6 + [False]
        for one in found[:6]:
            one.ref_count_down()
        assert second.used_bytes == before, "every reference came back"


def test_lookups_of_every_kind(endpoint: str) -> None:
    keys = [key_of(200 + number) for number in range(5)]
    with engine(endpoint) as first:
        first.put(keys[:3] + keys[4:], [first.chunk(key) for key in keys[:3] + keys[4:]])
        assert first.backend.contains(keys[0])
        assert not first.backend.contains(keys[3])
        assert first.connector.exists_sync(keys[0])
        assert first.backend.batched_contains(keys) == 3
        later = asyncio.run_coroutine_threadsafe(
            first.backend.batched_async_contains("lookup", keys), first.backend.loop
        )
        assert later.result(SLACK_S) == 3
        loaded = asyncio.run_coroutine_threadsafe(
            first.backend.batched_get_non_blocking("lookup", keys), first.backend.loop
        ).result(SLACK_S)
        assert len(loaded) == 3
        for one in loaded:
            one.ref_count_down()
    with engine(endpoint, scheduler=True) as scheduler:
        assert scheduler.backend.batched_contains(keys) == 3, "it names what workers store"


def test_the_last_chunk_of_a_prompt_says_its_own_length(endpoint: str) -> None:
    key = key_of(300)
    with engine(endpoint) as first:
        first.put([key], [first.chunk(key, PARTIAL)])
    with engine(endpoint) as second:
        assert second.get(key, PARTIAL)


def test_chunks_of_one_layer(endpoint: str) -> None:
    layer = torch.Size([256, 2, 256])
    keys = [
        LayerCacheEngineKey("llama", 1, 0, 400, torch.bfloat16, layer_id=number)
        for number in range(2)
    ]
    with engine(endpoint, layerwise=True) as first:
        first.put(keys[:1], [first.chunk(keys[0], layer, MemoryFormat.KV_T2D)])
    with engine(endpoint, layerwise=True) as second:
        assert second.get(keys[0], layer)
        assert not second.get(keys[1], layer), "another layer"


@pytest.mark.parametrize(
    "change",
    [{"model_name": "other"}, {"world_size": 2}, {"dtype": torch.float16},
     {"request_configs": {"lmcache.tag.user": "alice"}}], ids=str,
)  # fmt: skip
def test_another_namespace_is_a_miss(endpoint: str, change: dict[str, object]) -> None:
    with engine(endpoint) as one:
        one.put([key_of(500)], [one.chunk(key_of(500))])
        assert one.get(key_of(500))
        assert not one.get(key_of(500, **change))


def test_removing_is_for_everybody(endpoint: str) -> None:
    with engine(endpoint) as one:
        one.put([key_of(600)], [one.chunk(key_of(600))])
        assert one.backend.remove(key_of(600))
        assert not one.backend.contains(key_of(600))


def test_a_pool_that_goes_away_is_misses_and_dropped_puts(tmp_path: Path) -> None:
    with LocalPool(PoolPlan(tmp_path, 1, 256 * MIB, 64 * MIB)) as pool:  # noqa: SIM117  in turn
        with engine(pool.endpoint, deadline_ms=500, load_deadline_ms=500) as one:
            one.put([key_of(1)], [one.chunk(key_of(1))])
            assert one.get(key_of(1))
            before = one.used_bytes
            pool.stop()
            started = time.monotonic()
            assert not one.get(key_of(1))
            assert not one.backend.contains(key_of(1))
            one.put([key_of(2)], [one.chunk(key_of(2))])
            assert time.monotonic() - started < SLACK_S
            assert one.used_bytes == before, "every reference came back"
            ping = asyncio.run_coroutine_threadsafe(
                one.backend.connection.ping(), one.backend.loop
            )
            assert ping.result(SLACK_S) != 0


def test_a_configuration_that_cannot_work_stops_the_engine(endpoint: str) -> None:
    with (
        pytest.raises(IrrecoverableException, match="unknown endpiont"),
        engine(endpoint, endpiont="x"),
    ):
        pass
