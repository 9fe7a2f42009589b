"""Addresses, TLS and channel options that both ends of the metadata and admin services agree on."""

import ipaddress
import json
from collections.abc import Sequence

import grpc

from memkv import limits
from memkv.errors import CallerError, ConfigError
from memkv.metadata.certificates import ClientTls, TlsFiles

ChannelOptions = Sequence[tuple[str, str | int]]

# A client pings after 20 s of silence; a server that allows pings only every 300 s (the default)
# would close such a connection with "too_many_pings". The two are tested as a pair.
CLIENT_KEEPALIVE_MS = 20_000
SERVER_PING_INTERVAL_MS_MIN = 10_000
KEEPALIVE_TIMEOUT_MS = 10_000
CONNECTION_AGE_MS_MAX = 30 * 60_000  # spreads clients again after servers were replaced
CONNECTION_AGE_GRACE_MS = 30_000
UNARY_TIMEOUT_S = 5

_SERVICE = "memkv.v1.MetadataService"
_UNARY = [{"service": _SERVICE, "method": name} for name in ("GetShardMap", "GetTicket")]
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": _UNARY,
                "timeout": f"{UNARY_TIMEOUT_S}s",
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)

SERVER_OPTIONS: ChannelOptions = (
    ("grpc.http2.min_recv_ping_interval_without_data_ms", SERVER_PING_INTERVAL_MS_MIN),
    ("grpc.http2.min_ping_interval_without_data_ms", SERVER_PING_INTERVAL_MS_MIN),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.max_connection_age_ms", CONNECTION_AGE_MS_MAX),
    ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
    ("grpc.max_receive_message_length", limits.MAP_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share its clients
)
CONNECT_OPTION = "grpc.min_reconnect_backoff_ms"  # gRPC's time for one try to connect
CLIENT_OPTIONS: ChannelOptions = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", CLIENT_KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", limits.RECONNECT_BACKOFF_MS_MIN),
    (CONNECT_OPTION, limits.RECONNECT_BACKOFF_MS_MAX),
    ("grpc.max_reconnect_backoff_ms", limits.RECONNECT_BACKOFF_MS_MAX),
    ("grpc.max_receive_message_length", limits.MAP_BYTES_MAX),
    # Shared subchannels would make a fresh channel wait out an older one's backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

assert CLIENT_KEEPALIVE_MS >= SERVER_PING_INTERVAL_MS_MIN


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return (host, port) of "host:port" or "[v6]:port". CallerError for anything else."""
    host, colon, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise CallerError(f"{endpoint!r} is not HOST:PORT")
    return host, int(port)


def join_endpoint(host: str, port: int) -> str:
    """Return "host:port", with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address. Names other than localhost count as
    reachable: what they resolve to may change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(what: str, host: str, tls: TlsFiles | None, *, insecure: bool) -> None:
    """Raise ConfigError when a service would be open to the network without TLS."""
    if tls is None and not insecure and not is_loopback(host):
        raise ConfigError(
            f"{what} would listen on {host} without TLS, open to everyone who reaches it: bind it "
            "to 127.0.0.1, give it certificates, or say --insecure if the network is trusted"
        )


def open_channel(
    endpoint: str, tls: ClientTls | None, connect_ms: int = limits.RECONNECT_BACKOFF_MS_MAX
) -> grpc.Channel:
    """Return a new channel; it connects when it is used, and gives a try up after `connect_ms`. The
    caller closes it. ConfigError for TLS files that are missing or unfit."""
    options = channel_options(tls, connect_ms)
    if tls is None:
        return grpc.insecure_channel(endpoint, options=options)
    return grpc.secure_channel(endpoint, tls.credentials(), options=options)


def connect_ms(failures: int) -> int:
    """Return how long to try to connect after so many failures in a row. Early tries are short, for
    a name or a virtual address may lead to another server each time; later ones have time for the
    handshake of a busy machine."""
    return min(limits.METADATA_CONNECT_MS_MIN << min(failures, 16), limits.RECONNECT_BACKOFF_MS_MAX)


def channel_options(
    tls: ClientTls | None, connect_ms: int = limits.RECONNECT_BACKOFF_MS_MAX
) -> list[tuple[str, str | int]]:
    """Return the options of a client's channel."""
    options = [option for option in CLIENT_OPTIONS if option[0] != CONNECT_OPTION]
    options.append((CONNECT_OPTION, connect_ms))
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def call_metadata(tls: ClientTls | None) -> tuple[tuple[str, str], ...]:
    """Return the headers of a call on such a channel. ConfigError when the token is unreadable."""
    return tls.call_metadata() if tls is not None else ()
