"""Where a client's endpoint and pool come from."""

import json
from pathlib import Path

import pytest

from memkv.client import options
from memkv.client.options import DEFAULT_POOL, ConnectOptions
from memkv.errors import CallerError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "connection.json"
    path.write_text(json.dumps({"endpoint": "meta.example:7443", "pool": "prod/kv"}))
    monkeypatch.setattr(options, "CONNECTION_FILE", path)
    monkeypatch.delenv("MEMKV_ENDPOINT", raising=False)
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
