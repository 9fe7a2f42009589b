"""Whose blocks a subject's are."""

import json
from pathlib import Path

import pytest

from memkv.errors import ConfigError
from memkv.metadata.tenants import TenantFile, parse_tenants

SUBJECT = {"namespace": "a", "name": "engine"}


def document(*tenants: object) -> str:
    return json.dumps({"tenants": tenants})


def test_subjects_belong_to_who_names_them_and_others_to_their_namespace() -> None:
    found = parse_tenants(document({"name": "shared", "subjects": [SUBJECT], "flashQuota": "1Gi"}))
    assert found.tenant_of("a", "engine") == "shared"
    assert found.tenant_of("a", "other") == "a"
    assert found.tenant_of("b", "engine") == "b"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"tenants": 1}', document(7), document({"subjects": []}),
     document({"name": "No Name"}), document({"name": "t", "subjects": ["a/engine"]}),
     document({"name": "t", "subjects": [{"name": "engine"}]}),
     document({"name": "t", "subjects": [SUBJECT]}, {"name": "u", "subjects": [SUBJECT]})],
)  # fmt: skip
def test_unfit_documents_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_tenants(text)


def test_replaced_file_is_taken_over_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "tenants.json"
    path.write_text(document({"name": "one", "subjects": [SUBJECT]}))
    tenants = TenantFile(path)
    assert tenants().tenant_of("a", "engine") == "one"
    path.write_text(document({"name": "two", "subjects": [SUBJECT]}))
    assert tenants().tenant_of("a", "engine") == "two"
    path.write_text("half a fi")
    assert tenants().tenant_of("a", "engine") == "two"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        TenantFile(tmp_path / "nowhere")
