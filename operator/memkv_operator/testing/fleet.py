"""The operator's process as it runs, beside hundreds of data-plane nodes that are not there.

    python -m memkv_operator.testing.fleet NAMESPACE/POOL run [OPTIONS of memkv-operator run]

Everything is real but the nodes' NodeAdmin: each pod of the pool answers as a node that serves,
ends its moves with each map, and stores nothing. A Node with the label `test.memkv.io/down` does
not answer.
"""

import asyncio
import sys
from collections import defaultdict

from memkv.cli.logs import start_logging
from memkv.clock import SystemClock
from memkv.errors import PeerGone
from memkv.metadata.kubernetes.api_server import connect_api_server
from memkv.metadata.kubernetes.source import ShardMapSource
from memkv.shardmap import ShardMap, unpack_owners
from memkv.testing.simulated_kubelets import SimulatedAdmin, SimulatedNode, SimulatedNodes
from memkv_operator.main import build_parser, settings_of
from memkv_operator.run.process import Operator
from memkv_operator.run.view import ClusterView
from memkv_proto import node_admin_pb2 as pb

DOWN = "test.memkv.io/down"


class Fleet:
    """All nodes of one pool."""

    def __init__(self, pool: str) -> None:
        """`pool`: "namespace/name"."""
        self.pool = pool
        self.nodes = SimulatedNodes()
        self.view: ClusterView | None = None
        """Set once the operator is there: which Node a pod is on."""

    def dial(self, endpoint: str, tls: object = None) -> "FleetAdmin":
        """As Dial."""
        host = endpoint.rpartition(":")[0]
        name = next((pod.node_name for pod in self._view.pods_of(self.pool) if pod.ip == host), "")
        self.nodes.by_host[host] = SimulatedNode(name, self.pool, host=host)
        return FleetAdmin(self, endpoint)

    def is_down(self, name: str) -> bool:
        """Return whether a Node's label says that nobody answers there."""
        node = self._view.kube_nodes.get(name)
        return node is None or DOWN in node.labels

    async def take_over(self, shard_map: ShardMap) -> None:
        """Let all nodes hear of a map. Each says of its own slots that their moves have ended."""
        version, owners = shard_map.version, unpack_owners(shard_map.owners)
        ended: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for slot, move in shard_map.moving.items():
            ended[shard_map.workers[owners[slot]].node_name].append((slot, move.since_epoch))
        for node in self.nodes.by_host.values():
            if not self.is_down(node.name):
                node.applied = (version.lineage, version.epoch)
                node.moving = tuple(ended.get(node.name, ()))

    @property
    def _view(self) -> ClusterView:
        assert self.view is not None
        return self.view


class FleetAdmin(SimulatedAdmin):
    """NodeAdmin of one of them."""

    def __init__(self, fleet: Fleet, endpoint: str) -> None:
        super().__init__(fleet.nodes, endpoint)
        self._fleet = fleet

    async def facts(self) -> pb.GetFactsResponse:
        """As NodeAdmin."""
        node = self._node()
        if self._fleet.is_down(node.name):
            raise PeerGone(f"UNAVAILABLE: {node.name} is down")
        return node.facts()


async def run(pool: str, arguments: list[str]) -> None:
    """Run until cancelled."""
    fleet = Fleet(pool)
    settings = settings_of(build_parser().parse_args(arguments))
    operator = Operator(settings, dial=fleet.dial, lease_aside=True)
    fleet.view = operator.view
    source = ShardMapSource(await connect_api_server(), pool, fleet.take_over, SystemClock())
    await asyncio.gather(operator.run(), source.run())


if __name__ == "__main__":
    start_logging("info")
    asyncio.run(run(sys.argv[1], sys.argv[2:]))
