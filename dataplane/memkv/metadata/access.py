"""How a metadata service finds out who calls: by nothing, by certificate, or by token."""

import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from memkv.clock import Clock
from memkv.errors import ConfigError
from memkv.metadata.bearer import AUDIENCE, ServiceAccount, TokenCallers
from memkv.metadata.callers import Anyone, Authenticator, Caller, Presented, Unauthenticated
from memkv.metadata.certificates import admin_name, node_name
from memkv.metadata.tenants import TenantFile, TenantMap
from memkv.wire.ticket import Rights

_SPIFFE = re.compile(r"spiffe://[^/]+/ns/([^/]+)/sa/([^/]+)")


class Mode(Enum):
    """What proves a caller."""

    NONE = "none"
    """Nothing beyond the connection: everyone who can make one is trusted."""
    CERTIFICATE = "certificate"
    SERVICE_ACCOUNT = "serviceaccount"


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Whom a metadata service lets in."""

    mode: Mode = Mode.NONE
    tenants: Path | None = None
    """Names subjects of tenants; None: each namespace is one."""
    node_accounts: frozenset[ServiceAccount] = frozenset()
    """ServiceAccounts of the pool's nodes, where tokens prove callers."""
    audience: str = AUDIENCE
    """Whom tokens must be meant for."""

    @property
    def asks_certificate(self) -> bool:
        """Whether a client without a certificate gets no connection."""
        return self.mode is not Mode.SERVICE_ACCOUNT

    def check(self, *, has_tls: bool) -> None:
        """Raise ConfigError for what would prove nothing."""
        if self.mode is not Mode.NONE and not has_tls:
            raise ConfigError(
                f"--auth {self.mode.value} needs --tls-cert, --tls-key and --tls-ca: without TLS "
                "whoever listens takes the tokens, and there are no certificates"
            )


class CertificateCallers:
    """Callers by the names in their certificate.

    spiffe://DOMAIN/ns/NAMESPACE/sa/NAME is a ServiceAccount, as cert-manager's csi-driver-spiffe
    and SPIRE write it; the pool's node name is a node, and its admin name may be any tenant.
    """

    def __init__(self, pool: str, tenants: Callable[[], TenantMap]) -> None:
        self._node_name = node_name(pool)
        self._admin_name = admin_name(pool)
        self._tenants = tenants

    async def caller(self, presented: Presented) -> Caller:
        if self._node_name in presented.certificate_names:
            return Caller(self._node_name, rights=Rights.PEER)
        if self._admin_name in presented.certificate_names:
            return Caller(self._admin_name, any_tenant=True)
        for name in presented.certificate_names:
            if found := _SPIFFE.fullmatch(name):
                account = ServiceAccount(*found.groups())
                tenant = self._tenants().tenant_of(account.namespace, account.name)
                return Caller(account.user, tenant)
        raise Unauthenticated(
            "the certificate names nobody: it needs a URI spiffe://DOMAIN/ns/NAMESPACE/sa/NAME, "
            f"or for a node the DNS name {self._node_name}"
        )


async def open_access(
    config: AccessConfig, pool: str, clock: Clock, stack: AsyncExitStack
) -> Authenticator:
    """Return who lets callers in; what it opens is closed with the stack. ConfigError."""
    if config.mode is Mode.NONE:
        return Anyone()
    tenants = TenantFile(config.tenants)
    if config.mode is Mode.CERTIFICATE:
        return CertificateCallers(pool, tenants)
    from memkv.metadata.kubernetes.api_server import connect_api_server
    from memkv.metadata.kubernetes.reviews import ApiReviewer

    api = await connect_api_server()
    stack.push_async_callback(api.close)
    return TokenCallers(
        ApiReviewer(api, pool, config.audience),
        tenants,
        clock,
        config.node_accounts,
        config.audience,
    )
