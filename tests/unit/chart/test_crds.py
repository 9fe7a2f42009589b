"""What can be said of the CRDs without an API server; tests/apiserver asks a real one."""

from pathlib import Path

import pytest

from memkv_operator.testing.crds import (
    CEL,
    Object,
    child,
    kind_of,
    objects,
    read_cases,
    read_yaml,
    rules_of,
    schema_of,
    walk,
)

ROOT = Path(__file__).resolve().parents[3]
CRDS = {kind_of(crd): crd for crd in map(read_yaml, (ROOT / "charts/memkv/files/crds").glob("*"))}
CASE_FILES = sorted((ROOT / "tests/apiserver/cases").glob("*.yaml"))
CASES = [case for path in CASE_FILES for case in read_cases(path)]

# What a schema may say here. A description that is not quoted inside {...} ends at its first comma
# and the rest of it becomes keys like these, which YAML takes without a word.
KEYS = {
    "additionalProperties", "default", "description", "enum", "fieldPath", "format", "items",
    "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties",
    "minimum", "pattern", "properties", "required", "type", CEL, "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip


def test_the_chart_has_three_kinds() -> None:
    assert set(CRDS) == {"MemKVPool", "MemKVNode", "MemKVShardMap"}


@pytest.mark.parametrize("kind", CRDS)
def test_schemas_are_structural(kind: str) -> None:
    """Every field has one type, every list says how it is merged, nothing unknown is said."""
    for path, schema in walk(schema_of(CRDS[kind])):
        assert schema.keys() <= KEYS, path
        typeless = schema.get("x-kubernetes-int-or-string") is True
        assert ("type" in schema) != typeless, path
        if schema.get("type") == "array":
            assert "items" in schema, path
            assert "x-kubernetes-list-type" in schema, path
        if schema.get("type") == "object":
            open_end = {
                "properties",
                "additionalProperties",
                "x-kubernetes-preserve-unknown-fields",
            }
            assert open_end & schema.keys() or path == ".metadata", path
        if schema.get("x-kubernetes-list-type") == "map":
            keys = schema["x-kubernetes-list-map-keys"]
            assert isinstance(keys, list), path
            required = child(schema, "items").get("required")
            assert isinstance(required, list), path
            assert set(keys) <= set(required), path


@pytest.mark.parametrize("kind", CRDS)
def test_everything_in_spec_is_bounded(kind: str) -> None:
    """Without bounds the API server finds the CEL rules of a schema too dear."""
    spec = child(schema_of(CRDS[kind]), "properties", "spec")
    for path, schema in walk(spec, ".spec"):
        free = "enum" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        elif schema.get("type") == "string" or schema.get("x-kubernetes-int-or-string"):
            assert free or "maxLength" in schema or "default" in schema, path
        elif "additionalProperties" in schema:
            assert "maxProperties" in schema, path


@pytest.mark.parametrize("kind", CRDS)
def test_defaults_that_stand_twice_are_equal(kind: str) -> None:
    """Objects with rules spell out the defaults of their fields, so both must say the same."""
    compared = 0
    for path, schema in walk(schema_of(CRDS[kind])):
        spelled = schema.get("default")
        if not isinstance(spelled, dict):
            continue
        compared += len(spelled)
        for name, value in spelled.items():
            field = child(schema, "properties", name)
            assert value == _default_of(field), f"{path}.{name}"
    assert kind != "MemKVPool" or compared >= 20


def _default_of(field: Object) -> object:
    """Return what a field becomes that is left out."""
    if "default" in field or field.get("type") != "object":
        return field.get("default")
    inner = {
        name: _default_of(child(field, "properties", name)) for name in child(field, "properties")
    }
    return {name: value for name, value in inner.items() if value is not None}


@pytest.mark.parametrize("kind", CRDS)
def test_objects_with_rules_have_a_default_that_says_what_rules_read(kind: str) -> None:
    """The API server checks a default against the rules before it fills nested defaults in."""
    for path, schema in walk(schema_of(CRDS[kind])):
        if schema.get(CEL) and "default" in schema:
            assert schema["default"], f"{path}: spell the default out"


@pytest.mark.parametrize("kind", CRDS)
def test_every_rule_has_a_case_that_it_refuses(kind: str) -> None:
    """That the rule is what refuses it is seen on the API server."""
    refusals = [case.message for case in CASES if not case.accept and case.manifest["kind"] == kind]
    for rule in rules_of(CRDS[kind]):
        assert any(message and message in rule.message for message in refusals), rule


def test_case_names_are_unique_and_refusals_say_why() -> None:
    names = [(case.manifest["kind"], case.name) for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.message for case in CASES if not case.accept)
    assert not any(case.message for case in CASES if case.accept)
    accepted = sum(case.accept for case in CASES)
    print(f"{accepted} accepted, {len(CASES) - accepted} refused")


@pytest.mark.parametrize("kind", CRDS)
def test_conditions_are_those_of_kubernetes(kind: str) -> None:
    """metav1.Condition as a list that server-side apply merges by type."""
    fields = dict(walk(schema_of(CRDS[kind])))
    if kind == "MemKVShardMap":
        assert not any(path.startswith(".status") for path in fields)
        return
    conditions = fields[".status.conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    names = {"type", "status", "observedGeneration", "lastTransitionTime", "reason", "message"}
    assert child(conditions, "items", "properties").keys() == names
    assert ".status.observedGeneration" in fields


def test_samples_name_each_other_nowhere_and_are_pools() -> None:
    samples = [read_yaml(path) for path in sorted((ROOT / "deploy/samples").glob("*.yaml"))]
    names = [child(sample, "metadata")["name"] for sample in samples]
    assert {
        "bare-metal-rdma.yaml",
        "cloud.yaml",
        "bluefield-dpu.yaml",
        "kind.yaml",
        "pool.yaml",
        "secure.yaml",
    } <= {path.name for path in (ROOT / "deploy/samples").glob("*.yaml")}
    assert len(set(names)) == len(names)
    for sample in samples:
        assert sample["kind"] == "MemKVPool"
        assert objects(child(sample, "spec"), "nodeGroups")
