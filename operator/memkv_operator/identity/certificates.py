"""What cert-manager is asked for (metadata.tls.mode CertManager): a Certificate for each role.

Pure: manifests only.
"""

from memkv.metadata.kubernetes.json_values import Manifest, Reader
from memkv_operator.api.meta import child_meta
from memkv_operator.api.names import (
    CERTIFICATES,
    COMPONENT_METADATA,
    COMPONENT_NODE,
    POOLS,
    certificate_name,
    pool_labels,
)
from memkv_operator.api.pool import Pool
from memkv_operator.identity.authority import LEAF_LIFE
from memkv_operator.identity.roles import Role, names_of
from memkv_operator.render.children import Child, stamped

HOUR_S = 3600


def certificate(pool: Pool, role: Role) -> Child:
    """Return the Certificate of a role. Its Secret has the same name."""
    component = COMPONENT_NODE if role is Role.NODE else COMPONENT_METADATA
    name = certificate_name(pool.meta.name, role.value)
    labels = pool_labels(pool.meta.name, component)
    life_h = int(LEAF_LIFE.total_seconds()) // HOUR_S
    manifest: Manifest = {
        "apiVersion": CERTIFICATES.api_version,
        "kind": CERTIFICATES.kind,
        "metadata": child_meta(POOLS, pool.meta, name, labels),
        "spec": {
            "secretName": name,
            "secretTemplate": {"labels": dict(labels)},
            "commonName": "memkv",  # has room for 64 characters; checks go by the names below
            "dnsNames": list(names_of(role, pool)),
            "duration": f"{life_h}h0m0s",
            "renewBefore": f"{life_h // 3}h0m0s",
            "usages": ["digital signature", "server auth", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {
                "name": pool.spec.issuer.name,
                "kind": pool.spec.issuer.kind,
                "group": pool.spec.issuer.group,
            },
        },
    }
    return stamped(manifest)


def not_ready_because(certificate: Reader) -> str:
    """Return what a live Certificate says of itself; empty when it is ready."""
    said = ""
    for condition in certificate.object("status").objects("conditions"):
        text = f"{condition.text('reason')}: {condition.text('message')}"
        if condition.text("type") == "Ready":
            if condition.text("status") == "True":
                return ""
            said = said or text
        if condition.text("type") == "Issuing" and condition.text("reason") == "Failed":
            said = text
    return said or "cert-manager has not looked at it yet: is its controller running?"
