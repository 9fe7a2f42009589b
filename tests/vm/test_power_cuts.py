"""Power cuts of the virtual machine: what a node acknowledged as durable is served after the next
boot, and no byte is wrong.

MEMKV_VM_CUTS: how many, over two machines that run side by side, each with its own drive. A cut
ends QEMU at a random moment while blocks are put: the guest's memory and what was on its way to
the drive are gone. What the drive had answered it keeps, flushed or not; drives that lose that,
too, are in tests/crash.
"""

import json
import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memkv.clock import SystemClock, deadline_after_ms
from memkv.testing.virtual_machine import VirtualMachine, why_none

CUTS = int(os.environ.get("MEMKV_VM_CUTS", "25"))
MACHINES = 2
BOOT_S_MAX = 240  # with judging; a fifth of that on a quiet machine
PUTS_BEFORE_CUT_MAX = 24
LATER_S_MAX = 0.5
SERVED_RATIO_MIN = 0.99
LIFE = Path(__file__).parent / "power_cut_life.py"


@dataclass
class Series:
    """Lives of one drive, one after the other."""

    folder: Path
    number: int
    acknowledged: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    unsettled: int = 0
    cut_in_mid_put: int = 0
    life_s: list[float] = field(default_factory=list)
    boot_s: list[float] = field(default_factory=list)

    @property
    def _out(self) -> Path:
        return self.folder / "out"

    def lines(self, file: str) -> int:
        path = self._out / file
        return path.read_text().count("\n") if path.exists() else 0

    def run(self, cuts: int) -> None:
        """`cuts` lives, and one more that only judges."""
        draw = random.Random(self.number)
        for life in range(cuts + 1):
            self._live(life, 0 if life == cuts else draw.randint(1, PUTS_BEFORE_CUT_MAX), draw)

    def _live(self, life: int, puts: int, draw: random.Random) -> None:
        clock = SystemClock()
        began_ns = clock.monotonic_ns()
        machine = VirtualMachine(
            self._out, [self.folder / "drive"], seconds_max=BOOT_S_MAX * 2, processors=1,
            memory_mib=1024, huge_pages=0, all_modules=False,
        )  # fmt: skip
        machine.start(f"exec {sys.executable} {LIFE} {life}\n")
        try:
            verdict = self._out / f"verdict-{life}"
            wait_until(machine, verdict.exists)
            self._take(json.loads(verdict.read_text()))
            self.boot_s.append(float((self._out / "boot_s").read_text()))
            before = self.lines("acknowledged")
            wait_until(machine, lambda: self.lines("acknowledged") >= before + puts)
            if puts:
                threading.Event().wait(draw.random() * LATER_S_MAX)
        finally:
            machine.cut_power()
        self.acknowledged = self.lines("acknowledged")
        self.cut_in_mid_put += self.lines("begun") > self.acknowledged + self.unsettled
        self.unsettled = self.lines("begun") - self.acknowledged
        self.life_s.append((clock.monotonic_ns() - began_ns) / 1e9)

    def _take(self, verdict: dict[str, list[str]]) -> None:
        self.wrong += verdict["wrong"]
        self.lost = len(verdict["lost"])


def wait_until(machine: VirtualMachine, look: Callable[[], bool]) -> None:
    clock, pause = SystemClock(), threading.Event()
    deadline_ns = deadline_after_ms(clock, BOOT_S_MAX * 1000)
    while not look():
        assert machine.is_running, machine.log()
        assert clock.monotonic_ns() < deadline_ns, machine.log()
        pause.wait(0.02)


@pytest.mark.slow
@pytest.mark.timeout(120 + CUTS * 90)
def test_durable_blocks_outlive_power_cuts(tmp_path: Path) -> None:
    if reason := why_none():
        pytest.skip(reason)
    series = [Series(tmp_path / f"machine-{number}", number) for number in range(MACHINES)]
    shares = [CUTS // MACHINES + (number < CUTS % MACHINES) for number in range(MACHINES)]
    with ThreadPoolExecutor(MACHINES) as pool:
        list(pool.map(Series.run, series, shares))
    acknowledged = sum(one.acknowledged for one in series)
    lost = sum(one.lost for one in series)
    cut_in_mid_put = sum(one.cut_in_mid_put for one in series)
    boots = sorted(second for one in series for second in one.boot_s)
    lives = sorted(second for one in series for second in one.life_s)
    print(
        f"\n{CUTS} power cuts, {cut_in_mid_put} of them in mid-put; {acknowledged} durable puts "
        f"acknowledged, {lost} of them lost; boot {boots[len(boots) // 2]:.1f} s, "
        f"a life {lives[len(lives) // 2]:.1f} s (medians)"
    )
    assert [name for one in series for name in one.wrong] == []
    assert acknowledged >= CUTS
    assert acknowledged - lost >= SERVED_RATIO_MIN * acknowledged
    assert cut_in_mid_put > CUTS // 2, "the cuts were to come in the middle of puts"
