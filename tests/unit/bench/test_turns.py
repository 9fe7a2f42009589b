"""Figures that come from processes of their own are medians of turns, each from the same start."""

import os
import subprocess
import sys
from pathlib import Path

from memkv.bench import index_memory, reopen
from memkv.bench.processes import forget_peak_resident_bytes, peak_resident_bytes
from memkv.bench.resident import Resident
from memkv.bench.small_get import LoadedTurn, SmallGets
from memkv.bench.statistics import Pair, summarize
from memkv.limits import MIB


def test_a_copy_holds_what_was_written_and_the_room_that_was_not(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        for at, data in ((0, b"a" * 5000), (3 * MIB, b"b" * MIB), (8 * MIB - 7, b"the end")):
            os.pwrite(file.fileno(), data, at)
    reopen.copy_written(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 >= 8 * MIB


def test_a_reopen_is_the_median_of_turns() -> None:
    assert reopen.Reopen((0.9, 3.0, 0.8, 0.7, 1.0), 10, 10, "").seconds == 0.9


def test_the_index_is_measured_in_a_process_a_turn() -> None:
    found = index_memory.measure(blocks=1000, turns=3)
    assert len(found.turns) == 3
    assert found.bytes_per_block == sorted(found.turns)[1]
    assert found.interpreter_bytes > MIB


def test_a_loaded_p99_is_the_median_of_turns() -> None:
    turns = tuple(LoadedTurn(n, 10.0 * n, 5.0 * n, 1.0) for n in (1, 100, 2, 3, 4))
    found = SmallGets(summarize([Pair(50.0, 10.0)]), 90.0, turns)
    assert (found.loaded_p50_us, found.loaded_p99_us, found.ping_loaded_p99_us) == (3, 30, 15)
    assert found.loaded_ratio == 3.0


def test_memory_is_judged_by_the_highest_and_told_by_the_median() -> None:
    found = Resident((110, 130, 120), highest_bytes=190, configured_bytes=100)
    assert found.peak_bytes == 120
    assert (found.over_bytes, found.highest_over_bytes) == (20, 90)


def test_a_peak_that_is_forgotten_begins_with_what_is_there() -> None:
    script = "import sys; x = bytearray(64 << 20); del x; print('-', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert peak_resident_bytes(process.pid) > 64 * MIB
        forget_peak_resident_bytes(process.pid)
        assert 0 < peak_resident_bytes(process.pid) < 64 * MIB
        process.communicate()
