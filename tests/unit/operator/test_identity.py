"""A pool's own authority: what it signs, when that is renewed, and that real nodes believe it."""

import asyncio
import base64
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memkv.errors import ConfigError, PeerGone
from memkv.localpool.ports import free_ports
from memkv.metadata.certificates import admin_name, node_name
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.identity.authority import (
    LEAF_LIFE,
    Pair,
    is_fit,
    issue,
    make_authority,
    make_ticket_key,
    public_ticket_key,
)
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.identity.secrets import (
    Root,
    content_of,
    node_manifest,
    read_root,
    root_manifest,
)
from memkv_operator.identity.ticket_keys import TicketKeys
from memkv_operator.identity.trust import Trust
from memkv_operator.nodes.admin import AdminTls, GrpcNodeAdmin
from memkv_operator.testing.cluster import SPEC, pause

NOW = datetime(2026, 5, 1, tzinfo=UTC)
IN_TIME_S = 120


def pool() -> Pool:
    meta = {"name": "pool-a", "namespace": "inference", "uid": "u"}
    return read_pool({"metadata": meta, "spec": SPEC})


def root(now: datetime = NOW) -> Root:
    authority = make_authority("MemKV pool inference/pool-a", now)
    return Root(Trust(authority), TicketKeys(make_ticket_key(), now), b"s" * 32)


def test_a_certificate_is_renewed_before_the_last_third_of_its_life() -> None:
    authority, names = make_authority("a", NOW), ["node.a"]
    leaf = issue(authority, names, NOW)
    assert is_fit(leaf, authority, names, NOW)
    assert is_fit(leaf, authority, names, NOW + LEAF_LIFE * 0.6)
    assert not is_fit(leaf, authority, names, NOW + LEAF_LIFE * 0.7)


@pytest.mark.parametrize("change", ["names", "authority", "key", "damage", "future"])
def test_a_certificate_that_does_not_fit_is_renewed(change: str) -> None:
    authority, names, now = make_authority("a", NOW), ["node.a"], NOW
    leaf = issue(authority, names, NOW)
    if change == "names":
        names = ["node.b"]
    elif change == "authority":
        authority = make_authority("a", NOW)
    elif change == "key":
        leaf = Pair(leaf.certificate, issue(authority, names, NOW).key)
    elif change == "damage":
        leaf = Pair(b"", leaf.key)
    else:
        now = NOW - timedelta(days=1)
    assert not is_fit(leaf, authority, names, now)


def test_secrets_hold_what_their_readers_need_and_no_more() -> None:
    made = root()
    assert read_root(root_manifest(pool(), made)) == made
    leaf = issue(made.trust.current, names_of(Role.NODE, pool()), NOW)
    content = content_of(node_manifest(pool(), made, leaf))
    assert set(content) == {"ca.crt", "tls.crt", "tls.key", "tickets.pub"}
    assert content["tickets.pub"] == public_ticket_key(made.tickets.current)
    assert b"PRIVATE" not in content["ca.crt"] + content["tickets.pub"]
    assert "pool-a-metadata.inference.svc" in names_of(Role.METADATA, pool())


def test_a_damaged_root_is_refused() -> None:
    manifest: dict[str, Any] = root_manifest(pool(), root())
    del manifest["data"]["ca.crt"]
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        read_root(manifest)
    with pytest.raises(ConfigError, match="base64"):
        content_of({"data": {"a": "?"}})


def test_a_real_node_lets_in_who_has_the_operators_certificate_only(tmp_path: Path) -> None:
    """`memkv node` with the files of the Secret, asked as the operator asks."""
    now = datetime.now(UTC)
    made = root(now)
    leaf = issue(made.trust.current, names_of(Role.NODE, pool()), now)
    folder = tmp_path / "identity"
    folder.mkdir()
    data: Any = node_manifest(pool(), made, leaf)["data"]
    for name, value in data.items():
        (folder / name).write_bytes(base64.b64decode(value))
    port, http = free_ports(2)
    command = [
        sys.executable, "-m", "memkv.cli.main", "node", "--name=n1", "--pool=inference/pool-a",
        f"--dir={tmp_path}", "--capacity=134217728", "--memory=67108864", "--host=127.0.0.1",
        "--data-port=0", f"--admin-port={port}", f"--http-port={http}", "--slots=1024",
        f"--tls-cert={folder}/tls.crt", f"--tls-key={folder}/tls.key", f"--tls-ca={folder}/ca.crt",
        f"--ticket-keys={folder}/tickets.pub", "--payload-encryption=TLS",
    ]  # fmt: skip

    def tls(name: str, authority: Pair) -> AdminTls:
        pair = issue(authority, [name], now)
        return AdminTls(
            made.trust.bundle, pair.certificate, pair.key,
            node_name("inference/pool-a"),
        )  # fmt: skip

    async def ask(identity: AdminTls, until_answered: bool) -> str:
        admin = GrpcNodeAdmin(f"127.0.0.1:{port}", identity)
        try:
            async with asyncio.timeout(IN_TIME_S):
                while True:
                    try:
                        return (await admin.facts()).node_name
                    except PeerGone:
                        if not until_answered:
                            raise
                        await pause(0.1)
        finally:
            await admin.close()

    with subprocess.Popen(command) as process:
        try:
            operator = tls(admin_name("inference/pool-a"), made.trust.current)
            assert asyncio.run(ask(operator, True)) == "n1"
            for stranger in (
                tls(node_name("inference/pool-a"), made.trust.current),
                tls(admin_name("inference/pool-a"), make_authority("x", now)),
            ):
                with pytest.raises(PeerGone):
                    asyncio.run(ask(stranger, False))
        finally:
            process.terminate()
