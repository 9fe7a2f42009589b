"""The command line against a real pool: what a person types, sees and gets as exit code."""

import hashlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest

from memkv.cli.exits import Exit
from memkv.clock import SystemClock, deadline_after_ms
from memkv.metadata.certificates import client_tls
from memkv.metadata.endpoint import open_channel, split_endpoint
from memkv.testing.certificates import Authority
from memkv.testing.proxy import FaultProxy
from memkv_proto import block_events_pb2, block_events_pb2_grpc

TIMEOUT_S = 120
MEMKV = [sys.executable, "-m", "memkv.cli.main"]


class Up(NamedTuple):
    """A running `memkv up`."""

    endpoint: str
    facts: dict[str, object]
    directory: Path


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    directory = tmp_path_factory.mktemp("pool")
    command = [
        *MEMKV, "up", "--nodes", "2", "--dir", str(directory), "--capacity", "256MiB",
        "--memory", "64MiB", "--endpoint", "127.0.0.1:0", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        facts = first_document(process)
        yield Up(str(facts["endpoint"]), facts, directory)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == Exit.OK, errors
    for node in nodes_of(facts):
        assert not runs(int(node["pid"])), "a node outlived its pool"


def first_document(process: subprocess.Popen[str]) -> dict[str, object]:
    """Read the JSON object that `memkv up` prints once it is up."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip() == "}":
            break
    else:
        _, errors = process.communicate(timeout=TIMEOUT_S)
        pytest.fail(f"memkv up ended with {process.returncode}: {errors}")
    document: dict[str, object] = json.loads("".join(lines))
    return document


def nodes_of(facts: dict[str, object]) -> list[dict[str, str]]:
    nodes = facts["nodes"]
    assert isinstance(nodes, list)
    return nodes


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def memkv(
    up: Up, *words: str, data: bytes = b"", tenant: str = "default"
) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ, "MEMKV_ENDPOINT": up.endpoint, "MEMKV_TENANT": tenant,
        "MEMKV_DEADLINE": "30s",
    }  # fmt: skip
    return subprocess.run(
        [*MEMKV, *words], input=data, capture_output=True, timeout=TIMEOUT_S, env=environment,
        check=False,
    )  # fmt: skip


def document_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    assert done.stdout, done.stderr.decode()
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_block_comes_back_as_it_was_put(up: Up, tmp_path: Path) -> None:
    data = os.urandom(1_000_003)
    stored = memkv(up, "put", "there-and-back", "-", "--durable", data=data)
    assert stored.returncode == Exit.OK, stored.stderr.decode()
    assert b"stored 977 KiB" in stored.stdout
    assert memkv(up, "get", "there-and-back").stdout == data
    target = tmp_path / "block"
    fetched = memkv(up, "get", "there-and-back", "-o", str(target), "--json")
    assert document_of(fetched)["status"] == len(data)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_miss_is_exit_code_1_and_prints_nothing(up: Up) -> None:
    done = memkv(up, "get", "never-stored")
    assert done.returncode == Exit.FAILED
    assert done.stdout == b""
    assert b"MISS: not stored" in done.stderr


def test_exists_tells_each_key_and_the_prefix(up: Up) -> None:
    for key in ("prefix-0", "prefix-1"):
        assert memkv(up, "put", key, "-", data=b"x" * 4096).returncode == Exit.OK
    assert memkv(up, "exists", "prefix-0", "prefix-1").returncode == Exit.OK
    done = memkv(up, "exists", "prefix-0", "prefix-1", "prefix-2", "--json")
    assert done.returncode == Exit.FAILED
    document = document_of(done)
    assert document["prefix"] == 2
    keys = document["keys"]
    assert isinstance(keys, list)
    assert [key["status"] for key in keys] == [1, 1, 0]


def test_why_tells_each_key(up: Up) -> None:
    for key in ("why-there", "why-deleted"):
        assert memkv(up, "put", key, "-", data=b"x").returncode == Exit.OK
    assert memkv(up, "rm", "why-deleted").returncode == Exit.OK
    words = ("why", "why-there", "why-deleted", "why-never")
    done = memkv(up, *words, "--json")
    assert done.returncode == Exit.OK
    keys = document_of(done)["keys"]
    assert isinstance(keys, list)
    assert [key["reason"] for key in keys] == ["present", "deleted", "never_stored"]
    shown = memkv(up, *words)
    assert shown.returncode == Exit.OK
    assert b"it was deleted" in shown.stdout


def test_events_begin_with_a_snapshot(up: Up) -> None:
    done = memkv(up, "events", "--json", "--count", "2")
    assert done.returncode == Exit.OK
    updates = [json.loads(line) for line in done.stdout.splitlines()]
    assert {update["change"] for update in updates} <= {"gap", "events", "synced"}
    assert updates[0]["change"] == "gap"
    done = memkv(up, "events", "--listen", "0.0.0.0:0")
    assert done.returncode == Exit.UNFIT
    assert b"--insecure" in done.stderr


def test_events_under_tls_are_served_on_other_addresses(up: Up, tmp_path: Path) -> None:
    files = Authority().files(tmp_path, "gateway", "127.0.0.1")
    flags = [
        "--listen-tls-cert", str(files.certificate), "--listen-tls-key", str(files.key),
        "--listen-tls-ca", str(files.authority),
    ]  # fmt: skip
    for words, said in (
        (flags, b"need --listen"),
        (["--listen", "0.0.0.0:0", *flags[:4]], b"--listen-tls-ca missing"),
    ):
        done = memkv(up, "events", *words)
        assert done.returncode == Exit.USAGE
        assert said in done.stderr
    command = [*MEMKV, "events", "--listen", "0.0.0.0:0", *flags, "--json"]
    with subprocess.Popen(
        [*command, "--endpoint", up.endpoint], stdout=subprocess.PIPE, text=True
    ) as gateway:
        try:
            _, port = split_endpoint(str(first_document(gateway)["endpoint"]))
            with open_channel(f"127.0.0.1:{port}", client_tls(files)) as channel:
                stub: Any = block_events_pb2_grpc.BlockEventsServiceStub(channel)
                first = next(stub.WatchBlocks(
                    block_events_pb2.WatchBlocksRequest(), timeout=TIMEOUT_S
                ))
            assert first.change == block_events_pb2.BLOCK_CHANGE_GAP
        finally:
            gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(TIMEOUT_S) == Exit.OK


def test_a_deleted_block_is_gone(up: Up) -> None:
    assert memkv(up, "put", "to-delete", "-", data=b"x").returncode == Exit.OK
    done = memkv(up, "rm", "to-delete", "never-stored")
    assert done.returncode == Exit.OK
    assert b"deleted 2 of 2" in done.stdout
    assert memkv(up, "exists", "to-delete").returncode == Exit.FAILED


def test_a_tenant_does_not_see_the_blocks_of_another(up: Up) -> None:
    assert memkv(up, "put", "mine", "-", data=b"x", tenant="team-a").returncode == Exit.OK
    assert memkv(up, "get", "mine", tenant="team-a").stdout == b"x"
    assert memkv(up, "get", "mine", tenant="team-b").returncode == Exit.FAILED


def test_a_dropped_tenant_has_nothing_left_and_others_keep_theirs(up: Up) -> None:
    for tenant in ("leaves", "stays"):
        assert memkv(up, "put", "one", "-", data=b"x", tenant=tenant).returncode == Exit.OK
    assert memkv(up, "rm", "--all", "one", tenant="leaves").returncode == Exit.USAGE
    done = memkv(up, "rm", "--all", tenant="leaves")
    assert done.returncode == Exit.OK, done.stderr.decode()
    assert b"dropped tenant leaves" in done.stdout
    assert memkv(up, "get", "one", tenant="leaves").returncode == Exit.FAILED
    assert memkv(up, "get", "one", tenant="stays").stdout == b"x"


def test_the_map_names_every_node_and_places_a_key(up: Up) -> None:
    document = document_of(memkv(up, "map", "--key", "some-key", "--json"))
    workers = document["workers"]
    assert isinstance(workers, list)
    assert {worker["node"] for worker in workers} == {"node-1", "node-2"}
    assert sum(worker["slots"] for worker in workers) == document["slots"]
    place = document["key"]
    assert isinstance(place, dict)
    assert place["owner"] in ("node-1", "node-2")
    assert b"node-1" in memkv(up, "map").stdout


def test_nodes_and_top_show_what_the_nodes_hold(up: Up) -> None:
    assert memkv(up, "put", "counted", "-", data=b"x" * 4096).returncode == Exit.OK
    nodes = document_of(memkv(up, "nodes", "--json"))["nodes"]
    assert isinstance(nodes, list)
    assert sum(node["blocks"] for node in nodes) >= 1
    assert all(not node["problem"] and node["capacity_bytes"] > 0 for node in nodes)
    seen = document_of(memkv(up, "top", "--count", "1", "--interval", "50ms", "--json"))["nodes"]
    assert isinstance(seen, list)
    assert all("puts" in node["per_second"] for node in seen)
    for command in (["nodes"], ["top", "--count", "1", "--interval", "50ms"]):
        assert b"active" in memkv(up, *command).stdout


def test_a_replay_verifies_every_byte(up: Up, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    requests = [[0, 1, 2], [0, 1, 3], [0, 1, 2, 4]]
    trace.write_text(
        "".join(
            json.dumps(
                {"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": blocks}
            )
            + "\n"
            for blocks in requests
        )
    )
    done = memkv(up, "replay", str(trace), "--size", "64KiB", "--json")
    assert done.returncode == Exit.OK, done.stderr.decode()
    found = document_of(done)
    assert (found["requests"], found["hit_blocks"], found["wrong_bytes"]) == (3, 5, 0)
    assert found["blocks_verified"] == 5
    assert found["puts_dropped"] == 0


def test_a_second_pool_in_the_same_directory_is_refused(up: Up) -> None:
    done = memkv(
        up, "up", "--nodes", "2", "--dir", str(up.directory), "--endpoint", "127.0.0.1:0",
        "--capacity", "256MiB",
    )  # fmt: skip
    assert done.returncode == Exit.UNFIT
    assert b"Traceback" not in done.stderr
    assert memkv(up, "exists", "never-stored").returncode == Exit.FAILED, "the first one is unhurt"


def test_a_second_pool_at_the_same_port_is_refused_and_claims_nothing(
    up: Up, tmp_path: Path
) -> None:
    done = memkv(
        up, "up", "--nodes", "1", "--dir", str(tmp_path), "--endpoint", up.endpoint,
        "--capacity", "64MiB", "--json",
    )  # fmt: skip
    assert done.returncode == Exit.UNFIT
    assert "another process listens there" in str(document_of(done)["error"])
    assert memkv(up, "exists", "never-stored").returncode == Exit.FAILED, "the first one is unhurt"


@pytest.mark.parametrize("key", ["00ff17", "f09f9880", "0a"])
def test_keys_that_are_not_text_make_the_round_trip(up: Up, key: str) -> None:
    data = os.urandom(5000)
    assert memkv(up, "put", "--hex", key, "-", data=data).returncode == Exit.OK
    assert memkv(up, "get", "--hex", key).stdout == data
    if b"\0" not in bytes.fromhex(key):
        assert memkv(up, "get", os.fsdecode(bytes.fromhex(key))).stdout == data
    found = document_of(memkv(up, "exists", "--hex", key, "--json"))["keys"]
    assert isinstance(found, list)
    assert found[0]["status"] == 1
    assert found[0].get("key_hex", found[0]["key"].encode().hex()) == key
    assert memkv(up, "rm", "--hex", key).returncode == Exit.OK


def test_a_reader_that_leaves_early_is_no_error(up: Up) -> None:
    data = os.urandom(1_000_000)
    assert memkv(up, "put", "long", "-", data=data).returncode == Exit.OK
    command = " ".join([*map(shlex.quote, MEMKV), "get", "long", "|", "head", "-c", "1"])
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {command}"], capture_output=True,
        env={**os.environ, "MEMKV_ENDPOINT": up.endpoint}, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, data[:1], b"")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["get", "never-stored", "-o", "/dev/null"], Exit.FAILED),
        (["exists", "never-stored"], Exit.FAILED),
        (["why", "never-stored"], Exit.OK),
        (["get", "never-stored"], Exit.USAGE),
        (["put", "key", "/no/such/file"], Exit.USAGE),
        (["map", "--pool", "other/pool"], Exit.UNREACHABLE),
        (["nodes", "--tenant", "NOT A NAME"], Exit.UNREACHABLE),
        (["replay", "/no/such/trace"], Exit.UNFIT),
        (["rm", "x" * 600], Exit.USAGE),
        (["map", "--config", "/no/such/file"], Exit.USAGE),
    ],
)
def test_what_fails_is_json_too(up: Up, words: list[str], code: Exit) -> None:
    done = memkv(up, *words, "--json")
    assert done.returncode == code, done.stderr.decode()
    assert document_of(done)
    assert b"Traceback" not in done.stderr


def test_top_ends_by_ctrl_c_as_asked(up: Up) -> None:
    process = subprocess.Popen(
        [*MEMKV, "top", "--json", "--interval", "50ms", "--deadline", "30s", "--endpoint",
         up.endpoint],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=TIMEOUT_S)[1]
    assert len(json.loads(line)["nodes"]) == 2
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (Exit.OK, "")
    assert all("nodes" in json.loads(line) for line in rest.splitlines())


def http_of(up: Up, process: str) -> str:
    facts = up.facts["metadata"] if process == "metadata" else nodes_of(up.facts)[0]
    assert isinstance(facts, dict)
    return str(facts["http"])


def page(url: str) -> str:
    with urlopen(url, timeout=TIMEOUT_S) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


@pytest.mark.parametrize("process", ["node", "metadata"])
def test_health_is_answered_where_up_says(up: Up, process: str) -> None:
    for path in ("healthz", "readyz"):
        assert page(f"{http_of(up, process)}/{path}") == "ok\n"


@pytest.mark.parametrize("process", ["node", "metadata"])
def test_metrics_are_those_of_the_manual(up: Up, process: str) -> None:
    """docs/operations.md lists every family with its labels and help, and no other but those of
    NVMe drives, which files have not."""
    for number in range(8):  # both nodes get some
        assert memkv(up, "put", f"metric-{number}", "-", data=b"x" * 4096).returncode == Exit.OK
    reference = load_reference()
    manual = reference.section(reference.PAGE.read_text(), f"{process} metrics")
    lines = manual.splitlines(keepends=True)
    manual = "".join(line for line in lines if not line.startswith("| `memkv_drive_"))
    deadline_ns = deadline_after_ms(SystemClock(), TIMEOUT_S * 1000)
    while (served := reference.metrics(page(f"{http_of(up, process)}/metrics"))) != manual:
        if SystemClock().monotonic_ns() > deadline_ns:  # a worker reports a moment later
            assert served == manual, "run python docs/reference.py NODE_URL METADATA_URL"


def load_reference() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "docs/reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_metadata_service_that_hangs_for_a_moment_is_waited_for(up: Up) -> None:
    """As a Service is that leads to a pod on a dead node first: longer than a client's own start
    waits, and without a word that it is the wrong place."""
    host, port = split_endpoint(up.endpoint)
    proxy = FaultProxy((host, port))
    proxy.hold()
    later = threading.Timer(3.5, proxy.release)
    later.start()
    try:
        slow = up._replace(endpoint=f"127.0.0.1:{proxy.port}")
        done = memkv(slow, "put", "by-a-slow-way", "-", data=b"bytes")
    finally:
        later.cancel()
        proxy.close()
    assert done.returncode == Exit.OK, done.stderr.decode()


def test_no_pool_is_exit_code_3_with_cause_and_fix() -> None:
    nowhere = Up("127.0.0.1:1", {}, Path())
    done = memkv(nowhere, "get", "key")
    assert done.returncode == Exit.UNREACHABLE
    message = done.stderr.decode()
    assert "no pool default/local at 127.0.0.1:1 (from MEMKV_ENDPOINT)" in message
    assert "memkv up" in message
    assert "Traceback" not in message
