"""Block id -> slot is frozen: it decides which worker holds a block."""

import json
from pathlib import Path

import pytest
import xxhash

from memkv._hotpath import slots_of

GOLDEN = Path(__file__).parents[2] / "golden" / "shardmap.json"


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["slots"])
def test_golden_slots(case: dict[str, object]) -> None:
    block_id, slots, slot = bytes.fromhex(str(case["block_id"])), case["slots"], case["slot"]
    assert isinstance(slots, int)
    assert int.from_bytes(slots_of(block_id, slots), "little") == slot
    assert xxhash.xxh3_64_intdigest(block_id) % slots == slot
