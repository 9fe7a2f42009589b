"""A pool whose certificates cert-manager makes, on a real API server, by the chart's rights alone.

The kind Certificate is a test's own, and so is the issuer, which signs what is asked.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from memkv.metadata.kubernetes.api_server import MERGE
from memkv.testing.control_plane import ControlPlane
from memkv_operator.api.names import CERTIFICATES
from memkv_operator.identity.authority import make_authority
from memkv_operator.identity.secrets import content_of
from memkv_operator.testing import real_api
from memkv_operator.testing.cluster import POOL
from memkv_operator.testing.issuer import CRD, Issuer
from memkv_operator.testing.real_api import RealApi, install_kind, run_on_a_real_api
from memkv_operator.testing.rights import as_operator, give_rights, refused

CRDS = sorted((Path(__file__).resolve().parents[2] / "charts/memkv/files/crds").glob("*.yaml"))
Test = Callable[[RealApi, Issuer], Awaitable[None]]
TLS = {
    "network": {"mode": "PodNetwork", "rdma": {"mode": "Disabled"}},
    "metadata": {
        "replicas": 1,
        "tls": {"mode": "CertManager", "issuerRef": {"name": "ca"}},
        "auth": {"mode": "None"},
    },
}


@contextmanager
def rights(
    helm: str, plane: ControlPlane, real: RealApi, folder: Path, patch: pytest.MonkeyPatch,
    *flags: str,
) -> Iterator[None]:
    """Be the operator's account, with the roles of a release with these flags."""
    kubectl = [str(plane.binaries / "kubectl"), f"--kubeconfig={plane.kubeconfig}"]
    give_rights(helm, kubectl, real.namespace, *flags)
    account = as_operator(kubectl, plane.kubeconfig, real.namespace, folder / real.namespace)
    with patch.context() as inner:
        inner.setenv("KUBECONFIG", str(account))
        yield


def run(plane: ControlPlane, patch: pytest.MonkeyPatch, test: Test) -> None:
    patch.setenv("KUBECONFIG", str(plane.kubeconfig))

    async def prepared(real: RealApi) -> None:
        await real.add_nodes(1)
        await test(real, Issuer(real.api, real.namespace))

    run_on_a_real_api([yaml.safe_load(path.read_text()) for path in CRDS], prepared)


def reason_is(real: RealApi, type_: str, reason: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return bool((await real.condition(type_))["reason"] == reason)

    return holds


def test_a_pool_gets_its_certificates_from_an_issuer_and_follows_its_new_authority(
    helm: str, own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(real: RealApi, issuer: Issuer) -> None:
        await install_kind(real, CRD, CERTIFICATES)
        await real.make_pool(**TLS)
        flag = ("--set", "certManager.enabled=true")
        with rights(helm, own_plane, real, tmp_path, monkeypatch, *flag):
            async with real.operator(authority_grace_s=10) as operator:
                await real.until(reason_is(real, "ConfigValid", "CertificatesUnavailable"))
                message = (await real.condition("CertificatesValid"))["message"]
                assert "cert-manager has not looked at it yet" in message
                issuer.refusal = "there is no issuer ca"
                await issuer.tick()

                async def says_why() -> bool:
                    return issuer.refusal in (await real.condition("ConfigValid"))["message"]

                await real.until(says_why)
                issuer.refusal = ""
                await issuer.tick()
                await real.until(real.is_ready)
                assert await files(real) == issuer.authority.certificate
                await follow_new_authority(real, issuer)
                assert await real.is_ready()
                await real.api.request("DELETE", f"{real.root}/memkvpools/{POOL}")

                async def deleted() -> bool:
                    return not await real.pool()

                await real.until(deleted)
                assert refused(operator) == []

    run(own_plane, monkeypatch, test)


async def follow_new_authority(real: RealApi, issuer: Issuer) -> None:
    issuer.authority = make_authority("test issuer", datetime.now(UTC))
    await issuer.tick()
    # Has it look now: Secrets of others are not watched.
    patch = {"metadata": {"annotations": {"memkv.io/rotate-ca": "look"}}}
    await real.api.request("PATCH", f"{real.root}/memkvpools/{POOL}", None, patch, MERGE)
    seen: set[str] = set()

    async def followed() -> bool:
        seen.add((await real.condition("CertificatesValid"))["reason"])
        return await files(real) == issuer.authority.certificate and "Valid" in seen

    await real.until(followed)
    assert {"AuthorityAnnounced", "AuthorityRetiring"} <= seen


async def files(real: RealApi) -> bytes:
    """Return whom nodes believe."""
    path = f"/api/v1/namespaces/{real.namespace}/secrets/{POOL}-node-identity"
    found: Any = await real.get(path)
    return content_of(found)["ca.crt"] if found is not None else b""


def test_without_the_kind_or_the_right_the_pool_says_what_to_do(
    helm: str, own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(real: RealApi, issuer: Issuer) -> None:
        path = f"{real_api.CRDS}/{CRD['metadata']['name']}"
        if await real.get(path) is not None:
            await real.api.request("DELETE", path)
        await real.make_pool(**TLS)
        with rights(helm, own_plane, real, tmp_path, monkeypatch):
            async with real.operator():
                await real.until(reason_is(real, "ConfigValid", "CertManagerForbidden"))
                message = (await real.condition("ConfigValid"))["message"]
                assert "certManager.enabled=true" in message
        flag = ("--set", "certManager.enabled=true")
        with rights(helm, own_plane, real, tmp_path, monkeypatch, *flag):
            async with real.operator():
                await real.until(reason_is(real, "ConfigValid", "CertManagerMissing"))
                assert (await real.condition("Ready"))["reason"] == "ConfigInvalid"

    run(own_plane, monkeypatch, test)
