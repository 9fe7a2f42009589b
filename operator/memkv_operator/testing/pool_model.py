"""One pool and the cluster around it as plain values: what a plan asks for is done to a model of
the API server, pods take their time, polls are made by hand, time is a number."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memkv.metadata.publisher import PublisherState, Reason
from memkv.metadata.roster import WorkerReport
from memkv.shardmap import ShardMap, Worker, WorkerState
from memkv_operator.api.cluster import KubeNode, Pod, Rollout
from memkv_operator.api.names import COMPONENT_NODE
from memkv_operator.api.node import MemKVNode, read_memkv_node
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.plan.actions import (
    Action,
    AnnotateNode,
    ApplyChild,
    ApplyNode,
    DeleteObject,
    DeletePod,
    DropAnnotation,
    SetFinalizer,
    WriteNodeStatus,
    WritePoolStatus,
)
from memkv_operator.plan.facts import NodeFacts, NodeSeen, WorkerFacts
from memkv_operator.plan.health import MapView
from memkv_operator.plan.ownership import slots_by_node
from memkv_operator.plan.planner import Observed, Plan, plan
from memkv_operator.plan.rollout import max_unavailable
from memkv_operator.plan.shards import PoolMaps
from memkv_operator.testing.cluster import NAMESPACE, POOL, SPEC

IMAGE = "memkv:1"
BAD_TAG = "bad"
START_S = 2
"""From a pod's making to its readiness."""


class PoolModel:
    """A pool, its nodes, and the operator that leads."""

    def __init__(self, slots: int, grace_s: int, **update: Any) -> None:
        self.now_s = 1000
        self.spec: dict[str, Any] = {
            **SPEC,
            "sharding": {"slots": slots, "maxMovingSlotsPercent": 100},
            "disruption": {"nodeLostGraceSeconds": grace_s},
            "updateStrategy": {"minReadySeconds": 2, "drainTimeoutSeconds": 10, **update},
        }
        self.meta: dict[str, Any] = {"name": POOL, "namespace": NAMESPACE, "uid": "u"}
        self.status: dict[str, Any] = {}
        self.kube_nodes: dict[str, KubeNode] = {}
        self.pods: dict[str, Pod] = {}
        self.silent: set[str] = set()
        """Nodes whose processes do not answer the operator."""
        self.dead: set[str] = set()
        self.incarnation: dict[str, int] = {}
        self.told_to_drain: set[str] = set()
        self.children: dict[tuple[str, str], Any] = {}
        self.memkv_nodes: dict[str, dict[str, Any]] = {}
        self.stored: PublisherState | None = None
        self.reasons: tuple[Reason, ...] = ()
        """Of the publisher's last step."""
        self.followed = False
        """Whether no loss was on its way into the map then."""
        self.elections = 0
        self.count = 0
        self.history: list[ShardMap] = []
        self.maps = self.take_over()

    # --- what happens ------------------------------------------------------------------------

    def join(self, name: str) -> None:
        """Have a node in the cluster, well and labelled."""
        labels = {"memkv.io/node": "true", "kubernetes.io/hostname": name}
        self.kube_nodes[name] = KubeNode(name, labels, True, False, {})
        self.silent.discard(name)
        self.dead.discard(name)

    def die(self, name: str) -> None:
        """A machine stops, and the cluster notices."""
        self.dead.add(name)
        self.change_node(name, ready=False)

    def leave(self, name: str) -> None:
        """A Node goes from the cluster."""
        self.kube_nodes.pop(name, None)
        self.pods.pop(name, None)

    def change_node(
        self, name: str, *, ready: bool | None = None, leaving: bool | None = None
    ) -> None:
        """Change what the cluster says of a Node."""
        node = self.kube_nodes.get(name)
        if node is not None:
            ready = node.ready if ready is None else ready
            leaving = node.leaving if leaving is None else leaving
            self.kube_nodes[name] = replace(node, ready=ready, leaving=leaving)

    def want(self, name: str, state: str) -> None:
        """Set spec.state of a node."""
        for manifest in self.memkv_nodes.values():
            if manifest["spec"]["nodeName"] == name:
                manifest["spec"]["state"] = state

    def lose_leader(self, *, stored: bool) -> None:
        """The leader dies between deciding on a map and storing it, or after it."""
        if not stored:
            self.step_maps(store=False)
        self.elections += 1
        self.followed = False
        self.maps = self.take_over()

    def pass_time(self, seconds: int, *, finished: bool = False) -> None:
        """Let kubelets and the operator work, second by second."""
        for _ in range(seconds):
            self.now_s += 1
            self.run_kubelets()
            self.look(finished=finished)

    # --- what kubelets and the DaemonSet controller do -----------------------------------------

    def run_kubelets(self) -> None:
        """Make pods where there should be some, end others, and start those that are due."""
        for name in list(self.pods):
            if not self._should_run(name) or (self.pods[name].deleting and name not in self.dead):
                del self.pods[name]
        for name in sorted(self.kube_nodes):
            if name not in self.pods and name not in self.dead and self._should_run(name):
                self._make_pod(name)
        for name, pod in self.pods.items():
            bad = pod.trouble != ""
            due = self.now_s - pod.created_s >= START_S
            ready = due and not bad and name not in self.dead
            if ready != pod.ready:
                self.pods[name] = replace(pod, ready=ready, ready_since_s=self.now_s)

    def _should_run(self, name: str) -> bool:
        template = self._template()
        node = self.kube_nodes.get(name)
        if template is None or node is None:
            return False
        wanted = {k: v for k, v in template["spec"]["nodeSelector"].items() if "/os" not in k}
        term = template["spec"].get("affinity", {}).get("nodeAffinity", {})
        terms = term.get("requiredDuringSchedulingIgnoredDuringExecution", {})
        unfit = [f for t in terms.get("nodeSelectorTerms", []) for f in t["matchFields"]]
        return all(node.labels.get(k) == v for k, v in wanted.items()) and not any(
            name in field["values"] for field in unfit
        )

    def _template(self) -> Any:
        sets = (m for (kind, _), m in self.children.items() if kind == "DaemonSet")
        found = next(sets, None)
        return found["spec"]["template"] if found is not None else None

    def _make_pod(self, name: str) -> None:
        self.count += 1
        self.incarnation[name] = self.incarnation.get(name, 0) + 1
        template = self._template()
        bad = template["spec"]["containers"][0]["image"].endswith(f":{BAD_TAG}")
        self.pods[name] = Pod(
            f"pod-{self.count}", NAMESPACE, f"uid-{self.count}", POOL, COMPONENT_NODE, "flash",
            name, f"10.0.{self.count // 250}.{self.count % 250 + 1}", False, False,
            template["metadata"]["annotations"]["memkv.io/template-hash"],
            "ErrImagePull: no such tag" if bad else "", self.now_s, self.now_s,
        )  # fmt: skip

    # --- what the operator does ----------------------------------------------------------------

    def look(self, *, finished: bool = False) -> None:
        """Poll everyone, plan, do what is planned, and step the map."""
        for _ in range(2 * len(self.kube_nodes) + 8):
            seen = {name: self.seen(name, finished) for name in self.pods}
            decided = self.decide(seen)
            for action in decided.actions:
                self.carry_out(action)
            if not decided.actions:
                break
        else:
            raise AssertionError(f"a plan that was carried out asks for more: {decided.actions}")
        self.told_to_drain = {m.name for m in decided.members if m.draining}
        self.maps.configure(self.pool, decided.members)
        self.maps.polled_only(self.pods)
        for name, one in seen.items():
            if one.facts is not None and not one.problem:
                self.maps.answered(name, one.facts.reports, self.now_s * 1000)
            else:
                self.maps.failed(name)
        if decided.may_publish:
            self.step_maps(store=True)

    def step_maps(self, *, store: bool) -> None:
        """Decide on a map, and store it."""
        outcome = self.maps.step(self.now_s * 1000, self.now_s)
        self.reasons = outcome.reasons
        self.followed = store and self.maps.has_followed
        if outcome.state is not None and store:
            self.stored = outcome.state
            self.history.append(outcome.state.shard_map)

    def decide(self, seen: dict[str, NodeSeen]) -> Plan:
        """Plan from what there is."""
        observed = Observed(
            self.pool,
            self.kube_nodes,
            list(self.pods.values()),
            self.nodes,
            self.children,
            Rollout(1, 1, 1, True),
            seen,
            MapView(self.shard_map, reasons=self.reasons, followed=self.followed),
            needed_elsewhere=(),
        )
        return plan(observed, IMAGE, self.now_s)

    def carry_out(self, action: Action) -> None:
        """Do to the model what an action does to the API server."""
        match action:
            case ApplyChild(child):
                self.children[child.key] = child.manifest
            case ApplyNode(name, manifest):
                spec = self.memkv_nodes.get(name, {}).get("spec", {})
                status = self.memkv_nodes.get(name, {}).get("status", {})
                given: Any = manifest
                spec = {**spec, **given["spec"]}
                self.memkv_nodes[name] = {**given, "spec": spec, "status": status}
            case WriteNodeStatus(name, status):
                self.memkv_nodes[name]["status"] = status
            case WritePoolStatus(status):
                self.status = dict(status)
            case DeleteObject("MemKVNode", name, _):
                del self.memkv_nodes[name]
            case DeleteObject(kind, name, _):
                del self.children[kind, name]
            case SetFinalizer(present):
                self.meta["finalizers"] = ["memkv.io/pool-protection"] if present else []
            case DropAnnotation(name):
                self.meta["annotations"] = {**self.meta["annotations"]}
                del self.meta["annotations"][name]
            case DeletePod(_, uid):
                self._delete_pod(uid)
            case AnnotateNode(name, safe):
                self.kube_nodes[name] = replace(self.kube_nodes[name], safe_to_reboot=safe)

    def _delete_pod(self, uid: str) -> None:
        name = next(name for name, pod in self.pods.items() if pod.uid == uid)
        if self.serves(name):
            down = sum(not self.serves(other) for other in self.desired)
            budget = max_unavailable(self.pool, len(self.desired))
            assert down + 1 <= budget, f"{name} goes while {down} of {budget} are down"
        self.pods[name] = replace(self.pods[name], deleting=True, ready=False)

    def seen(self, name: str, finished: bool) -> NodeSeen:
        """Return what a poll of a node comes to."""
        pod = self.pods[name]
        if not pod.ready or name in self.silent or name in self.dead:
            return NodeSeen(pod.uid, None, "nobody answers")
        shard_map = self.shard_map
        drains = name in self.told_to_drain
        state = WorkerState.DRAINING if drains else WorkerState.ACTIVE
        worker = Worker(name.encode() * 16, self.incarnation[name], name, pod.ip, 7070, state)
        moves = shard_map.moving.items() if shard_map is not None and finished else ()
        report = WorkerReport(
            worker,
            True,
            shard_map.version.lineage if shard_map is not None else b"",
            shard_map.version.epoch if shard_map is not None and finished else 0,
            frozenset((slot, move.since_epoch) for slot, move in moves),
        )
        facts = WorkerFacts(0, worker.uuid.hex(), 1, "Ready", "h", 7070, 1 << 30, 0, 0, 0, "")
        return NodeSeen(pod.uid, NodeFacts("1", drains, 1, "", (facts,), (report,)))

    # --- what there is -------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """The pool as the operator reads it."""
        return read_pool({"metadata": self.meta, "spec": self.spec, "status": self.status})

    @property
    def shard_map(self) -> ShardMap | None:
        """The stored map."""
        return self.stored.shard_map if self.stored is not None else None

    @property
    def owners(self) -> Mapping[str, int]:
        """How many slots each node owns."""
        return slots_by_node(self.shard_map)

    @property
    def nodes(self) -> list[MemKVNode]:
        """The MemKVNodes."""
        return [read_memkv_node(manifest) for manifest in self.memkv_nodes.values()]

    @property
    def desired(self) -> list[str]:
        """Nodes that should serve."""
        removed = {node.node_name for node in self.nodes if node.state.value == "Removed"}
        selected = self.pool.spec.groups[0].matches
        return [
            n for n, node in self.kube_nodes.items() if selected(node.labels) and n not in removed
        ]

    def serves(self, name: str) -> bool:
        """Return whether a node serves, for whoever can reach it."""
        pod, node = self.pods.get(name), self.kube_nodes.get(name)
        well = pod is not None and pod.ready and not pod.deleting and name not in self.dead
        return well and node is not None and node.ready and name not in self.silent

    def node_condition(self, name: str, type_: str) -> tuple[str, str]:
        """Return (status, reason) of a condition of a MemKVNode."""
        node = next(node for node in self.nodes if node.node_name == name)
        stated = node.conditions.get(type_)
        return (stated.status, stated.reason) if stated is not None else ("", "")

    def condition(self, type_: str) -> tuple[str, str]:
        """Return (status, reason: message) of a condition of the pool."""
        for stated in self.status.get("conditions", []):
            if stated["type"] == type_:
                return stated["status"], f"{stated['reason']}: {stated['message']}"
        return "", ""

    def take_over(self) -> PoolMaps:
        """Return the maps of an operator that begins to lead."""
        return PoolMaps(self.pool, self.stored, self.elections, self.now_s * 1000)
