"""Who belongs to which tenant of a pool."""

from collections.abc import Mapping, Sequence

from memkv_operator.api.pool import Tenant

Subject = tuple[str, str]
"""(namespace, name) of a ServiceAccount."""


def owners_of(tenants: Sequence[Tenant]) -> dict[Subject, str]:
    """Return the tenant of each subject that is named: the first one that names it."""
    owners: dict[Subject, str] = {}
    for tenant in tenants:
        for subject in tenant.subjects:
            owners.setdefault(subject, tenant.name)
    return owners


def contested(tenants: Sequence[Tenant]) -> Mapping[Subject, Sequence[str]]:
    """Return the subjects that several tenants name, and these in the order of the spec."""
    named: dict[Subject, list[str]] = {}
    for tenant in tenants:
        for subject in tenant.subjects:
            named.setdefault(subject, []).append(tenant.name)
    return {subject: names for subject, names in sorted(named.items()) if len(names) > 1}
