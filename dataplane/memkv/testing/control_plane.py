"""A real Kubernetes API server with its etcd, on free loopback ports, for tests.

No kubelet and no node: what it stores nobody carries out, except for what the controllers of
`start_controllers` do (owners, namespaces, DaemonSets' pods). Its end is the end of all its data.
"""

import base64
import json
import os
import secrets
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from memkv.errors import ConfigError
from memkv.localpool.ports import free_ports
from memkv.testing import ends_with_parent

NEEDED = ("etcd", "kube-apiserver", "kubectl")
READY_S = 120.0  # 4 s on an idle machine; two starved cores took 50
POLL_S = 0.1
STOP_S = 10.0
STARTS = 3  # a port that was free may be taken before the server binds it
LOG_TAIL_LINES = 12
SERVICE_RANGE = "10.96.0.0/24"


class Daemon:
    """One process with its log, which ends with this one. Only it is ever signalled."""

    def __init__(self, name: str, command: Sequence[str | Path], directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_us(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=directory, start_new_session=True,
            )  # fmt: skip

    def check_running(self) -> None:
        """Raise ConfigError with the end of the log when it ended by itself."""
        code = self._process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            raise ConfigError(f"{self.name} ended with exit code {code}:\n" + "\n".join(lines))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut does, and reap."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask for an end, force it after a while, and reap."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def ending_with_us(command: Sequence[str | Path]) -> list[str]:
    """Return a command line that ends with this process, however that one ends: test servers of a
    killed pytest would stay for ever. The first word is a path."""
    words = [sys.executable, "-S", ends_with_parent.__file__, os.getpid(), *command]
    return [str(word) for word in words]


class ControlPlane:
    """etcd and kube-apiserver from a folder of binaries, with their data in `directory`.

    A context manager. `kubeconfig` names a file that makes its reader cluster administrator.
    `arguments` are for kube-apiserver.
    """

    def __init__(self, binaries: Path, directory: Path, arguments: Sequence[str] = ()) -> None:
        self.binaries = binaries
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self.endpoint = ""
        self._arguments = tuple(arguments)
        self._token = secrets.token_hex(16)
        self._daemons: list[Daemon] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until the server is ready. Raises ConfigError with its log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_account_keys(self.directory)
        token = f'{self._token},admin,admin,"system:masters"\n'
        (self.directory / "tokens.csv").write_text(token)
        for attempt in range(1, STARTS + 1):
            try:
                self._start_once(attempt)
                return
            except ConfigError as error:
                self.stop()
                if attempt == STARTS or "address already in use" not in str(error):
                    raise

    def start_controllers(self, *arguments: str) -> None:
        """Start kube-controller-manager: garbage collection, namespaces' ends, workloads."""
        self.spawn(
            "kube-controller-manager", f"--kubeconfig={self.kubeconfig}", "--leader-elect=false",
            "--service-account-private-key-file=accounts.key", "--use-service-account-credentials",
            "--root-ca-file=certs/apiserver.crt", "--secure-port=0", *arguments,
        )  # fmt: skip

    def stop(self) -> None:
        """Stop everything, the newest first. Idempotent."""
        while self._daemons:
            self._daemons.pop().stop()

    def _start_once(self, attempt: int) -> None:
        client, peer, secure = free_ports(3)
        etcd = f"http://127.0.0.1:{client}"
        self.spawn(
            "etcd", f"--data-dir=etcd-{attempt}", f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )  # fmt: skip
        self.spawn(
            "kube-apiserver", f"--etcd-servers={etcd}", f"--secure-port={secure}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--cert-dir=certs",
            "--service-account-key-file=accounts.pub", "--token-auth-file=tokens.csv",
            "--service-account-signing-key-file=accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC", f"--service-cluster-ip-range={SERVICE_RANGE}",
            # No pod reaches a loopback address, so the service `kubernetes` gets no endpoint.
            "--allow-privileged=true", "--endpoint-reconciler-type=none", *self._arguments,
        )  # fmt: skip
        self.endpoint = f"https://127.0.0.1:{secure}"
        self._wait("the API server's certificate", (self.directory / "certs/apiserver.crt").exists)
        self._wait(f"{self.endpoint}/readyz", self._is_ready)
        self._write_kubeconfig()

    def spawn(self, name: str, *arguments: str | Path) -> Daemon:
        """Start one more of the binaries; `stop` ends it with the others."""
        binary = self.binaries / name
        if not binary.exists():
            raise ConfigError(f"{binary} is missing: run deploy/dev/cluster/build.sh")
        self._daemons.append(Daemon(name, [binary, *arguments], self.directory))
        return self._daemons[-1]

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + READY_S
        while not holds():
            for daemon in self._daemons:
                daemon.check_running()
            if time.monotonic() > give_up:
                raise ConfigError(f"{what} was not ready in {READY_S:.0f} s; logs in"
                                  f" {self.directory}")  # fmt: skip
            time.sleep(POLL_S)  # a server that starts tells nobody when it is ready

    def _is_ready(self) -> bool:
        try:
            context = ssl.create_default_context(cafile=self.directory / "certs/apiserver.crt")
            request = urllib.request.Request(
                f"{self.endpoint}/readyz", headers={"Authorization": f"Bearer {self._token}"}
            )
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(request, timeout=READY_S) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ssl.SSLError, ConnectionError):
            return False

    def _write_kubeconfig(self) -> None:
        authority = (self.directory / "certs/apiserver.crt").read_bytes()
        cluster = {
            "server": self.endpoint,
            "certificate-authority-data": base64.b64encode(authority).decode(),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(json.dumps(document))  # JSON is YAML


def missing_binaries(folder: Path) -> list[str]:
    """Return which binaries of a control plane a folder lacks."""
    return [name for name in NEEDED if not (folder / name).exists()]


def write_account_keys(directory: Path) -> None:
    """Make the RSA pair that signs and checks the tokens of ServiceAccounts."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (directory / "accounts.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    (directory / "accounts.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
