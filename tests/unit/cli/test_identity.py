"""Flags that say who a process is and whom it believes."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from memkv.cli import identity, metadata, node
from memkv.cli.settings import Settings, UsageError, flag_source, resolve
from memkv.metadata.access import Mode
from memkv.metadata.bearer import ServiceAccount

TLS = {"TLS_CERT": "c", "TLS_KEY": "k", "TLS_CA": "a"}


def node_settings(given: Mapping[str, str]) -> Settings:
    named = {f"MEMKV_NODE_{name}": text for name, text in given.items()}
    return resolve(node.COMMAND.fields, [flag_source(named)])


def metadata_settings(given: Mapping[str, str]) -> Settings:
    named = {f"MEMKV_METADATA_{name}": text for name, text in given.items()}
    return resolve(metadata.COMMAND.fields, [flag_source(named)])


def test_tls_files_go_together() -> None:
    assert identity.NODE_TLS.read(node_settings({})) is None
    files = identity.NODE_TLS.read(node_settings(TLS))
    assert files is not None
    assert (files.certificate, files.key, files.authority) == (Path("c"), Path("k"), Path("a"))


@pytest.mark.parametrize("missing", TLS)
def test_a_missing_tls_file_is_named(missing: str) -> None:
    given = {name: text for name, text in TLS.items() if name != missing}
    flag = "--" + missing.lower().replace("_", "-")
    with pytest.raises(UsageError, match=f"^{flag} missing"):
        identity.NODE_TLS.read(node_settings(given))


@pytest.mark.parametrize(("text", "meant"), [("", None), ("TLS", True), ("none", False)])
def test_payload_encryption(text: str, meant: bool | None) -> None:
    assert node_settings({"PAYLOAD_ENCRYPTION": text})[identity.PAYLOAD] is meant


def test_access() -> None:
    assert identity.access_of(metadata_settings({})).mode is Mode.NONE
    given = {"AUTH": "serviceaccount", "NODE_ACCOUNTS": "a/b, c/d", "TENANTS": "t.json"}
    found = identity.access_of(metadata_settings(given))
    assert found.mode is Mode.SERVICE_ACCOUNT
    assert found.node_accounts == {ServiceAccount("a", "b"), ServiceAccount("c", "d")}
    assert found.tenants == Path("t.json")
    assert not found.asks_certificate


@pytest.mark.parametrize(
    ("name", "text"),
    [("AUTH", "tokens"), ("NODE_ACCOUNTS", "b"), ("NODE_ACCOUNTS", "a/b/c"),
     ("NODE_ACCOUNTS", "/b"), ("NODE_ACCOUNTS", "a/")],
)  # fmt: skip
def test_unfit_values_are_refused_with_their_flag(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"--auth|--node-accounts"):
        metadata_settings({name: text})
