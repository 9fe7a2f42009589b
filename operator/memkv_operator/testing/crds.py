"""The chart's CRDs and the accept/refuse cases of tests/apiserver/cases, as values.

Nothing here speaks to an API server. A CRD is a plain dict, as it is sent; what is changed is a
copy.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

Object = dict[str, object]

CEL = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule of a schema."""

    path: str
    """Of the schema that carries it, as .spec.nodeGroups[]"""
    position: int
    """Among the rules of that schema."""
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path or '.'}: {self.message}"


@dataclass(frozen=True, slots=True)
class Case:
    """A manifest, and what an API server makes of it."""

    name: str
    accept: bool
    manifest: Object
    message: str = ""
    """Part of the refusal."""
    existing: Object | None = None
    """Made before; the manifest is an update of it."""
    result: Object | None = None
    """The whole spec after defaulting."""


def read_yaml(path: Path) -> Object:
    """Return the one document of a file. What YAML anchors share is separate afterwards."""
    return cast(Object, json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")))))


def read_all_yaml(path: Path) -> list[Object]:
    """Return the documents of a file. What YAML anchors share is separate afterwards."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    return cast(list[Object], json.loads(json.dumps(documents)))


def child(parent: Object, *names: str) -> Object:
    """Return the object below `parent` at these keys; an empty one where there is none."""
    for name in names:
        parent = cast(Object, parent.get(name) or {})
    return parent


def objects(parent: Object, name: str) -> list[Object]:
    """Return a list of objects below `parent`; an empty one where there is none."""
    return cast(list[Object], parent.get(name) or [])


def kind_of(crd: Object) -> str:
    """Return the kind that a CRD defines."""
    return str(child(crd, "spec", "names")["kind"])


def plural_of(crd: Object) -> str:
    """Return the plural that a CRD defines."""
    return str(child(crd, "spec", "names")["plural"])


def schema_of(crd: Object) -> Object:
    """Return the schema of a CRD's only version."""
    (version,) = objects(child(crd, "spec"), "versions")
    return child(version, "schema", "openAPIV3Schema")


def walk(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Yield every schema in a schema with its path, the outer ones first."""
    yield path, schema
    for name, inner in child(schema, "properties").items():
        yield from walk(cast(Object, inner), f"{path}.{name}")
    if "items" in schema:
        yield from walk(child(schema, "items"), f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(child(schema, "additionalProperties"), f"{path}.*")


def rules_of(crd: Object) -> list[Rule]:
    """Return every CEL rule of a CRD."""
    return [
        Rule(path, position, str(rule["rule"]), str(rule["message"]))
        for path, schema in walk(schema_of(crd))
        for position, rule in enumerate(objects(schema, CEL))
    ]


def without(crd: Object, rules: Iterable[Rule], group: str) -> Object:
    """Return the CRD in another API group and without some of its rules, so that it can stand
    beside the whole one."""
    changed = copy.deepcopy(crd)
    child(changed, "metadata")["name"] = f"{plural_of(crd)}.{group}"
    child(changed, "spec")["group"] = group
    names = child(changed, "spec", "names")
    names.pop("shortNames", None)
    names.pop("categories", None)
    carriers = dict(walk(schema_of(changed)))
    for rule in sorted(rules, key=lambda rule: -rule.position):
        del objects(carriers[rule.path], CEL)[rule.position]
    return changed


def read_cases(path: Path) -> list[Case]:
    """Return the cases of a file; its first lines say what the keys mean."""
    document = read_yaml(path)
    base = child(document, "base")
    return [_case(base, entry) for entry in objects(document, "cases")]


def _case(base: Object, entry: Object) -> Case:
    known = {"name", "accept", "message", "metadata", "spec", "group", "existing", "result"}
    if unknown := entry.keys() - known:
        raise ValueError(f"case {entry['name']!r}: unknown keys {sorted(unknown)}")
    return Case(
        str(entry["name"]),
        bool(entry["accept"]),
        _laid_over(base, entry),
        str(entry.get("message", "")),
        _laid_over(base, child(entry, "existing")) if "existing" in entry else None,
        child(entry, "result") if "result" in entry else None,
    )


def _laid_over(base: Object, change: Object) -> Object:
    manifest = copy.deepcopy(base)
    for part in ("metadata", "spec"):
        target = child(manifest, part)
        for name, value in child(change, part).items():
            target[name] = value
            if value is None:
                del target[name]
    if group := child(change, "group"):
        objects(child(manifest, "spec"), "nodeGroups")[0].update(group)
    return manifest
