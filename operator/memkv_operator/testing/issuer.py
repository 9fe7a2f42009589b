"""A cert-manager for tests: the kind Certificate, and an issuer that signs what is asked."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from memkv.metadata.kubernetes.api_server import APPLY, ApiServer
from memkv.metadata.kubernetes.json_values import JsonObject
from memkv_operator.api.names import CERTIFICATES, SECRETS
from memkv_operator.identity.authority import Pair, make_authority

_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "certificates.cert-manager.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a test's own"},
    },
    "spec": {
        "group": CERTIFICATES.group,
        "names": {"kind": "Certificate", "plural": "certificates", "singular": "certificate"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                **_ANYTHING, "required": ["secretName", "issuerRef"],
                            },
                            "status": _ANYTHING,
                        },
                    }
                },
            }
        ],
    },
}  # fmt: skip
_USAGES = {
    "server auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}


class Issuer:
    """Signs the Certificates of a namespace when it is asked to look at them."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self.authority = make_authority("test issuer", datetime.now(UTC))
        self.refusal = ""
        """Why nothing is signed; empty: everything is."""
        self.left_out: frozenset[str] = frozenset()
        """DNS names that do not get into certificates, as by a policy of the issuer."""
        self._signed: dict[str, tuple[bytes, object]] = {}

    async def tick(self) -> None:
        """Sign what is new, changed, or signed by the authority before."""
        listed: Any = await self._api.request("GET", CERTIFICATES.path(self._namespace))
        for item in listed["items"]:
            name, spec = item["metadata"]["name"], item["spec"]
            if self.refusal:
                await self._tell(name, "False", "Failed", self.refusal)
            elif self._signed.get(name) != (self.authority.certificate, spec):
                await self._write(spec["secretName"], self._sign(spec))
                await self._tell(name, "True", "Ready", "Certificate is up to date")
                self._signed[name] = self.authority.certificate, spec

    def _sign(self, spec: dict[str, Any]) -> Pair:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        signer = x509.load_pem_x509_certificate(self.authority.certificate)
        signing = load_pem_private_key(self.authority.key, password=None)
        assert isinstance(signing, ec.EllipticCurvePrivateKey)
        names = [x509.DNSName(n) for n in spec["dnsNames"] if n not in self.left_out]
        hours = int(spec["duration"].partition("h")[0])
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spec["commonName"])]))
            .issuer_name(signer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=hours))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([_USAGES[u] for u in spec["usages"] if u in _USAGES]),
                critical=False,
            )
            .sign(signing, hashes.SHA256())
        )
        return Pair(
            made.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    async def _write(self, name: str, pair: Pair) -> None:
        content = {
            "ca.crt": self.authority.certificate, "tls.crt": pair.certificate, "tls.key": pair.key,
        }  # fmt: skip
        secret: JsonObject = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self._namespace},
            "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
        }
        query = {"fieldManager": "cert-manager", "force": "true"}
        path = SECRETS.path(self._namespace, name)
        await self._api.request("PATCH", path, query, secret, APPLY)

    async def _tell(self, name: str, status: str, reason: str, message: str) -> None:
        body: JsonObject = {
            "apiVersion": CERTIFICATES.api_version,
            "kind": CERTIFICATES.kind,
            "metadata": {"name": name, "namespace": self._namespace},
            "status": {
                "conditions": [
                    {"type": "Ready", "status": status, "reason": reason, "message": message}
                ]
            },
        }
        query = {"fieldManager": "cert-manager", "force": "true"}
        path = CERTIFICATES.path(self._namespace, name, "status")
        await self._api.request("PATCH", path, query, body, APPLY)
