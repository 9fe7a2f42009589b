"""What tells vLLM engines apart: salts and weights, as far as it needs no vLLM."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memkv.integrations.vllm.identity import (
    SALT_BYTES_MAX,
    commit_of,
    effective_digest,
    salt_bytes,
    weights_digest,
)


def test_a_salt_is_its_text_and_a_long_one_a_digest_that_no_text_equals() -> None:
    assert salt_bytes("tenant") == b"tenant"
    assert salt_bytes("") == b""
    long, longer = salt_bytes("s" * (SALT_BYTES_MAX + 1)), salt_bytes("s" * (SALT_BYTES_MAX + 2))
    assert long != longer
    assert len(long) == len(longer) == 33
    assert long[0] == 0xFF  # begins no UTF-8
    assert salt_bytes("\ud800") != salt_bytes("\ud801")  # users may send what is no text


def write_model(folder: Path, weights: bytes, config: str = "{}") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    half = len(weights) // 2
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        "first": {"dtype": "U8", "shape": [half], "data_offsets": [0, half]},
        "second": {"dtype": "U8", "shape": [half], "data_offsets": [half, len(weights)]},
    }).encode()
    file = struct.pack("<Q", len(header)) + header + weights
    (folder / "model.safetensors").write_bytes(file)
    return folder


def test_the_same_weights_elsewhere_are_the_same(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one", bytes(100_000))
    other = write_model(tmp_path / "other", bytes(100_000))
    assert weights_digest(one) == weights_digest(other)


def test_one_changed_tensor_is_another_model(tmp_path: Path) -> None:
    weights = bytearray(100_000)
    one = write_model(tmp_path / "one", bytes(weights))
    weights[50_000:] = b"\1" * 50_000
    assert weights_digest(one) != weights_digest(write_model(tmp_path / "other", bytes(weights)))


def test_another_configuration_is_another_model(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one", bytes(1000))
    other = write_model(tmp_path / "other", bytes(1000), '{"rope_theta": 1}')
    assert weights_digest(one) != weights_digest(other)


def test_weights_of_other_formats_are_sampled_too(tmp_path: Path) -> None:
    folders = []
    for name, content in (("one", b"a" * 100_000), ("other", b"b" * 100_000)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pytorch_model.bin").write_bytes(content)
        folders.append(weights_digest(folder))
    assert folders[0] != folders[1]


class Opaque:
    """Something of a model's own code that is no JSON."""


def model_config(**changed: Any) -> Any:
    """Stand for vLLM's configuration of a model."""
    told = {"quantization": None, "dtype": "torch.bfloat16", "revision": None} | {
        name: changed.pop(name) for name in ("quantization", "dtype", "revision", "commit")
        if name in changed
    }
    fields = {"rope_theta": 10_000.0, "_name_or_path": "here", "own": Opaque()} | changed
    hf_config = SimpleNamespace(to_dict=lambda: fields, _commit_hash=told.pop("commit", None))
    return SimpleNamespace(hf_config=hf_config, **told)


@pytest.mark.parametrize("changed", [
    {"rope_theta": 500_000.0}, {"quantization": "fp8"}, {"dtype": "torch.float16"},
], ids=["positions", "quantization", "type"])
def test_what_an_engine_makes_of_the_same_weights_is_another_model(changed: dict[str, Any]) -> None:
    assert effective_digest(model_config(**changed)) != effective_digest(model_config())


def test_where_a_model_lies_and_who_reads_it_changes_nothing() -> None:
    places = [{"_name_or_path": place, "hidden": 1} for place in ("here", "there")]
    one, other = (
        model_config(_name_or_path=place["_name_or_path"], transformers_version=version, text=place)
        for place, version in zip(places, ("5", "6"), strict=True)
    )
    assert effective_digest(one) == effective_digest(other)


def test_the_commit_that_runs_is_named_before_what_the_user_calls_it() -> None:
    assert commit_of(model_config(commit="abc123", revision="main")) == "abc123"
    assert commit_of(model_config(revision="v1")) == "v1"
    assert commit_of(model_config()) == ""
