"""Where a client's endpoint and pool come from."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memkv.client import options
from memkv.client.options import DEFAULT_POOL, ConnectOptions
from memkv.errors import CallerError
from memkv.rdma.client_memory import MemoryMode, RdmaOptions
from memkv.rdma.discovery import Fabric


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "connection.json"
    path.write_text(json.dumps({"endpoint": "meta.example:7443", "pool": "prod/kv"}))
    monkeypatch.setattr(options, "CONNECTION_FILE", path)
    for name in [name for name in os.environ if name.startswith("MEMKV_")]:
        monkeypatch.delenv(name)
    return path


def resolve(endpoint: str | None = None, pool: str = DEFAULT_POOL) -> tuple[str, str]:
    found = ConnectOptions.resolve(endpoint, pool, "default", 1000, None)
    return found.endpoint, found.pool


def test_a_pods_file_names_endpoint_and_pool(file: Path) -> None:
    assert resolve() == ("meta.example:7443", "prod/kv")


def test_what_the_caller_names_wins_over_the_file(file: Path) -> None:
    assert resolve(pool="mine/kv") == ("meta.example:7443", "mine/kv")
    assert resolve("here:1") == ("here:1", DEFAULT_POOL)


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMKV_ENDPOINT", "env:2")
    assert resolve() == ("env:2", DEFAULT_POOL)


def test_without_any_it_is_this_machine(file: Path) -> None:
    file.unlink()
    assert resolve() == (options.DEFAULT_ENDPOINT, DEFAULT_POOL)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"endpoint": 7}', '{"endpoint": "", "pool": 1}'])
def test_a_broken_file_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(CallerError, match=r"connection\.json"):
        resolve()


def with_rdma(file: Path, **keys: object) -> None:
    document = {"endpoint": "meta.example:7443", "of a later version": [1], **keys}
    file.write_text(json.dumps(document))


def made() -> ConnectOptions:
    return ConnectOptions.resolve(None, DEFAULT_POOL, "default", 1000, None)


def test_a_pods_file_says_how_rdma_is_used(file: Path) -> None:
    with_rdma(
        file, rdma="on", rdma_fabric="infiniband", rdma_gid_index=3, rdma_traffic_class=106
    )
    found = made()
    assert found.wants_rdma
    assert found.rdma_options == RdmaOptions(
        gid_index=3, traffic_class=106, fabric=Fabric.INFINIBAND
    )
    with_rdma(file, rdma="off")
    assert not made().wants_rdma


def test_a_file_without_a_word_of_rdma_leaves_it_to_the_client(file: Path) -> None:
    assert (made().rdma, made().rdma_options) == ("auto", RdmaOptions())


def test_rdma_is_used_beside_encrypted_tcp_where_the_file_says_so(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone, a client does not use what is not encrypted; a pool may decide otherwise."""
    encrypted = {"ca": "PEM", "payload_encryption": "TLS"}
    with_rdma(file, **encrypted)
    assert not made().wants_rdma
    with_rdma(file, **encrypted, rdma="on")
    assert made().wants_rdma
    monkeypatch.setenv("MEMKV_RDMA", "auto")
    assert not made().wants_rdma


@pytest.mark.parametrize(
    ("name", "value", "reads"),
    [
        ("MEMKV_RDMA", "off", lambda found: found.rdma == "off"),
        ("MEMKV_RDMA_GID_INDEX", "1", lambda found: found.rdma_options.gid_index == 1),
        ("MEMKV_RDMA_TRAFFIC_CLASS", "0", lambda found: found.rdma_options.traffic_class == 0),
        ("MEMKV_RDMA_FABRIC", "auto", lambda found: found.rdma_options.fabric is Fabric.AUTO),
        ("MEMKV_RDMA_MODE", "strict", lambda found: found.rdma_options.mode is MemoryMode.STRICT),
        ("MEMKV_RDMA_DEVICES", "a, b", lambda found: found.rdma_options.devices == ("a", "b")),
    ],
)
def test_a_variable_goes_before_the_file_and_the_rest_of_it_stays(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    reads: Callable[[ConnectOptions], bool],
) -> None:
    said = {
        "rdma": "on", "rdma_mode": "arena", "rdma_devices": "c", "rdma_gid_index": 3,
        "rdma_traffic_class": 106, "rdma_fabric": "rocev2",
    }  # fmt: skip
    with_rdma(file, **said)
    before = made()
    assert not reads(before)
    monkeypatch.setenv(name, value)
    after = made()
    assert reads(after)
    same = [after.rdma == before.rdma] + [
        getattr(after.rdma_options, part) == getattr(before.rdma_options, part)
        for part in ("mode", "devices", "gid_index", "traffic_class", "fabric")
    ]
    assert same.count(False) == 1


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"rdma": "yes"}, r'connection\.json: rdma must be "auto", "on" or "off"'),
        ({"rdma": True}, r"connection\.json: rdma must be text"),
        ({"rdma_gid_index": "first"}, r"connection\.json: rdma_gid_index must be a number"),
        ({"rdma_gid_index": []}, r"connection\.json: rdma_gid_index must be text or a number"),
        ({"rdma_fabric": "RoCEv1"}, "rdma_fabric must be one of auto, rocev2, infiniband"),
        ({"rdma_mode": "open"}, "rdma_mode must be one of arena, strict"),
    ],
)
def test_a_wrong_word_of_rdma_in_the_file_is_named(
    file: Path, keys: dict[str, object], named: str
) -> None:
    with_rdma(file, **keys)
    with pytest.raises(CallerError, match=named):
        made()


def test_a_wrong_variable_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMKV_RDMA_TRAFFIC_CLASS", "high")
    with pytest.raises(CallerError, match="MEMKV_RDMA_TRAFFIC_CLASS must be a number, not 'high'"):
        made()
