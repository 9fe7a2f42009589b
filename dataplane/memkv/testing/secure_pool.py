"""A pool of real processes with certificates, signed tickets and encrypted payload, for tests."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from memkv.client.credentials import Credentials
from memkv.client.options import ConnectOptions
from memkv.client.sync import Client
from memkv.localpool.ports import free_ports
from memkv.metadata.certificates import TlsFiles, admin_name, node_name
from memkv.status import Status
from memkv.testing.certificates import Authority, write_pair

POOL = "default/secure"
CLIENT_URI = "spiffe://test/ns/team-a/sa/engine"
STOP_S = 60
DEADLINE_MS = 20_000
PROBES = 32  # keys that miss none of a few nodes, but once in 2^32 times


class TicketKeys:
    """Key files of a pool. A rotation: `announce`, then `sign`, then `retire`."""

    def __init__(self, folder: Path) -> None:
        self.private = folder / "ticket.key"
        self.public = folder / "tickets.pub"
        self._keys: list[Ed25519PrivateKey] = []
        self.announce()
        self.sign()

    def announce(self) -> None:
        """Make a key that nodes accept from now on, beside those before."""
        self._keys.append(Ed25519PrivateKey.generate())
        self._write_public()

    def sign(self) -> None:
        """Sign with the newest key."""
        pem = self._keys[-1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        replace(self.private, pem)

    def retire(self) -> None:
        """Have only the newest key accepted."""
        del self._keys[:-1]
        self._write_public()

    def _write_public(self) -> None:
        kind = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        replace(self.public, b"".join(key.public_key().public_bytes(*kind) for key in self._keys))


def serves(client: Client) -> bool:
    """Whether every node stores. One with a new map opens its slots a moment after clients know
    of it, and refuses puts until then."""
    return all(client.put(f"probe {n}", b"probe") == Status.OK for n in range(PROBES))


def replace(path: Path, data: bytes) -> None:
    """Replace a file as one step."""
    fresh = path.with_suffix(path.suffix + ".fresh")
    fresh.write_bytes(data)
    fresh.replace(path)


@dataclass
class SecurePool:
    """A metadata service and nodes on this machine. Use as a context."""

    folder: Path
    node_count: int = 2
    node_flags: tuple[str, ...] = ()
    absent: frozenset[int] = frozenset()
    """Nodes that the publisher knows of and that are started later."""
    authority: Authority = field(default_factory=Authority)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names: Mapping[str, tuple[str, ...]] = {
            "metadata": ("127.0.0.1", "localhost", admin_name(POOL)),
            "client": (CLIENT_URI,),
            **{f"node-{n}": (node_name(POOL),) for n in range(self.node_count)},
        }
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = {
            role: self.authority.files(self.folder, role, *names)
            for role, names in self.names.items()
        }
        self.keys = TicketKeys(self.folder)
        (self.folder / "salt").write_bytes(b"s" * 32)
        port, *self.admin_ports = free_ports(1 + self.node_count)
        self.endpoint = f"127.0.0.1:{port}"

    def __enter__(self) -> "SecurePool":
        for n in range(self.node_count):
            if n not in self.absent:
                self.start_node(n)
        nodes = ",".join(f"127.0.0.1:{port}" for port in self.admin_ports)
        self._start(
            "metadata", "--pool", POOL, "--listen", self.endpoint, "--publish", "--nodes", nodes,
            "--state", str(self.folder / "state"), "--slots", "64", "--http-port", "0",
            "--auth", "certificate", "--ticket-key", str(self.keys.private),
            "--salt-secret", str(self.folder / "salt"), *tls_flags(self.files["metadata"]),
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(STOP_S)

    def start_node(self, n: int) -> None:
        """Start one node."""
        self._nodes[n] = self._start(
            "node", "--pool", POOL, "--name", f"n{n}", "--dir", str(self.folder / f"n{n}"),
            "--capacity", "64MiB", "--memory", "32MiB", "--slots", "64", "--data-port", "0",
            "--admin-port", str(self.admin_ports[n]), "--http-port", "0",
            "--metadata", self.endpoint, "--ticket-keys", str(self.keys.public),
            *tls_flags(self.files[f"node-{n}"]), *self.node_flags,
        )  # fmt: skip

    def restart_node(self, n: int) -> None:
        """Stop a node cleanly and start it again."""
        stopped = self._nodes.pop(n)
        stopped.terminate()
        stopped.wait(STOP_S)
        self.start_node(n)

    def _start(self, *words: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "memkv.cli.main", *words]
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    # --- clients -----------------------------------------------------------------------------
    def credentials(self, ca: str = "", *, payload_encryption: bool = True) -> Credentials:
        """Return those of the client; `ca`: believe these certificates instead."""
        files = self.files["client"]
        return Credentials(
            ca or str(files.authority), certificate=files.certificate, key=files.key,
            payload_encryption=payload_encryption,
        )  # fmt: skip

    def options(self, credentials: Credentials | None) -> ConnectOptions:
        """Return options of a client with these credentials."""
        return ConnectOptions(
            self.endpoint, pool=POOL, deadline_ms=DEADLINE_MS, credentials=credentials,
            local_dir="off", bootstrap_timeout_ms=100,
        )  # fmt: skip

    def client(self, ca: str = "") -> Client:
        """Connect as the client."""
        return Client(self.options(self.credentials(ca)))

    # --- rotation ----------------------------------------------------------------------------
    def believe(self, *authorities: Authority) -> None:
        """Have everyone believe certificates of these, and of nobody else."""
        for files in self.files.values():
            replace(files.authority, b"".join(authority.pem for authority in authorities))

    def reissue(self, authority: Authority) -> None:
        """Give everyone a new certificate."""
        for role, names in self.names.items():
            write_pair(self.files[role], authority.issue(*names, common_name=role))


def tls_flags(files: TlsFiles) -> tuple[str, ...]:
    """Return the flags that name these files."""
    return (
        "--tls-cert", str(files.certificate), "--tls-key", str(files.key),
        "--tls-ca", str(files.authority),
    )  # fmt: skip
