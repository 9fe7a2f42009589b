"""The demonstration, start to end: a pool, a replay, a killed node, its return, the figures."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.demo import reference
from memkv.demo.replay import BLOCK_BYTES, BLOCKS_PER_CALL, Replay, durable_keys, key_of, parts
from memkv.demo.report import DemoReport, Outage
from memkv.demo.tally import Tally
from memkv.demo.trace import TraceRequest
from memkv.errors import ConfigError
from memkv.keys import block_ids, slots_of
from memkv.limits import KIB, MIB, SEGMENTS_PER_STORE_MIN
from memkv.localpool.facts import FactsReader
from memkv.localpool.pool import LocalNode, LocalPool, PoolPlan
from memkv.shardmap.map import WorkerState

CAPACITY_SHARE = 0.20
MEMORY_BYTES_PER_NODE = 128 * MIB
DEADLINE_MS = 10_000  # a call carries up to 32 MiB of durable puts, on any disk
REQUESTS_MIN = 20
# A block and its header fit a segment, a 64th of the file, with room for header and footer.
CAPACITY_BYTES_MIN = SEGMENTS_PER_STORE_MIN * (BLOCK_BYTES + 16 * KIB)
OUTAGE_S = 1.0  # long enough to see that the rest of the pool goes on
# The node must be back before its slots move: what moves home evicts what the node kept. A busy
# machine may take longer than the usual grace to start it again.
LOSS_GRACE = "60s"
OUTAGE_SHARE_MAX = 0.05  # of the requests
RETURN_TIMEOUT_S = 60.0
REST_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.1  # a node that is not reached is refused at once by the client

Report = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to demonstrate."""

    directory: Path
    nodes: int = 3
    memory_bytes: int = MEMORY_BYTES_PER_NODE
    capacity_share: float = CAPACITY_SHARE


def capacity_per_node(unique_blocks: int, share: float, nodes: int) -> int:
    """Return the flash of each node so that all have `share` of the blocks; whole MiB, down."""
    return int(unique_blocks * BLOCK_BYTES * share / nodes) // MIB * MIB


class Demo:
    """One demonstration. `run` once."""

    def __init__(
        self, plan: DemoPlan, requests: Sequence[TraceRequest], report: Report
    ) -> None:
        if len(requests) < REQUESTS_MIN:
            raise ConfigError(
                f"{len(requests)} requests are too few to show anything; at least {REQUESTS_MIN}"
            )
        self._plan = plan
        self._blocks = [request.blocks for request in requests]
        self._report = report
        self._unique = reference.unique_blocks(self._blocks)
        self._last_used: dict[str, int] = {}
        self._capacity = capacity_per_node(self._unique, plan.capacity_share, plan.nodes)
        if self._capacity < CAPACITY_BYTES_MIN:
            raise ConfigError(
                f"{len(requests)} requests name {self._unique} blocks, and a pool of"
                f" {plan.capacity_share:.0%} of them on {plan.nodes} nodes is too small to work:"
                " take more --requests or fewer --nodes"
            )

    def run(self) -> DemoReport:
        """Run it all. Raises when the pool cannot be started or does not come back."""
        began = time.monotonic()
        plan = self._plan
        capacity = self._capacity
        self._report(0.0, "starting a pool")
        with ExitStack() as stack:
            pool = stack.enter_context(
                LocalPool(
                    PoolPlan(
                        plan.directory, plan.nodes, capacity, plan.memory_bytes,
                        metadata_arguments=("--loss-grace", LOSS_GRACE),
                    )
                )
            )
            client = stack.enter_context(
                Client(ConnectOptions(pool.endpoint, deadline_ms=DEADLINE_MS))
            )
            client.wait_ready(DEADLINE_MS)
            replay = Replay(client)
            stack.callback(replay.close)
            replay_began = time.monotonic()
            half = len(self._blocks) // 2
            self._replay(replay, 0, half, "replaying")
            outage, checked = self._outage(pool, client, replay, half)
            paused_s = outage.away_s
            resumed = half + outage.requests_without_it
            self._replay(replay, resumed, len(self._blocks), "replaying again")
            replay_s = time.monotonic() - replay_began - paused_s
            self._report(1.0, "stopping the pool")
        share_blocks = int(self._unique * plan.capacity_share)
        return DemoReport(
            replay=replay.tally.report(replay_s),
            reference=reference.simulate(self._blocks, share_blocks),
            outage=outage,
            nodes=plan.nodes,
            capacity_bytes=capacity * plan.nodes,
            block_bytes=BLOCK_BYTES,
            wrong_bytes=replay.tally.wrong_bytes + checked.wrong_bytes,
            blocks_verified=replay.tally.blocks_verified + checked.blocks_verified,
            total_s=time.monotonic() - began,
        )

    def _replay(self, replay: Replay, begin: int, end: int, what: str) -> None:
        total = len(self._blocks)
        for index in range(begin, end):
            blocks = self._blocks[index]
            replay.run(blocks)
            for depth, block in enumerate(blocks):
                self._last_used[key_of(block)] = index * 1024 - depth
            tally = replay.tally
            ratio = reference.ratio(tally.hit_blocks, tally.blocks)
            wrong = f"{tally.wrong_bytes} wrong bytes"
            self._report(
                (index + 1) / total, f"{what}: {index + 1} of {total}, {ratio:.1%} hits, {wrong}"
            )

    # --- the fault ----------------------------------------------------------------------------
    def _outage(
        self, pool: LocalPool, client: Client, replay: Replay, at: int
    ) -> tuple[Outage, Tally]:
        """Kill a node, go on without it, bring it back, and see what it still has."""
        node = pool.nodes[len(pool.nodes) // 2]
        done = at / len(self._blocks)
        self._report(done, f"noting what {node.name} holds")
        durable = self._note(pool, client, node, replay.stored)
        self._report(done, f"killing {node.name} with SIGKILL")
        before = dict(self._last_used)
        stored_before = set(replay.stored)
        replay.stored.clear()
        killed_at = time.monotonic()
        killed = pool.kill(node)
        without = 0
        while without < len(self._blocks) * OUTAGE_SHARE_MAX:
            self._replay(replay, at + without, at + without + 1, f"replaying without {node.name}")
            without += 1
            if time.monotonic() - killed_at > OUTAGE_S:
                break
        self._report(done, f"bringing {node.name} back")
        pool.start_again(node)
        self._wait_back(pool, client, node, durable)
        away_s = time.monotonic() - killed_at
        # The replay rests until all is checked: no put, so no eviction, comes between.
        replaced = replay.stored & set(durable)
        replay.stored |= stored_before
        kept = sorted(set(durable) - replaced, key=lambda key: before.get(key, 0))
        served, checked = self._check_warm(replay, kept, node, done)
        outage = Outage(
            node.name, at, without, killed, away_s, len(durable), len(replaced), served
        )  # fmt: skip
        return outage, checked

    def _note(
        self, pool: LocalPool, client: Client, node: LocalNode, stored: set[str]
    ) -> list[str]:
        """Return the keys the node holds once it has made all the room it wanted to make.

        Room is made after puts, and there are none: what is noted stays until the kill.
        """
        deadline = time.monotonic() + REST_TIMEOUT_S
        with FactsReader(client) as reader:
            while True:
                before = evictions(reader, node)
                durable = durable_keys(client, self._owned_by(client, node, stored))
                if before is not None and before == evictions(reader, node):
                    return durable
                pool.check()
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{node.name} still makes room {REST_TIMEOUT_S:g} s after the last put; is"
                        f" its drive very slow? Its log: {node.child.log}"
                    )
                with client.attachment.core.changed:
                    client.attachment.core.changed.wait(0.1)

    def _owned_by(self, client: Client, node: LocalNode, keys: Iterable[str]) -> list[str]:
        """Return the keys whose slots the node owns in the map."""
        shard_map, ticket = client.attachment.shard_map, client.attachment.core.ticket
        known = sorted(keys)
        if shard_map is None or ticket is None or not known:
            return []
        slots = memoryview(slots_of(block_ids(known, ticket.salt), shard_map.slots)).cast("H")
        owners = [shard_map.owner(slot) for slot in slots]
        return [
            key
            for key, owner in zip(known, owners, strict=True)
            if owner is not None and owner.node_name == node.name
        ]

    def _wait_back(
        self, pool: LocalPool, client: Client, node: LocalNode, durable: list[str]
    ) -> None:
        """Wait until the demo's own client reaches the node and it owns what it owned.

        Where the node counted as lost meanwhile its slots went to others, and now move back; until
        a move has ended the node may still be asking what was deleted while it was away.
        """
        pool.wait_complete(RETURN_TIMEOUT_S)
        deadline = time.monotonic() + RETURN_TIMEOUT_S
        while not (
            self._reaches(client, node)
            and is_settled(client)
            and len(self._owned_by(client, node, durable)) == len(durable)
        ):
            pool.check()
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{node.name} did not come back within {RETURN_TIMEOUT_S:g} s; its log"
                    f" {node.child.log} ends with:\n{node.child.log_tail()}"
                )
            with client.attachment.core.changed:
                client.attachment.core.changed.wait(0.1)

    def _reaches(self, client: Client, node: LocalNode) -> bool:
        return client.wait_ready(0) and any(
            view.node_name == node.name
            and view.map_state == WorkerState.ACTIVE.name
            and view.session == "up"
            and view.breaker == "closed"
            for view in client.attachment.workers()
        )

    def _check_warm(
        self, replay: Replay, keys: list[str], node: LocalNode, done: float
    ) -> tuple[int, Tally]:
        """Get and compare the keys, least recently used first: the order of ages stays as it was.

        Counted apart: these gets are no part of the replay. A block about which a busy machine's
        node said nothing in time is asked for again; a miss is one at once.
        """
        tally, replay.tally = replay.tally, Tally()
        deadline = time.monotonic() + RETURN_TIMEOUT_S
        try:
            served, wanted = 0, keys
            while wanted:
                again: list[str] = []
                for part in parts(wanted, BLOCKS_PER_CALL):
                    checked = replay.get_checked(part)
                    served += sum(checked.served)
                    again += compress(part, checked.unanswered)
                    self._report(done, f"checking what {node.name} kept: {served} of {len(keys)}")
                wanted = again if time.monotonic() < deadline else []
                if wanted:
                    time.sleep(RETRY_PAUSE_S)
            return served, replay.tally
        finally:
            replay.tally = tally


def is_settled(client: Client) -> bool:
    """Return whether no slot is on its way in the client's map."""
    shard_map = client.attachment.shard_map
    return shard_map is not None and not shard_map.moving


def evictions(reader: FactsReader, node: LocalNode) -> int | None:
    """Return how many blocks the node has evicted; None while it makes room, or does not say."""
    its = [facts for facts in reader.read() if facts.worker.node_name == node.name]
    if not its or any(facts.problem or facts.is_reclaiming for facts in its):
        return None
    return sum(facts.counters.get("evicted_blocks", 0) for facts in its)
