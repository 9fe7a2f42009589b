"""Many pools of one operator, each in a namespace of its own, on nodes that they share."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from memkv.errors import PeerGone
from memkv.shardmap import unpack_owners
from memkv.testing.simulated_kubelets import SimulatedAdmin
from memkv_operator.api.names import (
    CHILDREN,
    MEMKV_NODES,
    PODS,
    POOLS,
    SECRETS,
    SHARD_MAPS,
)
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.run.process import Operator
from memkv_operator.run.settings import Settings
from memkv_operator.testing.cluster import SPEC
from memkv_operator.testing.real_api import RealApi

NODES = 2
NETWORKS = 250
LEASE_MS = 30_000  # it is about pools: nobody else wants to lead
KINDS = (POOLS, MEMKV_NODES, SECRETS, *CHILDREN)

Object = dict[str, Any]
"""Any: JSON of the cluster, and only tests look inside."""


class ManyPools:
    """Namespaces of a server, each with one pool named POOL and its own simulated kubelets."""

    def __init__(self, home: RealApi) -> None:
        """`home`: the operator's own namespace, and the nodes of all pools."""
        self.home = home
        self._pools: list[RealApi] = []

    async def add_namespace(self) -> RealApi:
        """Make the next namespace, without its pool."""
        number = len(self._pools)
        namespace = f"{self.home.namespace}-{number}"
        real = RealApi(self.home.api, namespace, network=f"10.{1 + number % NETWORKS}")
        self._pools.append(real)
        await real.make_namespace()
        return real

    async def make_pool(self, real: RealApi) -> None:
        """Make the pool of a namespace, with TLS and tokens as by default."""
        group = {
            **SPEC["nodeGroups"][0],
            "nodeSelector": self.home.label,
            "storage": {"file": {"hostPath": f"/var/lib/{real.namespace}", "size": "20Gi"}},
        }
        metadata = {"replicas": 1}
        network = {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}}
        await real.make_pool(nodeGroups=[group], metadata=metadata, network=network)

    async def drop(self, real: RealApi) -> None:
        """Delete the pool of a namespace and all that it has: no controller does, and the operator
        would list it again and again."""
        await real.drop_pools()
        for resource in (*KINDS, SHARD_MAPS, PODS):
            options: Object = {"gracePeriodSeconds": 0}
            await real.api.request("DELETE", resource.path(real.namespace), None, options)

    def dial(self, endpoint: str, tls: object = None) -> SimulatedAdmin:
        """As Dial: whichever of their nodes has the address."""
        host = endpoint.rpartition(":")[0]
        for real in reversed(self._pools):
            if host in real.kubelets.nodes.by_host:
                return real.kubelets.nodes.dial(endpoint, tls)
        raise PeerGone(f"UNAVAILABLE: nobody answers at {host}")

    @asynccontextmanager
    async def operator(self, **changes: Any) -> AsyncIterator[Operator]:
        """Run the operator of all of them; KUBECONFIG says where. `changes`: of its Settings."""
        name = f"operator-{uuid.uuid4().hex[:8]}"
        lease = LeaseConfig(
            self.home.namespace, "memkv-operator", name, LEASE_MS, LEASE_MS * 2 // 3, LEASE_MS // 10
        )
        told: Object = {
            "http_host": "127.0.0.1", "http_port": 0, "resync_s": 2.0, "step_s": 0.25,
            "list_again_s": 3.0, **changes,
        }  # fmt: skip
        operator = Operator(Settings(lease, "memkv:1", **told), dial=self.dial, lease_aside=True)
        async with self.home.running(operator):
            yield operator


async def snapshot(real: RealApi) -> Object:
    """Return what there is of a pool, without what differs between two pools that are equal."""
    pool = await real.pool()
    found: Object = {}
    for resource in KINDS:
        listed: Any = await real.get(resource.path(real.namespace))
        for item in listed["items"]:
            meta = item["metadata"]
            name = f"{resource.kind} {meta['name']}"
            kept = {key: meta.get(key) for key in ("labels", "annotations", "finalizers")}
            owners = [owner["uid"] for owner in meta.get("ownerReferences", [])]
            found[name] = without_chance(
                {**item, "metadata": {**kept, "isOwned": owners == [pool["metadata"]["uid"]]}}
            )
    pods: Any = await real.get(PODS.path(real.namespace))
    found["pods"] = sorted(pod["spec"]["nodeName"] for pod in pods["items"])
    shard_map = await real.map()
    if shard_map is not None:
        found["workers"] = sorted((w.node_name, w.state.name) for w in shard_map.workers)
        serving = set(unpack_owners(shard_map.owners))
        found["slots"] = shard_map.slots, serving == set(range(len(shard_map.workers)))
        found["moving"] = len(shard_map.moving)
    text = json.dumps(found, sort_keys=True)
    named: Object = json.loads(text.replace(real.namespace, "NAMESPACE"))
    return named


CHANCE = frozenset(
    {
        "lastTransitionTime", "lineage", "term", "epoch", "digest", "publishedAt", "host", "podIP",
        "podUID", "appliedEpoch", "incarnation", "message", "uuid", "ca", "connection.json",
        "memkv.io/spec-hash", "memkv.io/template-hash", "clusterIP", "clusterIPs",
        "resourceVersion", "updateRevision", "currentRevision",
    }
)  # fmt: skip
"""Fields that differ between two pools which went the same way."""


def without_chance(value: Any) -> Any:
    """Return JSON without what differs; of Secrets the keys are left."""
    if isinstance(value, list):
        return [without_chance(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_chance(one) for key, one in value.items() if key not in CHANCE}
    if value.get("kind") == "Secret" or value.get("type") == "Opaque":
        kept["data"] = sorted(value.get("data", {}))
    return kept
