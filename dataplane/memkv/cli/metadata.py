"""`memkv metadata`: one process of the metadata service."""

from __future__ import annotations

from pathlib import Path

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.logs import LOG_LEVEL, start_logging
from memkv.cli.settings import POOL, Field, UsageError
from memkv.limits import SLOTS_DEFAULT


def parse_endpoints(text: str) -> tuple[str, ...]:
    """Return HOST:PORT,HOST:PORT,... checked."""
    return tuple(units.parse_endpoint(part) for part in text.split(",") if part.strip())


def _field_of_endpoints(name: str, text: str) -> Field[tuple[str, ...]]:
    return Field(name, parse_endpoints, (), text, "metadata", "HOST:PORT,...")


LISTEN: Field[str] = Field(
    "listen", units.parse_endpoint, "127.0.0.1:7443", "where to serve", "metadata", "HOST:PORT"
)
PUBLISH: Field[bool] = Field(
    "publish", units.parse_flag, False,
    "compute and publish the map; exactly one process of a pool does", "metadata",
)  # fmt: skip
NODES = _field_of_endpoints("nodes", "admin addresses of the pool's nodes (with --publish)")
STATE: Field[str] = Field(
    "state", units.parse_name, "", "file that keeps the map (with --publish)", "metadata", "FILE"
)
FOLLOW = _field_of_endpoints("follow", "metadata services to copy the map from")
SLOTS: Field[int] = Field(
    "slots", units.parse_count, SLOTS_DEFAULT, "slots of a new pool, fixed for ever", "metadata",
    "COUNT",
)  # fmt: skip
HTTP_PORT: Field[int] = Field(
    "http_port", units.parse_port, 0, "plain HTTP for /metrics, /healthz and /readyz; 0: any free"
    " port", "metadata", "PORT",
)  # fmt: skip
INSECURE: Field[bool] = Field(
    "insecure", units.parse_flag, False, "allow an address other than loopback without TLS",
    "metadata",
)  # fmt: skip
ACCEPT_MASS_LOSS: Field[bool] = Field(
    "accept_mass_loss", units.parse_flag, False,
    "nodes that are missing are gone for good: move their slots although they are many", "metadata",
)  # fmt: skip
READY_FILE: Field[str] = Field(
    "ready_file", units.parse_name, "", "gets the addresses in use as JSON", "metadata", "FILE"
)


def run(call: Call) -> int:
    from memkv.metadata.main import MetadataConfig, run_metadata
    from memkv.metadata.roster import LossPolicy
    from memkv.metadata.server import ServerConfig

    settings = call.settings
    check(settings[PUBLISH], settings[FOLLOW], settings[NODES], settings[STATE])
    start_logging(settings[LOG_LEVEL])
    host, port = units.split_endpoint(settings[LISTEN])
    run_metadata(
        MetadataConfig(
            ServerConfig(settings[POOL], host, port, insecure=settings[INSECURE]),
            nodes=settings[NODES],
            state_file=Path(settings[STATE]) if settings[STATE] else None,
            follow=settings[FOLLOW],
            slots=settings[SLOTS],
            http_host=host,
            http_port=settings[HTTP_PORT],
            loss=LossPolicy(accept_mass_loss=settings[ACCEPT_MASS_LOSS]),
            ready_file=Path(settings[READY_FILE]) if settings[READY_FILE] else None,
        ),
        started=lambda addresses: call.output.result(addresses, lambda console: None),
    )
    return Exit.OK


def check(publish: bool, follow: tuple[str, ...], nodes: tuple[str, ...], state: str) -> None:
    """Raise UsageError for flags that contradict each other."""
    if publish == bool(follow):
        raise UsageError(
            "say either --publish (one process of a pool) or --follow HOST:PORT (its replicas)"
        )
    if publish and not nodes:
        raise UsageError("--publish needs --nodes, the admin addresses of the pool's nodes")
    if publish and not state:
        raise UsageError("--publish needs --state, a file that keeps the map over restarts")


COMMAND = Command(
    "Serve the shard map of a pool until SIGTERM. One process publishes it, replicas follow.\n"
    "Logs to stderr; with --json prints the addresses in use once it listens.",
    run,
    (POOL, LISTEN, PUBLISH, NODES, STATE, FOLLOW, SLOTS, HTTP_PORT, INSECURE, ACCEPT_MASS_LOSS,
     READY_FILE, LOG_LEVEL),
    examples=(
        "memkv metadata --publish --nodes 127.0.0.1:9470 --state /var/lib/memkv/map",
        "memkv metadata --listen 127.0.0.1:7444 --follow 127.0.0.1:7443",
    ),
)  # fmt: skip
