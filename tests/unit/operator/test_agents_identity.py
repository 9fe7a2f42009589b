"""The Secret of the agents, on an API server in memory."""

import asyncio
import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from memkv.errors import ConfigError
from memkv.metadata.kubernetes.errors import Away
from memkv.testing.api_server import FakeApiServer
from memkv.testing.clock import ManualClock
from memkv_operator.identity.authority import AUTHORITY_LIFE
from memkv_operator.kube.objects import Objects
from memkv_operator.nodes.admin import AdminTls
from memkv_operator.run.agents_identity import LOOK_S, AgentsIdentity

SECRETS = "/api/v1/namespaces/memkv/secrets"
PATH = f"{SECRETS}/memkv-agents-identity"
ROOT = f"{SECRETS}/memkv-agents-authority"
DAY_S = 86_400
MOUNTED = {"ca.crt", "tls.crt", "tls.key"}


def secret_of(api: FakeApiServer, path: str = PATH) -> dict[str, bytes]:
    data: dict[str, Any] = api.objects[path]["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


def merge_as_earlier_operators_had_it(api: FakeApiServer) -> None:
    """Everything in the Secret that agents mount."""
    api.objects[PATH]["data"].update(api.objects.pop(ROOT)["data"])


def names_of(pem: bytes) -> list[str]:
    certificate = x509.load_pem_x509_certificate(pem)
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def ensure(api: FakeApiServer, clock: ManualClock) -> AdminTls:
    return asyncio.run(AgentsIdentity(Objects(api), "memkv", clock).ensure())


def test_agents_and_operator_have_certificates_of_one_authority_with_other_names() -> None:
    api, clock = FakeApiServer(), ManualClock()
    tls = ensure(api, clock)
    secret, root = secret_of(api), secret_of(api, ROOT)
    assert set(secret) == MOUNTED
    assert set(root) == {"ca.crt", "ca.key"}
    assert names_of(secret["tls.crt"]) == ["memkv-agent"] == [tls.server_name]
    assert names_of(tls.certificate) == ["memkv-operator"]
    authority = x509.load_pem_x509_certificate(secret["ca.crt"])
    for pem in (secret["tls.crt"], tls.certificate):
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(authority)
    # Whoever mounts the Secret can neither play the operator nor sign.
    assert not {tls.key, root["ca.key"]} & set(secret.values())


def test_a_second_operator_takes_the_authority_that_is_there() -> None:
    api, clock = FakeApiServer(), ManualClock()
    first = ensure(api, clock)
    before = secret_of(api)
    assert ensure(api, clock).authority == first.authority
    assert secret_of(api) == before


def test_an_authority_that_agents_could_read_moves_out_and_stays_the_same() -> None:
    api, clock = FakeApiServer(), ManualClock()
    first = ensure(api, clock)
    before, root = secret_of(api), secret_of(api, ROOT)
    merge_as_earlier_operators_had_it(api)
    assert "ca.key" in secret_of(api)
    assert ensure(api, clock).authority == first.authority
    assert (secret_of(api), secret_of(api, ROOT)) == (before, root)


@pytest.mark.parametrize(
    ("number", "done"),  # the second one finds nothing, and is not done
    [(1, False), (2, False), (3, False), (3, True), (4, False), (4, True)],
)
def test_any_failed_request_leaves_a_move_that_goes_on(number: int, done: bool) -> None:
    api, clock = FakeApiServer(), ManualClock()
    first = ensure(api, clock)
    before, root = secret_of(api), secret_of(api, ROOT)
    merge_as_earlier_operators_had_it(api)
    due = len(api.requests) + number
    api.fault = lambda request, was_done: (
        Away("cut") if (request.number, was_done) == (due, done) else None
    )
    with pytest.raises(Away):
        ensure(api, clock)
    api.fault = lambda request, was_done: None
    assert ensure(api, clock).authority == first.authority
    assert (secret_of(api), secret_of(api, ROOT)) == (before, root)


def test_a_lost_authority_is_said_with_the_command_that_makes_another() -> None:
    api, clock = FakeApiServer(), ManualClock()
    ensure(api, clock)
    del api.objects[ROOT]
    with pytest.raises(ConfigError, match="kubectl delete secret -n memkv memkv-agents-identity"):
        ensure(api, clock)
    del api.objects[PATH]
    ensure(api, clock)
    assert set(secret_of(api)) == MOUNTED


def test_certificates_are_renewed_in_time_by_the_same_authority() -> None:
    async def main() -> None:
        api, clock = FakeApiServer(), ManualClock()
        identity = AgentsIdentity(Objects(api), "memkv", clock)
        first = await identity.ensure()
        before = secret_of(api)
        clock.advance_ms(int(LOOK_S * 1000) + 1000)
        assert await identity.ensure() is first
        clock.advance_ms(70 * DAY_S * 1000)
        second = await identity.ensure()
        after = secret_of(api)
        assert second.certificate != first.certificate
        assert after["tls.crt"] != before["tls.crt"]
        assert after["ca.crt"] == before["ca.crt"] == second.authority

    asyncio.run(main())


def test_a_damaged_authority_is_said_and_not_replaced() -> None:
    api, clock = FakeApiServer(), ManualClock()
    ensure(api, clock)
    api.objects[ROOT]["data"]["ca.key"] = base64.b64encode(b"rubbish").decode()
    api.objects[PATH]["data"]["tls.crt"] = ""
    with pytest.raises(ConfigError):
        ensure(api, clock)


@pytest.mark.parametrize("cause", ["age", "annotation"])
def test_the_authority_is_replaced_in_phases(cause: str) -> None:
    """Agents and operators are other processes: at any time all certificates are believed by all
    who have the bundle of the look before or after."""
    api, clock = FakeApiServer(), ManualClock()
    ensure(api, clock)
    old = secret_of(api)["ca.crt"]
    if cause == "annotation":
        api.objects[PATH]["metadata"]["annotations"] = {"memkv.io/rotate-ca": "now"}
    else:
        clock.advance_ms(int(AUTHORITY_LIFE.total_seconds() * 670))
        ensure(api, clock)
    bundles, shown = [], []
    for _ in range(12):
        tls = ensure(api, clock)  # by a new leader each time
        bundles.append(secret_of(api)["ca.crt"])
        shown.append((secret_of(api)["tls.crt"], tls.certificate))
        assert tls.authority == bundles[-1]
        clock.advance_ms(int(LOOK_S * 1000))
    for place, pems in enumerate(shown):
        for bundle in bundles[max(0, place - 1) : place + 2]:
            believed = x509.load_pem_x509_certificates(bundle)
            for pem in pems:
                assert any(is_signed(pem, authority) for authority in believed)
    assert len(x509.load_pem_x509_certificates(bundles[-1])) == 1
    assert old not in bundles[-1]
    assert set(secret_of(api)) == MOUNTED
    assert set(secret_of(api, ROOT)) - {"rotation-served"} == {"ca.crt", "ca.key"}


def is_signed(pem: bytes, authority: x509.Certificate) -> bool:
    try:
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(authority)
    except (ValueError, InvalidSignature):
        return False
    return True
