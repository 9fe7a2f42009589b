"""The HiCache backend: made by SGLang's own factory, over its own host pools and a real pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sglang.srt.environ import envs
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    HiCacheStorageFailureInjector,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.storage import StorageBackendFactory

from memkv.errors import CallerError
from memkv.integrations.settings import PoolSettings
from memkv.integrations.sglang import MemKVHiCacheStorage
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.lying_worker import flip_payload, lying_worker
from memkv.testing.sglang_pool import fill, hashes, host_pool, indices, page_of

SLACK_S = 30
LAYOUTS = ["page_first", "page_first_direct", "layer_first"]


def config(**changes: object) -> HiCacheStorageConfig:
    fields: dict[str, object] = {
        "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0,
        "attn_cp_size": 1, "is_mla_model": False, "enable_storage_metrics": False,
        "is_page_first_layout": True, "model_name": "llama", **changes,
    }  # fmt: skip
    return HiCacheStorageConfig(**fields)


@contextmanager
def backend(
    endpoint: str, pool: MHATokenToKVPoolHost, *, v1: int = 1,
    storage: HiCacheStorageConfig | None = None, **settings: object,
) -> Iterator[HiCacheStorage]:
    """Make one as the cache controller does."""
    storage = storage or config()
    storage.extra_config = {
        "backend_name": "memkv", "module_path": "memkv.integrations.sglang",
        "class_name": "MemKVHiCacheStorage", "interface_v1": v1, "endpoint": endpoint,
        "prefetch_threshold": 256, **settings,
    }  # fmt: skip
    made = StorageBackendFactory.create_backend("dynamic", storage, pool)
    try:
        made.register_mem_pool_host(pool)
        made.on_host_pools_registered()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_copy_pages_of_another_engine(endpoint: str, layout: str) -> None:
    keys, ours = hashes(layout, 6), host_pool(layout)
    for page in range(6):
        fill(ours, page, layout)
    info = HiCacheStorageExtraInfo(prefix_keys=hashes("before", 2))
    with backend(endpoint, ours) as first:
        assert first.batch_set_v1(keys, indices(*range(6)), info) == [True] * 6
        assert first.batch_set_v1(keys, indices(*range(6)), info) == [True] * 6, "known"
    theirs = host_pool(layout)
    with backend(endpoint, theirs) as second:
        assert second.batch_exists([*keys, *hashes("none", 1)]) == 6
        places = [11, 9, 7, 5, 3, 1]
        assert second.batch_get_v1(keys, indices(*places), info) == [True] * 6
        for page, place in enumerate(places):
            assert torch.equal(page_of(theirs, place), page_of(ours, page))
        assert second.batch_get_v1([*keys[:1], *hashes("none", 1)], indices(0, 2)) == [True, False]
        assert not page_of(theirs, 4).any(), "what was not asked for is untouched"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_that_sglang_copies(endpoint: str, layout: str) -> None:
    keys, ours = hashes(f"flat-{layout}", 3), host_pool(layout)
    for page in range(3):
        fill(ours, page, layout)
    pages = [page_of(ours, page) for page in range(3)]
    with backend(endpoint, ours, v1=0) as one:
        assert one.batch_set(keys[:2], pages[:2])
        assert one.set(keys[2], pages[2])
        assert one.exists(keys[2])
        assert one.batch_exists(keys) == 3
        targets = [ours.get_dummy_flat_data_page() for _ in range(4)]
        found = one.batch_get([*keys, *hashes("none", 1)], targets)
        assert [page is not None for page in found] == [True, True, True, False]
        assert all(torch.equal(a, b) for a, b in zip(found[:3], pages, strict=True))
        assert one.get(keys[0], targets[0]) is targets[0]
        assert one.get(keys[0]) is None, "without memory there is nothing to fill"
        assert not one.set(keys[0], None)
    with backend(endpoint, ours, v1=1) as other:
        assert other.batch_exists(keys) == 0, "bytes in another order"


@pytest.mark.parametrize(
    "change",
    [{"model_name": "other"}, {"tp_size": 2}, {"pp_size": 2, "pp_rank": 1}], ids=str,
)  # fmt: skip
def test_another_namespace_is_a_miss(endpoint: str, change: dict[str, object]) -> None:
    keys, ours = hashes("namespace", 2), host_pool()
    fill(ours, 0, "namespace")
    with backend(endpoint, ours) as first:
        assert all(first.batch_set_v1(keys, indices(0, 1)))
    with backend(endpoint, host_pool(), storage=config(**change)) as second:
        assert second.batch_exists(keys) == 0
        assert second.batch_get_v1(keys, indices(0, 1)) == [False, False]


@pytest.mark.parametrize(
    ("layout", "dtype", "layers"),
    [("page_first", torch.float16, 4), ("page_first", torch.bfloat16, 3),
     ("page_first_direct", torch.bfloat16, 4)],
)  # fmt: skip
def test_another_geometry_is_a_miss(
    endpoint: str, layout: str, dtype: torch.dtype, layers: int
) -> None:
    keys = hashes("geometry", 1)
    with backend(endpoint, host_pool()) as first:
        assert all(first.batch_set_v1(keys, indices(0)))
        assert first.batch_exists(keys) == 1
    with backend(endpoint, host_pool(layout, dtype, layers)) as second:
        assert second.batch_exists(keys) == 0


def test_side_pools_of_hybrid_models(endpoint: str) -> None:
    keys, kv, side = hashes("hybrid", 4), host_pool(), host_pool("page_first_direct", layers=2)
    for page in range(4):
        fill(kv, page, "kv")
        fill(side, page, "side")

    def transfer(policy: PoolHitPolicy, *pages: int) -> PoolTransfer:
        chosen = [keys[page] for page in pages]
        return PoolTransfer(PoolName.SWA, indices(*pages), keys=chosen, hit_policy=policy)

    with backend(endpoint, kv) as one:
        one.register_mem_host_pool_v2(kv, PoolName.KV)
        one.register_mem_host_pool_v2(side, PoolName.SWA)
        assert all(one.batch_set_v1(keys, indices(0, 1, 2, 3)))
        stored = one.batch_set_v2([transfer(PoolHitPolicy.ALL_PAGES, 1, 2)])
        assert stored == {PoolName.SWA: [True, True]}
        window = one.batch_exists_v2(keys, [transfer(PoolHitPolicy.TRAILING_PAGES, 1, 2)])
        assert (window.kv_hit_pages, window.restorable_prefix_pages) == (3, [3])
        assert window.extra_pool_hit_pages == {PoolName.KV: 4, PoolName.SWA: 3}
        every = one.batch_exists_v2(keys, [transfer(PoolHitPolicy.ALL_PAGES, 0)])
        assert (every.kv_hit_pages, every.restorable_prefix_pages) == (0, [])
        got = one.batch_get_v2([
            PoolTransfer(PoolName.SWA, indices(8, 9, 10), keys=[*keys[1:3], keys[0]])
        ])
        assert got == {PoolName.SWA: [True, True, False]}
        assert torch.equal(page_of(side, 8), page_of(side, 1))


def test_the_injectors_of_failures_and_delays(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's own: whatever fails or is late, a page that is said to be there has its bytes."""
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY", "0.02")
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.4")
    assert envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.get() == 0.4
    keys, ours = hashes("injected", 5), host_pool()
    for page in range(5):
        fill(ours, page, "injected")
    hits = misses = 0
    with backend(endpoint, ours) as one:
        assert isinstance(one, HiCacheStorageFailureInjector)
        stored = False
        for _ in range(40):
            stored |= all(one.batch_set_v1(keys, indices(0, 1, 2, 3, 4)))
            known = one.batch_exists(keys)
            assert known in (0, 5) if stored else known == 0
            for page in range(6, 11):
                fill(ours, page, "other")
            got = one.batch_get_v1(keys, indices(6, 7, 8, 9, 10))
            hits, misses = hits + sum(got), misses + len(got) - sum(got)
            for page, hit in enumerate(got):
                assert not hit or torch.equal(page_of(ours, page + 6), page_of(ours, page))
        assert stored
    assert hits
    assert misses


def test_a_pool_that_goes_away_is_misses_and_dropped_pages(tmp_path: Path) -> None:
    keys, ours = hashes("away", 3), host_pool()
    with LocalPool(PoolPlan(tmp_path, 1, 256 * MIB, 64 * MIB)) as pool:  # noqa: SIM117  in turn
        with backend(pool.endpoint, ours, deadline_ms=500, load_deadline_ms=500) as one:
            assert isinstance(one, MemKVHiCacheStorage)
            assert all(one.batch_set_v1(keys, indices(0, 1, 2)))
            pool.stop()
            started = time.monotonic()
            assert one.batch_get_v1(keys, indices(3, 4, 5)) == [False] * 3
            assert one.batch_exists(keys) == 0
            assert one.batch_set_v1(hashes("late", 1), indices(0)) == [False]
            assert time.monotonic() - started < SLACK_S
            status = one.report_status()
            assert status["problems"]
            missed, dropped = status["why_missed"], status["why_dropped"]
            assert isinstance(missed, dict)
            assert isinstance(dropped, dict)
            assert set(missed) <= {"timeout", "unavailable"}
            assert dropped["present"] == 3
            assert sum(dropped.values()) == 4


def test_a_node_that_flips_bits_or_says_nothing_is_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, ours = hashes("lies", 3), host_pool()
    with lying_worker(tmp_path) as worker:
        monkeypatch.setattr(PoolSettings, "connect", lambda settings: worker.client())
        with backend("behind the proxy", ours, load_deadline_ms=500) as one:
            assert all(one.batch_set_v1(keys, indices(0, 1, 2)))
            worker.proxy.fault = flip_payload
            assert one.batch_get_v1(keys, indices(3, 4, 5)) == [False] * 3
            assert isinstance(one, MemKVHiCacheStorage)
            missed = one.report_status()["why_missed"]
            assert isinstance(missed, dict)
            assert missed["corrupt"] == 3
            worker.proxy.hold()
            started = time.monotonic()
            assert one.batch_get_v1(keys, indices(3, 4, 5)) == [False] * 3
            assert one.batch_exists(keys) == 0
            assert time.monotonic() - started < SLACK_S
            worker.proxy.release()


def test_without_a_pool_an_engine_starts_and_goes_on() -> None:
    with backend("127.0.0.1:1", host_pool(), deadline_ms=500) as one:
        assert one.batch_exists(hashes("none", 2)) == 0
        one.clear()
        assert one.get_stats() is None


def test_settings_that_mean_nothing_stop_the_engine(endpoint: str) -> None:
    with (
        pytest.raises(CallerError, match="deadline_ms"),
        backend(endpoint, host_pool(), deadline_ms="soon"),
    ):
        pass
    with (
        pytest.raises(CallerError, match="served-model-name"),
        backend(endpoint, host_pool(), storage=config(model_name=None)),
    ):
        pass


def test_wrong_numbers_of_indices_are_misses(endpoint: str) -> None:
    with backend(endpoint, host_pool()) as one:
        keys = hashes("indices", 2)
        assert one.batch_set_v1(keys, indices(0)) == [False, False]
        assert one.batch_get_v1(keys, indices(0)) == [False, False]
        assert one.batch_get_v1([], torch.empty(0, dtype=torch.int64)) == []
