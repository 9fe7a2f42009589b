"""`memkv rm KEY...`: delete blocks; `memkv rm --all`: all blocks of a tenant."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memkv.cli import keys
from memkv.cli.command import Call, Command
from memkv.cli.connection import credentials, exit_of, explain, open_client, status_document
from memkv.cli.exits import Exit
from memkv.cli.settings import CONNECTION, ENDPOINT, POOL, TENANT, UsageError

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    keys.add_arguments(parser, many=True, needed=False)
    parser.add_argument(
        "--all", action="store_true",
        help="drop the tenant (see --tenant) with all its blocks, whatever their names; on the"
        " publisher's machine only",
    )  # fmt: skip


def run(call: Call) -> int:
    if call.arguments.all == bool(call.arguments.keys):
        raise UsageError("name the blocks to delete, or say --all for all of the tenant's")
    return remove_all(call) if call.arguments.all else remove(call)


def remove_all(call: Call) -> int:
    from memkv.metadata.watch import drop_tenant

    settings = call.settings
    tenant = settings[TENANT]
    proof = credentials(settings)
    version = drop_tenant(
        settings[ENDPOINT], settings[POOL], tenant, tls=proof.tls() if proof is not None else None
    )

    def draw(console: Console) -> None:
        console.print(f"dropped tenant {tenant}: no later lookup will hit what it had put")

    document = {"tenant": tenant, "term": version.term, "epoch": version.epoch}
    call.output.result(document, draw)
    return Exit.OK


def remove(call: Call) -> int:
    given = keys.keys_of(call.arguments)
    with open_client(call.settings) as client:
        results = client.batch_remove(given)
    failed = [(key, r) for key, r in zip(given, results, strict=True) if r < 0]

    def draw(console: Console) -> None:
        done = len(given) - len(failed)
        if done:
            console.print(f"deleted {done} of {len(given)}: no later lookup will hit them")

    for key, result in failed:
        name = keys.show(key)
        call.output.note(f"memkv rm: {name}: {explain(result)}; run it again until it succeeds")
    documents = [
        {**keys.document(key), **status_document(r)} for key, r in zip(given, results, strict=True)
    ]
    call.output.result({"keys": documents}, draw)
    return exit_of(results)


COMMAND = Command(
    "Delete blocks. Success means that every owner has it on flash: no later lookup hits.\n"
    "Deleting a block that is not stored succeeds. A tenant that was dropped may put anew.",
    run, CONNECTION, add_arguments,
    ("memkv rm prompt-1 prompt-2", "memkv rm --hex 00ff17", "memkv rm --all --tenant team-a"),
)  # fmt: skip
