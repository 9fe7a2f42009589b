"""Settings of the pytest that runs in the virtual machine: it tells the host of each test at once.

The host's pytest (tests/vm/test_inside.py) reads a line of JSON for each. A machine that hangs or
falls down has told of all that ended before.
"""

import json
import os
from pathlib import Path

import pytest

REPORTS = "reports.jsonl"


def tell(node: str, outcome: str, seconds: float, text: str) -> None:
    line = json.dumps({"node": node, "outcome": outcome, "seconds": seconds, "text": text})
    with (Path(os.environ["OUT"]) / REPORTS).open("a") as reports:
        print(line, file=reports)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "OUT" in os.environ and (report.when == "call" or report.outcome != "passed"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        tell(report.nodeid, report.outcome, report.duration, reason or report.longreprtext)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if "OUT" in os.environ and report.failed:
        tell(report.nodeid, "failed", 0.0, report.longreprtext)
