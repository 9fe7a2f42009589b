"""Finds certificates that others make for a pool: cert-manager, or whoever fills a Secret."""

import logging
from collections.abc import Mapping

from memkv.clock import Clock
from memkv.errors import MemKVError
from memkv.metadata.kubernetes.errors import Forbidden, NotFound
from memkv.metadata.kubernetes.json_values import JsonObject, Manifest, Reader
from memkv_operator.api.meta import owner_reference, read_meta
from memkv_operator.api.names import (
    CERTIFICATES,
    POOLS,
    SECRETS,
    certificate_name,
    identity_name,
    metadata_secret_name,
    node_secret_name,
)
from memkv_operator.api.pool import Pool
from memkv_operator.api.times import utc
from memkv_operator.identity.certificates import certificate, not_ready_because
from memkv_operator.identity.offers import (
    INVALID,
    UNAVAILABLE,
    Offer,
    offer_of_secret,
    offer_of_secrets,
)
from memkv_operator.identity.roles import Role
from memkv_operator.identity.secrets import content_of
from memkv_operator.kube.objects import Objects
from memkv_operator.plan.children import unchanged
from memkv_operator.plan.identity import Fault
from memkv_operator.plan.strangers import NameTaken, check_ours

log = logging.getLogger("memkv.operator.identity")

CERT_MANAGER, SECRET = "CertManager", "Secret"


class Offers:
    """Looks for certificates at the API server."""

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock

    async def find(self, pool: Pool) -> Offer:
        """Return what others offer now; nothing for a pool that signs for itself."""
        if pool.spec.tls_mode == SECRET:
            return await self._of_secret(pool)
        if pool.spec.tls_mode == CERT_MANAGER:
            return await self._of_cert_manager(pool)
        return Offer()

    async def withdraw(self, pool: Pool) -> None:
        """Delete the Certificates of a pool that does not want any more. What fails is logged:
        they do no harm."""
        for role in Role:
            name = certificate_name(pool.meta.name, role.value)
            try:
                found = await self._objects.get(CERTIFICATES, pool.meta.namespace, name)
                meta = read_meta(Reader(found)) if found is not None else None
                if meta is not None and pool.meta.uid in meta.owners:
                    namespace = pool.meta.namespace
                    await self._objects.delete(CERTIFICATES, namespace, name, meta.uid)
            except MemKVError as error:
                log.warning("pool %s: Certificate %s stays: %s", pool.key, name, error)

    async def _of_secret(self, pool: Pool) -> Offer:
        name = pool.spec.tls_secret
        own = (identity_name, node_secret_name, metadata_secret_name)
        if name in [name_of(pool.meta.name) for name_of in own]:
            message = (
                f"metadata.tls.secretName is {name}, which the operator itself writes: put the "
                "certificates into a Secret of another name"
            )
            return Offer(faults=(Fault(INVALID, message),))
        found = await self._objects.get(SECRETS, pool.meta.namespace, name)
        if found is None:
            message = (
                f"there is no Secret {name} in namespace {pool.meta.namespace} "
                "(metadata.tls.secretName): make it with ca.crt, tls.crt and tls.key"
            )
            return Offer(faults=(Fault(UNAVAILABLE, message),))
        return offer_of_secret(pool, name, content_of(found), utc(self._clock.wall_s()))

    async def _of_cert_manager(self, pool: Pool) -> Offer:
        contents: dict[Role, Mapping[str, bytes]] = {}
        faults: list[Fault] = []
        for role in Role:
            try:
                live = await self._ask_for(pool, role)
            except (NotFound, Forbidden) as error:
                return Offer(faults=(_cannot_ask(error),))
            except NameTaken as error:
                return Offer(faults=(Fault("NameTaken", str(error)),))
            name = certificate_name(pool.meta.name, role.value)
            secret = await self._objects.get(SECRETS, pool.meta.namespace, name)
            if problem := not_ready_because(Reader(live)):
                reason = INVALID if secret is not None else UNAVAILABLE
                faults.append(Fault(reason, _not_issued(pool, name, problem)))
            if secret is not None:
                contents[role] = content_of(secret)
                await self._own(pool, name, secret)
            elif not problem:
                gone = f"Secret {name} is not there, though its Certificate is Ready"
                faults.append(Fault(UNAVAILABLE, gone))
        if len(contents) < len(Role):
            return Offer(faults=tuple(faults))
        offer = offer_of_secrets(pool, contents, utc(self._clock.wall_s()))
        return Offer(offer.authority, offer.leaves, (*faults, *offer.faults))

    async def _ask_for(self, pool: Pool, role: Role) -> JsonObject:
        """Return the Certificate of a role as it is now, made or mended if need be. NameTaken where
        somebody else has one of its name."""
        child = certificate(pool, role)
        live = await self._objects.get(CERTIFICATES, pool.meta.namespace, child.name)
        if live is not None:
            check_ours(pool, CERTIFICATES, live)
            if unchanged(live, child):
                return live
        return await self._objects.apply(
            CERTIFICATES, pool.meta.namespace, child.name, child.manifest
        )

    async def _own(self, pool: Pool, name: str, secret: JsonObject) -> None:
        """Have the Secret go with its pool: cert-manager would leave it."""
        meta = read_meta(Reader(secret))
        if pool.meta.uid in meta.owners:
            return
        patch: Manifest = {
            "metadata": {
                "resourceVersion": meta.resource_version,
                "ownerReferences": [owner_reference(POOLS, pool.meta)],
            }
        }
        await self._objects.merge(SECRETS, pool.meta.namespace, name, patch)


def _cannot_ask(error: MemKVError) -> Fault:
    if isinstance(error, NotFound):
        return Fault(
            "CertManagerMissing",
            "metadata.tls.mode is CertManager, and this cluster has no cert-manager.io/v1: install "
            "cert-manager, or say SelfSigned, and the operator makes the certificates itself",
        )
    return Fault(
        "CertManagerForbidden",
        "metadata.tls.mode is CertManager, and the operator has no right to make Certificates: "
        f"upgrade its chart with certManager.enabled=true ({error})",
    )


def _not_issued(pool: Pool, name: str, problem: str) -> str:
    issuer = pool.spec.issuer
    return (
        f"cert-manager has not issued {name} ({problem}): look at `kubectl describe certificate "
        f"{name} -n {pool.meta.namespace}` and at {issuer.kind} {issuer.name}"
    )
