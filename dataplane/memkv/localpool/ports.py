"""Free ports for servers that must be known before they listen."""

import errno
import random
import socket
from contextlib import ExitStack
from pathlib import Path

from memkv.errors import ConfigError

# Below the range from which the kernel takes ports of outgoing connections: a node that was killed
# must find its port free when it comes back.
FIRST_PORT = 20_000
LAST_PORT_DEFAULT = 32_767
TRIES_PER_PORT = 200


def free_ports(
    count: int, host: str = "127.0.0.1", choose: random.Random | None = None
) -> list[int]:
    """Return different ports that are free now. Raises ConfigError when there are not so many."""
    random_ = choose or random.Random()
    last = ephemeral_first() - 1
    with ExitStack() as held:
        ports: list[int] = []
        for _ in range(count * TRIES_PER_PORT):
            if len(ports) == count:
                break
            port = random_.randint(FIRST_PORT, last)
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            held.enter_context(probe)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            ports.append(port)
    if len(ports) < count:
        raise ConfigError(
            f"no {count} free ports on {host} between {FIRST_PORT} and {last}; is {host} an address"
            " of this machine?"
        )
    return ports


def check_free(host: str, port: int) -> None:
    """Raise ConfigError when nothing can listen at this address now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            cause = (
                "another process listens there, perhaps a pool that runs already: stop it, or"
                " choose another --endpoint (port 0: any free one)"
                if error.errno == errno.EADDRINUSE
                else f"{error.strerror}; is {host} an address of this machine?"
            )
            raise ConfigError(f"cannot listen on {host}:{port}: {cause}") from error


def ephemeral_first() -> int:
    """Return the first port that the kernel gives to outgoing connections."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        return max(FIRST_PORT + 1000, int(text.split()[0]))
    except (OSError, ValueError, IndexError):
        return LAST_PORT_DEFAULT + 1
