"""`memkv agent`: hands a node's drives to pods; the only privileged part of MemKV."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from memkv.cli import units
from memkv.cli.command import Call, Command
from memkv.cli.exits import Exit
from memkv.cli.identity import AGENT_TLS, path_of
from memkv.cli.logs import LOG_LEVEL, start_logging
from memkv.cli.settings import Field, UsageError
from memkv.limits import GIB, HTTP_PORT_DEFAULT

if TYPE_CHECKING:
    from memkv.agent.agent import Agent

NAME: Field[str] = Field(
    "name", units.parse_name, platform.node() or "node", "name of the Node it runs on", "agent",
    "NAME", default_shown="this machine's name",
)  # fmt: skip
DIR: Field[str] = Field(
    "dir", units.parse_name, "", "keeps what it was told; made when it does not exist", "agent",
    "DIR",
)  # fmt: skip
ROOT: Field[str] = Field(
    "root", units.parse_name, "/", "where the node's /sys, /proc and /dev are seen", "agent", "DIR"
)
PLUGIN_DIR: Field[str] = Field(
    "plugin_dir", units.parse_name, "/var/lib/kubelet/device-plugins",
    "kubelet's folder of device plugins", "agent", "DIR",
)  # fmt: skip
SECCOMP_DIR: Field[str] = Field(
    "seccomp_dir", units.parse_name, "", "kubelet's folder of seccomp profiles, which gets that of"
    " data-plane pods; default: none is installed", "agent", "DIR",
)  # fmt: skip
SIZE_MIN: Field[int] = Field(
    "min_size", units.parse_size, 1 * GIB, "smaller disks are not for pools", "agent", "SIZE"
)
ALLOW_LOOP: Field[bool] = Field(
    "allow_loop", units.parse_flag, False, "take loop devices for disks: for tests", "agent"
)
HOST: Field[str] = Field(
    "host", units.parse_name, "127.0.0.1", "address to listen on", "agent", "ADDRESS"
)
ADMIN_PORT: Field[int] = Field(
    "admin_port", units.parse_port, 9472, "gRPC for the operator; 0: any free port", "agent", "PORT"
)
HTTP_PORT: Field[int] = Field(
    "http_port", units.parse_port, HTTP_PORT_DEFAULT,
    "plain HTTP for /metrics, /healthz and /readyz; 0: any free port", "agent", "PORT",
)  # fmt: skip
INSECURE: Field[bool] = Field(
    "insecure", units.parse_flag, False, "allow an address other than loopback without TLS", "agent"
)


def run(call: Call) -> int:
    from memkv.agent.agent import run_agent
    from memkv.agent.agent_config import AgentConfig
    from memkv.agent.rules import Limits

    settings = call.settings
    if not settings[DIR]:
        raise UsageError("--dir is missing: name a directory that keeps what the agent is told")
    config = AgentConfig(
        name=settings[NAME],
        state_dir=Path(settings[DIR]),
        root=Path(settings[ROOT]),
        plugin_dir=Path(settings[PLUGIN_DIR]),
        seccomp_dir=path_of(settings, SECCOMP_DIR),
        disks=Limits(settings[ALLOW_LOOP], settings[SIZE_MIN]),
        host=settings[HOST],
        admin_port=settings[ADMIN_PORT],
        http_port=settings[HTTP_PORT],
        tls=AGENT_TLS.read(settings),
        insecure=settings[INSECURE],
    )
    start_logging(settings[LOG_LEVEL])

    def started(agent: Agent) -> None:
        call.output.result(
            {
                "name": config.name,
                "admin_endpoint": agent.admin_endpoint,
                "http_port": agent.http_port,
            },
            lambda console: None,
        )

    run_agent(config, started=started)
    return Exit.OK


COMMAND = Command(
    "Look after the drives of one Kubernetes node until SIGTERM: tell the operator what there is,\n"
    "and hand the drives that a pool was given to its pod, as a kubelet device plugin.\n"
    "Logs to stderr; with --json prints the addresses in use once it listens.",
    run,
    (NAME, DIR, ROOT, PLUGIN_DIR, SECCOMP_DIR, SIZE_MIN, ALLOW_LOOP, HOST, ADMIN_PORT, HTTP_PORT,
     *AGENT_TLS.all(), INSECURE, LOG_LEVEL),
    examples=("memkv agent --dir /var/lib/memkv-agent --seccomp-dir /var/lib/kubelet/seccomp",),
)  # fmt: skip
