"""`memkv events`: blocks as they come and go, here or as gRPC for routers."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.connection import open_client
from memkv.cli.exits import Exit, Terminated
from memkv.cli.settings import CONNECTION, POOL, UsageError
from memkv.cli.tables import plain
from memkv.daemons import StopSignals

if TYPE_CHECKING:
    from memkv.client.block_watch import BlockUpdate
    from memkv.client.sync import Client
    from memkv.metadata.certificates import TlsFiles

INTERVAL_MS_DEFAULT = 50
LISTEN_TLS = {
    "cert": "certificate for --listen, in PEM; replaced files are taken over at once",
    "key": "private key of that certificate, in PEM",
    "ca": "CA whose certificates readers must have, in PEM; one may follow another",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", metavar="HOST:PORT",
        help="serve gRPC (memkv.v1.BlockEventsService) instead of printing; port 0: any free one",
    )
    # The pool's own flags, --tls-cert and its like, prove this process to the pool.
    for part, text in LISTEN_TLS.items():
        parser.add_argument(f"--listen-tls-{part}", metavar="FILE", help=text)
    parser.add_argument(
        "--insecure", action="store_true",
        help="allow --listen on an address other than loopback without TLS",
    )
    parser.add_argument(
        "--interval", type=units.parse_duration_s, default=INTERVAL_MS_DEFAULT / 1000,
        metavar="TIME", help="pause between questions when nothing is new (default: 50ms)",
    )
    parser.add_argument(
        "--count", type=int, default=0, metavar="COUNT",
        help="updates before it ends; 0, the default: until Ctrl-C",
    )  # fmt: skip


def run(call: Call) -> int:
    if call.arguments.interval <= 0:
        raise UsageError("--interval: it must be longer than 0")
    tls = listen_tls(call.arguments)
    with open_client(call.settings) as client:
        try:
            if call.arguments.listen:
                serve(call, client, tls)
            else:
                show(call, client)
        except Terminated:
            raise
        except KeyboardInterrupt:
            pass  # the usual end
    return Exit.OK


def show(call: Call, client: Client) -> None:
    """Print updates as they come."""
    console, watch, done = call.output.console(), client.watch_blocks(), 0
    while not call.arguments.count or done < call.arguments.count:
        updates = watch.poll()
        for update in updates:
            if call.output.as_json:
                call.output.record(document(update))
            else:
                console.print(plain(line(update)))
            call.output.stdout.flush()
            done += 1
            if done == call.arguments.count:
                break
        if not updates:
            time.sleep(call.arguments.interval)  # nothing is new: ask as often as was said


def listen_tls(arguments: argparse.Namespace) -> TlsFiles | None:
    """Return the files of --listen-tls-*, None when no one was named. UsageError for some of
    them, and without --listen."""
    from memkv.metadata.certificates import TlsFiles

    named = {f"--listen-tls-{part}": getattr(arguments, f"listen_tls_{part}")
             for part in LISTEN_TLS}
    if not any(named.values()):
        return None
    if not arguments.listen:
        raise UsageError("--listen-tls-cert, --listen-tls-key and --listen-tls-ca need --listen")
    if missing := [flag for flag, file in named.items() if not file]:
        raise UsageError(f"{', '.join(missing)} missing: {', '.join(named)} go together")
    return TlsFiles(*(Path(file) for file in named.values()))


def serve(call: Call, client: Client, tls: TlsFiles | None) -> None:
    """Serve gRPC until Ctrl-C or SIGTERM."""
    from memkv.integrations.block_service import BlockServer, BlockServicer
    from memkv.metadata.endpoint import check_exposure, split_endpoint

    host, port = split_endpoint(call.arguments.listen)
    check_exposure("the gateway", host, tls, insecure=call.arguments.insecure)
    interval_ms = max(1, int(call.arguments.interval * 1000))
    stopping = StopSignals()
    server = BlockServer(
        BlockServicer(client, call.settings[POOL], interval_ms), host, port, tls
    )
    try:
        call.output.result(
            {"endpoint": server.endpoint},
            lambda console: console.print(f"serving block events at {server.endpoint}"),
        )
        call.output.stdout.flush()
        stopping.wait()
    finally:
        server.stop()


def document(update: BlockUpdate) -> dict[str, object]:
    """Return an update for JSON."""
    return {
        "worker": update.worker_uuid.hex(),
        "node": update.node_name,
        "change": update.change.value,
        "reason": update.reason,
        "events": [
            {
                "digest": event.digest.hex(), "prefix_id": event.prefix_id.hex(),
                "depth": event.depth, "removed": bool(event.kind),
            }
            for event in update.events
        ],
    }  # fmt: skip


def line(update: BlockUpdate) -> str:
    """Return an update for a person."""
    stored = sum(1 for event in update.events if not event.kind)
    removed = len(update.events) - stored
    news = f"{stored} stored, {removed} removed" if update.events else update.reason
    name = update.node_name or update.worker_uuid.hex()[:8]
    return f"{name}: {update.change.value} {news}".strip()


COMMAND = Command(
    "Watch which blocks of a tenant come and go on which node.",
    run, CONNECTION, add_arguments,
    ("memkv events --json", "memkv events --listen 127.0.0.1:7444"),
)  # fmt: skip
