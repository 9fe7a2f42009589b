"""Plays the parts of a cluster that an API server alone lacks: kubelets, the DaemonSet and the
Deployment controller, and data-plane nodes that answer NodeAdmin without storing anything.

Works against FakeApiServer and against a real API server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from memkv.errors import PeerGone, RetryLater
from memkv.metadata.kubernetes.api_server import MERGE, ApiServer
from memkv.metadata.kubernetes.errors import Forbidden, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv.shardmap import ShardMap
from memkv_proto import node_admin_pb2 as pb

Object = dict[str, Any]
"""Any: JSON of the cluster, and only tests look inside."""

GIB = 1 << 30


@dataclass(slots=True)
class SimulatedNode:
    """A data-plane node: what its supervisor would say."""

    name: str
    pool: str
    incarnation: int = 1
    capacity_bytes: int = 20 * GIB
    phase: "pb.WorkerPhase.ValueType" = pb.WORKER_PHASE_READY
    up: bool = True
    """Whether it answers at all."""
    host: str = ""
    spec: pb.NodeSpec = field(default_factory=pb.NodeSpec)
    applied: tuple[bytes, int] = (b"", 0)
    """Lineage and epoch of the map it took over; every move of it counts as ended."""
    moving: tuple[tuple[int, int], ...] = ()
    drive: str = ""
    """What identity follows; empty: the name of the node."""
    drives: Sequence[bytes] = ()
    """Workers of the drives that it was handed; empty: it has a file, and one worker."""
    rails: Sequence[str] = ()
    """RDMA ports that serve."""
    rdma_problem: str = ""

    @property
    def uuids(self) -> Sequence[bytes]:
        """Identities of its workers."""
        return self.drives or (
            sha256(f"{self.pool} {self.drive or self.name}".encode()).digest()[:16],
        )

    def facts(self) -> pb.GetFactsResponse:
        """Return its answer."""
        return pb.GetFactsResponse(
            node_name=self.name,
            pool=self.pool,
            failure_domain=self.name,
            weight=1.0,
            state=self.spec.state or pb.NODE_STATE_ACTIVE,
            spec_generation=self.spec.generation,
            spec_revision=self.spec.revision,
            software_version="1.2.3",
            transports=["tcp", "rdma"] if self.rails else ["tcp"],
            rdma_wanted=bool(self.rails or self.rdma_problem),
            ticket_key_ids=[
                key.key_id for key in self.spec.ticket_keys if not key.HasField("not_after")
            ],
            workers=[
                pb.WorkerFacts(
                    position=position,
                    uuid=uuid,
                    incarnation=self.incarnation,
                    phase=self.phase,
                    host=self.host,
                    port=7070 + position,
                    capacity_bytes=self.capacity_bytes,
                    flash_guaranteed_bytes_max=self.capacity_bytes,
                    memory_guaranteed_bytes_max=GIB,
                    tenants=[
                        pb.TenantUsage(
                            tenant=quota.tenant,
                            flash_guaranteed_bytes=quota.flash_bytes,
                            memory_guaranteed_bytes=quota.memory_bytes,
                        )
                        for quota in self.spec.quotas
                    ],
                    rdma_rails=self.rails,
                    rdma_problem=self.rdma_problem,
                    map_lineage=self.applied[0],
                    applied_epoch=self.applied[1],
                    finished_moves=[
                        pb.FinishedMove(slot=slot, since_epoch=epoch) for slot, epoch in self.moving
                    ],
                )
                for position, uuid in enumerate(self.uuids)
            ],
        )


class SimulatedAdmin:
    """NodeAdmin of whatever node has the address now."""

    def __init__(self, nodes: "SimulatedNodes", endpoint: str) -> None:
        self._nodes = nodes
        self._host = endpoint.rpartition(":")[0]

    async def facts(self) -> pb.GetFactsResponse:
        """As NodeAdmin."""
        return self._node().facts()

    async def apply(self, spec: pb.NodeSpec) -> str:
        """As NodeAdmin."""
        node = self._node()
        assert spec.generation > node.spec.generation
        node.spec = spec
        return ""

    async def close(self) -> None:
        """As NodeAdmin."""

    def _node(self) -> SimulatedNode:
        node = self._nodes.by_host.get(self._host)
        if node is None or not node.up:
            raise PeerGone(f"UNAVAILABLE: nobody answers at {self._host}")
        return node


@dataclass(slots=True)
class SimulatedNodes:
    """All data-plane nodes, by address."""

    by_host: dict[str, SimulatedNode] = field(default_factory=dict)
    proved: list[bool] = field(default_factory=list)
    """Of each connection, whether the operator showed a certificate."""

    def dial(self, endpoint: str, tls: object = None) -> SimulatedAdmin:
        """Return the admin service at an endpoint. Nothing is proved here."""
        self.proved.append(tls is not None)
        return SimulatedAdmin(self, endpoint)

    def take_over(self, shard_map: ShardMap) -> None:
        """Let every node that is up hear of a map, and end its moves."""
        version = shard_map.version
        moving = tuple((slot, move.since_epoch) for slot, move in shard_map.moving.items())
        for node in self.by_host.values():
            if node.up:
                node.applied, node.moving = (version.lineage, version.epoch), moving

    def of(self, name: str) -> SimulatedNode:
        """Return the node of a name."""
        return next(node for node in self.by_host.values() if node.name == name)


class SimulatedKubelets:
    """Makes pods of DaemonSets, and says that they and Deployments are ready."""

    def __init__(self, api: ApiServer, namespace: str, network: str = "10.1") -> None:
        """`network`: the first half of the addresses of pods."""
        self._api = api
        self._namespace = namespace
        self._network = network
        self._count = 0
        self.nodes = SimulatedNodes()
        self.broken: set[str] = set()
        """Nodes whose kubelet is dead."""
        self.hand_drives: Callable[[str, str], Sequence[bytes]] = lambda node, resource: ()
        """Of a node and a resource of drives: the workers on the drives that a pod gets now; none
        while nobody advertises the resource."""

    async def add_node(self, name: str, labels: Mapping[str, str]) -> None:
        """Join a node to the cluster."""
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name, "labels": {"kubernetes.io/hostname": name, **labels},
            },
        }  # fmt: skip
        await self._api.request("POST", "/api/v1/nodes", None, node)
        await self.set_node_ready(name, True)

    async def change_node(self, name: str, patch: JsonObject) -> None:
        """Change fields of a Node, as kubectl does."""
        await self._api.request("PATCH", f"/api/v1/nodes/{name}", None, patch, MERGE)

    async def set_node_ready(self, name: str, ready: bool) -> None:
        """Let a node's kubelet report, or fall silent for so long that the cluster noticed."""
        self.broken.discard(name) if ready else self.broken.add(name)
        status = {"conditions": [_condition(ready)]}
        await self._status(f"/api/v1/nodes/{name}", status)

    async def tick(self) -> None:
        """Do what the controllers and kubelets would do now."""
        daemon_sets = await self._list("apps/v1", "daemonsets")
        await self._collect_orphans({daemon_set["metadata"]["uid"] for daemon_set in daemon_sets})
        for daemon_set in daemon_sets:
            await self._daemon_set(daemon_set)
        for deployment in await self._list("apps/v1", "deployments"):
            await self._deployment(deployment)

    async def _collect_orphans(self, owners: set[str]) -> None:
        """As the garbage collector: of a DaemonSet that went while a pod of it was made."""
        for pod in await self._list("v1", "pods"):
            for owner in pod["metadata"].get("ownerReferences", []):
                if owner["kind"] == "DaemonSet" and owner["uid"] not in owners:
                    await self._delete(f"{self._path('v1', 'pods')}/{pod['metadata']['name']}")

    async def _daemon_set(self, daemon_set: Object) -> None:
        template = daemon_set["spec"]["template"]
        selector = dict(template["spec"].get("nodeSelector", {}))
        selector.pop("kubernetes.io/os", None)
        nodes = {
            node["metadata"]["name"]: node
            for node in await self._list("v1", "nodes", "")
            if _has(node["metadata"].get("labels", {}), selector)
            and node["metadata"]["name"] not in _excluded(template["spec"])
        }
        chosen = daemon_set["spec"]["selector"]["matchLabels"]
        pods = [
            pod
            for pod in await self._list("v1", "pods")
            if _has(pod["metadata"].get("labels", {}), chosen)
        ]
        for pod in pods:
            await self._pod(pod, nodes)
        placed = {pod["spec"].get("nodeName") for pod in pods}
        for name in sorted(nodes.keys() - placed - self.broken):
            await self._make_pod(daemon_set, name)

    async def _pod(self, pod: Object, nodes: Mapping[str, Object]) -> None:
        name, where = pod["metadata"]["name"], pod["spec"].get("nodeName", "")
        if where not in nodes or (pod["metadata"].get("deletionTimestamp") and where):
            await self._delete(f"{self._path('v1', 'pods')}/{name}")
            return
        if not pod.get("status", {}).get("podIP"):
            await self._start_pod(pod)
        node = self.nodes.by_host.get(pod.get("status", {}).get("podIP", ""))
        if node is not None:
            ready = node.up and where not in self.broken and node.phase == pb.WORKER_PHASE_READY
            if _is_ready(pod) != ready:
                await self._status(f"{self._path('v1', 'pods')}/{name}", {
                    **pod["status"], "conditions": [_condition(ready)],
                })  # fmt: skip

    async def _make_pod(self, daemon_set: Object, node_name: str) -> None:
        self._count += 1
        template = daemon_set["spec"]["template"]
        meta = daemon_set["metadata"]
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{meta['name']}-{self._count:05}",
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1", "kind": "DaemonSet", "name": meta["name"],
                        "uid": meta["uid"], "controller": True,
                    }
                ],
            },
            "spec": {**template["spec"], "nodeName": node_name},
        }  # fmt: skip
        try:
            await self._api.request("POST", self._path("v1", "pods"), None, pod)
        except Forbidden:
            return  # its ServiceAccount is not there yet; the next tick tries again

    async def _start_pod(self, pod: Object) -> None:
        name, where = pod["metadata"]["name"], pod["spec"]["nodeName"]
        drives: Sequence[bytes] = ()
        resource = _drives_of(pod)
        if resource:
            drives = self.hand_drives(where, resource)
            if not drives:
                return  # pending: Insufficient drives.memkv.io/...
        self._count += 1
        host = f"{self._network}.{self._count // 250}.{self._count % 250 + 1}"
        pool = f"{self._namespace}/{pod['metadata']['labels']['memkv.io/pool']}"
        old = [(h, n) for h, n in self.nodes.by_host.items() if (n.name, n.pool) == (where, pool)]
        node = SimulatedNode(where, pool, host=host)
        for address, before in old:
            # The drive is where it was; the process and the address are new.
            del self.nodes.by_host[address]
            node = before
            node.host, node.incarnation, node.up = host, before.incarnation + 1, True
        node.drives = drives
        self.nodes.by_host[host] = node
        status: Object = {"podIP": host, "phase": "Running", "conditions": [_condition(True)]}
        await self._status(f"{self._path('v1', 'pods')}/{name}", status)

    async def _deployment(self, deployment: Object) -> None:
        replicas = deployment["spec"].get("replicas", 1)
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "readyReplicas": replicas,
            "updatedReplicas": replicas,
            "availableReplicas": replicas,
        }
        if deployment.get("status") != status:
            path = f"{self._path('apps/v1', 'deployments')}/{deployment['metadata']['name']}"
            await self._status(path, status)

    def _path(self, version: str, plural: str) -> str:
        root = "/api" if version == "v1" else "/apis"
        return f"{root}/{version}/namespaces/{self._namespace}/{plural}"

    async def _list(self, version: str, plural: str, namespace: str | None = None) -> list[Object]:
        path = self._path(version, plural)
        if namespace == "":
            path = f"{'/api' if version == 'v1' else '/apis'}/{version}/{plural}"
        answer: Any = await self._api.request("GET", path)
        return list(answer["items"])

    async def _status(self, path: str, status: JsonObject) -> None:
        try:
            await self._api.request("PATCH", f"{path}/status", None, {"status": status}, MERGE)
        except (NotFound, RetryLater):
            return  # the next tick tries again

    async def _delete(self, path: str) -> None:
        try:
            await self._api.request("DELETE", path, None, {"gracePeriodSeconds": 0})
        except NotFound:
            return


def _condition(ready: bool) -> Object:
    return {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": "Simulated",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def _drives_of(pod: Object) -> str:
    """Return the resource of drives that a pod asks for, if it does."""
    for container in pod["spec"].get("containers", []):
        for resource in container.get("resources", {}).get("limits", {}):
            if str(resource).startswith("drives.memkv.io/"):
                return str(resource)
    return ""


def _is_ready(item: Object) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _excluded(pod: Object) -> set[str]:
    """Nodes that a pod's affinity names as unfit, one value in each requirement."""
    affinity = pod.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    return {
        name
        for term in required.get("nodeSelectorTerms", [])
        for field in term.get("matchFields", [])
        if (field["key"], field["operator"]) == ("metadata.name", "NotIn")
        for name in field["values"]
    }


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
