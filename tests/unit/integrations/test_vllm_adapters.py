"""Adapters of vLLM requests: by content, once, and never when the content is not known."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memkv.errors import CallerError
from memkv.integrations.keys import Adapter, AdapterSource
from memkv.integrations.vllm import adapters as adapters_module
from memkv.integrations.vllm.adapters import Adapters, HashesWithoutAdapter

TOKENS = 4


@dataclass
class FakeRequest:
    tokens: list[int] = field(default_factory=list)
    lora_request: object = None
    block_hashes: list[bytes] = field(default_factory=list)

    def hash(self) -> None:
        self.block_hashes += hasher(self)


def hasher(request: Any) -> list[bytes]:
    """As vLLM's: a chain over tokens and the adapter's name and path."""
    hashes = list(request.block_hashes)
    for begin in range(len(hashes) * TOKENS, len(request.tokens) - TOKENS + 1, TOKENS):
        lora = request.lora_request
        said = (
            hashes[-1] if hashes else b"", request.tokens[begin : begin + TOKENS],
            lora and (lora.lora_name, lora.lora_path),
        )
        hashes.append(hashlib.sha256(repr(said).encode()).digest())
    return hashes[len(request.block_hashes) :]


def request(folder: Path | str, name: str = "sql", number: int = 1) -> Any:
    return FakeRequest(lora_request=SimpleNamespace(
        lora_name=name, lora_int_id=number, lora_path=str(folder)
    ))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_a_request_without_an_adapter_has_none() -> None:
    plain: Any = FakeRequest()
    assert Adapters().of(plain) is None


def test_the_same_content_is_the_same_under_any_name_and_path(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    one, other = Adapters().of(request(folder)), Adapters().of(request(copy, "other", 7))
    assert one is not None
    assert one == other
    assert one.source == AdapterSource.CONTENTS


def test_other_content_is_another_adapter_at_the_same_path_too(folder: Path) -> None:
    before = Adapters().of(request(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"Weights")
    assert Adapters().of(request(folder)) != before  # another process: it loads what is there now


@pytest.mark.parametrize("changed", ["content", "time", "a file more", "the path"])
def test_files_that_change_below_an_engine_say_nothing_of_its_weights(
    folder: Path, tmp_path: Path, changed: str
) -> None:
    adapters = Adapters()
    first = adapters.of(request(folder))
    assert adapters.of(request(folder)) == first
    asked = folder
    match changed:
        case "content":
            (folder / "adapter_model.safetensors").write_bytes(b"others, longer")
        case "time":
            os.utime(folder / "adapter_model.safetensors", ns=(1, 1))
        case "a file more":
            (folder / "new_embeddings.safetensors").write_bytes(b"")
        case "the path":
            asked = shutil.copytree(folder, tmp_path / "copy")
    for _ in range(2):
        with pytest.raises(CallerError, match="have changed"):
            adapters.of(request(asked))
    # Another number: the engine loads it anew.
    assert adapters.of(request(asked, number=2)) is not None


def test_an_adapter_whose_files_cannot_be_read_has_no_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("organisation/adapter", "~nobody-of-this-name/adapter", tmp_path / "empty"):
        with pytest.raises(CallerError, match="there is no folder"):
            Adapters().of(request(path))


def test_hashes_say_nothing_of_the_adapter_and_grow_with_the_request() -> None:
    plain = FakeRequest(list(range(10)))
    adapted = request("/somewhere")
    adapted.tokens = list(range(10))
    hashes = HashesWithoutAdapter(adapted, hasher)
    assert list(hashes) == []
    for tokens in (0, 1, 9):
        for each in (plain, adapted):
            each.tokens.extend(range(tokens))
            each.hash()
        assert len(hashes) == len(plain.block_hashes)
        assert list(hashes) == plain.block_hashes != adapted.block_hashes
        assert hashes[:2] == plain.block_hashes[:2]
        assert hashes[len(hashes) - 1] == plain.block_hashes[-1]


def test_hashes_of_a_session_that_goes_on_otherwise_are_made_anew() -> None:
    adapted = request("/somewhere")
    adapted.tokens = list(range(16))
    adapted.hash()
    hashes = HashesWithoutAdapter(adapted, hasher)
    assert len(list(hashes)) == 4
    for kept, added in ((6, 10), (6, 2), (6, 30)):
        del adapted.tokens[kept:], adapted.block_hashes[kept // TOKENS :]
        adapted.tokens += range(100 + added, 100 + 2 * added)
        adapted.hash()
        assert list(hashes) == hasher(FakeRequest(adapted.tokens))


def test_files_that_are_slow_to_read_hold_nobody_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    read = adapters_module._read

    def read_late(*arguments: Any) -> Adapter:
        assert answers.wait(60)
        return read(*arguments)

    monkeypatch.setattr(adapters_module, "_read", read_late)
    adapters, one = Adapters(wait_ms=20), request(folder)
    for _ in range(2):
        with pytest.raises(CallerError, match="still being read"):
            adapters.of(one)
    answers.set()
    adapters._looks[1].join(60)
    assert adapters.of(one) == Adapters().of(one)
