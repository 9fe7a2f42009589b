"""Runs tests/vm/inside/ in one boot of the virtual machine, and tells of each test here.

The machine has soft-RoCE, network namespaces (deploy/dev/vm/guest.sh) and a few raw drives, which
each test wipes first (`guest_node.wiped`) but for drive 2, which is the command's alone. Its
pytest is this one's, from the same environment, with as few plugins as can be.
"""

import ast
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from memkv.testing.virtual_machine import TREE, VirtualMachine, why_none

INSIDE = Path(__file__).parent / "inside"
DRIVES = 3
SECONDS_MAX = 1100  # half of that on a quiet machine
SECONDS_PER_TEST_MAX = 240


def cases() -> list[str]:
    """Return file::function of every test inside."""
    return [
        f"{file.name}::{node.name}"
        for file in sorted(INSIDE.glob("test_*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def job(chosen: Sequence[str]) -> str:
    """Return the script that runs these tests."""
    command = [
        str(Path(sys.prefix) / "bin/python"), "-m", "pytest", "-q", "-s",
        "-p", "pytest_timeout", "-p", "no:cacheprovider",
        "-o", "addopts=--import-mode=importlib", "-o", f"timeout={SECONDS_PER_TEST_MAX}",
        "-o", f"pythonpath={INSIDE}", "--continue-on-collection-errors",
        # The settings of all tests bring hypothesis, which takes long to import under emulation.
        f"--confcutdir={INSIDE}", *(str(INSIDE / case) for case in chosen),
    ]  # fmt: skip
    return f"export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1\nexec {shlex.join(command)}\n"


def read_reports(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return file::function (or the file alone) -> reports of its cases."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if path.exists():
        for line in path.read_text().splitlines():
            report = json.loads(line)
            file, _, rest = report["node"].partition("::")
            function = rest.partition("[")[0]
            found[f"{Path(file).name}::{function}".removesuffix("::")].append(report)
    return found


class Boot:
    """The machine's run of the chosen tests, and what it told."""

    def __init__(self, folder: Path, chosen: Sequence[str]) -> None:
        drives = [folder / f"memkv{number}" for number in range(DRIVES)]
        self.machine = VirtualMachine(folder / "out", drives, seconds_max=SECONDS_MAX)
        self.machine.start(job(chosen))
        try:
            self.machine.wait()
        finally:
            self.machine.cut_power()
        self.reports: Mapping[str, list[dict[str, Any]]] = read_reports(
            self.machine.out / "reports.jsonl"
        )
        boot_s = self.machine.out / "boot_s"
        print(f"\nbooted in {boot_s.read_text().strip() if boot_s.exists() else '-'} s")
        print(self.machine.log())


@pytest.fixture(scope="session")
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    if reason := why_none():
        pytest.skip(reason)
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [
        str(item.callspec.params["case"])
        for item in items
        if hasattr(item, "callspec") and "case" in item.callspec.params
    ]
    return Boot(tmp_path_factory.mktemp("boot"), chosen)


@pytest.mark.timeout(SECONDS_MAX + 60)
@pytest.mark.parametrize("case", cases())
def test_inside(case: str, boot: Boot) -> None:
    file = case.partition("::")[0]
    reports = [*boot.reports.get(file, ()), *boot.reports.get(case, ())]
    assert reports, f"the machine ended before this test did\n{boot.machine.log()}"
    failed = [report for report in reports if report["outcome"] == "failed"]
    skipped = [report["text"] for report in reports if report["outcome"] == "skipped"]
    assert not failed, "\n".join(f"{r['node']} (inside)\n{r['text']}" for r in failed)
    if len(skipped) == len(reports):
        pytest.skip(skipped[0])


def test_the_tree_is_the_one_that_the_machine_sees() -> None:
    assert INSIDE.is_relative_to(TREE)
