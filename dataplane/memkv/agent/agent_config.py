"""What an agent is told when it starts."""

from dataclasses import dataclass, field
from pathlib import Path

from memkv import limits
from memkv.agent.rules import Limits
from memkv.errors import ConfigError
from memkv.metadata.certificates import TlsFiles
from memkv.metadata.endpoint import check_exposure

ADMIN_PORT_DEFAULT = 9472


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Settings of the agent of one node."""

    name: str
    """Of the node."""
    state_dir: Path
    """Keeps the last spec and what follows from it; made when it does not exist."""
    root: Path = Path("/")
    """Where the node's /sys, /proc and /dev are seen."""
    plugin_dir: Path = Path("/var/lib/kubelet/device-plugins")
    seccomp_dir: Path | None = None
    """Kubelet's folder of seccomp profiles; None: none is installed."""
    disks: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    """Address to listen on."""
    admin_port: int = ADMIN_PORT_DEFAULT
    """0: any free one."""
    http_port: int = limits.HTTP_PORT_DEFAULT
    """0: any free one."""
    tls: TlsFiles | None = None
    insecure: bool = False
    """Serve without TLS on an address that others reach."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot work."""
        if not self.name:
            raise ConfigError("the agent has no name: give it its Node's with --name")
        check_exposure("the agent's admin port", self.host, self.tls, insecure=self.insecure)
