"""Frozen vectors: a change here makes every stored block and every other client foreign.

The file was written once from the pure-Python oracle, so it also holds the native code to it.
"""

import json
from pathlib import Path
from typing import TypedDict

import pytest

from memkv import pattern
from memkv.checksum import seal
from memkv.keys import block_id, slot_of
from memkv.tenant import tenant_tag


class Key(TypedDict):
    key_hex: str
    salt_hex: str
    block_id: str
    slot_of_4096: int
    slot_of_65536: int
    slot_of_1000: int


class Block(TypedDict):
    key_hex: str
    tenant: str
    seed: int
    length: int
    head_hex: str
    sums: str
    root: str


class Golden(TypedDict):
    keys: list[Key]
    tenants: dict[str, str]
    blocks: list[Block]


GOLDEN: Golden = json.loads((Path(__file__).parents[2] / "golden" / "keys.json").read_text())


@pytest.mark.parametrize("vector", GOLDEN["keys"])
def test_ids_and_slots(vector: Key) -> None:
    found = block_id(bytes.fromhex(vector["key_hex"]), bytes.fromhex(vector["salt_hex"]))
    assert found.hex() == vector["block_id"]
    assert slot_of(found) == vector["slot_of_4096"]
    assert slot_of(found, 65536) == vector["slot_of_65536"]
    assert slot_of(found, 1000) == vector["slot_of_1000"]


@pytest.mark.parametrize(("name", "tag"), GOLDEN["tenants"].items())
def test_tags(name: str, tag: str) -> None:
    assert tenant_tag(name).hex() == tag


@pytest.mark.parametrize("vector", GOLDEN["blocks"])
def test_content_sums_and_roots(vector: Block) -> None:
    key = bytes.fromhex(vector["key_hex"])
    assert pattern.seed_of(key) == vector["seed"]
    data = pattern.block(vector["seed"], vector["length"])
    assert data[:16].hex() == vector["head_hex"]
    found = seal(data, block_id(key), tenant_tag(vector["tenant"]))
    assert (found.sums.hex(), found.root.hex()) == (vector["sums"], vector["root"])
