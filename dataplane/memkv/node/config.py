"""What a worker's server is told when it starts."""

import ipaddress
from dataclasses import dataclass

from memkv import limits
from memkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker's data port. Identity comes from the superblock of its drives."""

    pool: str
    worker_uuid: bytes
    incarnation: int
    host: str = "127.0.0.1"
    port: int = 0
    """0: the system chooses; `WorkerServer.port` tells."""
    lane_threads: int = limits.LANE_THREADS_DEFAULT
    control_threads: int = limits.CONTROL_THREADS
    block_bytes_max: int = limits.BLOCK_BYTES_MAX
    sessions_max: int = limits.SESSIONS_MAX
    unsettled_max: int = limits.UNSETTLED_CONNECTIONS_MAX
    credit_bytes: int = limits.CREDIT_BYTES_PER_SESSION
    handshake_timeout_ms: int = limits.HANDSHAKE_TIMEOUT_MS
    send_stall_ms: int = limits.SEND_STALL_MS
    local_dir: str = ""
    """Directory of the Unix socket for clients on this machine; empty: none."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError as error:
            raise ConfigError(f"{self.host!r} is no IP address to listen on") from error
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} is not between 0 and 65535")
        if len(self.worker_uuid) != 16:
            raise ConfigError(f"a worker UUID of {len(self.worker_uuid)} bytes instead of 16")
        if self.lane_threads < 1 or self.control_threads < 1:
            raise ConfigError("a worker needs at least one lane thread and one control thread")
        if not 1 <= self.block_bytes_max <= limits.BLOCK_BYTES_MAX:
            raise ConfigError(
                f"blocks of up to {self.block_bytes_max} bytes; at most {limits.BLOCK_BYTES_MAX}"
            )

    @property
    def threads_per_session_max(self) -> int:
        """Lane threads that may serve one session at a time: half, so others always get some."""
        return max(1, self.lane_threads // 2)
