"""What the mode Static starts forms a pool: its commands as processes on this machine, and a client
that knows nothing but what is in the ConfigMap.
"""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

import memkv
from memkv.client.credentials import credentials_of
from memkv.localpool.ports import free_ports
from memkv.metadata.certificates import admin_name, node_name
from memkv.testing.certificates import Authority
from memkv.testing.secure_pool import CLIENT_URI, TicketKeys
from memkv_operator.testing.crds import Object, child, objects
from memkv_operator.testing.helm import NAMESPACE, documents, template, values

POOL = f"{NAMESPACE}/memkv"
DEADLINE_S = 100
SIZE = "64MiB"


def command_of(manifests: list[Object], name: str) -> list[str]:
    """Return the command line of the container of this name."""
    specs = [
        child(m, "spec") if m["kind"] == "Pod" else child(m, "spec", "template", "spec")
        for m in manifests
    ]
    (container,) = [
        container
        for spec in specs
        for container in objects(spec, "containers")
        if container["name"] == name
    ]
    return cast(list[str], [*objects(container, "command"), *objects(container, "args")])


class StaticPool:
    """A pool of one node. `here` turns what is said of pods into what this machine has."""

    def __init__(self, helm: str, scenario: str, folder: Path) -> None:
        self.folder = folder
        metadata, admin, http, data = free_ports(4)
        ports = {"metadata": metadata, "admin": admin, "metrics": http, "data": data}
        settings = {
            "nodes": f"{{127.0.0.1:{admin}}}", "capacity": SIZE, "memory": SIZE, "slots": "1024",
            "workers": "1", **{f"ports.{name}": port for name, port in ports.items()},
        }  # fmt: skip
        settings["metadata.externalEndpoint"] = f"memkv.example:{metadata}"
        given = [f"--set=dataPlane.static.{name}={value}" for name, value in settings.items()]
        self.manifests = documents(template(helm, *values(scenario), *given))
        self._processes: list[subprocess.Popen[bytes]] = []
        for role in ("metadata", "node", "client"):
            (folder / role).mkdir()

    def write_secrets(self) -> None:
        """Make what the user gives: certificates, and the key of tickets."""
        authority = Authority()
        names = {
            "metadata": ("127.0.0.1", admin_name(POOL)),
            "node": (node_name(POOL),),
            "client": (CLIENT_URI,),
        }
        for role, sans in names.items():
            pair = authority.issue(*sans)
            (self.folder / role / "tls.crt").write_bytes(pair.certificate)
            (self.folder / role / "tls.key").write_bytes(pair.key)
            (self.folder / role / "ca.crt").write_bytes(authority.pem)
        keys = TicketKeys(self.folder)
        keys.private.rename(self.folder / "private.pem")
        keys.public.rename(self.folder / "public.pem")
        (self.folder / "salt").write_bytes(secrets.token_bytes(32))

    def here(self, text: str, role: str) -> str:
        """Return a text of a pod as it is meant on this machine."""
        folder = self.folder / role
        for there, here in {
            f"memkv-metadata.{NAMESPACE}.svc": "127.0.0.1", "memkv.example": "127.0.0.1",
            "0.0.0.0": "127.0.0.1",
            "$(POD_IP)": "127.0.0.1", "$(NODE_NAME)": "n1", "/etc/memkv-tls": str(folder),
            "/etc/memkv-ticket": str(self.folder), "/var/lib/memkv": str(folder),
        }.items():  # fmt: skip
            text = text.replace(there, here)
        return text

    def start(self, role: str) -> None:
        """Start the one process of a role."""
        words = [self.here(word, role) for word in command_of(self.manifests, role)]
        if role == "metadata":  # pods have an address each, these processes share one
            words = ["--http-port=0" if "--http-port" in word else word for word in words]
        with (self.folder / f"{role}.log").open("wb") as log:
            run = [sys.executable, "-m", "memkv.cli.main", *words[1:]]
            self._processes.append(subprocess.Popen(run, stdout=log, stderr=log))

    def stop(self) -> None:
        """Stop what runs."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(DEADLINE_S)

    def connection(self) -> dict[str, str]:
        """Return what the ConfigMap tells a client."""
        (config,) = [m for m in self.manifests if m["kind"] == "ConfigMap"]
        text = str(child(config, "data")["connection.json"])
        return cast(dict[str, str], json.loads(self.here(text, "client")))

    def logs(self) -> str:
        """Return what the processes said."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture(params=["static", "static-tls"])
def pool(request: pytest.FixtureRequest, tmp_path: Path, helm: str) -> Iterator[StaticPool]:
    """A running pool."""
    made = StaticPool(helm, request.param, tmp_path)
    if request.param == "static-tls":
        made.write_secrets()
    try:
        for role in ("node", "metadata"):
            made.start(role)
        yield made
    finally:
        made.stop()


def connected(pool: StaticPool, connection: dict[str, str]) -> memkv.Client:
    """Return a client whose puts are stored: once the pool has a map."""
    client = memkv.connect(
        connection["endpoint"], pool=connection["pool"], deadline_ms=5000,
        credentials=credentials_of(connection, "connection.json"),
    )  # fmt: skip
    give_up = time.monotonic() + DEADLINE_S
    while (status := client.put("there", b"yet")) != 0:
        if time.monotonic() > give_up:
            problems = client.attachment.problems()
            client.close()
            pytest.fail(f"puts end with {status}: {problems}\n{pool.logs()}")
    return client


def test_a_client_puts_and_gets(pool: StaticPool) -> None:
    connection = pool.connection()
    assert connection["pool"] == POOL
    assert ("ca" in connection) == (pool.folder / "private.pem").exists()
    client = connected(pool, connection)
    block = b"static" * 1000
    stored, found = client.put("block", block), client.get("block")
    client.close()
    assert stored == 0
    assert found == block
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in connection.items()]
    asked = command_of(pool.manifests, "test")
    done = subprocess.run(
        [sys.executable, "-m", "memkv.cli.main", *asked[1:], *flags],
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
