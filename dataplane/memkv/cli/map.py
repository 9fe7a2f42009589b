"""`memkv map`: the shard map as this client sees it."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from memkv.cli import keys
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION, TENANT
from memkv.cli.tables import Column, plain, table

if TYPE_CHECKING:
    from rich.console import Console

    from memkv.client.sync import Client
    from memkv.shardmap.map import ShardMap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="KEY", help="also say where this block lies")
    keys.add_hex(parser)


COLUMNS = (
    Column("node"), Column("worker", rank=2), Column("address", rank=1), Column("state"),
    Column("slots", figure=True), Column("share", figure=True),
)  # fmt: skip


def run(call: Call) -> int:
    arguments = call.arguments
    key = None if arguments.key is None else keys.key_of(arguments.key, arguments)
    with open_client(call.settings) as client:
        shard_map = client.attachment.shard_map
        assert shard_map is not None, "open_client raises without a map"
        place = None if key is None else where(client, shard_map, key)
    document = describe(shard_map)
    if key is not None and place is not None:
        document["key"] = {**keys.document(key), **asdict(place)}

    def draw(console: Console) -> None:
        draw_map(console, shard_map)
        if key is not None and place is not None:
            console.print(
                f"{plain(keys.show(key))} (tenant {plain(call.settings[TENANT])}):"
                f" slot {place.slot}, owner {plain(place.owner)}"
                + "".join(f", before it {plain(previous)}" for previous in place.previous)
            )

    call.output.result(document, draw)
    return Exit.OK


def describe(shard_map: ShardMap) -> dict[str, object]:
    """Return the map for JSON."""
    owned = owned_slots(shard_map)
    return {
        "lineage": shard_map.version.lineage.hex(),
        "term": shard_map.version.term,
        "epoch": shard_map.version.epoch,
        "digest": shard_map.digest.hex(),
        "slots": shard_map.slots,
        "moving": len(shard_map.moving),
        "workers": [
            {
                "uuid": worker.uuid.hex(),
                "node": worker.node_name,
                "address": f"{worker.host}:{worker.port}",
                "state": worker.state.name,
                "slots": owned[index],
                "weight": worker.weight,
            }
            for index, worker in enumerate(shard_map.workers)
        ],
    }


def owned_slots(shard_map: ShardMap) -> Counter[int]:
    """Return how many slots each worker owns, by index."""
    from memkv.shardmap.map import unpack_owners

    return Counter(unpack_owners(shard_map.owners))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies: nodes by name, previous owners newest first."""

    slot: int
    owner: str
    previous: tuple[str, ...]


def where(client: Client, shard_map: ShardMap, key: bytes) -> Place:
    """Return slot, owner and previous owners of a key."""
    from memkv.keys import block_id, slot_of

    ticket = client.attachment.core.ticket
    slot = slot_of(block_id(key, ticket.salt if ticket else b""), shard_map.slots)
    owner = shard_map.owner(slot)
    previous = tuple(
        shard_map.workers[index].node_name for index in shard_map.previous_owners(slot)
    )
    return Place(slot, owner.node_name if owner else "nobody", previous)


def draw_map(console: Console, shard_map: ShardMap) -> None:
    owned = owned_slots(shard_map)
    version = shard_map.version
    console.print(
        f"map {version.lineage.hex()[:8]} term {version.term} epoch {version.epoch}:"
        f" {shard_map.slots} slots, {len(shard_map.moving)} moving"
    )
    rows = [
        (
            plain(worker.node_name), worker.uuid.hex()[:8], f"{worker.host}:{worker.port}",
            worker.state.name.lower(), str(owned[index]), f"{owned[index] / shard_map.slots:.1%}",
        )
        for index, worker in enumerate(shard_map.workers)
    ]  # fmt: skip
    console.print(table(COLUMNS, sorted(rows), console.width))


COMMAND = Command(
    "Show which worker owns how much of the key space, and where one key lies.",
    run, CONNECTION, add_arguments, ("memkv map", "memkv map --key prompt-1"),
)  # fmt: skip
