"""When a dead node leaves the map, and that a living one stays: pure, in simulated time.

The model has what decides in a real cluster: kubelets that renew a Lease every 10 s, a node
controller that takes a Node for not ready 50 s after that ended (20 s on some clusters), polls that
fail from the death on, and an operator that dies with the node it runs on while another one stands
by.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from memkv.metadata.kubernetes.json_values import JsonValue
from memkv.metadata.publisher import PublisherState
from memkv.metadata.roster import WorkerReport
from memkv.shardmap import Worker, WorkerState
from memkv_operator.api.cluster import KubeNode, Pod
from memkv_operator.api.meta import ObjectMeta
from memkv_operator.api.names import COMPONENT_NODE
from memkv_operator.api.node import MemKVNode, Restart, RestartPhase, WantedState
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.facts import NodeSeen
from memkv_operator.plan.heartbeats import Beat, Heartbeats, read_beat, suspects_of
from memkv_operator.plan.membership import Member
from memkv_operator.plan.shards import PoolMaps
from memkv_operator.run.heartbeats import LOOK_S
from memkv_operator.testing.cluster import NAMESPACE, POOL, SPEC

NAMES = ("a", "b", "c", "d", "e")
STEP_MS = 250
POLL_MS = 500
RENEW_MS = 10_400  # with all of kubelet's jitter
RETRY_MS = 7_000  # kubelet's longest pause after a failed renewal
NOT_READY_AFTER_MS = 50_000
LOOKS_FROM_MS = 7_500  # who stands by: a third of a Lease of 15 s, seen up to 2 s late
TAKE_OVER_MS = 19_000  # looked at every 2 s
BOUND_MS = 5_000
SKEW_MS = 3_600_000


@dataclass
class World:
    """Five nodes, their Leases, and an operator that is replaced when it dies."""

    grace_s: int
    renew_at_ms: dict[str, int]
    """When each kubelet renews its Lease next."""
    skew_ms: int = 0
    """How far clocks of nodes are ahead."""
    now_ms: int = 0
    cut: set[str] = field(default_factory=set)
    """Do not answer the operator."""
    dead: dict[str, int] = field(default_factory=dict)
    """Since when."""
    replaced: set[str] = field(default_factory=set)
    """Whose pods the operator replaces: the old one is gone, the new one is not there yet."""
    api_away: bool = False
    not_ready_after_ms: int = NOT_READY_AFTER_MS
    stored: PublisherState | None = None
    elections: int = 0

    def __post_init__(self) -> None:
        disruption = {"nodeLostGraceSeconds": self.grace_s}
        self.pool: Pool = read_pool(
            {
                "metadata": {"name": POOL, "namespace": NAMESPACE, "uid": "u"},
                "spec": {
                    **SPEC, "disruption": disruption,
                    "sharding": {"slots": 64, "maxMovingSlotsPercent": 100},
                },
            }
        )  # fmt: skip
        self.renewed_ms = dict.fromkeys(NAMES, 0)
        self.maps = self.take_over()

    def take_over(self, *, warm: Heartbeats | None = None) -> PoolMaps:
        """Let the next operator lead, with what it saw while it stood by."""
        self.heartbeats = warm or Heartbeats()
        self.maps = PoolMaps(self.pool, self.stored, self.elections, self.now_ms)
        return self.maps

    def renew(self, name: str) -> None:
        """Let a kubelet renew its Lease when it is time."""
        if name in self.dead or self.now_ms < self.renew_at_ms[name]:
            return
        if not self.api_away:
            self.renewed_ms[name] = self.now_ms
        self.renew_at_ms[name] = self.now_ms + (RETRY_MS if self.api_away else RENEW_MS)

    def beat(self, name: str) -> Beat:
        at_ms = self.renewed_ms[name] + self.skew_ms
        return Beat(str(at_ms), at_ms, 10_000)

    def member(self, name: str) -> Member:
        ready = self.now_ms - self.renewed_ms[name] < self.not_ready_after_ms
        node = KubeNode(name, {"memkv.io/node": "true"}, ready, False, {})
        pod = Pod(
            name, NAMESPACE, name, POOL, COMPONENT_NODE, "flash", name, "10.0.0.1", True, False, ""
        )
        group = self.pool.spec.groups[0]
        seen = self.seen(name)
        if name not in self.replaced:
            return Member(name, group, node, None, pod, seen)
        restart = Restart(RestartPhase.REPLACING, "old", False, 0)
        known = MemKVNode(ObjectMeta(name), name, WantedState.ACTIVE, {}, restart=restart)
        return Member(name, group, node, known, None, seen, held=ready)

    def seen(self, name: str) -> NodeSeen:
        return NodeSeen(name, None, "" if self.answers(name) else "nobody answers")

    def suspects(self) -> frozenset[str]:
        stored = self.stored.shard_map if self.stored is not None else None
        return suspects_of(stored, {name: self.seen(name) for name in NAMES})

    def answers(self, name: str) -> bool:
        return name not in self.cut and name not in self.dead

    def step(self) -> None:
        self.now_ms += STEP_MS
        for name in NAMES:
            self.renew(name)
        members = [self.member(name) for name in NAMES]
        self.maps.configure(self.pool, members)
        if self.now_ms % POLL_MS == 0:
            for name in NAMES:
                self.poll(name)
        if self.now_ms % int(LOOK_S * 1000) == 0:
            self.look(self.heartbeats, self.suspects())
        silent = self.heartbeats.silent(self.suspects(), self.grace_s * 1000, self.now_ms)
        self.maps.fell_silent(silent)
        outcome = self.maps.step(self.now_ms, self.now_ms // 1000)
        if outcome.state is not None and not self.api_away:
            self.stored = outcome.state

    def poll(self, name: str) -> None:
        if not self.answers(name):
            self.maps.failed(name)
            return
        worker = Worker(name.encode() * 16, 1, name, "10.0.0.1", 7070, WorkerState.ACTIVE)
        self.maps.answered(name, [WorkerReport(worker, True)], self.now_ms)

    def look(self, heartbeats: Heartbeats, suspects: Collection[str]) -> None:
        heartbeats.keep(suspects)
        if self.api_away:
            heartbeats.interrupted(self.now_ms)
            return
        for name in suspects:
            heartbeats.looked(name, self.beat(name), self.now_ms, self.now_ms)

    def die_with_the_leader(self, name: str, take_over_ms: int) -> None:
        """Let a node die with the leader on it, and the one that stands by take over."""
        self.dead[name] = self.now_ms
        standby = Heartbeats()
        for passed_ms in range(STEP_MS, take_over_ms, STEP_MS):
            self.now_ms += STEP_MS
            for kubelet in NAMES:
                self.renew(kubelet)
            if passed_ms >= LOOKS_FROM_MS and passed_ms % int(LOOK_S * 1000) == 0:
                self.look(standby, NAMES)
        self.elections += 1
        self.take_over(warm=standby)

    def run(self, until_ms: int) -> None:
        while self.now_ms < until_ms:
            self.step()

    def is_lost(self, name: str) -> bool:
        assert self.stored is not None
        workers = self.stored.shard_map.workers
        return any(w.node_name == name and w.state is WorkerState.LOST for w in workers)

    def lost_after_ms(self, name: str) -> int:
        """Return how long after its death a node left the map."""
        while not self.is_lost(name):
            self.step()
            assert self.now_ms - self.dead[name] < 200_000
        return self.now_ms - self.dead[name]


def world(seed: int, grace_s: int, skew_ms: int = 0) -> World:
    source = random.Random(seed)
    made = World(grace_s, {name: source.randrange(RENEW_MS) for name in NAMES}, skew_ms)
    made.run(10_000 + source.randrange(40) * STEP_MS)
    return made


SEEDS = range(12)


@pytest.mark.parametrize("skew_ms", [0, SKEW_MS, -SKEW_MS], ids=["", "ahead", "behind"])
@pytest.mark.parametrize("grace_s", [15, 30, 60])
def test_a_dead_node_is_out_in_the_grace_time_and_five_seconds(grace_s: int, skew_ms: int) -> None:
    for seed in SEEDS:
        one = world(seed, grace_s, skew_ms)
        one.dead["b"] = one.now_ms
        after_ms = one.lost_after_ms("b")
        assert after_ms <= grace_s * 1000 + BOUND_MS, seed
        assert after_ms >= grace_s * 1000 - POLL_MS, seed


def test_the_shortest_grace_waits_for_one_renewal_of_the_lease() -> None:
    for seed in SEEDS:
        one = world(seed, 5)
        one.dead["b"] = one.now_ms
        assert one.lost_after_ms("b") <= 17_000, seed


@pytest.mark.parametrize(
    "not_ready_after_s", [16, 20, 50], ids="its Node not ready after {}".format
)
@pytest.mark.parametrize("grace_s", [20, 30, 60])
def test_a_node_that_dies_with_the_leader_is_out_as_soon(
    grace_s: int, not_ready_after_s: int
) -> None:
    """The next leader was not there when it died, and grants no second grace, whatever the Node's
    condition says by then."""
    for seed in SEEDS:
        one = world(seed, grace_s)
        one.not_ready_after_ms = not_ready_after_s * 1000
        one.die_with_the_leader("b", TAKE_OVER_MS)
        after_ms = one.lost_after_ms("b")
        assert after_ms <= grace_s * 1000 + BOUND_MS, seed
        assert after_ms >= grace_s * 1000 - RENEW_MS, seed  # it is silent since its last renewal


def test_a_leader_that_nobody_stood_by_for_waits_for_one_renewal() -> None:
    """The only operator came back late, and has seen no Lease before."""
    for seed in SEEDS:
        one = world(seed, 30)
        one.not_ready_after_ms = 20_000
        one.dead["b"] = one.now_ms
        one.now_ms += 40_000
        one.elections += 1
        one.take_over()
        assert one.lost_after_ms("b") <= 40_000 + 15_000, seed


def test_a_living_node_survives_a_change_of_leaders_that_cannot_reach_it() -> None:
    for seed in SEEDS:
        one = world(seed, 15)
        one.cut.add("c")
        one.die_with_the_leader("b", TAKE_OVER_MS)
        one.run(one.now_ms + 60_000)
        assert one.is_lost("b"), seed
        assert not one.is_lost("c"), seed


def test_a_node_that_dies_while_its_pod_is_replaced_is_out_as_soon() -> None:
    for seed in SEEDS:
        one = world(seed, 30)
        one.replaced.add("b")
        one.cut.add("b")
        one.run(one.now_ms + 120_000)
        assert not one.is_lost("b"), seed  # an image may take its time
        one.dead["b"] = one.now_ms
        assert one.lost_after_ms("b") <= 30_000 + BOUND_MS, seed


def test_a_node_that_is_cut_from_the_operator_alone_stays() -> None:
    for seed in SEEDS:
        one = world(seed, 5, SKEW_MS if seed % 2 else -SKEW_MS)
        one.cut.add("b")
        one.run(one.now_ms + 120_000)
        one.elections += 1
        one.take_over()
        one.run(one.now_ms + 120_000)
        assert not one.is_lost("b"), seed


def test_a_node_is_not_lost_for_what_its_kubelet_could_not_say() -> None:
    """With the API server away no kubelet renews; after it a whole renewal is waited for."""
    for seed in SEEDS:
        one = world(seed, 5)
        one.cut.add("b")
        one.run(one.now_ms + 20_000)
        one.api_away = True
        one.run(one.now_ms + 30_000)  # too short for the node controller
        one.api_away = False
        one.run(one.now_ms + 60_000)
        assert not one.is_lost("b"), seed


def test_a_node_that_answers_again_is_back() -> None:
    one = world(1, 15)
    one.dead["b"] = one.now_ms
    one.lost_after_ms("b")
    del one.dead["b"]
    one.run(one.now_ms + 2000)
    assert not one.is_lost("b")


def test_a_kubelet_that_renews_more_often_is_known_silent_sooner() -> None:
    beats = Heartbeats()
    beats.looked("a", Beat("1", 0, 10_000), 0, 0)
    beats.looked("b", Beat("1", 0, 2_500), 0, 0)
    assert beats.silent("ab", 5_000, 3_000) == {"b": 0}
    assert beats.silent("ab", 5_000, 12_000) == {"a": 0, "b": 0}
    assert beats.silent("a", 5_000, 12_000) == {"a": 0}


def test_a_lease_that_changes_or_is_gone_ends_the_silence() -> None:
    beats = Heartbeats()
    beats.looked("a", Beat("1", 0, 10_000), 0, 0)
    beats.looked("b", Beat("1", 0, 10_000), 0, 0)
    assert set(beats.silent("ab", 5_000, 12_000)) == {"a", "b"}
    beats.looked("a", Beat("2", 12_000, 10_000), 12_500, 12_500)
    beats.looked("b", None, 12_500, 12_500)
    assert beats.silent("ab", 5_000, 13_000) == {}
    assert beats.silent("ab", 5_000, 24_500) == {"a": 12_500}
    beats.keep(())
    assert beats.silent("ab", 5_000, 60_000) == {}


def test_a_lease_is_read_as_kubelets_write_it() -> None:
    renewed = "2026-01-01T00:00:10.123456Z"
    spec: dict[str, JsonValue] = {"renewTime": renewed, "leaseDurationSeconds": 40}
    at = datetime(2026, 1, 1, 0, 0, 10, 123_000, UTC)
    assert read_beat({"spec": spec}) == Beat(renewed, int(at.timestamp() * 1000), 10_000)
    damaged: list[dict[str, JsonValue]] = [
        {}, {"renewTime": "yesterday"}, {**spec, "leaseDurationSeconds": "40"},
    ]  # fmt: skip
    for one in damaged:
        assert read_beat({"spec": one}) is None
