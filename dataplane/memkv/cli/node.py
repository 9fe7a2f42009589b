"""`memkv node`: one storage node, a supervisor with a worker for each drive."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.identity import NODE_TLS, NODE_TOKEN, PAYLOAD, TICKET_KEYS, path_of
from memkv.cli.logs import LOG_LEVEL, start_logging
from memkv.cli.metadata import parse_endpoints
from memkv.cli.settings import POOL, Field, UsageError
from memkv.io.huge_pages import parse_page_size
from memkv.limits import GIB, HTTP_PORT_DEFAULT, SLOTS_DEFAULT, WORKER_MEMORY_BYTES_DEFAULT

if TYPE_CHECKING:
    from memkv.node.supervisor import Supervisor

FILE_NAME = "flash.data"


def parse_paths(text: str) -> tuple[str, ...]:
    """Return PATH,PATH,..."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_rdma_mode(text: str) -> str:
    """Return auto, on or off."""
    if text.lower() not in ("auto", "on", "off"):
        raise ValueError(f"{text!r} is none of auto, on and off")
    return text.lower()


def parse_fabric(text: str) -> str:
    """Return auto, rocev2 or infiniband."""
    if text.lower() not in ("auto", "rocev2", "infiniband"):
        raise ValueError(f"{text!r} is none of auto, rocev2 and infiniband")
    return text.lower()


NAME: Field[str] = Field(
    "name", units.parse_name, platform.node() or "node", "name of the node in the map", "node",
    "NAME", default_shown="this machine's name",
)  # fmt: skip
DIR: Field[str] = Field(
    "dir", units.parse_name, "", "keeps the node's state; made when it does not exist", "node",
    "DIR",
)  # fmt: skip
DRIVES: Field[tuple[str, ...]] = Field(
    "drives", parse_paths, (),
    f"block devices or files, a worker for each; default: DIR/{FILE_NAME}", "node", "PATH,...",
)  # fmt: skip
CAPACITY: Field[int] = Field(
    "capacity", units.parse_size, 2 * GIB, "size of each file that is made anew", "node", "SIZE"
)
MEMORY: Field[int] = Field(
    "memory", units.parse_size, WORKER_MEMORY_BYTES_DEFAULT,
    "DRAM of each worker for blocks and index", "node", "SIZE",
)  # fmt: skip
HUGE_PAGES: Field[int] = Field(
    "huge_pages", parse_page_size, 0,
    "reserved huge pages that hold the blocks in DRAM: 2Mi, 1Gi or none; the index, of at most an"
    " eighth of --memory, is beside them", "node", "SIZE", default_shown="none",
)  # fmt: skip
NO_DISCARD: Field[bool] = Field(
    "no_discard", units.parse_flag, False,
    "never tell drives which of their blocks are unused (TRIM); files are never told", "node",
)  # fmt: skip
METADATA: Field[tuple[str, ...]] = Field(
    "metadata", parse_endpoints, (),
    "metadata services to follow; without one the node serves every key", "node", "HOST:PORT,...",
)  # fmt: skip
HOST: Field[str] = Field(
    "host", units.parse_name, "127.0.0.1", "address to listen on", "node", "ADDRESS"
)
ADVERTISE: Field[str] = Field(
    "advertise", units.parse_name, "", "address that clients are told, if another", "node",
    "ADDRESS",
)  # fmt: skip
DATA_PORT: Field[int] = Field(
    "data_port", units.parse_port, 7070, "of the first worker; the next has the next port", "node",
    "PORT",
)  # fmt: skip
ADMIN_PORT: Field[int] = Field(
    "admin_port", units.parse_port, 9470, "gRPC for who runs the pool", "node", "PORT"
)
HTTP_PORT: Field[int] = Field(
    "http_port", units.parse_port, HTTP_PORT_DEFAULT,
    "plain HTTP for /metrics, /healthz and /readyz; 0: any free port", "node", "PORT",
)  # fmt: skip
SLOTS: Field[int] = Field(
    "slots", units.parse_count, SLOTS_DEFAULT, "slots of the pool, as its publisher says", "node",
    "COUNT",
)  # fmt: skip
FAILURE_DOMAIN: Field[str] = Field(
    "failure_domain", units.parse_name, "", "nodes that may fail together share it", "node", "NAME"
)
LOCAL_DIR: Field[str] = Field(
    "local_dir", units.parse_name, "",
    "directory for Unix sockets, through which clients on this machine share memory; default: none",
    "node", "DIR",
)  # fmt: skip
RDMA: Field[str] = Field(
    "rdma", parse_rdma_mode, "auto",
    "serve RDMA: auto (where there is a device and payload is not encrypted), on or off", "node",
    "MODE",
)  # fmt: skip
RDMA_DEVICES: Field[tuple[str, ...]] = Field(
    "rdma_devices", parse_paths, (), "RDMA devices to serve on; default: all", "node", "NAME,...",
)  # fmt: skip
RDMA_GID_INDEX: Field[int] = Field(
    "rdma_gid_index", units.parse_index, -1,
    "GID to use instead of the one that is chosen; it is checked", "node", "INDEX",
    default_shown="chosen",
)  # fmt: skip
RDMA_TRAFFIC_CLASS: Field[int] = Field(
    "rdma_traffic_class", units.parse_index, 0, "traffic class of RoCE packets", "node", "0-255"
)
RDMA_FABRIC: Field[str] = Field(
    "rdma_fabric", parse_fabric, "auto",
    "use ports of one fabric only: rocev2 or infiniband; auto: of both", "node", "FABRIC",
)  # fmt: skip
INSECURE: Field[bool] = Field(
    "insecure", units.parse_flag, False, "allow an address other than loopback without TLS", "node"
)


def run(call: Call) -> int:
    from memkv.node.node_config import DriveConfig, NodeConfig, RdmaConfig, RdmaMode
    from memkv.node.supervisor import run_node
    from memkv.rdma.discovery import Fabric

    settings = call.settings
    if not settings[DIR]:
        raise UsageError("--dir is missing: name a directory that keeps the node's state")
    directory = Path(settings[DIR])
    paths = [Path(path) for path in settings[DRIVES]] or [directory / FILE_NAME]
    # What exists is used as it is: its superblock knows how large the store in it was made.
    drives = tuple(
        DriveConfig(path, 0 if path.exists() else settings[CAPACITY]) for path in paths
    )
    config = NodeConfig(
        name=settings[NAME],
        pool=settings[POOL],
        state_dir=directory,
        drives=drives,
        memory_bytes=settings[MEMORY],
        huge_page_bytes=settings[HUGE_PAGES],
        discard=not settings[NO_DISCARD],
        host=settings[HOST],
        advertised_host=settings[ADVERTISE],
        data_port=settings[DATA_PORT],
        admin_host=settings[HOST],
        admin_port=settings[ADMIN_PORT],
        http_host=settings[HOST],
        http_port=settings[HTTP_PORT],
        metadata=settings[METADATA],
        slots=settings[SLOTS],
        failure_domain=settings[FAILURE_DOMAIN],
        local_dir=path_of(settings, LOCAL_DIR),
        rdma=RdmaConfig(
            RdmaMode(settings[RDMA]), settings[RDMA_DEVICES], settings[RDMA_GID_INDEX],
            settings[RDMA_TRAFFIC_CLASS], Fabric(settings[RDMA_FABRIC]),
        ),
        insecure=settings[INSECURE],
        tls=NODE_TLS.read(settings),
        token_file=path_of(settings, NODE_TOKEN),
        payload_encryption=settings[PAYLOAD],
        ticket_keys=path_of(settings, TICKET_KEYS),
    )
    start_logging(settings[LOG_LEVEL])

    def started(supervisor: Supervisor) -> None:
        call.output.result(
            {
                "name": config.name,
                "pool": config.pool,
                "data_host": config.client_host,
                "data_port": config.data_port,
                "admin_endpoint": supervisor.admin_endpoint,
                "http_port": supervisor.http_port,
            },
            lambda console: None,
        )

    run_node(config, started=started)
    return Exit.OK


COMMAND = Command(
    "Run one storage node until SIGTERM: a supervisor, and a worker process for each drive.\n"
    "Logs to stderr; with --json prints the addresses in use once it listens.",
    run,
    (NAME, POOL, DIR, DRIVES, CAPACITY, MEMORY, HUGE_PAGES, NO_DISCARD, METADATA, HOST,
     ADVERTISE, DATA_PORT, ADMIN_PORT, HTTP_PORT, SLOTS, FAILURE_DOMAIN, LOCAL_DIR, RDMA,
     RDMA_DEVICES, RDMA_GID_INDEX, RDMA_TRAFFIC_CLASS, RDMA_FABRIC, *NODE_TLS.all(), NODE_TOKEN,
     PAYLOAD, TICKET_KEYS, INSECURE, LOG_LEVEL),
    examples=(
        "memkv node --dir /var/lib/memkv --capacity 20GiB",
        "memkv node --dir /var/lib/memkv --drives /dev/nvme1n1,/dev/nvme2n1 \\\n"
        "      --metadata memkv-metadata:7443 --host 10.0.0.7",
    ),
)  # fmt: skip
