"""The command line against a real pool: what a person types, sees and gets as exit code."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from memkv.cli.exits import Exit

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


def test_no_pool_is_exit_code_3_with_cause_and_fix() -> None:
    nowhere = Up("127.0.0.1:1", {}, Path())
    done = memkv(nowhere, "get", "key")
    assert done.returncode == Exit.UNREACHABLE
    message = done.stderr.decode()
    assert "no pool default/local at 127.0.0.1:1 (from MEMKV_ENDPOINT)" in message
    assert "memkv up" in message
    assert "Traceback" not in message
