"""Tenants: names and tags."""

import pytest

from memkv.errors import CallerError
from memkv.tenant import Tenant, tenant_tag


@pytest.mark.parametrize("name", ["a", "default", "team-a", "a.b-c.9", "x" * 253])
def test_namespace_like_names_are_taken(name: str) -> None:
    assert len(Tenant.named(name).tag) == 16


@pytest.mark.parametrize(
    "name", ["", "A", "a_b", "-a", "a-", "a.", "a/b", "a\n", "é", "x" * 254, "a b"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(CallerError, match="tenant name"):
        tenant_tag(name)


def test_names_have_different_tags() -> None:
    assert len({tenant_tag(f"tenant-{n}") for n in range(1000)}) == 1000


def test_a_tenant_cannot_carry_another_ones_tag() -> None:
    with pytest.raises(CallerError, match="not that of tenant 'a'"):
        Tenant("a", tenant_tag("b"))
