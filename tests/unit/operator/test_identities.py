"""The Secrets of pools over months, whoever makes their certificates. An API server in memory."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from memkv.errors import RetryLater
from memkv.metadata.kubernetes.api_server import APPLY
from memkv.metadata.kubernetes.errors import Forbidden, NotFound
from memkv.testing.api_server import Request
from memkv_operator.api.names import CERTIFICATES, ROTATE_CA, SECRETS
from memkv_operator.identity.authority import (
    AUTHORITY_LIFE,
    LEAF_LIFE,
    Pair,
    make_authority,
)
from memkv_operator.identity.checks import faults_of_pair
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.identity.trust import GRACE, certificates_of, same
from memkv_operator.kube.objects import Objects
from memkv_operator.run.identities import LOOK_S, Identities, PoolIdentity, Unavailable
from memkv_operator.testing.cluster import NAMESPACE
from memkv_operator.testing.identity_world import World, run

HOUR = timedelta(hours=1)


# --- SelfSigned ------------------------------------------------------------------------------


def test_leaves_are_renewed_and_nothing_is_written_between() -> None:
    async def test(world: World) -> None:
        await world.look()
        first, writes = world.secret("node-identity"), len(world.api.writes)
        world.advance(LOOK_S + 1)
        await world.look()
        assert len(world.api.writes) == writes + 1  # the ConfigMap, which this test always writes
        world.advance((LEAF_LIFE * 0.7).total_seconds())
        await world.look()
        second = world.secret("node-identity")
        assert second["tls.crt"] != first["tls.crt"]
        assert second["ca.crt"] == first["ca.crt"]
        assert world.ends["node"] == (
            certificates_of(second["tls.crt"])[0].not_valid_after_utc.timestamp()
        )
        assert set(world.ends) == {"authority", "node", "metadata", "admin"}
        world.identities.forget(world.pool)
        assert world.ends == {}

    run(test)


@pytest.mark.parametrize("cause", ["annotation", "age"])
def test_an_authority_is_replaced_in_phases(cause: str) -> None:
    async def test(world: World) -> None:
        await world.look_for(HOUR)
        old = world.bundle
        if cause == "annotation":
            world.annotations[ROTATE_CA] = "because I say so"
        else:
            world.advance((AUTHORITY_LIFE * 0.67).total_seconds())
        leaf = world.secret("node-identity")["tls.crt"] if cause == "annotation" else b""
        identity = await world.look()
        assert identity.view.phase == "AuthorityAnnounced"
        assert len(certificates_of(world.bundle)) == 2
        if leaf:
            assert world.secret("node-identity")["tls.crt"] == leaf
        identity = await world.look_for(GRACE + 3 * timedelta(minutes=1))
        assert identity.view.phase == "AuthorityRetiring"
        assert len(certificates_of(world.bundle)) == 2
        assert world.secret("node-identity")["tls.crt"] != leaf
        identity = await world.look_for(GRACE + 3 * timedelta(minutes=1))
        assert identity.view.phase == ""
        assert len(certificates_of(world.bundle)) == 1
        assert not same(world.bundle, old)
        new = world.bundle
        await world.look_for(HOUR)
        assert world.bundle == new
        if cause == "annotation":
            world.annotations[ROTATE_CA] = "once more"
            await world.look_for(HOUR)
            assert not same(world.bundle, new)

    run(test)


def test_a_new_pool_does_not_rotate_for_its_annotation() -> None:
    async def test(world: World) -> None:
        world.annotations[ROTATE_CA] = "copied from another pool"
        await world.look()
        old = world.bundle
        await world.look_for(HOUR)
        assert world.bundle == old

    run(test)


def test_a_rotation_waits_until_clients_were_told() -> None:
    async def test(world: World) -> None:
        await world.look()
        world.publishes = False
        world.annotations[ROTATE_CA] = "now"
        identity = await world.look_for(4 * HOUR)
        assert identity.view.phase == "AuthorityAnnounced"
        world.publishes = True
        identity = await world.look_for(HOUR)
        assert identity.view.phase == ""

    run(test)


def test_a_rotation_survives_a_new_leader_each_minute() -> None:
    async def test(world: World) -> None:
        await world.look()
        old = world.bundle
        world.annotations[ROTATE_CA] = "now"
        bundles = []
        for _ in range(45):
            world.new_leader()
            await world.look()
            world.advance(60)
            bundles.append(len(certificates_of(world.bundle)))
        assert bundles == sorted(bundles, key=lambda count: count == 1)
        assert bundles[-1] == 1
        assert not same(world.bundle, old)

    run(test)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_any_failed_request_leaves_a_rotation_that_goes_on(done: bool) -> None:
    """The Nth request of the look that announces, or that signs anew, fails, for each N."""

    async def test(world: World) -> None:
        await world.look()
        old, failed = world.bundle, 0
        world.annotations[ROTATE_CA] = "now"
        for number in range(1, 12):
            at = len(world.api.requests) + number

            def fault(request: Request, after: bool, at: int = at) -> Exception | None:
                return RetryLater("500") if request.number == at and after is done else None

            world.api.fault = fault
            try:
                await world.look()
            except RetryLater:
                failed += 1
            world.check()
            world.advance(GRACE.total_seconds())
        assert failed >= 5
        world.api.fault = lambda request, after: None
        await world.look_for(HOUR)
        assert len(certificates_of(world.bundle)) == 1
        assert not same(world.bundle, old)

    run(test)


def test_of_two_operators_that_rotate_at_once_one_wins() -> None:
    async def test(world: World) -> None:
        await world.look()
        world.annotations[ROTATE_CA] = "now"
        other = Identities(Objects(world.api), world.clock)
        results = await asyncio.gather(
            world.identities.ensure(world.pool), other.ensure(world.pool), return_exceptions=True
        )
        lost = [one for one in results if isinstance(one, RetryLater)]
        assert len(lost) == 1, results
        root = world.secret("identity")
        winner = next(one for one in results if isinstance(one, PoolIdentity))
        assert root["next-ca.crt"] in winner.view.authority.encode()

    run(test)


@pytest.mark.parametrize("mode", ["SelfSigned", "Secret"])
def test_a_new_leader_reads_what_a_paused_pool_has_and_writes_nothing(mode: str) -> None:
    async def test(world: World) -> None:
        assert await world.identities.read(world.pool) is None
        world.use(mode)
        await world.put_secret(world.own_content())
        before = await world.look()
        world.new_leader()
        writes = len(world.api.writes)
        found = await world.identities.read(world.pool)
        assert found is not None
        assert replace(found.view, tickets=before.view.tickets) == before.view
        # Nodes have not told this leader yet which keys they take.
        assert replace(found.view.tickets, informed=True) == before.view.tickets
        pair = Pair(found.admin.certificate, found.admin.key)
        names = names_of(Role.ADMIN, world.pool)
        assert faults_of_pair(pair, world.bundle, names, world.now, "admin") == []
        assert len(world.api.writes) == writes

    run(test)


# --- CertManager -----------------------------------------------------------------------------


async def issued(world: World) -> PoolIdentity:
    world.use("CertManager")
    with pytest.raises(Unavailable, match="cert-manager has not looked at it yet"):
        await world.look()
    await world.issuer.tick()
    return await world.look()


def test_cert_manager_is_asked_and_its_certificates_are_handed_on() -> None:
    async def test(world: World) -> None:
        identity = await issued(world)
        certificates = {c["metadata"]["name"]: c for c in world.api.all_of("certificates")}
        assert set(certificates) == {f"pool-a-{r}-tls" for r in ("node", "metadata", "admin")}
        for role in Role:
            live = certificates[f"pool-a-{role.value}-tls"]
            assert live["spec"]["issuerRef"] == {
                "name": "ca", "kind": "Issuer", "group": "cert-manager.io",
            }  # fmt: skip
            assert live["spec"]["dnsNames"] == list(names_of(role, world.pool))
            assert {"server auth", "client auth"} < set(live["spec"]["usages"])
            assert live["metadata"]["ownerReferences"][0]["uid"] == "u"
        secrets = world.api.all_of("secrets")
        assert all(s["metadata"]["ownerReferences"][0]["uid"] == "u" for s in secrets)
        assert world.bundle == world.issuer.authority.certificate
        assert world.secret("node-identity")["tls.crt"] == world.secret("node-tls")["tls.crt"]
        assert identity.admin.certificate == world.secret("admin-tls")["tls.crt"]
        assert "ca.key" not in world.secret("identity")
        writes = len(world.api.writes)
        await world.look_for(HOUR)
        assert len(world.api.writes) == writes + 60  # the ConfigMap, which this test always writes

    run(test)


def test_an_issuers_new_authority_is_believed_before_it_is_used() -> None:
    async def test(world: World) -> None:
        await issued(world)
        old, leaf = world.bundle, world.secret("node-identity")["tls.crt"]
        world.issuer.authority = make_authority("test issuer", world.now)
        await world.issuer.tick()
        world.advance(LOOK_S)
        await world.look()
        assert len(certificates_of(world.bundle)) == 2
        assert world.secret("node-identity")["tls.crt"] == leaf
        world.new_leader()
        assert (await world.look()).admin.certificate != world.secret("admin-tls")["tls.crt"]
        identity = await world.look_for(HOUR)
        assert world.bundle == world.issuer.authority.certificate != old
        assert world.secret("node-identity")["tls.crt"] == world.secret("node-tls")["tls.crt"]
        assert identity.admin.certificate == world.secret("admin-tls")["tls.crt"]

    run(test)


def test_a_refusal_of_the_issuer_is_the_reason() -> None:
    async def test(world: World) -> None:
        world.use("CertManager")
        with pytest.raises(Unavailable):
            await world.look()
        world.issuer.refusal = "the issuer ca does not exist"
        await world.issuer.tick()
        with pytest.raises(Unavailable, match="the issuer ca does not exist") as caught:
            await world.look()
        assert {fault.reason for fault in caught.value.faults} == {"CertificatesUnavailable"}

    run(test)


def test_what_was_issued_goes_on_when_the_issuer_refuses_later() -> None:
    async def test(world: World) -> None:
        await issued(world)
        bundle = world.bundle
        world.issuer.refusal = "quota exceeded"
        await world.issuer.tick()
        world.advance(LOOK_S)
        identity = await world.look()
        assert identity.view.faults[0].reason == "CertificateInvalid"
        assert "quota exceeded" in identity.view.faults[0].message
        assert not identity.view.blocks
        assert world.bundle == bundle

    run(test)


def test_a_certificate_without_the_name_it_was_asked_for_is_not_used() -> None:
    async def test(world: World) -> None:
        world.issuer.left_out = frozenset(names_of(Role.NODE, world.pool))
        world.use("CertManager")
        with pytest.raises(Unavailable):
            await world.look()
        await world.issuer.tick()
        with pytest.raises(Unavailable, match="certificate for node lacks the DNS name node"):
            await world.look()

    run(test)


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (NotFound("404"), "CertManagerMissing", "install cert-manager"),
        (Forbidden("403"), "CertManagerForbidden", "certManager.enabled=true"),
    ],
)
def test_a_cluster_without_cert_manager_is_told_so(
    error: Exception, reason: str, words: str
) -> None:
    async def test(world: World) -> None:
        world.use("CertManager")
        world.api.fault = lambda request, done: (
            error if CERTIFICATES.group in request.path else None
        )
        with pytest.raises(Unavailable, match=words) as caught:
            await world.look()
        assert [fault.reason for fault in caught.value.faults] == [reason]
        assert not world.api.writes or not world.api.all_of("secrets")

    run(test)


# --- Secret ----------------------------------------------------------------------------------


def test_a_secret_of_ones_own_is_checked_and_handed_on() -> None:
    async def test(world: World) -> None:
        world.use("Secret")
        with pytest.raises(Unavailable, match="there is no Secret mine in namespace inference"):
            await world.look()
        content = world.own_content()
        await world.put_secret({**content, "tls.key": b""})
        with pytest.raises(Unavailable, match="has no unencrypted private key"):
            await world.look()
        await world.put_secret(content)
        identity = await world.look()
        for name in ("node-identity", "metadata-identity"):
            assert world.secret(name)["tls.crt"] == content["tls.crt"]
        assert identity.admin.certificate == content["tls.crt"]
        assert world.bundle == content["ca.crt"]

    run(test)


@pytest.mark.parametrize("name", ["identity", "node-identity", "metadata-identity"])
def test_a_secret_of_the_operators_is_nobody_elses(name: str) -> None:
    async def test(world: World) -> None:
        world.tls = {"mode": "Secret", "secretName": f"pool-a-{name}"}
        with pytest.raises(Unavailable, match="which the operator itself writes"):
            await world.look()
        assert not world.api.writes

    run(test)


def test_a_secret_that_gets_worse_leaves_what_is_in_use() -> None:
    async def test(world: World) -> None:
        world.use("Secret")
        content = world.own_content()
        await world.put_secret(content)
        await world.look()
        await world.put_secret({**content, "tls.crt": b"?"})
        world.advance(LOOK_S)
        identity = await world.look()
        assert "not a certificate in PEM" in identity.view.faults[0].message
        assert world.secret("node-identity")["tls.crt"] == content["tls.crt"]
        await world.put_secret(world.own_content())
        identity = await world.look_for(HOUR)
        assert identity.view.faults == ()
        assert world.bundle != content["ca.crt"]

    run(test)


def test_certificates_that_ended_are_replaced_without_a_grace() -> None:
    async def test(world: World) -> None:
        world.use("Secret")
        await world.put_secret(world.own_content())
        await world.look()
        world.advance(LEAF_LIFE.total_seconds() + 1)
        content = world.own_content()
        await world.put_secret(content)
        identity = await world.look()
        assert identity.admin.certificate == content["tls.crt"]
        assert world.secret("node-identity")["tls.crt"] == content["tls.crt"]

    run(test)


# --- from one mode to another ----------------------------------------------------------------


@pytest.mark.parametrize("before", ["SelfSigned", "CertManager", "Secret"])
@pytest.mark.parametrize("after", ["SelfSigned", "CertManager", "Secret"])
def test_modes_change_like_authorities(before: str, after: str) -> None:
    """Every look on the way is checked: everyone believes everyone."""

    async def test(world: World) -> None:
        await world.put_secret(world.own_content())
        for mode in (before, after):
            world.use(mode)
            for _ in range(60):
                try:
                    identity = await world.look()
                except Unavailable:
                    assert mode == before  # what is in use goes on
                if world.api.all_of("certificates"):
                    await world.issuer.tick()
                world.advance(60)
        assert identity.view.phase == ""
        assert identity.view.faults == ()
        own = world.secret("identity")
        assert ("ca.key" in own) == (after == "SelfSigned")
        assert len(world.api.all_of("certificates")) == (3 if after == "CertManager" else 0)
        if after == "CertManager":
            assert world.bundle == world.issuer.authority.certificate

    run(test)


@pytest.mark.parametrize("name", ["identity", "node-identity", "metadata-identity"])
def test_a_secret_of_another_pool_is_never_written_over(name: str) -> None:
    async def test(world: World) -> None:
        path = SECRETS.path(NAMESPACE, f"pool-a-{name}")
        owner = {"kind": "MemKVPool", "name": "pool-a-node", "uid": "another", "controller": True}
        meta = {"name": f"pool-a-{name}", "namespace": NAMESPACE, "ownerReferences": [owner]}
        body: Any = {"metadata": meta, "data": {"tls.key": "dGhlaXJz"}}
        await world.api.request("PATCH", path, None, body, APPLY)
        with pytest.raises(Unavailable) as raised:
            await world.identities.ensure(world.pool)
        assert [fault.reason for fault in raised.value.faults] == ["NameClaimedTwice"]
        assert "MemKVPool pool-a-node" in raised.value.faults[0].message
        assert world.api.objects[path]["data"] == {"tls.key": "dGhlaXJz"}

    run(test)
