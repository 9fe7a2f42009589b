"""The L2 adapter under LMCache's own store and prefetch controllers, over a real pool."""

import select
import time
from pathlib import Path

import pytest
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

from memkv.integrations.settings import PoolSettings
from memkv.limits import MIB
from memkv.localpool.pool import LocalPool, PoolPlan
from memkv.testing.lmcache_server import LAYOUT, content, object_keys, server, wait_stored
from memkv.testing.lying_worker import flip_payload, lying_worker

SLACK_S = 30  # of a busy machine; LMCache itself waits for ever
HALF = MemoryLayoutDesc([torch.Size([2, 4, 256, 256])], [torch.float16])
TWO_GROUPS = MemoryLayoutDesc(
    [torch.Size([2, 2, 256, 256]), torch.Size([1, 2, 256, 64])], [torch.bfloat16, torch.uint8]
)
LONG = MemoryLayoutDesc([torch.Size([2, 40, 256, 512])], [torch.bfloat16])  # 20 MiB: four blocks


def test_a_fresh_server_finds_what_another_stored(endpoint: str) -> None:
    keys = object_keys("fresh", 12)
    with server(endpoint) as first:
        first.write(keys)
        wait_stored(first, 12)
    with server(endpoint) as second:
        assert second.prefetch(keys) == (0, 12)
        assert second.prefetch(keys) == (0, 12), "LMCache keeps in L1 what it wrote itself"
        status = second.adapter.report_status()
        assert (status["is_healthy"], status["problems"]) == (True, [])
        assert (status["locked_keys"], status["tasks_under_way"]) == (0, {})


def test_only_the_prefix_that_is_there_comes_from_the_pool(endpoint: str) -> None:
    keys = object_keys("prefix", 8)
    with server(endpoint) as first:
        first.write(keys[:3] + keys[5:])
        wait_stored(first, 6)
    with server(endpoint) as second:
        assert second.prefetch(keys) == (0, 3)


@pytest.mark.parametrize("layout", [TWO_GROUPS, LONG], ids=["two groups of layers", "four blocks"])
def test_objects_of_other_layouts(endpoint: str, layout: MemoryLayoutDesc) -> None:
    keys = object_keys(f"layout-{len(layout.shapes)}", 3)
    with server(endpoint, block_bytes_max=6 * MIB) as first:
        first.write(keys, layout)
        wait_stored(first, 3)
    with server(endpoint, block_bytes_max=6 * MIB) as second:
        assert second.prefetch(keys, layout) == (0, 3)


def test_other_bytes_under_the_same_hash_are_misses(endpoint: str) -> None:
    keys = object_keys("other", 2)
    with server(endpoint) as first:
        first.write(keys)
        wait_stored(first, 2)
    with server(endpoint) as second:
        assert second.prefetch(keys, HALF) == (0, 0), "dtype"
        for change in ({"model_name": "other"}, {"kv_rank": 0x02010201}, {"cache_salt": "llama"}):
            assert second.prefetch(object_keys("other", 2, **change)) == (0, 0), change
        second.write(keys, HALF)  # and both may be there side by side
        wait_stored(second, 2)
    with server(endpoint, revision="another") as third:
        assert third.prefetch(keys) == (0, 0), "revision"
    with server(endpoint) as fourth:
        assert fourth.prefetch(keys, HALF) == (0, 2)


def test_with_a_serde(endpoint: str) -> None:
    """The lookup describes what is stored by its name only."""
    keys = object_keys("fp8", 3)
    with server(endpoint, serde={"type": "fp8"}, layout="fp8") as first:
        first.write(keys)
        wait_stored(first, 3)
    with server(endpoint, serde={"type": "fp8"}, layout="fp8") as second:
        assert second.prefetch(keys, exact=False) == (0, 3)
    with server(endpoint) as plain:
        assert plain.prefetch(keys) == (0, 0), "other bytes, other names"


def test_deleting_removes_from_the_pool(endpoint: str) -> None:
    keys = object_keys("delete", 4)
    with server(endpoint) as first:
        first.write(keys)
        wait_stored(first, 4)
        used = first.adapter.get_usage().total_bytes_used
        first.adapter.delete(keys[2:])
        assert first.adapter.get_usage().total_bytes_used == used - 2 * MIB
    with server(endpoint) as second:
        assert second.prefetch(keys) == (0, 2)


def signalled(fd: int) -> None:
    """Wait for an event fd, and consume it, as LMCache's controllers do."""
    assert select.select([fd], [], [], SLACK_S)[0]
    consume_fd(fd)


def test_each_event_fd_tells_of_its_own_tasks(endpoint: str) -> None:
    """Without controllers: what a controller sees of an adapter over an L1 arena."""
    keys, size = object_keys("fds", 3), MIB
    arena = torch.zeros(6 * size, dtype=torch.uint8)
    adapter = create_l2_adapter(
        PluginL2AdapterConfig(
            "memkv.integrations.lmcache_l2", "MemKVL2Adapter", {"endpoint": endpoint}
        ),
        L1MemoryDesc(arena.data_ptr(), arena.nbytes, 4096),
    )

    def memory(place: int) -> TensorMemoryObj:
        (shape,), (dtype,) = LAYOUT.shapes, LAYOUT.dtypes
        return TensorMemoryObj(
            arena[place * size : (place + 1) * size],
            MemoryObjMetadata(shape, dtype, 0, size, 1, fmt=MemoryFormat.KV_2LTD, shapes=[shape],
                              dtypes=[dtype]),
            parent_allocator=None,
        )

    store, lookup, load = (
        adapter.get_store_event_fd(), adapter.get_lookup_and_lock_event_fd(),
        adapter.get_load_event_fd(),
    )  # fmt: skip
    assert len({store, lookup, load}) == 3
    for place, key in enumerate(keys[:2]):
        arena[place * size : (place + 1) * size].copy_(content(key, LAYOUT))
    task = adapter.submit_store_task(keys[:2], [memory(0), memory(1)])
    signalled(store)
    stored = adapter.pop_completed_store_tasks()
    assert (stored[task].is_successful(), stored[task].bytes_transferred()) == (True, 2 * size)
    assert adapter.pop_completed_store_tasks() == {}

    task = adapter.submit_lookup_and_lock_task(keys, {0: LAYOUT})
    signalled(lookup)
    found = adapter.query_lookup_and_lock_result(task)
    assert [found.test(number) for number in range(3)] == [True, True, False]
    assert adapter.query_lookup_and_lock_result(task) is None

    task = adapter.submit_load_task(keys, [memory(3), memory(4), memory(5)])
    signalled(load)
    found = adapter.query_load_result(task)
    assert [found.test(number) for number in range(3)] == [True, True, False]
    assert adapter.query_load_result(task) is None
    assert torch.equal(arena[3 * size : 5 * size], arena[: 2 * size])
    assert not select.select([store, lookup, load], [], [], 0)[0], "signalled once each"
    adapter.submit_unlock([*keys, *object_keys("never locked", 3)])
    assert adapter.report_status()["locked_keys"] == 0
    adapter.close()


def test_a_pool_that_goes_away_is_misses_and_failed_stores(tmp_path: Path) -> None:
    keys, late = object_keys("away", 6), object_keys("late", 6)
    with LocalPool(PoolPlan(tmp_path, 1, 256 * MIB, 64 * MIB)) as pool:
        with server(pool.endpoint, deadline_ms=500, load_deadline_ms=500) as first:
            first.write(keys)
            wait_stored(first, 6)
        with server(pool.endpoint, deadline_ms=500, load_deadline_ms=500) as second:
            pool.stop()
            started = time.monotonic()
            assert second.prefetch(keys) == (0, 0)
            second.write(late)
            assert second.prefetch(late) == (6, 0), "what L1 has is served all the same"
            assert time.monotonic() - started < SLACK_S
            status = second.adapter.report_status()
            assert status["is_healthy"] is False
            assert status["problems"]
            reasons = status["why_missed"]
            assert isinstance(reasons, dict)
            assert set(reasons) <= {"timeout", "unavailable"}
            assert sum(reasons.values()) == 12, "it asks for what L1 has, too"


def test_a_node_that_flips_bits_or_says_nothing_is_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = object_keys("lies", 3)
    with lying_worker(tmp_path) as worker:
        monkeypatch.setattr(PoolSettings, "connect", lambda settings: worker.client())
        with server("behind the proxy") as first:
            first.write(keys)
            wait_stored(first, 3)
        with server("behind the proxy", load_deadline_ms=500) as second:
            worker.proxy.fault = flip_payload
            assert second.prefetch(keys) == (0, 0)
            reasons = second.adapter.report_status()["why_missed"]
            assert isinstance(reasons, dict)
            assert reasons["corrupt"] == 3
            worker.proxy.hold()
            started = time.monotonic()
            assert second.prefetch(keys) == (0, 0)
            assert time.monotonic() - started < SLACK_S
            worker.proxy.release()


def test_without_a_pool_a_server_starts_and_stops() -> None:
    started = time.monotonic()
    with server("127.0.0.1:1", deadline_ms=500) as one:
        assert one.prefetch(object_keys("nobody", 2)) == (0, 0)
    assert time.monotonic() - started < SLACK_S


def test_a_misspelt_setting_stops_the_server() -> None:
    with (
        pytest.raises(ValueError, match="unknown deadlin_ms"),
        server("127.0.0.1:1", deadlin_ms=500),
    ):
        pass


def test_help_names_every_setting() -> None:
    from memkv.integrations.lmcache_l2 import OWN_NAMES, MemKVL2AdapterConfig
    from memkv.integrations.settings import SETTING_NAMES

    assert all(name in MemKVL2AdapterConfig.help() for name in SETTING_NAMES | OWN_NAMES)
