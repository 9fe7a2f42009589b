"""Tenants: whose block a block is. The name is for people, the tag is on flash and in roots."""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol, Self

from memkv.errors import CallerError
from memkv.limits import TENANT_NAME_BYTES_MAX, TENANT_TAG_BYTES

# Kubernetes names (a namespace, or tenants[].name of a pool): safe in labels, paths and logs.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.ASCII)


def check_tenant_name(name: str) -> None:
    """Raise CallerError unless `name` can be a tenant's name."""
    if not name or len(name) > TENANT_NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise CallerError(
            f"tenant name {name!r} is not 1 to {TENANT_NAME_BYTES_MAX} lower-case letters, digits,"
            " '-' or '.', with a letter or digit at both ends; use a namespace-like name"
        )


def tenant_tag(name: str) -> bytes:
    """Return the 16 bytes that stand for a tenant. Raises CallerError for a bad name."""
    check_tenant_name(name)
    return hashlib.blake2b(
        name.encode(), digest_size=TENANT_TAG_BYTES, person=b"memkv-tenant"
    ).digest()


class TenantScope(Protocol):
    """Whose blocks a call is about."""

    @property
    def name(self) -> str:
        """For people; "" when only the tag is known."""

    @property
    def tag(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TaggedTenant:
    """A tenant of whom another worker told the tag. Workers among themselves only: whoever speaks
    for a tenant proves its name, and has a `Tenant`."""

    tag: bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's name with its tag; cannot be made with another tenant's tag."""

    name: str
    tag: bytes

    def __post_init__(self) -> None:
        if self.tag != tenant_tag(self.name):
            raise CallerError(f"the tag {self.tag.hex()} is not that of tenant {self.name!r}")

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the tenant of this name. Raises CallerError for a bad name."""
        return cls(name, tenant_tag(name))
