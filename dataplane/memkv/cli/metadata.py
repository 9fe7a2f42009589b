"""`memkv metadata`: one process of the metadata service."""

from __future__ import annotations

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.identity import ACCESS, METADATA_TLS, SALT_SECRET, TICKET_KEY, access_of, path_of
from memkv.cli.logs import LOG_LEVEL, start_logging
from memkv.cli.settings import POOL, Field, UsageError
from memkv.limits import (
    HTTP_PORT_DEFAULT,
    MASS_LOSS_PERCENT,
    MAX_MOVING_SLOTS_PERCENT_DEFAULT,
    MOVE_TIMEOUT_S,
    SLOTS_DEFAULT,
    WORKER_LOSS_GRACE_MS,
)


def parse_endpoints(text: str) -> tuple[str, ...]:
    """Return HOST:PORT,HOST:PORT,... checked."""
    return tuple(units.parse_endpoint(part) for part in text.split(",") if part.strip())


def parse_percent(text: str) -> int:
    """Return a share of 1 to 100 percent."""
    percent = units.parse_count(text.removesuffix("%"))
    if percent > 100:
        raise ValueError(f"{text!r} is more than 100 percent")
    return percent


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
KUBERNETES: Field[str] = Field(
    "kubernetes", units.parse_name, "",
    "serve the map of this MemKVPool, as the operator publishes it in the cluster", "metadata",
    "NAMESPACE/NAME",
)  # fmt: skip
SLOTS: Field[int] = Field(
    "slots", units.parse_count, SLOTS_DEFAULT, "slots of a new pool, fixed for ever", "metadata",
    "COUNT",
)  # fmt: skip
MOVING_PERCENT: Field[int] = Field(
    "max_moving_slots_percent", parse_percent, MAX_MOVING_SLOTS_PERCENT_DEFAULT,
    "at most this share of the slots moves at any time", "metadata", "PERCENT",
)  # fmt: skip
MOVE_TIMEOUT: Field[float] = Field(
    "move_timeout", units.parse_duration_s, float(MOVE_TIMEOUT_S),
    "previous owners of a slot retire after this, copied or not", "metadata", "DURATION",
)  # fmt: skip
LOSS_GRACE: Field[int] = Field(
    "loss_grace", units.parse_duration_ms, WORKER_LOSS_GRACE_MS,
    "a worker that is silent for so long is lost, and its slots go to others", "metadata",
    "DURATION",
)  # fmt: skip
ACCEPT_MASS_LOSS: Field[bool] = Field(
    "accept_mass_loss", units.parse_flag, False,
    f"more than {MASS_LOSS_PERCENT} in 100 nodes are gone, and for good: go on without them"
    " instead of keeping the map frozen", "metadata",
)  # fmt: skip
REFLECTION: Field[bool] = Field(
    "reflection", units.parse_flag, False, "serve gRPC reflection, for grpcurl and the like",
    "metadata",
)  # fmt: skip
HTTP_PORT: Field[int] = Field(
    "http_port", units.parse_port, HTTP_PORT_DEFAULT,
    "plain HTTP for /metrics, /healthz and /readyz; 0: any free port", "metadata", "PORT",
)  # fmt: skip
INSECURE: Field[bool] = Field(
    "insecure", units.parse_flag, False, "allow an address other than loopback without TLS",
    "metadata",
)  # fmt: skip
READY_FILE: Field[str] = Field(
    "ready_file", units.parse_name, "", "gets the addresses in use as JSON", "metadata", "FILE"
)


def run(call: Call) -> int:
    from memkv.metadata.certificates import client_tls, node_name
    from memkv.metadata.main import MetadataConfig, run_metadata
    from memkv.metadata.roster import LossPolicy
    from memkv.metadata.server import ServerConfig

    settings = call.settings
    in_cluster = settings[KUBERNETES]
    check(
        settings[PUBLISH], settings[FOLLOW], settings[NODES], settings[STATE], in_cluster
    )
    start_logging(settings[LOG_LEVEL])
    host, port = units.split_endpoint(settings[LISTEN])
    access = access_of(settings)
    tls, pool = METADATA_TLS.read(settings), in_cluster or settings[POOL]
    run_metadata(
        MetadataConfig(
            ServerConfig(
                pool, host, port, tls, access.asks_certificate, insecure=settings[INSECURE],
                reflection=settings[REFLECTION],
            ),
            nodes=settings[NODES],
            state_file=path_of(settings, STATE),
            follow=settings[FOLLOW],
            kubernetes=bool(in_cluster),
            slots=settings[SLOTS],
            moving_slots_percent_max=settings[MOVING_PERCENT],
            move_timeout_s=round(settings[MOVE_TIMEOUT]),
            loss=LossPolicy(
                settings[LOSS_GRACE], accept_mass_loss=settings[ACCEPT_MASS_LOSS]
            ),
            admin_tls=client_tls(tls, server_name=node_name(pool)) if tls else None,
            follow_tls=client_tls(tls) if tls else None,
            access=access,
            ticket_key=path_of(settings, TICKET_KEY),
            salt_secret=path_of(settings, SALT_SECRET),
            http_host=host,
            http_port=settings[HTTP_PORT],
            ready_file=path_of(settings, READY_FILE),
        ),
        started=lambda addresses: call.output.result(addresses, lambda console: None),
    )
    return Exit.OK


def check(
    publish: bool, follow: tuple[str, ...], nodes: tuple[str, ...], state: str, kubernetes: str
) -> None:
    """Raise UsageError for flags that contradict each other."""
    if publish + bool(follow) + bool(kubernetes) != 1:
        raise UsageError(
            "say one of --publish (one process of a pool), --follow HOST:PORT (its replicas) and "
            "--kubernetes NAMESPACE/NAME (in a cluster, with the operator)"
        )
    if kubernetes and not all(kubernetes.partition("/")):
        raise UsageError("--kubernetes takes NAMESPACE/NAME of a MemKVPool")
    if publish and not nodes:
        raise UsageError("--publish needs --nodes, the admin addresses of the pool's nodes")
    if publish and not state:
        raise UsageError("--publish needs --state, a file that keeps the map over restarts")


COMMAND = Command(
    "Serve the shard map of a pool until SIGTERM. One process publishes it, replicas follow.\n"
    "Logs to stderr; with --json prints the addresses in use once it listens.",
    run,
    (POOL, LISTEN, PUBLISH, NODES, STATE, FOLLOW, KUBERNETES, SLOTS, MOVING_PERCENT,
     MOVE_TIMEOUT, LOSS_GRACE, ACCEPT_MASS_LOSS, REFLECTION, HTTP_PORT, *METADATA_TLS.all(),
     TICKET_KEY, SALT_SECRET, *ACCESS, INSECURE, READY_FILE, LOG_LEVEL),
    examples=(
        "memkv metadata --publish --nodes 127.0.0.1:9470 --state /var/lib/memkv/map",
        "memkv metadata --listen 127.0.0.1:7444 --follow 127.0.0.1:7443",
        "memkv metadata --listen 0.0.0.0:7443 --kubernetes inference/pool-a --insecure",
    ),
)  # fmt: skip
