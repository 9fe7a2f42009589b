"""Whether the first map of a process is still the newest, by asking other workers.

A worker that comes back while the metadata service is away has the map of its last life. Its slots
may have gone to others since, with deletes it never heard of, and a client that knows no newer map
either would ask it. Whoever took a slot over knows a newer map and says so in its HELLO; peers that
do not answer say nothing, or a pool that lost its power could never start without its metadata.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from memkv import limits
from memkv.errors import RetryLater
from memkv.node.moves.peer import Connect, PeerOfAnotherLineage
from memkv.shardmap import ShardMap, Worker, WorkerState

log = logging.getLogger("memkv.node")


def is_outdated(shard_map: ShardMap, me: bytes, connect: Connect) -> bool:
    """Ask some workers of the map; return whether one of them goes by a newer map."""
    peers = peers_to_ask(shard_map, me)
    if not peers:
        return False

    def ask(peer: Worker) -> bool:
        try:
            session = connect(peer, shard_map.version)
        except PeerOfAnotherLineage:
            return True
        except RetryLater as error:
            log.info("cannot ask whether map %s is the newest: %s", shard_map.version, error)
            return False
        newer = session.served > (shard_map.version.term, shard_map.version.epoch)
        session.close()
        return newer

    with ThreadPoolExecutor(len(peers), thread_name_prefix="memkv-confirm") as threads:
        return any(threads.map(ask, peers))


def peers_to_ask(shard_map: ShardMap, me: bytes) -> Sequence[Worker]:
    """Return at most limits.CONFIRM_PEERS_MAX others that are not lost: those after this one, so
    that the workers of a large pool that start together do not all ask the same ones."""
    after = [worker for worker in shard_map.workers if worker.uuid > me]
    before = [worker for worker in shard_map.workers if worker.uuid < me]
    there = [worker for worker in (*after, *before) if worker.state is not WorkerState.LOST]
    return there[: limits.CONFIRM_PEERS_MAX]
