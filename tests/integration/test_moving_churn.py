"""Random churn of a pool with real stores, servers, keepers and clients, judged by an oracle.

Steps from a seed: puts, deletes, reads, polls, kills, restarts on a kept map, nodes that miss maps
or are cut off while they go on serving, a client that misses maps, a publisher that starts again, a
tenant that is dropped. The content of a block says which put it is of. The promises under test:

- C1: a hit is exactly the bytes of one put of that key;
- C7: never of a put from before an acknowledged delete of the key or drop of its tenant.

What is left out, since no node could know better (C8): a client that misses maps asking a node that
is cut off at the same time, or one that comes back when nobody is up who knows a newer map.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from memkv.client.options import PutOptions
from memkv.client.sync import Client
from memkv.limits import KIB
from memkv.metadata.publisher import Publisher
from memkv.metadata.state_codec import decode_state, encode_state
from memkv.pattern import block, seed_of
from memkv.shardmap import ShardMap
from memkv.status import Status
from memkv.tenant import tenant_tag
from memkv.testing.local_workers import StaticSource
from memkv.testing.moving_pool import MovingNode, MovingPool

NAMES = "abc"
KEYS = [f"key {number}" for number in range(24)]
STEPS = 60
SIZE = 8 * KIB


def content(key: str, number: int) -> bytes:
    return number.to_bytes(8, "little") + bytes(block(seed_of(key, number), SIZE))


@dataclass
class Churn:
    """A pool, two clients and what is known of every key."""

    pool: MovingPool
    choose: random.Random
    clients: list[Client] = field(default_factory=list)
    puts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    gone: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    """Key -> number of its last put that was deleted for good."""
    unsure: set[str] = field(default_factory=set)
    """Keys with a put without an answer, which may still arrive."""
    kept: dict[str, ShardMap | None] = field(default_factory=dict)
    stale: StaticSource | None = None
    trace: list[str] = field(default_factory=list)
    hits: int = 0

    def begin(self) -> None:
        for name in NAMES:
            self.pool.add(name)
        self.pool.settle()
        self.clients = [self.pool.client(), self.pool.client()]

    @property
    def nodes(self) -> list[MovingNode]:
        return list(self.pool.nodes.values())

    @property
    def down(self) -> list[MovingNode]:
        return [node for node in self.nodes if not node.is_up]

    @property
    def cut(self) -> list[MovingNode]:
        return [node for node in self.nodes if not node.answers_polls]

    # --- steps: each returns what it did, or "" when it could not ---------------------------------
    def put(self) -> str:
        key, client = self.choose.choice(KEYS), self.choose.choice(self.clients)
        self.puts[key] += 1
        durability = self.choose.choice(["cached", "durable"])
        options = PutOptions(durability=durability)  # type: ignore[arg-type]  # one of the two
        status = client.put(key, content(key, self.puts[key]), options)
        if status == Status.TIMEOUT:
            self.unsure.add(key)
        return f"put {key} {self.puts[key]}: {status}"

    def delete(self) -> str:
        key, client = self.choose.choice(KEYS), self.choose.choice(self.clients)
        status = client.remove(key)
        if status == Status.OK:
            self.gone[key] = self.puts[key]
        return f"delete {key} up to {self.puts[key]}: {Status(status).name}"

    def read(self) -> str:
        for client in self.clients:
            for key in self.choose.sample(KEYS, 8):
                self.judge(key, client.get(key))
        return "read"

    def judge(self, key: str, data: bytes | None) -> None:
        if data is None:
            return
        number = int.from_bytes(data[:8], "little")
        assert 1 <= number <= self.puts[key], f"{key}: of no put"
        assert data == content(key, number), f"{key}: wrong bytes"
        if key not in self.unsure:
            assert number > self.gone[key], f"{key}: put {number} is deleted, and is back"
        self.hits += 1

    def tick(self) -> str:
        self.pool.tick()
        for node in self.nodes:
            if node.is_up and node.hears_maps:
                self.kept[node.name] = self.pool.map
        return f"tick: {self.pool.the_map.version}, {len(self.pool.the_map.moving)} moving"

    def kill(self) -> str:
        up = [node for node in self.nodes if node.is_up]
        if len(up) == 1 or (self.stale is not None and self.down):
            return ""
        node = self.choose.choice(up)
        node.kill()
        node.answers_polls = node.hears_maps = True
        return f"kill {node.name}"

    def start(self) -> str:
        if not self.down:
            return ""
        node = self.choose.choice(self.down)
        node.start(self.kept.get(node.name) if self.choose.random() < 0.8 else None)
        return f"start {node.name}"

    def lag(self) -> str:
        """A node misses maps, or is cut off from the publisher, or hears again."""
        node = self.choose.choice(self.nodes)
        if not node.is_up:
            return ""
        node.hears_maps = not node.hears_maps
        cuts = not node.hears_maps and self.stale is None and self.choose.random() < 0.5
        node.answers_polls = not cuts
        return f"{node.name} {'hears' if node.hears_maps else 'cut' if cuts else 'lags'}"

    def miss_maps(self) -> str:
        """The second client misses maps from now on, or hears again."""
        if self.stale is not None:
            self.pool.sources.append(self.stale)
            self.stale.publish(self.pool.the_map)
            self.stale = None
            return "client hears"
        if self.cut or len(self.down) > 1:
            return ""
        self.stale = self.pool.sources.pop()
        return "client misses maps"

    def new_publisher(self) -> str:
        state = self.pool.publisher.state
        assert state is not None
        self.pool.publisher = Publisher(
            self.pool.config, decode_state(encode_state(state)), self.pool.now_ms
        )
        return "new publisher"

    def drop(self) -> str:
        """Drop the tenant as the metadata service does: two rounds, each taken over by all."""
        for _ in range(2):
            self.pool.publisher.drop_tenant(tenant_tag("default"))
            self.tick()
            epoch = self.pool.the_map.version.epoch
            for _ in range(40):
                if not self.pool.publisher.lagging(epoch):
                    break
                self.tick()
                self.pool.pause()
            else:
                return "drop, not acknowledged"
        self.gone = dict(self.puts)
        return "drop, acknowledged"

    # --- the run ------------------------------------------------------------------------------
    def run(self, steps: int) -> None:
        weights: dict[Callable[[], str], int] = {
            self.put: 30, self.delete: 14, self.read: 18, self.tick: 26, self.kill: 3,
            self.start: 5, self.lag: 5, self.miss_maps: 3, self.new_publisher: 2, self.drop: 1,
        }  # fmt: skip
        for _ in range(steps):
            [step] = self.choose.choices(list(weights), list(weights.values()))
            self.trace.append(step())
        self.heal()

    def heal(self) -> None:
        """Everything comes back: the pool settles, keeps its promises and serves."""
        for node in self.nodes:
            if not node.is_up:
                node.start(self.kept.get(node.name))
            node.hears_maps = node.answers_polls = True
        if self.stale is not None:
            self.miss_maps()
        for node in self.nodes:
            node.keeper.offer(self.pool.the_map)
        self.pool.settle()
        for client in self.clients:
            for key in KEYS:
                self.judge(key, client.get(key))
        for key in KEYS:
            self.pool.tick_until(f"{key} is stored", partial(self.stores, key))

    def stores(self, key: str) -> bool:
        return self.clients[0].put(key, b"end") == Status.OK


@pytest.mark.parametrize("seed", range(4))
def test_no_deleted_block_comes_back(tmp_path: Path, seed: int) -> None:
    pool = MovingPool(tmp_path)
    churn = Churn(pool, random.Random(seed))
    try:
        churn.begin()
        churn.run(STEPS)
    except AssertionError as error:
        raise AssertionError(f"{error}; seed {seed}:\n  " + "\n  ".join(churn.trace)) from error
    finally:
        pool.close()
    assert churn.hits > 0
