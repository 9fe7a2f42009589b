"""The demo's verdict is a judgement: a wrong byte, or blocks that do not come back, fail it."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkv import pattern
from memkv.cli import main as cli
from memkv.cli.exits import Exit
from memkv.localpool.directory import FLASH_FILE
from memkv.localpool.pool import LocalNode, LocalPool
from memkv.store.layout import SUPERBLOCK_AREA_BYTES


def demo(directory: Path) -> tuple[int, dict[str, object]]:
    figures = directory / "figures.json"
    words = ["demo", "--requests", "80", "--dir", str(directory), "--json", str(figures), "--quiet"]
    code = cli.main(words)
    found: dict[str, object] = json.loads(figures.read_text())
    return code, found


@contextlib.contextmanager
def instead(owner: object, name: str, new: Callable[..., object]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, new)
        yield


@pytest.mark.slow
def test_a_wrong_byte_fails_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One block in four is stored with one byte flipped: MemKV serves what was put."""
    fill = pattern.fill
    filled = iter(range(10**9))

    def fill_badly(view: memoryview, seed: int) -> None:
        fill(view, seed)
        if next(filled) % 4 == 1:
            view[len(view) // 2] ^= 1

    with instead(pattern, "fill", fill_badly):
        code, found = demo(tmp_path)
    assert code == Exit.FAILED
    assert found["passed"] is False
    assert isinstance(found["wrong_bytes"], int)
    assert found["wrong_bytes"] > 0
    assert "wrong bytes were served" in capsys.readouterr().out


@pytest.mark.slow
def test_a_node_that_comes_back_cold_fails_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the node is dead its flash loses everything behind the superblock."""
    start_again = LocalPool.start_again

    def start_cold(pool: LocalPool, node: LocalNode) -> None:
        path = pool.plan.directory / node.name / FLASH_FILE
        size = path.stat().st_size
        os.truncate(path, SUPERBLOCK_AREA_BYTES)
        os.truncate(path, size)
        start_again(pool, node)

    with instead(LocalPool, "start_again", start_cold):
        code, found = demo(tmp_path)
    assert code == Exit.FAILED
    assert found["passed"] is False
    assert found["wrong_bytes"] == 0
    assert isinstance(found["warm_ratio"], float)
    assert found["warm_ratio"] < 0.99
    assert "under 99%" in capsys.readouterr().out
