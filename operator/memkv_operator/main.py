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
    from memkv_operator.run.process import run_operator

    try:
        run_operator(settings_of(arguments))
    except MemKVError as error:
        # Kubernetes starts the pod anew; it stands by then.
        print(f"memkv-operator: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="memkv-operator", description="The Kubernetes operator of MemKV."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="reconcile MemKVPools until SIGTERM")
    run.add_argument(
        "--namespace", action="append", default=[], metavar="NAME",
        help="watch this namespace only; may be repeated; default: all",
    )  # fmt: skip
    run.add_argument(
        "--image", default=environment.get("MEMKV_IMAGE", DEFAULT_IMAGE),
        help="image of the pods of pools that name none; default: $MEMKV_IMAGE",
    )  # fmt: skip
    run.add_argument("--http-host", default="0.0.0.0", metavar="ADDRESS")
    run.add_argument("--http-port", type=int, default=9471, help="/metrics, /healthz and /readyz")
    run.add_argument(
        "--lease-namespace", default=environment.get("POD_NAMESPACE", "default"),
        help="namespace of the Lease; default: $POD_NAMESPACE",
    )  # fmt: skip
    run.add_argument("--lease-name", default="memkv-operator")
    run.add_argument(
        "--lease-seconds", type=float, default=15.0,
        help="another replica takes over after this; renewed in two thirds of it",
    )  # fmt: skip
    run.add_argument(
        "--log-level", default=environment.get("MEMKV_LOG_LEVEL", "info"),
        choices=("debug", "info", "warning", "error"),
    )  # fmt: skip
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings of a command line. ConfigError for what cannot work."""
    lease_ms = round(arguments.lease_seconds * 1000)
    if lease_ms < 1000:
        raise ConfigError("--lease-seconds must be at least 1: a Lease counts whole seconds")
    pod = os.environ.get("POD_NAME") or os.uname().nodename
    return Settings(
        LeaseConfig(
            arguments.lease_namespace,
            arguments.lease_name,
            f"{pod}_{secrets.token_hex(4)}",  # a restarted process is another candidate
            lease_ms,
            lease_ms * 2 // 3,
            lease_ms * 2 // 15,
        ),
        own_image=arguments.image,
        namespaces=tuple(arguments.namespace),
        http_host=arguments.http_host,
        http_port=arguments.http_port,
    )


if __name__ == "__main__":
    sys.exit(main())
