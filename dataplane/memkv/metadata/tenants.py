"""Whose blocks a subject's are: a pool's `tenants`, and the rule for everyone they do not name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memkv.errors import CallerError, ConfigError
from memkv.tenant import check_tenant_name

Subject = tuple[str, str]
"""(namespace, name) of a ServiceAccount."""


@dataclass(frozen=True, slots=True)
class TenantMap:
    """Subjects by tenant. Who is not named belongs to a tenant called after its namespace."""

    named: Mapping[Subject, str] = field(default_factory=dict)

    def tenant_of(self, namespace: str, name: str) -> str:
        """Return the tenant of a ServiceAccount."""
        return self.named.get((namespace, name), namespace)


def parse_tenants(text: str) -> TenantMap:
    """Read `{"tenants": [{"name": ..., "subjects": [{"namespace": ..., "name": ...}]}]}`, as a
    MemKVPool has it; other fields are left alone. ConfigError for anything else, and for a subject
    of two tenants."""
    named: dict[Subject, str] = {}
    try:
        for tenant in json.loads(text)["tenants"]:
            name = str(tenant["name"])
            check_tenant_name(name)
            for subject in tenant.get("subjects", ()):
                who = (str(subject["namespace"]), str(subject["name"]))
                if named.setdefault(who, name) != name:
                    raise ConfigError(
                        f"{who[0]}/{who[1]} stands in tenants {named[who]!r} and {name!r}: a "
                        "subject has one"
                    )
    except (ValueError, KeyError, TypeError, AttributeError, CallerError) as error:
        raise ConfigError(
            'not of the form {"tenants": [{"name": NAME, "subjects": [{"namespace": NAMESPACE, '
            f'"name": NAME}}]}}]}} ({error})'
        ) from error
    return TenantMap(named)


class TenantFile:
    """A tenant map in a file, read anew when it is asked for. For one thread."""

    def __init__(self, path: Path | None) -> None:
        """None: nobody is named. ConfigError when the file is missing or unfit."""
        self._path = path
        self._seen = ""
        self._map = TenantMap()
        if path is not None:
            self._read(path)

    def __call__(self) -> TenantMap:
        """Return the newest good map; a damaged file leaves the one before."""
        if self._path is not None:
            try:
                self._read(self._path)
            except ConfigError:
                return self._map
        return self._map

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            if text != self._seen:
                self._map = parse_tenants(text)
                self._seen = text
        except (OSError, ConfigError) as error:
            raise ConfigError(f"the tenants in {path}: {error}") from error
