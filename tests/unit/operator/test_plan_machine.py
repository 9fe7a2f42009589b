"""A pool through anything that nodes, people and other operators do, step by step.

Pure: what the plan asks for is done to a model of the API server, polls are made by hand, time is
a number. After each step the promises are checked.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memkv.metadata.publisher import PublisherState
from memkv.metadata.roster import WorkerReport
from memkv.shardmap import UNASSIGNED, ShardMap, Worker, WorkerState, unpack_owners
from memkv_operator.api.cluster import KubeNode, Pod, Rollout
from memkv_operator.api.names import COMPONENT_NODE
from memkv_operator.api.node import MemKVNode, read_memkv_node
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.actions import (
    ApplyChild,
    ApplyNode,
    DeleteObject,
    DeletePod,
    SetFinalizer,
    WriteNodeStatus,
    WritePoolStatus,
)
from memkv_operator.plan.facts import NodeFacts, NodeSeen, WorkerFacts
from memkv_operator.plan.health import MapView
from memkv_operator.plan.planner import Observed, Plan, plan
from memkv_operator.plan.shards import PoolMaps
from memkv_operator.testing.cluster import NAMESPACE, POOL, SPEC

NAMES = "abcdef"
SLOTS = 64
GRACE_S = 5
IMAGE = "memkv:1"
ROUNDS_MAX = 2 * len(NAMES) + 4  # each pod may be replaced, one after the other


class Machine(RuleBasedStateMachine):
    """One pool."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.spec: dict[str, Any] = {
            **SPEC,
            "sharding": {"slots": SLOTS, "maxMovingSlotsPercent": 100},
            "disruption": {"nodeLostGraceSeconds": GRACE_S},
        }
        self.meta: dict[str, Any] = {"name": POOL, "namespace": NAMESPACE, "uid": "u"}
        self.status: dict[str, Any] = {}
        self.kube_nodes: dict[str, KubeNode] = {}
        self.pods: dict[str, Pod] = {}
        self.up: set[str] = set()
        self.incarnation: dict[str, int] = {}
        self.draining: set[str] = set()
        self.host: dict[str, str] = {}
        self.children: dict[tuple[str, str], Any] = {}
        self.memkv_nodes: dict[str, dict[str, Any]] = {}
        self.stored: PublisherState | None = None
        self.elections = 0
        self.count = 0
        self.history: list[ShardMap] = []
        self.maps = self.take_over()

    # --- what happens ------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        for name in NAMES[:3]:
            self.join(name)
        self.look()

    @rule(name=st.sampled_from(NAMES))
    def join(self, name: str) -> None:
        labels = {"memkv.io/node": "true", "kubernetes.io/hostname": name}
        self.kube_nodes[name] = KubeNode(name, labels, True, False, {})
        self.start_pod(name)

    @rule(name=st.sampled_from(NAMES))
    def die(self, name: str) -> None:
        self.up.discard(name)
        self.change_node(name, ready=False)

    @rule(name=st.sampled_from(NAMES))
    def unreachable_for_the_operator_only(self, name: str) -> None:
        self.up.discard(name)

    @rule(name=st.sampled_from(NAMES))
    def come_back(self, name: str) -> None:
        """At another address, with its drive."""
        if name in self.kube_nodes:
            self.change_node(name, ready=True)
            self.start_pod(name)

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        self.kube_nodes.pop(name, None)
        self.pods.pop(name, None)
        self.up.discard(name)

    @rule(name=st.sampled_from(NAMES), leaving=st.booleans())
    def cordon(self, name: str, leaving: bool) -> None:
        self.change_node(name, leaving=leaving)

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(["Active", "Draining", "Removed"]))
    def want(self, name: str, state: str) -> None:
        for manifest in self.memkv_nodes.values():
            if manifest["spec"]["nodeName"] == name:
                manifest["spec"]["state"] = state

    @rule(paused=st.booleans())
    def pause_pool(self, paused: bool) -> None:
        self.spec["paused"] = paused

    @rule(right=st.booleans())
    def change_selector(self, right: bool) -> None:
        label = "memkv.io/node" if right else "memkv.io/typo"
        self.spec["nodeGroups"] = [{**SPEC["nodeGroups"][0], "nodeSelector": {label: "true"}}]

    @rule(accept=st.booleans())
    def accept_mass_loss(self, accept: bool) -> None:
        self.meta["annotations"] = {"memkv.io/accept-mass-loss": "true" if accept else "false"}

    @rule(stored=st.booleans())
    def another_operator_takes_over(self, stored: bool) -> None:
        """The old one dies between deciding on a map and storing it, or after it."""
        if not stored:
            self.step_maps(store=False)
        self.elections += 1
        self.maps = self.take_over()

    @precondition(lambda self: self.stored is not None)
    @rule()
    def moves_end(self) -> None:
        self.look(finished=True)

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ms += 1000
            self.look()

    # --- how it is looked at -----------------------------------------------------------------

    def look(self, finished: bool = False) -> None:
        """Poll everyone, plan, do what is planned, and step the map."""
        for _ in range(ROUNDS_MAX):
            seen = self.poll(finished)
            decided = self.decide(seen)
            self.carry_out(decided)
            if not decided.actions:
                break
        else:
            raise AssertionError(f"a plan that was carried out asks for more: {decided.actions}")
        self.draining = {m.name for m in decided.members if m.draining}
        self.maps.configure(self.pool, decided.members)
        self.maps.polled_only(self.pods)
        for name, one in seen.items():
            if one.facts is not None and not one.problem:
                self.maps.answered(name, one.facts.reports, self.now_ms)
            else:
                self.maps.failed(name)
        if decided.may_publish:
            self.step_maps(store=True)

    def step_maps(self, store: bool) -> None:
        outcome = self.maps.step(self.now_ms, self.now_ms // 1000)
        if outcome.state is not None and store:
            self.stored = outcome.state
            self.history.append(outcome.state.shard_map)

    def decide(self, seen: dict[str, NodeSeen]) -> Plan:
        shard_map = self.stored.shard_map if self.stored is not None else None
        observed = Observed(
            self.pool,
            self.kube_nodes,
            list(self.pods.values()),
            self.read_nodes(),
            self.children,
            Rollout(1, 1, 1, True),
            seen,
            MapView(shard_map),
        )
        return plan(observed, IMAGE, f"t{self.now_ms}")

    def carry_out(self, decided: Plan) -> None:
        for action in decided.actions:
            match action:
                case ApplyChild(child):
                    self.children[child.key] = child.manifest
                case ApplyNode(name, manifest):
                    spec = self.memkv_nodes.get(name, {}).get("spec", {})
                    given: Any = manifest
                    self.memkv_nodes[name] = {**given, "spec": {**spec, **given["spec"]}}
                case WriteNodeStatus(name, status):
                    self.memkv_nodes[name]["status"] = status
                case WritePoolStatus(status):
                    self.status = status
                case DeleteObject("MemKVNode", name, _):
                    del self.memkv_nodes[name]
                case DeleteObject(kind, name, _):
                    del self.children[kind, name]
                case SetFinalizer(present):
                    self.meta["finalizers"] = ["memkv.io/pool-protection"] if present else []
                case DeletePod(_, uid):
                    name = next(n for n, pod in self.pods.items() if pod.uid == uid)
                    self.start_pod(name)

    def poll(self, finished: bool) -> dict[str, NodeSeen]:
        return {name: self.seen(name, finished) for name in self.pods}

    def seen(self, name: str, finished: bool) -> NodeSeen:
        uid = self.pods[name].uid
        if name not in self.up:
            return NodeSeen(uid, None, "nobody answers")
        shard_map = self.stored.shard_map if self.stored is not None else None
        state = WorkerState.DRAINING if name in self.draining else WorkerState.ACTIVE
        worker = Worker(
            name.encode() * 16, self.incarnation[name], name, self.host[name], 7070, state
        )
        moves = shard_map.moving.items() if shard_map is not None and finished else ()
        report = WorkerReport(
            worker,
            True,
            shard_map.version.lineage if shard_map is not None else b"",
            shard_map.version.epoch if shard_map is not None and finished else 0,
            frozenset((slot, move.since_epoch) for slot, move in moves),
        )
        facts = WorkerFacts(0, worker.uuid.hex(), 1, "Ready", "h", 7070, 1 << 30, 0, 0, 0, "")
        return NodeSeen(uid, NodeFacts("1", name in self.draining, 1, "", (facts,), (report,)))

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def versions_only_grow_and_name_one_map_each(self) -> None:
        for before, after in zip(self.history, self.history[1:], strict=False):
            assert after.version.newer_than(before.version)
            assert after.version.epoch > before.version.epoch
        del self.history[:-1]

    @invariant()
    def every_slot_has_an_owner(self) -> None:
        if self.stored is not None:
            owners = unpack_owners(self.stored.shard_map.owners)
            assert len(owners) == SLOTS
            assert UNASSIGNED not in owners

    @invariant()
    def what_is_stored_can_be_gone_on_from(self) -> None:
        if self.stored is not None:
            self.stored.shard_map.validate()

    @invariant()
    def conditions_agree_with_each_other(self) -> None:
        stated = {c["type"]: c["status"] for c in self.status.get("conditions", [])}
        if stated.get("Ready") == "True":
            for part in ("ConfigValid", "NodesReady", "ShardMapPublished", "MetadataAvailable"):
                assert stated[part] == "True", part
            assert self.status["readyNodes"] == self.status["desiredNodes"] > 0

    def teardown(self) -> None:
        """When all is well again and time passes, the pool is ready and balanced."""
        self.spec["paused"] = False
        self.change_selector(True)
        self.accept_mass_loss(True)
        for name in NAMES:
            self.join(name)
            self.want(name, "Active")
        for _ in range(60):
            self.now_ms += 1000
            self.look(finished=True)
        stated = {c["type"]: (c["status"], c["message"]) for c in self.status["conditions"]}
        assert stated["Ready"][0] == "True", stated
        assert stated["Rebalanced"][0] == "True", stated
        assert self.stored is not None
        owners = {
            self.stored.shard_map.workers[i].node_name
            for i in unpack_owners(self.stored.shard_map.owners)
        }
        assert owners == set(NAMES)

    # --- helpers -----------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        return read_pool({"metadata": self.meta, "spec": self.spec, "status": self.status})

    def take_over(self) -> PoolMaps:
        return PoolMaps(self.pool, self.stored, self.elections, self.now_ms)

    def read_nodes(self) -> list[MemKVNode]:
        return [read_memkv_node(manifest) for manifest in self.memkv_nodes.values()]

    def start_pod(self, name: str) -> None:
        self.count += 1
        self.host[name] = f"10.0.0.{self.count}"
        self.incarnation[name] = self.incarnation.get(name, 0) + 1
        self.up.add(name)
        template = next(
            (
                child["spec"]["template"]["metadata"]["annotations"]["memkv.io/template-hash"]
                for (kind, _), child in self.children.items()
                if kind == "DaemonSet"
            ),
            "",
        )
        self.pods[name] = Pod(
            f"pod-{self.count}", NAMESPACE, f"uid-{self.count}", POOL, COMPONENT_NODE, "flash",
            name, self.host[name], True, False, template,
        )  # fmt: skip

    def change_node(
        self, name: str, *, ready: bool | None = None, leaving: bool | None = None
    ) -> None:
        node = self.kube_nodes.get(name)
        if node is None:
            return
        self.kube_nodes[name] = KubeNode(
            name,
            node.labels,
            node.ready if ready is None else ready,
            node.leaving if leaving is None else leaving,
            {},
        )


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
