"""A pool of one node under TLS, with certificates of its own, to be measured."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from memkv.bench.results import MeasurementFailed
from memkv.bench.target import Sizing, Target, attach
from memkv.client.credentials import Credentials
from memkv.localpool.ports import free_ports
from memkv.metadata.certificates import admin_name, node_name

POOL = "bench/encrypted"
NODE_NAME = node_name(POOL)
STOP_S = 60
START_S = 60
LOOK_S = 0.05
DAYS = 2


@dataclass(frozen=True, slots=True)
class Files:
    """One certificate that is its own authority and names every role: the pool lives for minutes,
    on this machine."""

    certificate: Path
    key: Path
    ticket_key: Path
    ticket_public: Path

    def credentials(self) -> Credentials:
        """Return what proves a client."""
        return Credentials(str(self.certificate), certificate=self.certificate, key=self.key)


def make_files(folder: Path) -> Files:
    """Write certificates and keys into a folder."""
    files = Files(*(folder / name for name in ("tls.crt", "tls.key", "t.key", "t.pub")))
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "memkv bench")])
    names = [x509.DNSName(n) for n in ("localhost", NODE_NAME, admin_name(POOL))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files.certificate.write_bytes(made.public_bytes(Encoding.PEM))
    tickets = ed25519.Ed25519PrivateKey.generate()
    for path, private in ((files.key, key), (files.ticket_key, tickets)):
        path.touch(0o600)
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.ticket_public.write_bytes(
        tickets.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return files


@contextmanager
def encrypted_pool(directory: Path, sizing: Sizing) -> Iterator[Target]:
    """Run a pool below `directory` for a while. MeasurementFailed when it does not start."""
    files = make_files(directory)
    port, admin = free_ports(2)
    endpoint, state = f"localhost:{port}", directory / "node"
    tls = (
        f"--tls-cert={files.certificate}", f"--tls-key={files.key}",
        f"--tls-ca={files.certificate}", f"--pool={POOL}", "--slots=64", "--http-port=0",
    )  # fmt: skip
    with ExitStack() as stack:
        _start(stack, directory / "node.log", [
            "node", "--name=bench", f"--dir={state}", f"--capacity={sizing.capacity_bytes}",
            f"--memory={sizing.memory_bytes}", "--data-port=0", f"--admin-port={admin}",
            f"--metadata={endpoint}", f"--ticket-keys={files.ticket_public}", *tls,
        ])  # fmt: skip
        _start(stack, directory / "metadata.log", [
            "metadata", f"--listen=127.0.0.1:{port}", "--publish", f"--nodes=127.0.0.1:{admin}",
            f"--state={directory}/map", "--auth=none", f"--ticket-key={files.ticket_key}", *tls,
        ])  # fmt: skip
        pids = _node_pids(state)
        client = stack.enter_context(
            attach(endpoint, POOL, "default", "off", files.credentials(), START_S * 1000)
        )
        yield Target(client, pids, None, directory, "off", files.credentials())


def _start(stack: ExitStack, log: Path, words: list[str]) -> None:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "memkv.cli.main", *words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def end() -> None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise MeasurementFailed(
                f"`memkv {words[0]}` did not stop in {STOP_S} s and was killed; see {log}"
            ) from error

    stack.callback(end)


def _node_pids(state: Path) -> tuple[int, ...]:
    """Wait until the node says which processes it has: its supervisor and its workers."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        try:
            found = json.loads((state / "node.json").read_text(encoding="utf-8"))
            workers = [worker["pid"] for worker in found["workers"]]
            if workers and all(worker["phase"] == "ready" for worker in found["workers"]):
                return (found["pid"], *workers)
        except (OSError, ValueError):
            pass  # not written yet
        time.sleep(LOOK_S)  # the node's file tells nobody that it was written
    raise MeasurementFailed(f"the node did not start; see {state.parent / 'node.log'}")
