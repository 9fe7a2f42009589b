"""Tenants that a pool names no more, through the publisher, over take-overs and slow workers."""

from dataclasses import replace

from memkv.metadata.publisher import Outcome, Publisher, PublisherConfig, PublisherState, Reason
from memkv.metadata.roster import LossPolicy, WorkerReport
from memkv.metadata.state_codec import decode_state, encode_state
from memkv.shardmap import Worker

LINEAGE = b"L" * 16
ONE, TWO = b"1" * 16, b"2" * 16
CONFIG = PublisherConfig(nodes=2, slots=16, loss=LossPolicy(grace_ms=3000))


class Pool:
    """Two nodes of one worker each; both take maps over, or one lags."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.lags = False
        self.state: PublisherState | None = None
        self.take_over({ONE, TWO})

    def take_over(self, tenants: set[bytes]) -> None:
        kept = decode_state(encode_state(self.state)) if self.state is not None else None
        config = replace(CONFIG, tenants=frozenset(tenants))
        self.publisher = Publisher(config, kept, self.now_ms, make_lineage=lambda: LINEAGE)

    def name(self, tenants: set[bytes]) -> None:
        self.publisher.reconfigure(replace(CONFIG, tenants=frozenset(tenants)))

    def step(self, times: int = 1) -> Outcome:
        for _ in range(times):
            self.now_ms += 500
            for name in "ab":
                epoch = self.state.shard_map.version.epoch if self.state is not None else 0
                if self.lags and name == "b":
                    epoch = 1
                worker = Worker(name.encode() * 16, 1, name, "127.0.0.1", 7000)
                report = WorkerReport(worker, True, LINEAGE, epoch, frozenset())
                self.publisher.answered(name, [report], self.now_ms)
            outcome = self.publisher.step(self.now_ms, self.now_ms // 1000)
            self.state = outcome.state or self.state
        return outcome

    @property
    def generations(self) -> dict[bytes, int]:
        assert self.state is not None
        return dict(self.state.shard_map.tenant_generations)


def test_a_tenant_that_is_not_named_any_more_is_dropped_twice_and_then_forgotten() -> None:
    pool = Pool()
    pool.step(3)
    assert pool.generations == {}
    pool.name({ONE})
    assert pool.step().reasons == (Reason.TENANT_DROPPED,)
    assert pool.generations == {TWO: 1}
    assert pool.step().reasons == (Reason.TENANT_DROPPED,)
    assert pool.generations == {TWO: 2}
    assert pool.step(5).state is None
    assert pool.state is not None
    assert pool.state.tenants == {ONE}


def test_the_second_round_waits_for_everyone() -> None:
    pool = Pool()
    pool.step(3)
    pool.lags = True
    pool.name({ONE})
    pool.step(5)
    assert pool.generations == {TWO: 1}
    pool.lags = False
    pool.step(2)
    assert pool.generations == {TWO: 2}


def test_another_publisher_goes_on_with_what_is_stored() -> None:
    pool = Pool()
    pool.step(3)
    pool.take_over({TWO})  # the name went while nobody published
    pool.step(5)
    assert pool.generations == {ONE: 2}
    pool.name(set())
    pool.lags = True
    pool.step()
    assert pool.generations == {ONE: 2, TWO: 1}
    pool.take_over(set())  # in the middle: a round more does no harm
    pool.lags = False
    pool.step(6)
    assert pool.generations[TWO] in (2, 3)
    assert pool.step(5).state is None


def test_a_tenant_that_is_named_again_in_the_middle_stays() -> None:
    pool = Pool()
    pool.step(3)
    pool.lags = True
    pool.name({ONE})
    pool.step(2)
    pool.name({ONE, TWO})
    pool.lags = False
    pool.step(5)
    assert pool.generations == {TWO: 1}
    assert pool.state is not None
    assert pool.state.tenants == {ONE, TWO}


def test_a_new_name_is_stored_before_it_can_be_dropped() -> None:
    pool = Pool()
    pool.step(3)
    pool.name({ONE, TWO, b"3" * 16})
    assert pool.step().reasons == (Reason.TENANTS_NAMED,)
    assert pool.generations == {}
    assert pool.step(3).state is None


def test_states_of_earlier_versions_name_nobody() -> None:
    pool = Pool()
    pool.step(2)
    assert pool.state is not None
    nobody = decode_state(encode_state(replace(pool.state, tenants=frozenset())))
    assert nobody.tenants == frozenset()
