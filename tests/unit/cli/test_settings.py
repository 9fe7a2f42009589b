"""Where a value comes from, and what is said about a bad one."""

import json
from pathlib import Path

import pytest

from memkv.cli import main, settings
from memkv.cli.settings import CONNECTION, DEADLINE, ENDPOINT, TENANT, Settings, UsageError
from memkv.cli.up import CAPACITY, NODES

FIELDS = (*CONNECTION, NODES, CAPACITY)


def resolved(
    tmp_path: Path, *, flags: dict[str, str] | None = None, variables: dict[str, str] | None = None,
    toml: str | None = None, connection: object = None,
) -> Settings:  # fmt: skip
    sources = [
        settings.flag_source(flags or {}), settings.environment_source(variables or {})
    ]  # fmt: skip
    if toml is not None:
        path = tmp_path / "memkv.toml"
        path.write_text(toml)
        sources.append(settings.file_source(path, FIELDS, main.all_fields()))
    connection_path = tmp_path / "connection.json"
    if connection is not None:
        connection_path.write_text(json.dumps(connection))
    sources.append(settings.connection_source(connection_path))
    return settings.resolve(FIELDS, sources)


def test_each_place_overrides_the_next(tmp_path: Path) -> None:
    flags = {"MEMKV_ENDPOINT": "flag:1"}
    variables = {"MEMKV_ENDPOINT": "variable:2", "MEMKV_TENANT": "variable"}
    toml = 'endpoint = "file:3"\ntenant = "file"\npool = "file/pool"\n[up]\nnodes = 5\n'
    connection = {"endpoint": "pod:4", "pool": "pod/pool", "deadline": "3s", "certificate": "x"}
    found = resolved(
        tmp_path, flags=flags, variables=variables, toml=toml, connection=connection
    )
    assert found[ENDPOINT] == "flag:1"
    assert found[TENANT] == "variable"
    assert found[settings.POOL] == "file/pool"
    assert found[DEADLINE] == 3000
    assert found[NODES] == 5
    assert found.origin(ENDPOINT) == "--endpoint"
    assert found.origin(TENANT) == "MEMKV_TENANT"
    assert found.origin(NODES).endswith("memkv.toml: [up] nodes")
    assert found.is_default(CAPACITY)


def test_a_variable_that_is_empty_is_not_set(tmp_path: Path) -> None:
    assert resolved(tmp_path, variables={"MEMKV_TENANT": ""})[TENANT] == "default"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flags": {"MEMKV_UP_CAPACITY": "2G"}}, "--capacity: '2G' is not a size"),
        ({"variables": {"MEMKV_ENDPOINT": "here"}}, "MEMKV_ENDPOINT: 'here' is not HOST:PORT"),
        ({"toml": "[up]\nnodes = 0\n"}, r"memkv.toml: \[up\] nodes: '0' is not a whole number"),
        ({"connection": {"endpoint": 7}}, "connection.json: endpoint: '7' is not HOST:PORT"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_place(
    tmp_path: Path, given: dict[str, dict[str, str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolved(tmp_path, **given)  # type: ignore[arg-type]  # one keyword of several types


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("endpont = 'a:1'", "unknown name endpont; did you mean endpoint"),
        ("[up]\nnode = 3", r"unknown name \[up\] node; did you mean nodes"),
        ("[upp]\nnodes = 3", r"unknown table \[upp\]; did you mean up"),
        ("[node]\nnaem = 'x'", r"unknown name \[node\] naem; did you mean name"),
        ("capacity = '1GiB'", r"unknown name capacity; it belongs to \[node\] or \[up\]"),
        ("[up]\nendpont = 'a:1'", r"unknown name \[up\] endpont; did you mean endpoint"),
        ("nodes = ", "not TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolved(tmp_path, toml=toml)


def test_one_file_serves_every_command(tmp_path: Path) -> None:
    """What other commands read is left alone, at the top of the file too."""
    toml = 'log_level = "debug"\n[node]\ncapacity = "1GiB"\n[up]\nnodes = 2\n[top]\ninterval = 5\n'
    found = resolved(tmp_path, toml=toml)
    assert found[NODES] == 2
    assert found.is_default(CAPACITY)


def test_braces_in_the_name_of_a_file_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "{flag}.toml"
    path.write_text("[up]\nnodes = 0\n")
    source = settings.file_source(path, FIELDS, main.all_fields())
    with pytest.raises(UsageError, match=r"\{flag\}\.toml: \[up\] nodes"):
        settings.resolve(FIELDS, [source])


def test_lists_and_switches_of_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "memkv.toml"
    path.write_text('[node]\ninsecure = true\ndrives = ["/dev/a", "/dev/b"]\n')
    fields = main.load("node").fields
    found = settings.resolve(fields, [settings.file_source(path, fields, main.all_fields())])
    values = {field.name: found[field] for field in fields}
    assert values["insecure"] is True
    assert values["drives"] == ("/dev/a", "/dev/b")


def test_defaults_are_shown_as_one_would_write_them() -> None:
    """What help and the manual show can be given back, and says the same."""
    for field in main.all_fields():
        text = field.default_text
        if text and not field.default_shown:
            assert field.parse(text) == field.default, field.variable


def test_a_missing_file_is_an_error_and_a_missing_connection_file_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        settings.file_source(tmp_path / "none.toml", FIELDS, main.all_fields())
    assert resolved(tmp_path)[ENDPOINT] == "127.0.0.1:7443"


def test_a_broken_connection_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "connection.json").write_text("{")
    with pytest.raises(UsageError, match=r"connection\.json"):
        settings.connection_source(tmp_path / "connection.json")
