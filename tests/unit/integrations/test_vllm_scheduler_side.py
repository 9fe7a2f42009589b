"""The connector in a scheduler: what it promises, asks, orders and holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from memkv.integrations.blocks import PAYLOAD_BYTES_MAX
from memkv.integrations.hints import NO_ID, short_id
from memkv.integrations.keys import Adapter, Namespace, Rank, block_key
from memkv.integrations.vllm.messages import FailedLoad, Orders, RankFormat, Results
from memkv.integrations.vllm.planner import CacheShape
from memkv.integrations.vllm.scheduler_side import SchedulerSide
from memkv.integrations.vllm.settings import Settings
from memkv.status import Status
from memkv.testing.pool_in_memory import PoolInMemory

TOKENS = 16
FORMAT = RankFormat("vllm:test/1xH1", "bfloat16", (4096,))
IN_PARTS = RankFormat("vllm:test/2xH1;layers=1", "bfloat16", (2048, 2048))


@dataclass
class FakeRequest:
    request_id: str
    num_tokens: int
    block_hashes: list[bytes]
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    lora_request: object = None
    cache_salt: str | None = None
    kv_transfer_params: dict[str, object] | None = None


@dataclass
class FakeBlock:
    block_id: int
    ref_cnt: int = 1


@dataclass
class FakePool:
    """References of an engine's blocks."""

    num_gpu_blocks: int = 40
    blocks: list[FakeBlock] = field(default_factory=lambda: [FakeBlock(n) for n in range(40)])
    forgotten: set[int] = field(default_factory=set)
    """By its prefix cache."""

    def evict_blocks(self, block_ids: set[int]) -> None:
        self.forgotten |= block_ids

    def touch(self, blocks: Sequence[FakeBlock]) -> None:
        for block in blocks:
            block.ref_cnt += 1

    def free_blocks(self, blocks: Sequence[FakeBlock]) -> None:
        for block in blocks:
            block.ref_cnt -= 1

    def held(self) -> list[int]:
        return [block.block_id for block in self.blocks if block.ref_cnt > 1]


class PlainNames:
    def namespaces(
        self, formats: Sequence[RankFormat], ranks: Sequence[tuple[Rank, ...]],
        adapter: Adapter | None, salt: str,
    ) -> tuple[Namespace, ...]:
        return tuple(
            Namespace("model", "", one.kv_dtype, one.layout, TOKENS, "vllm/sha256/0", rank,
                      adapter, salt.encode())
            for one, rank in zip(formats, ranks, strict=True)
        )


def hashes_of(request: FakeRequest) -> list[bytes]:
    """Stand for the engine's hasher: blocks of all requests here have the same tokens."""
    done = len(request.block_hashes)
    return [bytes((number,)) * 32 for number in range(done, request.num_tokens // TOKENS)]


class Rig:
    def __init__(
        self, ranks: int = 1, store_share: float = 0.5, *, is_pipelined: bool = False, **sides: bool
    ) -> None:
        formats = [IN_PARTS if is_pipelined else FORMAT] * ranks
        self.pool = PoolInMemory()
        self.blocks = FakePool()
        rank_names = [(Rank("tp", rank, ranks),) if ranks > 1 else () for rank in range(ranks)]
        self.side = SchedulerSide(
            self.pool, Settings(store_share=store_share, pipeline_layers=int(is_pipelined)),
            PlainNames(), CacheShape(TOKENS, (None,)), rank_names, hashes_of,
            loads=sides.get("loads", True), stores=sides.get("stores", True),
        )
        self.side.bind_pool(self.blocks)
        self.side.set_formats(formats)
        self.names = PlainNames().namespaces(formats, rank_names, None, "")
        self.parts = len(formats[0].payload_bytes)

    def stored(self, request: FakeRequest, count: int) -> None:
        for name in self.names:
            for block_hash in request.block_hashes[:count]:
                for part in range(self.parts):
                    self.pool.blocks[block_key(name, block_hash, part)] = b"block"

    def step(self, places: dict[str, list[int]], scheduled: dict[str, int]) -> Orders:
        state = SimpleNamespace(get_block_ids=lambda request_id: (places[request_id],))
        return self.side.build_orders(SimpleNamespace(
            num_scheduled_tokens=scheduled, total_num_scheduled_tokens=sum(scheduled.values()),
            kv_connector_block_state=state,
        ))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def request(name: str = "request", tokens: int = 70) -> FakeRequest:
    return FakeRequest(name, tokens, [bytes((n,)) * 32 for n in range(tokens // TOKENS)])


def test_nothing_is_promised_before_workers_said_what_their_blocks_are() -> None:
    rig = Rig()
    rig.side.set_formats([])
    assert rig.side.matched(request(), 0) == (0, False)
    assert rig.pool.jobs == []


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        ([replace(FORMAT, payload_bytes=(4096, PAYLOAD_BYTES_MAX + 1))] * 2,
         r"a block of 16 tokens has 16773121 bytes.*--block-size below 16, or cut it by"),
        ([FORMAT], "1 of 2 workers did not say"),
    ],
    ids=["too large", "one missing"],
)
def test_what_no_object_could_hold_keeps_an_engine_from_sharing_not_from_computing(
    formats: list[RankFormat], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(ranks=2)
    rig.side.set_formats(formats)
    assert re.search(said, caplog.text)
    one = request()
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (0, False)
    assert rig.step({"request": [9, 8, 7]}, {"request": 70}) == Orders()
    assert rig.pool.jobs == []


def test_a_request_is_looked_up_when_it_arrives_and_loaded_when_there_is_room(rig: Rig) -> None:
    one = request()
    rig.stored(one, 3)
    rig.side.begin(one)
    assert rig.side.matched(one, 16) == (32, True)
    assert rig.side.matched(one, 16) == (32, True)  # asked twice, answered alike
    rig.side.allocated(one, SimpleNamespace(get_block_ids=lambda: ([9, 8, 7],)), 32)
    orders = rig.step({}, {})
    assert orders.is_idle
    assert [(block.number, block.place) for block in orders.loads[0].blocks] == [(1, 8), (2, 7)]
    assert rig.side.finished(one) == {"present": 3, "never_stored": 1, "loaded_bytes": 2 * 4096}
    assert [kind for kind, _ in rig.pool.jobs] == ["exist", "why"]
    assert rig.step({}, {}).loads == []


def test_an_answer_that_is_not_there_yet_is_no_promise(rig: Rig) -> None:
    rig.pool.is_prompt = False
    one = request()
    rig.stored(one, 4)
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (None, False)
    rig.pool.end()
    assert rig.side.matched(one, 0) == (64, True)


def test_a_pool_that_is_away_costs_one_question(rig: Rig) -> None:
    rig.pool.spoil = lambda _: Status.UNAVAILABLE
    one = request()
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (0, False)
    assert rig.side.matched(one, 0) == (0, False)
    assert len(rig.pool.jobs) == 1
    assert rig.side.finished(one) == {"unavailable": 4}


def test_blocks_that_are_being_stored_are_held_until_every_rank_is_done() -> None:
    rig = Rig(ranks=2)
    one = request()
    rig.side.begin(one)
    rig.side.matched(one, 0)
    orders = rig.step({"request": [1, 2, 3, 4, 5]}, {"request": 40})
    assert [block.place for block in orders.stores[0].blocks] == [1, 2]
    assert rig.blocks.held() == [1, 2]
    rig.side.finished(one)  # the request's own references go, those of the store stay
    job = orders.stores[0].job
    rig.side.take_results(Results(stored={job: 1}))
    assert rig.side.is_holding
    rig.side.take_results(Results(stored={job: 1}))
    assert rig.blocks.held() == []
    assert not rig.side.is_holding


def test_stores_hold_no_more_than_their_share_of_the_engines_blocks() -> None:
    rig = Rig(store_share=0.05)  # two of forty
    one, two = request("one"), request("two", 33)
    for each in (one, two):
        rig.side.begin(each)
        rig.side.matched(each, 0)
    places = {"one": [1, 2, 3, 4], "two": [5, 6]}
    orders = rig.step(places, {"one": 64, "two": 32})
    assert [store.request_id for store in orders.stores] == ["two"]
    assert rig.blocks.held() == [5, 6]
    assert rig.side.take_counts()["stores_dropped"] == 4


def test_a_failed_load_is_not_tried_again_and_its_blocks_are_stored(rig: Rig) -> None:
    one = request()
    rig.stored(one, 4)
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (64, True)
    rig.side.take_results(Results(failed={"request": FailedLoad("request", 1, "corrupt")}))
    assert rig.side.matched(one, 0) == (0, False)
    orders = rig.step({"request": [1, 2, 3, 4]}, {"request": 64})
    assert [block.number for block in orders.stores[0].blocks] == [1, 2, 3]
    assert rig.side.finished(one) == {"present": 4, "corrupt": 1}


def test_a_preempted_request_asks_anew(rig: Rig) -> None:
    one = request()
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (0, False)
    rig.stored(one, 4)
    one.num_preemptions = 1
    assert rig.side.matched(one, 0) == (64, True)


def test_a_salt_is_another_namespace(rig: Rig) -> None:
    plain, salted = request("plain"), request("salted")
    salted.cache_salt = "secret"
    rig.stored(plain, 4)
    for each in (plain, salted):
        rig.side.begin(each)
    assert rig.side.matched(plain, 0) == (64, True)
    assert rig.side.matched(salted, 0) == (0, False)


@pytest.mark.parametrize("role", ["loads", "stores"])
def test_an_engine_may_only_load_or_only_store(role: str) -> None:
    rig = Rig(loads=role == "loads", stores=role == "stores")
    one = request()
    rig.stored(one, 2)
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == ((32, True) if role == "loads" else (0, False))
    orders = rig.step({"request": [1, 2, 3, 4]}, {"request": 64})
    assert bool(orders.stores) == (role == "stores")


@pytest.mark.parametrize("wish", ["load", "store"])
def test_a_request_may_wish_not_to_load_or_not_to_store(rig: Rig, wish: str) -> None:
    one = request()
    one.kv_transfer_params = {"memkv": {wish: False}}
    rig.stored(one, 2)
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == ((32, True) if wish == "store" else (0, False))
    orders = rig.step({"request": [1, 2, 3, 4]}, {"request": 64})
    assert bool(orders.stores) == (wish == "load")


@pytest.mark.parametrize(
    ("said", "session_id"), [("chat 7", short_id(b"chat 7")), (None, NO_ID), (7, NO_ID)]
)
def test_stores_carry_the_conversation_that_a_user_names(
    rig: Rig, said: object, session_id: bytes
) -> None:
    one = request()
    one.kv_transfer_params = {"memkv": {"session": said}}
    rig.side.matched(one, 0)
    rig.side.allocated(one, SimpleNamespace(get_block_ids=lambda: ([1, 2, 3, 4],)), 0)
    stores = rig.step({"request": [1, 2, 3, 4]}, {"request": 64}).stores
    assert [store.session_id for store in stores] == [session_id]


@pytest.mark.parametrize("said", [
    {"memkv": "no"}, {"memkv": {"load": "false"}}, {"other": 1}, {},
], ids=str)
def test_what_a_user_says_and_means_nothing_changes_nothing(
    rig: Rig, said: dict[str, object]
) -> None:
    one = request()
    one.kv_transfer_params = said
    rig.stored(one, 2)
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (32, True)


def test_a_request_whose_namespace_cannot_be_said_is_computed(rig: Rig) -> None:
    one = request()
    one.cache_salt = "s" * 3000  # PlainNames does not shorten it
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (0, False)
    assert rig.step({"request": [1, 2, 3, 4]}, {"request": 64}).stores == []
    assert rig.side.take_counts() == {"requests_not_shared": 1}


def test_adapters_are_told_apart_by_their_files_alone(rig: Rig, tmp_path: Path) -> None:
    def adapted(name: str, weights: bytes, engine_hash: bytes) -> FakeRequest:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        # vLLM hashes the path as well.
        lora = SimpleNamespace(lora_name="sql", lora_int_id=engine_hash[0], lora_path=str(folder))
        return FakeRequest(name, 70, [engine_hash * 32] * 4, lora_request=lora)

    one = adapted("one", b"weights", b"\x01")
    rig.side.begin(one)
    assert rig.side.matched(one, 0) == (0, False)
    stored = rig.step({"one": [1, 2, 3, 4]}, {"one": 64}).stores[0]
    for block in stored.blocks:
        rig.pool.blocks[block_key(stored.names[0], block.block_hash)] = b"block"
    for other, found in (
        (adapted("copy", b"weights", b"\x02"), (64, True)),
        (adapted("other", b"Weights", b"\x03"), (0, False)),
        (request("base"), (0, False)),
    ):
        rig.side.begin(other)
        assert rig.side.matched(other, 0) == found, other.request_id


def test_requests_that_are_over_leave_nothing_behind(rig: Rig) -> None:
    rig.pool.is_prompt = False
    one = request()
    rig.side.begin(one)
    rig.side.finished(one)
    rig.pool.end()
    assert rig.step({}, {"request": 16}).stores == []


# --- loads that layers wait for -----------------------------------------------------------------
@pytest.fixture
def pipelined() -> Rig:
    return Rig(is_pipelined=True)


def loading(rig: Rig, one: FakeRequest, places: list[int], tokens: int = 48) -> Orders:
    """Let a request load `tokens` and compute the rest, 64 in all, in one step."""
    assert rig.side.matched(one, 0) == (tokens, False)
    rig.side.allocated(one, SimpleNamespace(get_block_ids=lambda: (places,)), tokens)
    one.num_computed_tokens = tokens
    return rig.step({one.request_id: places}, {one.request_id: 64 - tokens})


def test_a_block_is_there_when_all_its_parts_are(pipelined: Rig) -> None:
    one = request()
    pipelined.stored(one, 3)
    del pipelined.pool.blocks[block_key(pipelined.names[0], one.block_hashes[1], 1)]
    pipelined.side.begin(one)
    assert pipelined.side.matched(one, 0) == (16, False)


def test_engines_that_cut_otherwise_miss(pipelined: Rig) -> None:
    one = request()
    for other in (FORMAT, replace(IN_PARTS, layout="vllm:test/2xH1;layers=2")):
        (name,) = PlainNames().namespaces([other], [()], None, "")
        for block_hash in one.block_hashes:
            for part in range(2):
                pipelined.pool.blocks[block_key(name, block_hash, part)] = b"block"
    pipelined.side.begin(one)
    assert pipelined.side.matched(one, 0) == (0, False)


def test_parts_of_a_block_go_to_one_place_in_the_step_that_computes_the_rest(
    pipelined: Rig,
) -> None:
    one = request()
    pipelined.stored(one, 3)
    orders = loading(pipelined, one, [5, 6, 7, 8])
    assert orders.loads == []
    (load,) = orders.layered
    assert [(block.number, block.group, block.place) for block in load.blocks] == [
        (0, 0, 5), (0, 1, 5), (1, 0, 6), (1, 1, 6), (2, 0, 7), (2, 1, 7)
    ]


def test_what_is_computed_behind_a_load_is_stored_once_the_load_is_over(pipelined: Rig) -> None:
    one = request()
    pipelined.stored(one, 3)
    orders = loading(pipelined, one, [5, 6, 7, 8])
    assert orders.stores == []
    assert pipelined.side.is_holding
    pipelined.side.finished(one)  # its first token was its last
    pipelined.side.take_results(Results(layered={orders.layered[0].job: 1}))
    (store,) = pipelined.step({}, {}).stores
    assert [(block.number, block.group) for block in store.blocks] == [(3, 0), (3, 1)]
    assert pipelined.blocks.held() == [8]
    assert pipelined.blocks.forgotten == set()


@pytest.mark.parametrize("is_over", [False, True], ids=["goes on", "was aborted"])
def test_what_was_computed_behind_a_failed_load_reaches_nobody(
    pipelined: Rig, is_over: bool
) -> None:
    one = request()
    pipelined.stored(one, 3)
    orders = loading(pipelined, one, [5, 6, 7, 8])
    if is_over:
        pipelined.side.finished(one)
    pipelined.side.take_results(Results(
        layered={orders.layered[0].job: 1}, failed={"request": FailedLoad("request", 1, "corrupt")},
    ))
    assert pipelined.blocks.held() == []
    assert pipelined.blocks.forgotten == {6, 7, 8}
    assert not pipelined.side.is_holding
    one.num_computed_tokens = 16
    stores = pipelined.step({"request": [5, 6, 7, 8]}, {"request": 48}).stores
    numbers = [block.number for store in stores for block in store.blocks if block.group == 0]
    assert numbers == ([] if is_over else [1, 2, 3])


def test_all_ranks_must_have_loaded() -> None:
    rig = Rig(ranks=2, is_pipelined=True)
    one = request()
    rig.stored(one, 3)
    job = loading(rig, one, [5, 6, 7, 8]).layered[0].job
    rig.side.take_results(Results(layered={job: 1}))
    assert rig.step({}, {}).stores == []
    failed = Results(layered={job: 1}, failed={"request": FailedLoad("request", 2, "timeout")})
    rig.side.take_results(failed)
    assert rig.step({}, {}).stores == []
    assert rig.blocks.forgotten == {7, 8}


def test_blocks_that_are_arriving_are_nobody_elses_yet(pipelined: Rig) -> None:
    one, two, other = request(), request("two"), request("other")
    other.block_hashes = [bytes((100 + n,)) * 32 for n in range(4)]
    pipelined.stored(one, 3)
    for each in (one, two, other):
        pipelined.side.begin(each)
    job = loading(pipelined, one, [5, 6, 7, 8]).layered[0].job
    # The engine's own prefix cache has them: it takes them for computed.
    assert pipelined.side.matched(two, 48) == (None, False)
    assert pipelined.side.matched(other, 48) == (0, False)
    pipelined.side.take_results(Results(layered={job: 1}))
    assert pipelined.side.matched(two, 48) == (0, False)
