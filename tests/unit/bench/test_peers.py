"""The comparison with Mooncake Store and Redis: its rows and its table, without the peers."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load() -> ModuleType:
    """Return benchmarks/peers.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("peers", ROOT / "benchmarks" / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


peers = load()
SIZE_BYTES = peers.SIZES[0]


class Dictionary:
    """A peer that keeps its blocks in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: dict[str, bytes] = {}
        self.forgotten = 0

    def put(self, key: str, source: memoryview) -> None:
        self.blocks[key] = bytes(source[:64])  # its mark: the rest would be gigabytes

    def get(self, key: str, target: memoryview) -> None:
        target[:64] = self.blocks[key]

    def settle(self) -> None:
        """It does nothing in the background."""

    def forget(self, keys: Sequence[str]) -> None:
        self.forgotten += len(keys)
        for key in keys:
            del self.blocks[key]


def turn(put_gbps: float, get_gbps: float, *times_us: float) -> object:
    return peers.Turn(put_gbps, get_gbps, times_us)


def test_every_block_of_a_turn_is_put_got_and_forgotten() -> None:
    peer = Dictionary("Redis")
    found = peers.measure_turn(peer, peers.Blocks(SIZE_BYTES), 0, 0.001)
    assert found.put_gbps > 0
    assert found.get_gbps > 0
    assert sum(found.get_us) >= 1000
    assert peer.blocks == {}
    assert peer.forgotten == peers.DATA_BYTES // SIZE_BYTES


def test_another_block_is_an_error() -> None:
    class Liar(Dictionary):
        def get(self, key: str, target: memoryview) -> None:
            target[:64] = bytes(64)

    with pytest.raises(RuntimeError, match="returned another block"):
        peers.measure_turn(Liar("Redis"), peers.Blocks(SIZE_BYTES), 0, 0.001)


def test_ratios_are_medians_of_neighbours() -> None:
    found = {
        SIZE_BYTES: {
            "MemKV": [turn(2.0, 4.0, 10.0), turn(1.0, 1.0, 30.0), turn(2.0, 3.0, 20.0)],
            "Redis": [turn(1.0, 2.0, 11.0), turn(0.5, 0.5, 31.0), turn(1.0, 3.0, 21.0)],
        }
    }
    mine, redis = peers.rows_of(found)
    assert (mine["peer"], mine["put_gbps"], mine["get_gbps"]) == ("MemKV", 2.0, 3.0)
    assert (mine["get_p50_us"], mine["get_p99_us"]) == (20.0, 30.0)
    assert (mine["memkv_get_ratio"], mine["wanted_get_ratio"]) == (1.0, None)
    assert (redis["peer"], redis["size_bytes"]) == ("Redis", SIZE_BYTES)
    assert (redis["memkv_put_ratio"], redis["memkv_get_ratio"]) == (2.0, 2.0)
    assert redis["wanted_get_ratio"] == 1.0


@pytest.mark.parametrize(("gbps", "word"), [(4.0, ": reached"), (0.5, "NOT reached")])
def test_the_table_says_what_is_reached(
    capsys: pytest.CaptureFixture[str], gbps: float, word: str
) -> None:
    found = {
        SIZE_BYTES: {
            "MemKV": [turn(1.0, gbps, 10.0)],
            "Mooncake Store": [turn(1.0, 1.0, 10.0)],
        }
    }
    peers.print_table(peers.rows_of(found))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "Mooncake" in line]
    assert word in row
    assert f"{gbps:.2f}x of it (wanted 2x" in row
