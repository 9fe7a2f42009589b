"""A pool through anything that nodes, people and other operators do, step by step. Pure.

After each step the promises are checked; each time a pod is deleted it is checked that no more than
`maxUnavailable` nodes are down then (in the model).
"""

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memkv.shardmap import UNASSIGNED, unpack_owners
from memkv_operator.plan.restarts import BACK_S
from memkv_operator.testing.cluster import SPEC
from memkv_operator.testing.pool_model import BAD_TAG, PoolModel

NAMES = "abcdef"
SLOTS = 64
GRACE_S = 5
STATES = ("Active", "Cordoned", "Draining", "Removed")
TAGS = ("1", "2", BAD_TAG)


class Machine(RuleBasedStateMachine):
    """One pool."""

    def __init__(self) -> None:
        super().__init__()
        self.model = PoolModel(SLOTS, GRACE_S)

    # --- what happens ------------------------------------------------------------------------

    @initialize(unavailable=st.sampled_from([1, 2, "50%"]), drain=st.booleans())
    def begin(self, unavailable: int | str, drain: bool) -> None:
        strategy = self.model.spec["updateStrategy"]
        strategy["maxUnavailable"] = unavailable
        strategy["drain"] = "Always" if drain else "WhenContentIsLost"
        for name in NAMES[:3]:
            self.model.join(name)
        self.model.look()
        self.model.pass_time(3, finished=True)

    @rule(name=st.sampled_from(NAMES))
    def join(self, name: str) -> None:
        """A node is new, or back, at another address and with its drive."""
        self.model.join(name)

    @rule(name=st.sampled_from(NAMES))
    def die(self, name: str) -> None:
        self.model.die(name)

    @rule(name=st.sampled_from(NAMES))
    def unreachable_for_the_operator_only(self, name: str) -> None:
        self.model.silent.add(name)

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        self.model.leave(name)

    @rule(name=st.sampled_from(NAMES), leaving=st.booleans())
    def cordon(self, name: str, leaving: bool) -> None:
        self.model.change_node(name, leaving=leaving)

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(STATES))
    def want(self, name: str, state: str) -> None:
        self.model.want(name, state)

    @rule(paused=st.booleans())
    def pause_pool(self, paused: bool) -> None:
        self.model.spec["paused"] = paused

    @rule(right=st.booleans())
    def change_selector(self, right: bool) -> None:
        label = "memkv.io/node" if right else "memkv.io/typo"
        group = {**SPEC["nodeGroups"][0], "nodeSelector": {label: "true"}}
        self.model.spec["nodeGroups"] = [group]

    @rule(tag=st.sampled_from(TAGS))
    def update(self, tag: str) -> None:
        self.model.spec["image"] = {"tag": tag}

    @rule(drains=st.booleans())
    def drain_on_cordon(self, drains: bool) -> None:
        disruption = {"nodeLostGraceSeconds": GRACE_S, "drainOnCordon": drains}
        self.model.spec["disruption"] = disruption

    @rule(accept=st.booleans())
    def accept_mass_loss(self, accept: bool) -> None:
        annotations = {"memkv.io/accept-mass-loss": "true" if accept else "false"}
        self.model.meta["annotations"] = annotations

    @rule(stored=st.booleans())
    def another_operator_takes_over(self, stored: bool) -> None:
        self.model.lose_leader(stored=stored)

    @precondition(lambda self: self.model.stored is not None)
    @rule()
    def moves_end(self) -> None:
        self.model.look(finished=True)

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        self.model.pass_time(seconds)

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def versions_only_grow_and_name_one_map_each(self) -> None:
        history = self.model.history
        for before, after in itertools.pairwise(history):
            assert after.version.newer_than(before.version)
            assert after.version.epoch > before.version.epoch
        del history[:-1]

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        if self.model.shard_map is not None:
            owners = unpack_owners(self.model.shard_map.owners)
            assert len(owners) == SLOTS
            assert UNASSIGNED not in owners

    @invariant()
    def what_is_stored_can_be_gone_on_from(self) -> None:
        if self.model.shard_map is not None:
            self.model.shard_map.validate()

    @invariant()
    def conditions_agree_with_each_other(self) -> None:
        status: dict[str, Any] = self.model.status
        stated = {c["type"]: c["status"] for c in status.get("conditions", [])}
        if stated.get("Ready") == "True":
            for part in ("ConfigValid", "NodesReady", "ShardMapPublished", "MetadataAvailable"):
                assert stated[part] == "True", part
            assert status["readyNodes"] == status["desiredNodes"] > 0

    @invariant()
    def nobody_is_said_to_be_drained_who_owns_slots(self) -> None:
        """A plan says it before the map follows, so of the map that the plan went by."""
        for name in self.model.told_to_drain:
            node = next((n for n in self.model.nodes if n.node_name == name), None)
            if node is not None and node.holds("Drained"):
                assert name not in self.model.owners

    def teardown(self) -> None:
        """When all is well again and time passes, a drain ends and the pool is as it was wished."""
        model = self.model
        model.spec["paused"] = False
        self.change_selector(True)
        self.accept_mass_loss(True)
        self.update("2")
        for name in NAMES:
            model.join(name)
            model.want(name, "Active")
        model.pass_time(5, finished=True)
        model.want("a", "Draining")
        model.pass_time(110, finished=True)
        assert model.node_condition("a", "Drained") == ("True", "NothingLeft")
        assert set(model.owners) == set(NAMES[1:])
        model.want("a", "Active")
        model.pass_time(10, finished=True)
        for type_ in ("Ready", "Rebalanced", "UpToDate"):
            assert model.condition(type_)[0] == "True", (type_, model.condition(type_))
        assert "update" not in model.status
        assert all(node.restart is None for node in model.nodes)
        assert set(model.owners) == set(NAMES)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


def grown(tag: str = "1", **update: Any) -> PoolModel:
    model = PoolModel(SLOTS, GRACE_S, **update)
    for name in NAMES:
        model.join(name)
    model.spec["image"] = {"tag": tag}
    model.look()
    model.pass_time(4, finished=True)
    assert model.condition("Ready")[0] == "True", model.condition("Ready")
    return model


def test_an_update_moves_no_slot_of_nodes_that_keep_their_content() -> None:
    model = grown()
    assert model.shard_map is not None
    owners = model.shard_map.owners
    model.spec["image"] = {"tag": "2"}
    model.pass_time(60, finished=True)
    assert model.condition("UpToDate")[0] == "True"
    assert model.shard_map.owners == owners
    assert model.shard_map.version.term == 1
    assert {w.incarnation for w in model.shard_map.workers} == {2}


def test_a_bad_image_costs_one_node_and_setting_the_old_one_brings_it_back() -> None:
    model = grown(maxUnavailable=3)
    model.spec["image"] = {"tag": BAD_TAG}
    model.pass_time(BACK_S, finished=True)
    assert model.condition("UpToDate")[1].startswith("UpdatePaused: the new pod of a")
    assert [name for name in NAMES if not model.serves(name)] == ["a"]
    assert set(model.owners) == set(NAMES[1:])  # what failed is waited for no longer
    model.lose_leader(stored=True)
    model.pass_time(5, finished=True)
    assert [name for name in NAMES if not model.serves(name)] == ["a"]
    model.spec["image"] = {"tag": "1"}
    model.pass_time(20, finished=True)
    assert model.condition("UpToDate")[0] == "True", model.condition("UpToDate")
    assert set(model.owners) == set(NAMES)


def test_leaders_that_die_at_every_moment_of_an_update_do_not_change_its_course() -> None:
    model = grown()
    model.spec["image"] = {"tag": "2"}
    for _ in range(60):
        model.lose_leader(stored=True)
        model.pass_time(1, finished=True)
    assert model.condition("UpToDate")[0] == "True", model.condition("UpToDate")
    assert set(model.incarnation.values()) == {2}  # each pod was replaced once


def test_when_everybody_should_drain_those_that_own_slots_keep_them_and_say_so() -> None:
    model = grown()
    model.want("a", "Draining")
    model.pass_time(5, finished=True)
    for name in NAMES[1:]:
        model.want(name, "Draining")
    model.pass_time(20, finished=True)
    assert model.node_condition("a", "Drained")[0] == "True"
    assert set(model.owners) == set(NAMES[1:])
    assert model.node_condition("b", "Draining") == ("False", "NoOtherNode")
    assert model.condition("Ready")[0] == "True"
    model.want("c", "Active")
    model.pass_time(5, finished=True)
    assert set(model.owners) == {"c"}


def test_a_drained_node_serves_again_when_it_is_the_only_one_left() -> None:
    model = grown()
    model.want("a", "Draining")
    model.pass_time(5, finished=True)
    for name in NAMES[1:]:
        model.die(name)
    model.pass_time(20, finished=True)
    assert model.condition("ShardMapPublished")[1].startswith("MassLossSuspected")
    model.meta["annotations"] = {"memkv.io/accept-mass-loss": "true"}
    model.pass_time(20, finished=True)
    assert set(model.owners) == {"a"}
    assert model.node_condition("a", "Draining") == ("False", "NoOtherNode")


def test_nodes_are_annotated_once_they_may_be_rebooted() -> None:
    model = grown()
    model.change_node("a", leaving=True)
    model.pass_time(1)  # moves have not ended
    assert not model.kube_nodes["a"].safe_to_reboot
    model.pass_time(4, finished=True)
    assert model.kube_nodes["a"].safe_to_reboot
    model.change_node("a", leaving=False)
    model.pass_time(5, finished=True)
    assert not model.kube_nodes["a"].safe_to_reboot
    assert set(model.owners) == set(NAMES)


def test_while_paused_only_slots_of_lost_nodes_move() -> None:
    model = grown()
    model.spec["paused"] = True
    model.want("a", "Draining")
    model.spec["image"] = {"tag": "2"}
    model.pass_time(30, finished=True)
    assert set(model.owners) == set(NAMES)
    assert model.node_condition("a", "Draining") == ("False", "Paused")
    model.die("b")
    model.pass_time(30, finished=True)
    assert set(model.owners) == set(NAMES) - {"b"}
    assert set(model.incarnation.values()) == {1}
    model.spec["paused"] = False
    model.pass_time(10, finished=True)
    assert "a" not in model.owners


def test_a_pool_of_whose_spec_nothing_is_made_does_not_say_that_it_is_up_to_date() -> None:
    model = grown()
    figures = ("updatedNodes", "updateRevision", "currentRevision")
    before = {name: model.status[name] for name in figures}
    group = model.spec["nodeGroups"][0]
    memory = {"size": "1Gi", "hugePages": "2Mi"}
    model.spec["nodeGroups"] = [{**group, "memory": memory, "storage": {}}]
    model.pass_time(3, finished=True)
    assert model.condition("ConfigValid")[1].startswith("HugePagesNeedStorage")
    status, said = model.condition("UpToDate")
    assert status == "False"
    assert said.startswith("ConfigInvalid: nothing is made of the spec")
    assert {name: model.status[name] for name in figures} == before
    model.spec["nodeGroups"] = [group]
    model.pass_time(3, finished=True)
    assert model.condition("UpToDate")[0] == "True"


def test_who_accepts_one_mass_loss_does_not_accept_the_next() -> None:
    model = grown()
    accepted = {"memkv.io/accept-mass-loss": "true"}
    model.meta["annotations"] = {**accepted, "other": "x"}
    model.pass_time(1, finished=True)
    assert model.meta["annotations"] == {"other": "x"}  # nobody is missing
    for name in ("a", "b"):
        model.die(name)
    model.pass_time(2, finished=True)
    model.meta["annotations"] = accepted
    model.pass_time(1, finished=True)
    assert model.meta["annotations"] == accepted  # they are missing, and not lost yet
    model.pass_time(15, finished=True)
    assert set(model.owners) == {"c", "d", "e", "f"}
    assert model.meta["annotations"] == {}
    for name in ("c", "d"):
        model.die(name)
    model.pass_time(30, finished=True)
    assert model.condition("ShardMapPublished")[1].startswith("MassLossSuspected")
    assert set(model.owners) == {"c", "d", "e", "f"}


def test_an_acceptance_waits_for_a_new_leader_to_know_who_is_missing() -> None:
    model = grown()
    for name in ("a", "b"):
        model.die(name)
    model.pass_time(20, finished=True)
    model.meta["annotations"] = {"memkv.io/accept-mass-loss": "true"}
    model.lose_leader(stored=True)
    model.pass_time(1, finished=True)
    assert model.meta["annotations"]
    model.pass_time(40, finished=True)
    assert set(model.owners) == {"c", "d", "e", "f"}
    assert model.meta["annotations"] == {}
