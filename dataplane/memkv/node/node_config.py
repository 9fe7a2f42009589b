"""What a node is told when it starts."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from memkv import limits
from memkv.errors import ConfigError
from memkv.io.huge_pages import page_name
from memkv.metadata.certificates import ClientTls, TlsFiles, client_tls
from memkv.metadata.endpoint import check_exposure, is_loopback
from memkv.rdma.discovery import Fabric


@dataclass(frozen=True, slots=True)
class DriveConfig:
    """What one worker stores on."""

    path: Path
    """Block device, or a file that is made when it does not exist."""
    capacity_bytes: int = 0
    """Size of a new file; 0: all of what exists."""


class RdmaMode(Enum):
    """Whether a node serves RDMA."""

    AUTO = "auto"
    """Where there is a device, unless payload is encrypted, which RDMA is not."""
    ON = "on"
    """Where there is a device; what keeps it from that is a problem."""
    OFF = "off"


@dataclass(frozen=True, slots=True)
class RdmaConfig:
    """`devices`: names, all when empty; `gid_index`: instead of the choice, -1 for none;
    `traffic_class`: of RoCE packets, as the network's administrators say; `fabric`: whose ports
    alone are used."""

    mode: RdmaMode = RdmaMode.AUTO
    devices: tuple[str, ...] = ()
    gid_index: int = -1
    traffic_class: int = 0
    fabric: Fabric = Fabric.AUTO


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings of one node: a supervisor and a worker for each drive."""

    name: str
    pool: str
    state_dir: Path
    """Keeps the last map, the last NodeSpec and node.json; made when it does not exist."""
    drives: tuple[DriveConfig, ...]
    memory_bytes: int = limits.WORKER_MEMORY_BYTES_DEFAULT
    """DRAM of each worker: blocks and index."""
    huge_page_bytes: int = 0
    """Of the huge pages that hold blocks in DRAM; 0: ordinary pages."""
    discard: bool = True
    """Tell drives which of their blocks are unused."""
    host: str = "127.0.0.1"
    """Address the data ports listen on."""
    advertised_host: str = ""
    """Address clients are told; empty: `host`."""
    data_port: int = 7070
    """Worker i listens on this + i; 0: each on any free port."""
    admin_host: str = "127.0.0.1"
    admin_port: int = 9470
    """0: any free one."""
    http_host: str = "127.0.0.1"
    http_port: int | None = limits.HTTP_PORT_DEFAULT
    """Plain HTTP for /metrics, /healthz and /readyz; 0: any free port; None: none."""
    metadata: tuple[str, ...] = ()
    """Metadata endpoints; empty: the workers serve every key."""
    failure_domain: str = ""
    weight: float = 1.0
    slots: int = limits.SLOTS_DEFAULT
    lane_threads: int = 0
    """Payload threads of each worker; 0: the default."""
    tls: TlsFiles | None = None
    """For the admin port and towards the metadata service."""
    token_file: Path | None = None
    """Bearer token that proves the node to the metadata service; None: its certificate does."""
    ticket_keys: Path | None = None
    """Public keys, in PEM, of tickets to accept, beside those of the NodeSpec."""
    payload_encryption: bool | None = None
    """Whether the data ports speak TLS; None: if there are certificates."""
    local_dir: Path | None = None
    """Where workers put Unix sockets for clients on this machine; None: no local transport."""
    rdma: RdmaConfig = RdmaConfig()
    insecure: bool = False
    worker_command: tuple[str, ...] = field(default=())
    """Program that is a worker; empty: this one's. For tests."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot work."""
        if not self.drives or len(self.drives) > limits.WORKERS_PER_NODE_MAX:
            raise ConfigError(
                f"a node with {len(self.drives)} drives; 1 to {limits.WORKERS_PER_NODE_MAX} work"
            )
        if not limits.NODE_WEIGHT_MIN <= self.weight <= limits.NODE_WEIGHT_MAX:
            raise ConfigError(
                f"node weight {self.weight}: give one of {limits.NODE_WEIGHT_MIN} to "
                f"{limits.NODE_WEIGHT_MAX}; capacity is counted already"
            )
        if not 0 <= self.rdma.traffic_class <= 255 or not -1 <= self.rdma.gid_index <= 0xFFFF:
            raise ConfigError(
                f"RDMA traffic class {self.rdma.traffic_class} is 0 to 255, GID index "
                f"{self.rdma.gid_index} one of the device's table, or -1"
            )
        if self.data_port and self.data_port + len(self.drives) > 0x10000:
            raise ConfigError(f"data ports from {self.data_port} on do not fit {len(self.drives)}")
        if self.memory_bytes < self.huge_page_bytes:
            raise ConfigError(
                f"{self.memory_bytes} bytes of memory are less than one huge page of "
                f"{page_name(self.huge_page_bytes)}: raise --memory, or take smaller pages"
            )
        if self.payload_encryption and self.tls is None:
            raise ConfigError(
                "payload encryption without certificates: give --tls-cert, --tls-key and --tls-ca"
            )
        # With certificates tickets are signed, and plain payload was asked for.
        check_exposure("the data port", self.host, self.tls, insecure=self.insecure)
        check_exposure("the admin port", self.admin_host, self.tls, insecure=self.insecure)
        if self.http_port is not None:
            insecure = self.insecure or self.tls is not None  # figures only, and kubelet needs them
            check_exposure("/metrics", self.http_host, None, insecure=insecure)

    @property
    def metadata_tls(self) -> ClientTls | None:
        """How the node is a client of the metadata service."""
        if self.tls is None:
            return None
        return client_tls(self.tls, token_file=self.token_file)

    @property
    def payload_tls(self) -> TlsFiles | None:
        """What data connections are encrypted with; None: they are plain."""
        return self.tls if self.payload_encryption is not False else None

    @property
    def serves_rdma(self) -> bool:
        """Whether its workers look for RDMA devices."""
        if self.rdma.mode is RdmaMode.AUTO:
            return self.payload_tls is None
        return self.rdma.mode is RdmaMode.ON

    @property
    def is_trusting(self) -> bool:
        """Whether unsigned tickets pass while no ticket key is known."""
        return self.insecure or is_loopback(self.host)

    @property
    def client_host(self) -> str:
        """Address of the data ports as clients see it."""
        return self.advertised_host or self.host
