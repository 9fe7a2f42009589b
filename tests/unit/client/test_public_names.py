"""The public names: what engines and users call, with the arguments they rely on."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import memkv
from memkv.aio import AsyncClient
from memkv.client.options import BlockHint, PutOptions
from memkv.client.sync import Client

ROOT = Path(__file__).resolve().parents[3]
ARGUMENTS: dict[str, list[str]] = {
    "put": ["key", "data", "options"],
    "get": ["key"],
    "register_buffer": ["ptr", "size", "fd", "fd_offset"],
    "register_dmabuf": ["fd", "offset", "length", "ptr"],
    "unregister_buffer": ["ptr"],
    "batch_put_from": ["keys", "ptrs", "sizes", "options"],
    "batch_get_into": ["keys", "ptrs", "sizes"],
    "batch_put_from_multi": ["keys", "ptrs", "sizes", "options"],
    "batch_get_into_multi": ["keys", "ptrs", "sizes"],
    "batch_get_ranges": ["keys", "ranges", "ptrs", "sizes"],
    "batch_is_exist": ["keys", "lease_ms"],
    "match_prefix": ["keys"],
    "match_prefix_by_node": ["keys"],
    "prefetch": ["keys"],
    "why": ["keys"],
    "remove": ["key"],
    "batch_remove": ["keys"],
    "pin": ["keys", "ttl_s"],
    "unpin": ["keys"],
    "stats": [],
    "wait_ready": ["timeout_ms"],
    "close": [],
}
EVENTS: dict[str, list[str]] = {
    "submit_get_into": ["keys", "ptrs", "sizes"],
    "submit_get_into_multi": ["keys", "ptrs", "sizes"],
    "submit_put_from": ["keys", "ptrs", "sizes", "options"],
    "submit_put_from_multi": ["keys", "ptrs", "sizes", "options"],
    "submit_is_exist": ["keys", "lease_ms"],
    "submit_prefetch": ["keys"],
    "submit_why": ["keys"],
    "completions": [],
    "watch_blocks": [],
}
DEFAULTS = {"options": None, "fd": None, "fd_offset": 0, "lease_ms": 0}


def check(owner: type, name: str, arguments: list[str]) -> None:
    method = getattr(owner, name)
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())[1:]
    assert [parameter.name for parameter in parameters] == arguments
    for parameter in parameters:
        assert parameter.annotation is not inspect.Parameter.empty, "typed"
        wanted: object = inspect.Parameter.empty
        if name != "register_dmabuf":  # its fd has no default
            wanted = DEFAULTS.get(parameter.name, inspect.Parameter.empty)
        assert parameter.default is wanted or parameter.default == wanted
    assert signature.return_annotation is not inspect.Signature.empty, "typed"
    assert inspect.getdoc(method), "says its contract"


@pytest.mark.parametrize("name", [*ARGUMENTS, *EVENTS])
def test_the_blocking_client(name: str) -> None:
    check(Client, name, {**ARGUMENTS, **EVENTS}[name])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_asyncio_client_is_its_twin(name: str) -> None:
    check(AsyncClient, name, ARGUMENTS[name])
    waits = name not in ("stats", "register_buffer", "register_dmabuf", "unregister_buffer")
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name)) == waits


def test_both_have_nothing_public_beside() -> None:
    def public(owner: type) -> set[str]:
        return {name for name in vars(owner) if not name.startswith("_")}

    assert public(Client) == {*ARGUMENTS, *EVENTS, "event_fd", "attachment", "reasons"}
    # completions(): only what was QUARANTINED; results are awaited.
    assert public(AsyncClient) == {*ARGUMENTS, "completions", "attachment", "reasons"}


def test_connect_is_the_same_for_both() -> None:
    blocking, asynchronous = inspect.signature(memkv.connect), inspect.signature(memkv.aio.connect)
    assert list(blocking.parameters) == [
        "endpoint", "pool", "tenant", "deadline_ms", "credentials",
    ]  # fmt: skip
    defaults = {name: p.default for name, p in blocking.parameters.items()}
    assert defaults == {
        "endpoint": None, "pool": "default/local", "tenant": "default", "deadline_ms": 2000,
        "credentials": None,
    }  # fmt: skip
    assert defaults == {name: p.default for name, p in asynchronous.parameters.items()}


def test_options_of_a_put() -> None:
    assert [field.name for field in dataclasses.fields(PutOptions)] == [
        "ttl_s", "durability", "hints",
    ]  # fmt: skip
    assert [field.name for field in dataclasses.fields(BlockHint)] == [
        "prefix_id", "depth", "session_id",
    ]  # fmt: skip
    assert PutOptions().durability == "cached"
    assert (memkv.PutOptions, memkv.BlockHint, memkv.Client) == (PutOptions, BlockHint, Client)


def test_the_asyncio_twin_is_there_after_a_plain_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import memkv; print(memkv.aio.connect.__name__)"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "connect\n"), done.stderr


def test_every_public_call_is_tried_against_real_workers() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for folder in ("integration", "e2e")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    ]
    for name in (*ARGUMENTS, *EVENTS, "event_fd"):
        assert any(f".{name}" in text for text in texts), name
