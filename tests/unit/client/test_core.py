"""The client's picture of the pool: a session for each worker of a route."""

from memkv.client.core import ClientCore
from memkv.client.options import ConnectOptions
from memkv.shardmap import MapVersion, ShardMap, Worker, WorkerState, pack_owners
from memkv.testing.local_workers import StaticSource
from memkv.wire.hints import Hint

THERE = Worker(b"\x01" * 16, 1, "a", "127.0.0.1", 7071)
LOST = Worker(b"\x02" * 16, 1, "b", "127.0.0.1", 7072, WorkerState.LOST)


def test_hint_to_a_worker_that_the_map_calls_lost_shares_its_session() -> None:
    """It came back where it was, and this client has not got the map that says so."""
    source = StaticSource()
    version = MapVersion(b"L" * 16, 1, 5)
    source.publish(ShardMap(version, 2, (THERE, LOST), pack_owners([0, 0])))
    core = ClientCore(ConnectOptions("127.0.0.1:1"), bytes(16), source)
    core.ticket = source.fetch_ticket(0)
    core.route_changed()
    routes = core.learn(Hint(0, 1, 6, 1, LOST.uuid, LOST.host, LOST.port))
    assert routes is not None
    assert [routes.route.owner_index(slot) for slot in range(2)] == [0, 2]
    assert len(routes.sessions) == len(routes.route.workers) == 3
    assert routes.session(2) is routes.session(1)
    core.close()
