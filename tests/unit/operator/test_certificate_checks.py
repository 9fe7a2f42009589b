"""Certificates that somebody else made: what is wrong with them, in a sentence for each fault."""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from memkv.metadata.certificates import admin_name, node_name
from memkv_operator.api.pool import Pool, read_pool
from memkv_operator.identity.authority import (
    AUTHORITY_LIFE,
    LEAF_LIFE,
    Pair,
    issue,
    make_authority,
)
from memkv_operator.identity.checks import faults_of_authority, faults_of_pair
from memkv_operator.identity.offers import offer_of_secret, offer_of_secrets, taken
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.testing.cluster import SPEC

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AUTHORITY = make_authority("company", NOW)
NAMES = [node_name("inference/pool-a")]
GOOD = issue(AUTHORITY, NAMES, NOW)


def pool() -> Pool:
    meta = {"name": "pool-a", "namespace": "inference", "uid": "u"}
    return read_pool({"metadata": meta, "spec": SPEC})


def locked(key: bytes) -> bytes:
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


def signed(
    signer: Pair, name: str, *extensions: x509.ExtensionType, dns: list[str] | None = None
) -> Pair:
    """Return an RSA certificate with these extensions."""
    key = rsa.generate_private_key(65537, 2048)
    issuer = x509.load_pem_x509_certificate(signer.certificate)
    signing: Any = load_pem_private_key(signer.key, None)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + LEAF_LIFE)
    )
    if dns:
        names = x509.SubjectAlternativeName([x509.DNSName(one) for one in dns])
        made = made.add_extension(names, critical=False)
    for extension in extensions:
        made = made.add_extension(extension, critical=False)
    return Pair(
        made.sign(signing, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    )


FAULTS: dict[str, tuple[Pair, datetime, str]] = {
    "no certificate": (Pair(b"", GOOD.key), NOW, "not a certificate in PEM"),
    "a key instead": (Pair(GOOD.key, GOOD.key), NOW, "not a certificate in PEM"),
    "no key": (Pair(GOOD.certificate, b""), NOW, "has no unencrypted private key"),
    "a locked key": (Pair(GOOD.certificate, locked(GOOD.key)), NOW, "has no unencrypted private"),
    "another's key": (
        Pair(GOOD.certificate, issue(AUTHORITY, NAMES, NOW).key), NOW, "are not of one another",
    ),
    "expired": (GOOD, NOW + LEAF_LIFE, "has expired at 2026-07-30"),
    "of the future": (GOOD, NOW - timedelta(days=1), "is not valid before"),
    "another name": (issue(AUTHORITY, ["n.b"], NOW), NOW, f"lacks the DNS name {NAMES[0]}"),
    "no name": (signed(AUTHORITY, "x"), NOW, r"\(it has: none\)"),
    "another authority": (
        issue(make_authority("company", NOW), NAMES, NOW), NOW, "is not signed by the authority",
    ),
    "for clients only": (
        signed(
            AUTHORITY, "x", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), dns=NAMES
        ),
        NOW, "may not be used for server auth",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_has_its_sentence(case: str) -> None:
    pair, now, words = FAULTS[case]
    found = faults_of_pair(pair, AUTHORITY.certificate, NAMES, now, "tls.crt")
    assert len(found) == 1, found
    assert re.match(f"tls.crt:? .*{words}", found[0]), found


P_256, UNKNOWN_CURVE = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")
EC_KEY, UNKNOWN_KEY = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f")
NAMES_ID, OTHER_ID = bytes.fromhex("0603551d11"), bytes.fromhex("0603551d7f")
TWICE = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.127"), b"\x30\x00")


def malformed(certificate: bytes, before: bytes, after: bytes) -> bytes:
    """Return a certificate that is read in PEM, and has a part that cannot be."""
    der = x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
    assert before in der
    text = base64.encodebytes(der.replace(before, after))
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


MALFORMED = {
    "an unknown curve": malformed(GOOD.certificate, P_256, UNKNOWN_CURVE),
    "an unknown kind of key": malformed(GOOD.certificate, EC_KEY, UNKNOWN_KEY),
    "an extension twice": malformed(
        signed(AUTHORITY, "x", TWICE, dns=NAMES).certificate, OTHER_ID, NAMES_ID
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_certificate_is_a_fault_and_no_error(case: str) -> None:
    pem = MALFORMED[case]
    found = faults_of_pair(Pair(pem, GOOD.key), AUTHORITY.certificate, NAMES, NOW, "tls.crt")
    assert any("cannot be read" in fault and "issue it anew" in fault for fault in found), found
    assert faults_of_pair(GOOD, pem, NAMES, NOW, "tls.crt")
    found = faults_of_authority(pem, NOW, "ca.crt")
    assert len(found) == 1
    assert found[0].startswith("ca.crt has a part that cannot be read"), found
    content = {"ca.crt": pem, "tls.crt": pem, "tls.key": GOOD.key}
    offer = offer_of_secret(pool(), "mine", content, NOW)
    assert offer.authority is None
    assert {fault.reason for fault in offer.faults} == {"CertificateInvalid"}


def test_good_certificates_have_none() -> None:
    for pair in (GOOD, signed(AUTHORITY, "rsa", dns=NAMES)):
        assert faults_of_pair(pair, AUTHORITY.certificate, NAMES, NOW, "") == []
    assert faults_of_authority(AUTHORITY.certificate, NOW, "ca.crt") == []


def test_a_chain_leads_to_the_authority() -> None:
    root = signed(AUTHORITY, "root", x509.BasicConstraints(ca=True, path_length=1))
    middle = signed(root, "middle", x509.BasicConstraints(ca=True, path_length=0))
    leaf = signed(middle, "leaf", dns=NAMES)
    whole = Pair(leaf.certificate + middle.certificate, leaf.key)
    assert faults_of_pair(whole, root.certificate, NAMES, NOW, "") == []
    assert faults_of_pair(leaf, middle.certificate, NAMES, NOW, "") == []
    assert faults_of_pair(leaf, root.certificate, NAMES, NOW, "")
    longer = Pair(whole.certificate + root.certificate, leaf.key)
    assert faults_of_pair(longer, root.certificate, NAMES, NOW, "") == []
    # The company's authority may sign no authorities.
    assert faults_of_pair(longer, AUTHORITY.certificate, NAMES, NOW, "")


def test_who_is_no_authority_signs_nothing() -> None:
    leaf = signed(GOOD, "leaf", dns=NAMES)
    assert faults_of_pair(leaf, GOOD.certificate, NAMES, NOW, "")


@pytest.mark.parametrize(
    ("pem", "now", "words"),
    [
        (b"", NOW, "is missing"),
        (b"?", NOW, "not a certificate"),
        (GOOD.certificate, NOW, "is no authority"),
        (AUTHORITY.certificate, NOW + AUTHORITY_LIFE, "has expired"),
    ],
)
def test_faults_of_authorities(pem: bytes, now: datetime, words: str) -> None:
    found = faults_of_authority(pem, now, "ca.crt")
    assert len(found) == 1
    assert words in found[0]


ALL = [name for role in Role for name in names_of(role, pool())]
ONE = issue(AUTHORITY, ALL, NOW)
SECRET = {"ca.crt": AUTHORITY.certificate, "tls.crt": ONE.certificate, "tls.key": ONE.key}


def test_one_certificate_with_all_names_serves_all_roles() -> None:
    offer = offer_of_secret(pool(), "mine", SECRET, NOW)
    assert offer.faults == ()
    assert offer.authority == Pair(AUTHORITY.certificate, b"")
    assert set(offer.leaves.values()) == {ONE}


def test_roles_may_have_their_own() -> None:
    own = issue(AUTHORITY, [admin_name("inference/pool-a")], NOW)
    rest = issue(AUTHORITY, [n for n in ALL if not n.startswith("admin.")], NOW)
    content = {
        **SECRET, "tls.crt": rest.certificate, "tls.key": rest.key,
        "admin.crt": own.certificate, "admin.key": own.key,
    }  # fmt: skip
    offer = offer_of_secret(pool(), "mine", content, NOW)
    assert offer.faults == ()
    assert offer.leaves == {Role.NODE: rest, Role.METADATA: rest, Role.ADMIN: own}


def test_a_secret_without_a_name_says_for_whom_it_lacks_it() -> None:
    only_node = issue(AUTHORITY, names_of(Role.NODE, pool()), NOW)
    content = {**SECRET, "tls.crt": only_node.certificate, "tls.key": only_node.key}
    offer = offer_of_secret(pool(), "mine", content, NOW)
    text = "; ".join(fault.message for fault in offer.faults)
    assert offer.authority is None
    assert {fault.reason for fault in offer.faults} == {"CertificateInvalid"}
    assert "pool-a-metadata.inference.svc" in text
    assert "admin.pool-a.inference.memkv" in text
    assert "lacks the DNS name node." not in text


def test_an_authority_for_each_role_is_believed() -> None:
    """As when an issuer's authority changes between two certificates."""
    other = make_authority("company, the next", NOW)
    contents = {}
    for role, signer in zip(Role, (AUTHORITY, other, other), strict=True):
        pair = issue(signer, names_of(role, pool()), NOW)
        contents[role] = {
            "ca.crt": signer.certificate, "tls.crt": pair.certificate, "tls.key": pair.key,
        }  # fmt: skip
    offer = offer_of_secrets(pool(), contents, NOW)
    assert offer.faults == ()
    assert offer.authority == Pair(AUTHORITY.certificate + other.certificate, b"")


def test_a_certificate_is_taken_once_its_authority_is_believed() -> None:
    other = make_authority("the next", NOW)
    new = issue(other, NAMES, NOW)
    for believed, expected in ((AUTHORITY, GOOD), (other, new)):
        assert taken(GOOD, new, Role.NODE, pool(), believed.certificate, NOW) == expected
    stranger = make_authority("x", NOW).certificate
    assert taken(GOOD, new, Role.NODE, pool(), stranger, NOW) is None
    assert taken(None, None, Role.NODE, pool(), stranger, NOW) is None
