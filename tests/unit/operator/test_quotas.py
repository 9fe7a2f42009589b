"""From quotas in the whole pool to what each worker guarantees, and how a node is told. Pure."""

import asyncio
from typing import Any

import pytest

from memkv.errors import PeerGone
from memkv.wire.signed import TicketKey
from memkv_operator.api.cluster import KubeNode
from memkv_operator.api.node import MemKVNode, WantedState
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.nodes.orders import spec_of
from memkv_operator.nodes.poller import NodePoller
from memkv_operator.nodes.polling import Target
from memkv_operator.plan.facts import NodeFacts, NodeSeen, WorkerFacts
from memkv_operator.plan.membership import Member
from memkv_operator.plan.orders import Order
from memkv_operator.plan.quotas import WorkerQuota, quotas_guaranteed, share_quotas
from memkv_operator.testing.cluster import NAMESPACE, POOL, SPEC, pause
from memkv_proto import node_admin_pb2 as pb

GIB = 1 << 30


def pool_with(*tenants: dict[str, Any], weight: int = 100) -> Pool:
    group = {**SPEC["nodeGroups"][0], "weightPercent": weight}
    heavy = {**group, "name": "heavy", "weightPercent": 300}
    spec = {**SPEC, "nodeGroups": [group, heavy], "tenants": list(tenants)}
    meta = {"name": POOL, "namespace": NAMESPACE, "uid": "u"}
    return read_pool({"metadata": meta, "spec": spec})


def member(
    pool: Pool, name: str, *capacities: int, group: int = 0, draining: bool = False,
    answers: bool = True,
) -> Member:  # fmt: skip
    workers = tuple(
        WorkerFacts(
            position, "0a", 1, "Ready", "h", 7070, capacity, 0, 0, 0, "",
            flash_guaranteed_bytes_max=capacity, memory_guaranteed_bytes_max=GIB,
        )
        for position, capacity in enumerate(capacities)
    )  # fmt: skip
    seen = NodeSeen("p", NodeFacts("1", False, 1, "", workers, ())) if answers else None
    status = {
        "workers": [
            {"position": position, "capacityBytes": capacity}
            for position, capacity in enumerate(capacities)
        ]
    }
    state = WantedState.DRAINING if draining else WantedState.ACTIVE
    known = MemKVNode(pool.meta, name, state, status)
    kube_node = KubeNode(name, {}, True, False, {})
    return Member(name, pool.spec.groups[group], kube_node, known, None, seen)


def flash(pool: Pool, *members: Member, lost: tuple[str, ...] = ()) -> dict[str, list[int]]:
    sharing = share_quotas(pool, members, lost)
    return {
        node: [quota.flash_bytes // GIB for quota in quotas]
        for node, quotas in sharing.by_node.items()
    }


def test_workers_share_a_quota_by_capacity_and_by_their_groups_weight() -> None:
    pool = pool_with({"name": "a", "flashQuota": "60Gi"})
    one, two = member(pool, "one", 100 * GIB, 50 * GIB), member(pool, "two", 50 * GIB, group=1)
    assert flash(pool, one, two) == {"one": [20, 10], "two": [30]}
    condition = quotas_guaranteed(pool, share_quotas(pool, [one, two], ()))
    assert condition is not None
    assert condition.holds


def test_nodes_that_leave_do_not_count_and_keep_their_share_until_they_are_gone() -> None:
    pool = pool_with({"name": "a", "flashQuota": "60Gi"})
    stay, go = member(pool, "stay", 100 * GIB), member(pool, "go", 50 * GIB, draining=True)
    assert flash(pool, stay, go) == {"stay": [60], "go": [30]}
    gone = member(pool, "go", 50 * GIB)
    assert flash(pool, stay, gone)["stay"] == [40]
    assert flash(pool, stay, gone, lost=("go",))["stay"] == [60]


def test_a_node_that_does_not_answer_counts_with_what_it_had() -> None:
    pool = pool_with({"name": "a", "flashQuota": "60Gi"})
    here, away = member(pool, "here", 50 * GIB), member(pool, "away", 50 * GIB, answers=False)
    assert flash(pool, here, away) == {"here": [30], "away": [30]}


def test_quotas_that_exceed_the_nodes_are_scaled_down_and_said_with_figures() -> None:
    pool = pool_with(
        {"name": "a", "flashQuota": "300Gi"},
        {"name": "b", "flashQuota": "100Gi", "memoryQuota": "8Gi"},
    )
    nodes = [member(pool, f"n{number}", 50 * GIB) for number in range(4)]
    sharing = share_quotas(pool, nodes, ())
    for quotas in sharing.by_node.values():
        a, b = quotas
        assert (a.flash_bytes, b.flash_bytes) == (75 * GIB // 2, 25 * GIB // 2)
        assert b.memory_bytes == GIB
    condition = quotas_guaranteed(pool, sharing)
    assert condition is not None
    assert (condition.holds, condition.reason) == (False, "QuotasExceedCapacity")
    for words in ("400Gi", "200Gi", "50%", "8Gi", "4Gi", "Lower the quotas, or add nodes"):
        assert words in condition.message


def test_nothing_is_judged_before_all_nodes_have_answered() -> None:
    pool = pool_with({"name": "a", "flashQuota": "60Gi"})
    here, new = member(pool, "here", 50 * GIB), member(pool, "new", answers=False)
    condition = quotas_guaranteed(pool, share_quotas(pool, [here, new], ()))
    assert condition is not None
    assert condition.reason == "WaitingForNodes"
    assert quotas_guaranteed(pool_with({"name": "a"}), share_quotas(pool, [], ())) is None


def test_groups_without_slots_guarantee_nothing() -> None:
    pool = pool_with({"name": "a", "flashQuota": "60Gi"}, weight=0)
    none, all_ = member(pool, "none", 50 * GIB), member(pool, "all", 50 * GIB, group=1)
    assert flash(pool, none, all_) == {"none": [], "all": [50]}  # what there is, not 60


# --- telling a node ---------------------------------------------------------------------------


class Node:
    """A NodeAdmin whose calls and answers are lost as the test says."""

    def __init__(self) -> None:
        self.spec = pb.NodeSpec()
        self.applied = 0
        self.lose: list[str] = []
        """For each call of apply: "call", "answer", or "" for none."""
        self.polls = 0

    async def facts(self) -> pb.GetFactsResponse:
        self.polls += 1
        return pb.GetFactsResponse(
            node_name="n1", pool="p/q", weight=1.0, failure_domain="n1",
            spec_generation=self.spec.generation, spec_revision=self.spec.revision,
            state=self.spec.state or pb.NODE_STATE_ACTIVE,
        )  # fmt: skip

    async def apply(self, spec: pb.NodeSpec) -> str:
        lost = self.lose.pop(0) if self.lose else ""
        if lost == "call":
            raise PeerGone("UNAVAILABLE: reset")
        assert spec.generation > self.spec.generation
        self.spec, self.applied = spec, self.applied + 1
        if lost == "answer":
            raise PeerGone("DEADLINE_EXCEEDED")
        return ""

    async def close(self) -> None:
        return


async def poll(node: Node, order: Order, polls: int = 3) -> None:
    """Let a poller, as of an operator that has just started, look a few times."""
    poller = NodePoller("p/q", lambda endpoint, tls: node, lambda name, seen: None)
    wanted = node.polls + polls
    poller.set_targets({"n1": Target("h:1", "u")}, {"n1": order})
    async with asyncio.timeout(60):
        while node.polls < wanted:
            await pause(0.01)
    await poller.stop()


ORDER = Order(
    False,
    (WorkerQuota("a", 0, GIB, 0), WorkerQuota("a", 1, GIB, 0)),
    (TicketKey(b"k" * 32), TicketKey(b"r" * 32, 1)),
)


@pytest.mark.parametrize(
    ("lose", "generation"),
    [((), 1), (("call",), 1), (("answer",), 1), (("call", "call"), 1)],
    ids=["nothing", "the call", "the answer", "two calls"],
)
def test_a_spec_comes_into_force_once_whatever_is_lost(
    lose: tuple[str, ...], generation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memkv_operator.nodes.poller.INTERVAL_S_MIN", 0.01)
    node = Node()
    node.lose = list(lose)
    asyncio.run(poll(node, ORDER, 5))
    assert (node.applied, node.spec.generation) == (1, generation)
    assert [quota.worker for quota in node.spec.quotas] == [0, 1]
    good, ended = node.spec.ticket_keys
    assert (good.public_key, good.HasField("not_after")) == (b"k" * 32, False)
    assert (ended.public_key, ended.not_after.seconds) == (b"r" * 32, 1)
    asyncio.run(poll(node, ORDER))  # another operator wants the same
    assert node.applied == 1
    asyncio.run(poll(node, Order(draining=True)))
    assert (node.applied, node.spec.generation) == (2, generation + 1)
    assert node.spec.state == pb.NODE_STATE_DRAINING
    assert not node.spec.quotas


def test_a_node_that_lost_its_state_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkv_operator.nodes.poller.INTERVAL_S_MIN", 0.01)
    node = Node()
    asyncio.run(poll(node, ORDER))
    node.spec = pb.NodeSpec()
    asyncio.run(poll(node, ORDER))
    assert (node.applied, node.spec.generation) == (2, 1)


def test_a_change_of_the_order_does_not_cut_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("memkv_operator.nodes.poller.INTERVAL_S_MIN", 0.01)
    node, dialled = Node(), []

    def dial(endpoint: str, tls: object) -> Node:
        dialled.append(endpoint)
        return node

    async def scene() -> None:
        poller = NodePoller("p/q", dial, lambda name, seen: None)
        async with asyncio.timeout(60):
            for order in (ORDER, Order(draining=True), Order()):
                poller.set_targets({"n1": Target("h:1", "u")}, {"n1": order})
                while node.spec.revision != spec_of(order).revision:
                    await pause(0.01)
        await poller.stop()

    asyncio.run(scene())
    assert dialled == ["h:1"]
