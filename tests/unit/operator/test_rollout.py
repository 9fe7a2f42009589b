"""Rolling updates, step by step: who goes first, who waits, what stops them. Pure."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from memkv_operator.api.cluster import KubeNode, Pod
from memkv_operator.api.names import COMPONENT_NODE
from memkv_operator.api.node import MemKVNode, Restart, RestartPhase, WantedState, read_memkv_node
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.disruption import available_min
from memkv_operator.plan.facts import NodeFacts, NodeSeen, WorkerFacts
from memkv_operator.plan.holding import is_held
from memkv_operator.plan.membership import Member, Refusal
from memkv_operator.plan.restarts import BACK_S, TROUBLE_S
from memkv_operator.plan.rollout import Rolling, max_unavailable, rolling_update
from memkv_operator.testing.cluster import NAMESPACE, POOL, SPEC

OLD, NEW = "old", "new"
WORKER = WorkerFacts(0, "", 1, "Ready", "h", 7070, 1 << 30, 0, 0, 0, "")
STATES = {state.value: state for state in WantedState}


def pool_of(**update: Any) -> Pool:
    groups = [{**SPEC["nodeGroups"][0], "name": name} for name in ("big", "small")]
    strategy = {"minReadySeconds": 10, **update}
    return read_pool(
        {
            "metadata": {"name": POOL, "namespace": NAMESPACE, "uid": "u"},
            "spec": {**SPEC, "nodeGroups": groups, "updateStrategy": strategy},
        }
    )


@dataclass
class Update:
    """A pool that is updated, and what is noted of it."""

    pool: Pool
    groups: dict[str, str]
    """Node -> group."""
    now_s: int = 1000
    template: str = NEW
    settled: bool = True
    drained: set[str] = field(default_factory=set)
    pods: dict[str, Pod | None] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    versions: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)
    restarts: dict[str, Restart] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    count: int = 0

    def __post_init__(self) -> None:
        for name in self.groups:
            self.start(name, OLD)

    def start(self, name: str, template: str, trouble: str = "") -> None:
        self.count += 1
        ready = not trouble
        self.pods[name] = Pod(
            f"p{self.count}", NAMESPACE, f"uid{self.count}", POOL, COMPONENT_NODE,
            self.groups[name], name, "10.0.0.1", ready, False, template, trouble, self.now_s,
            self.now_s,
        )  # fmt: skip

    def member(self, name: str) -> Member:
        pod = self.pods[name]
        group = next(g for g in self.pool.spec.groups if g.name == self.groups[name])
        manifest = {"metadata": {"name": name}, "spec": {"nodeName": name}}
        node: MemKVNode = replace(
            read_memkv_node(manifest),
            restart=self.restarts.get(name),
            state=STATES[self.wanted.get(name, "Active")],
        )
        up = name not in self.down
        seen = None
        if pod is not None:
            facts = NodeFacts(self.versions.get(name, "1"), False, 1, "", (WORKER,), ())
            seen = NodeSeen(pod.uid, facts, "" if up else "nobody answers")
            pod = replace(pod, ready=pod.ready and up)
        kube_node = KubeNode(name, {}, True, False, {})
        refusal = Refusal.NO_OTHER_NODE if name in self.refused else None
        return Member(name, group, kube_node, node, pod, seen, refusal=refusal)

    @property
    def members(self) -> list[Member]:
        return [self.member(name) for name in sorted(self.groups)]

    def step(self) -> Rolling:
        """Plan once, and note what is to be noted. Victims' pods come back at the next step."""
        templates = {group.name: self.template for group in self.pool.spec.groups}
        rolling = rolling_update(
            self.pool, self.members, templates, self.template, self.drained, self.now_s,
            settled=self.settled,
        )  # fmt: skip
        self.restarts = dict(rolling.restarts)
        status = dict(self.pool.status)
        status.pop("update", None)
        if rolling.update is not None:
            status["update"] = rolling.update.manifest()
        self.pool = replace(self.pool, status=status)
        return rolling

    def until_victims(self, steps: int = 6) -> list[str]:
        """Plan until pods are to go; return whose."""
        for _ in range(steps):
            if victims := self.step().victims:
                return [member.name for member in victims]
        return []

    def replace_pods(self, names: list[str], trouble: str = "") -> None:
        for name in names:
            self.start(name, self.template, trouble)


def three(**update: Any) -> Update:
    return Update(pool_of(**update), {"a": "big", "b": "big", "c": "small"})


def test_one_node_of_the_smallest_group_goes_first_and_proves_itself() -> None:
    update = three(maxUnavailable=3)
    assert update.until_victims() == ["c"]
    update.replace_pods(["c"])
    assert update.until_victims() == []  # not ready for minReadySeconds yet
    update.now_s += 9
    assert update.until_victims() == []
    update.now_s += 1
    assert update.until_victims() == ["a", "b"]
    update.replace_pods(["a", "b"])
    update.now_s += 10
    rolling = update.step()
    assert rolling.done
    assert rolling.update is None
    assert not rolling.restarts


def test_nothing_is_done_that_was_not_noted_first() -> None:
    update = three()
    first = update.step()
    assert first.update is not None
    assert (first.update.canary, first.restarts, first.victims) == ("c", {}, ())
    second = update.step()
    assert (list(second.restarts), second.victims) == (["c"], ())
    assert [member.name for member in update.step().victims] == ["c"]


@pytest.mark.parametrize("wait_s", [0, 10])
def test_one_after_the_other_with_min_ready_seconds_between(wait_s: int) -> None:
    update = three(minReadySeconds=wait_s)
    order = []
    for _ in range(3):
        victims = update.until_victims()
        assert len(victims) == 1
        order += victims
        update.replace_pods(victims)
        if wait_s:
            assert update.until_victims() == []
        update.now_s += wait_s
    assert order == ["c", "a", "b"]
    assert update.step().done


def test_nodes_that_are_down_count_against_max_unavailable() -> None:
    update = Update(pool_of(maxUnavailable=2), dict.fromkeys("abcd", "big"))
    update.down = {"a", "b"}
    for name in "ab":  # down, and up to date: no update can mend them
        update.start(name, NEW)
    assert update.until_victims() == []
    assert "waits for a, b" in update.step().message
    update.down = {"a"}
    assert update.until_victims() == ["c"]
    assert update.until_victims() == ["c"]
    update.down = {"a", "b"}  # one more, after its turn was noted
    assert update.until_victims() == []
    update.down = set()
    assert update.until_victims() == ["c"]


def test_pods_that_serve_nobody_go_at_once() -> None:
    update = three()
    update.start("a", OLD, trouble="CrashLoopBackOff: back-off")
    assert update.until_victims() == ["a"]


def test_a_pod_that_kubelet_sees_ready_is_not_killed_for_its_silence() -> None:
    update = three()
    member = update.member("a")
    assert member.seen is not None
    silent = replace(member, seen=replace(member.seen, problem="no route"))
    templates = {group.name: NEW for group in update.pool.spec.groups}
    others = [update.member("b"), update.member("c")]
    rolling = rolling_update(update.pool, [silent, *others], templates, NEW, (), 1000, settled=True)
    assert rolling.victims == ()


def test_moving_slots_hold_the_next_one_back() -> None:
    update = three()
    update.settled = False
    assert update.until_victims() == []
    assert update.step().message == "waits for slots that move"
    update.settled = True
    assert update.until_victims() == ["c"]


@pytest.mark.parametrize(
    ("trouble", "after_s"),
    [("ImagePullBackOff: no such tag", TROUBLE_S), ("", BACK_S)],
    ids=["in trouble", "silent"],
)
def test_an_update_whose_new_pod_does_not_serve_stops(trouble: str, after_s: int) -> None:
    update = three(maxUnavailable=3)
    update.replace_pods(update.until_victims(), trouble)
    if not trouble:
        update.down = {"c"}
    update.now_s += after_s - 1
    assert update.step().reason == "RollingUpdate"
    update.now_s += 1
    rolling = update.step()
    assert (rolling.reason, rolling.victims) == ("UpdatePaused", ())
    assert "the new pod of c does not" in rolling.message
    update.down.add("a")  # breaks while the new pods are known to be bad: it keeps its old one
    assert update.until_victims() == []
    update.down = set()
    update.start("c", NEW)
    update.now_s += 10
    assert update.until_victims() == ["a", "b"]  # it came back, and so the update goes on


def test_setting_the_old_image_rolls_a_stopped_update_back() -> None:
    update = three()
    update.replace_pods(update.until_victims(), "ImagePullBackOff: no such tag")
    update.now_s += TROUBLE_S
    assert update.step().reason == "UpdatePaused"
    update.template = OLD
    assert update.until_victims() == ["c"]
    update.replace_pods(["c"])
    update.now_s += 10
    assert update.step().done
    assert [pod.template for pod in update.pods.values() if pod] == [OLD, OLD, OLD]


def test_a_node_that_never_gets_a_new_pod_stops_the_update() -> None:
    update = three(maxUnavailable=2)
    assert update.until_victims() == ["c"]
    update.pods["c"] = None
    update.now_s += BACK_S
    rolling = update.step()
    assert rolling.reason == "UpdatePaused"
    assert "c has no new pod" in rolling.message


def test_a_version_unlike_that_of_the_same_image_elsewhere_stops_the_update() -> None:
    update = three()
    update.replace_pods(update.until_victims())
    update.versions["c"] = "2"
    update.now_s += 10
    victims = update.until_victims()
    assert victims == ["a"]
    update.replace_pods(victims)
    update.versions["a"] = "1"  # it had pulled the tag before somebody pushed it again
    update.now_s += 10
    rolling = update.step()
    assert rolling.reason == "UpdatePaused"
    assert "a came back with version 1, and c has 2" in rolling.message
    update.versions["a"] = "2"
    assert update.until_victims() == ["b"]


def test_a_template_that_changes_again_begins_with_a_canary_again() -> None:
    update = three(maxUnavailable=3)
    update.replace_pods(update.until_victims())
    update.now_s += 10
    assert update.until_victims() == ["a", "b"]
    update.template = "newest"  # both were noted, and their pods serve yet
    assert update.until_victims() == ["c"]


def test_content_that_survives_is_not_moved_and_what_does_not_is() -> None:
    kept = three()
    assert kept.until_victims() == ["c"]
    assert not kept.restarts["c"].drains
    lost = three()
    groups = tuple(replace(group, file=None) for group in lost.pool.spec.groups)
    lost.pool = replace(lost.pool, spec=replace(lost.pool.spec, groups=groups))
    assert lost.until_victims() == []
    assert lost.restarts["c"].phase is RestartPhase.DRAINING
    assert lost.member("c").draining
    lost.drained = {"c"}
    assert lost.until_victims() == ["c"]
    assert lost.member("c").draining  # until the new pod has proved itself
    lost.replace_pods(["c"])
    lost.now_s += 10
    assert lost.step().restarts.keys() <= {"a"}
    assert not lost.member("c").draining


@pytest.mark.parametrize("mode", ["Proceed", "Pause"])
def test_a_drain_that_takes_too_long(mode: str) -> None:
    update = three(drain="Always", drainTimeoutSeconds=60, onDrainTimeout=mode)
    assert update.until_victims() == []
    update.now_s += 59
    assert update.until_victims() == []
    update.now_s += 1
    if mode == "Proceed":
        assert update.until_victims() == ["c"]
        return
    rolling = update.step()
    assert (rolling.reason, rolling.victims) == ("DrainTimeout", ())
    assert "onDrainTimeout is Pause" in rolling.message
    update.drained = {"c"}
    assert update.until_victims() == ["c"]


def test_no_time_to_drain_means_no_drain() -> None:
    update = three(drain="Always", drainTimeoutSeconds=0)
    assert update.until_victims() == ["c"]
    assert not update.restarts["c"].drains


def test_a_drain_that_is_refused_does_not_hold_the_update_up() -> None:
    update = three(drain="Always")
    assert update.until_victims() == []
    update.refused = {"c"}
    assert update.until_victims() == ["c"]


def test_on_delete_leaves_pods_to_people() -> None:
    update = three(type="OnDelete")
    assert update.until_victims() == []
    rolling = update.step()
    assert (rolling.reason, rolling.outdated) == ("WaitingForDeletion", ("a", "b", "c"))


def test_a_removed_node_is_not_updated() -> None:
    update = three()
    update.wanted["c"] = "Removed"
    assert update.until_victims() == ["a"]


@pytest.mark.parametrize(
    ("wanted", "desired", "expected"),
    [(1, 5, 1), (3, 5, 3), ("10%", 5, 1), ("50%", 5, 2), ("100%", 5, 5), ("10%", 0, 1)],
)
def test_max_unavailable(wanted: int | str, desired: int, expected: int) -> None:
    assert max_unavailable(pool_of(maxUnavailable=wanted), desired) == expected


def test_evictions_leave_room_for_what_is_degraded_now() -> None:
    update = Update(pool_of(maxUnavailable=2), dict.fromkeys("abcde", "big"))
    pool, members = update.pool, update.members
    assert available_min(pool, members, (), ()) == 3
    assert available_min(pool, members, {"a"}, ()) == 2  # lost: out of the map, blocks nobody
    update.restarts = {"b": Restart(RestartPhase.REPLACING, "uid2", False, 1000)}
    assert available_min(pool, update.members, (), ()) == 4  # its pod is about to go
    update.down = {"b"}
    assert available_min(pool, update.members, (), ()) == 3  # it is gone, and counts itself
    update.restarts, update.down = {}, {"c"}
    assert available_min(pool, update.members, (), {"c"}) == 2  # drained and stopped
    assert available_min(pool, update.members, (), ()) == 3


def test_slots_wait_for_a_pod_that_is_being_replaced() -> None:
    update = three()
    update.restarts["c"] = Restart(RestartPhase.REPLACING, "uid3", False, update.now_s)
    update.pods["c"] = None
    assert is_held(update.pool, update.member("c"), update.now_s + BACK_S - 1)
    assert not is_held(update.pool, update.member("c"), update.now_s + BACK_S)
    short = replace(update.pool, spec=replace(update.pool.spec, maintenance_timeout_s=20))
    assert is_held(short, update.member("c"), update.now_s + 19)
    assert not is_held(short, update.member("c"), update.now_s + 20)
    member = update.member("c")
    assert member.kube_node is not None
    dead = replace(member, kube_node=replace(member.kube_node, ready=False))
    assert not is_held(update.pool, dead, update.now_s)


def test_slots_wait_for_a_cordoned_node_where_a_cordon_does_not_drain() -> None:
    update = three()
    member = replace(update.member("a"), drains_on_cordon=False)
    assert member.kube_node is not None
    leaving = replace(member, kube_node=replace(member.kube_node, leaving=True, ready=False))
    assert is_held(update.pool, leaving, 1000)
    assert leaving.cordoned
    assert not leaving.draining
    ready: Any = {
        "type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "",
        "lastTransitionTime": "1970-01-01T00:16:40Z",
    }  # fmt: skip
    assert leaving.memkv_node is not None
    node = replace(leaving.memkv_node, status={"conditions": [ready]})
    down = replace(leaving, memkv_node=node)
    assert is_held(update.pool, down, 1000 + 1799)
    assert not is_held(update.pool, down, 1000 + 1800)
    assert leaving.kube_node is not None
    final = replace(down, kube_node=replace(leaving.kube_node, for_good=True))
    assert not is_held(update.pool, final, 1000)
    assert final.draining
