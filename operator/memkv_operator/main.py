"""`memkv-operator`: the command of the operator's image."""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence

from memkv.cli.logs import start_logging
from memkv.errors import ConfigError, MemKVError
from memkv_operator.kube.lease import LeaseConfig
from memkv_operator.run.settings import Settings

DEFAULT_IMAGE = "ghcr.io/memkv/memkv:latest"
EXIT_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    start_logging(arguments.log_level)
    try:
        COMMANDS[arguments.command](arguments)
    except MemKVError as error:
        # Kubernetes starts the pod anew; it stands by then.
        print(f"memkv-operator: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from memkv_operator.run.process import run_operator

    run_operator(settings_of(arguments))


def _uninstall(arguments: argparse.Namespace) -> None:
    from memkv_operator.run.uninstall import UninstallSettings, run_uninstall

    run_uninstall(
        UninstallSettings(
            lease_of(arguments), arguments.deployment, tuple(arguments.namespace), arguments.force
        )
    )


COMMANDS = {"run": _run, "uninstall": _uninstall}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="memkv-operator", description="The Kubernetes operator of MemKV."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    run = commands.add_parser("run", help="reconcile MemKVPools until SIGTERM")
    run.add_argument(
        "--image", default=os.environ.get("MEMKV_IMAGE", DEFAULT_IMAGE),
        help="image of the pods of pools that name none; default: $MEMKV_IMAGE",
    )  # fmt: skip
    run.add_argument(
        "--metadata-binding", default=os.environ.get("MEMKV_METADATA_BINDING", ""),
        metavar="NAME", help="ClusterRoleBinding in which metadata pods are entered, so that they"
        " may check tokens; default: $MEMKV_METADATA_BINDING",
    )  # fmt: skip
    run.add_argument(
        "--annotate-nodes", action="store_true",
        help="annotate Nodes that are being emptied with memkv.io/safe-to-reboot; needs the right"
        " to patch Nodes",
    )  # fmt: skip
    run.add_argument("--http-host", default="0.0.0.0", metavar="ADDRESS")
    run.add_argument("--http-port", type=int, default=9471, help="/metrics, /healthz and /readyz")
    uninstall = commands.add_parser(
        "uninstall", help="fail while there are pools; run before the operator is taken away"
    )
    uninstall.add_argument("--deployment", default="memkv-operator", help="of the operator")
    uninstall.add_argument(
        "--force", action="store_true", help="stop the operator and leave its pools behind"
    )
    for command in (run, uninstall):
        _add_shared(command)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    environment = os.environ
    parser.add_argument(
        "--namespace", action="append", default=[], metavar="NAME",
        help="look at this namespace only; may be repeated; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--lease-namespace", default=environment.get("POD_NAMESPACE", "default"),
        help="namespace of the Lease; default: $POD_NAMESPACE",
    )  # fmt: skip
    parser.add_argument("--lease-name", default="memkv-operator")
    parser.add_argument(
        "--lease-seconds", type=float, default=15.0,
        help="another replica takes over after this; renewed in two thirds of it",
    )  # fmt: skip
    parser.add_argument(
        "--log-level", default=environment.get("MEMKV_LOG_LEVEL", "info"),
        choices=("debug", "info", "warning", "error"),
    )  # fmt: skip


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings of a command line. ConfigError for what cannot work."""
    return Settings(
        lease_of(arguments),
        own_image=arguments.image,
        namespaces=tuple(arguments.namespace),
        http_host=arguments.http_host,
        http_port=arguments.http_port,
        metadata_binding=arguments.metadata_binding,
        annotates_nodes=arguments.annotate_nodes,
    )


def lease_of(arguments: argparse.Namespace) -> LeaseConfig:
    """Return the Lease of a command line. ConfigError for what cannot work."""
    lease_ms = round(arguments.lease_seconds * 1000)
    if lease_ms < 1000:
        raise ConfigError("--lease-seconds must be at least 1: a Lease counts whole seconds")
    pod = os.environ.get("POD_NAME") or os.uname().nodename
    return LeaseConfig(
        arguments.lease_namespace,
        arguments.lease_name,
        f"{pod}_{secrets.token_hex(4)}",  # a restarted process is another candidate
        lease_ms,
        lease_ms * 2 // 3,
        lease_ms * 2 // 15,
    )


if __name__ == "__main__":
    sys.exit(main())
