"""Runs promtool, for tests of alerts."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "charts/memkv/files/alerts.yaml"
CANNOT = 77
"""Exit status of promtool.sh where none can be had."""


@dataclass(frozen=True, slots=True)
class Case:
    """`alert`: empty: any. `fires`: its labels, beside its name; empty: it is quiet."""

    alert: str
    why: str
    minute: int
    series: Mapping[str, str] = field(default_factory=dict)
    fires: str = ""
    step_minutes: int = 1
    """Between two scrapes, and between two looks at the rules."""


def find_promtool() -> tuple[str, str]:
    """Return (path, ""), or ("", why there is none)."""
    script = ROOT / "deploy/dev/promtool.sh"
    done = subprocess.run([script], capture_output=True, text=True, timeout=300, check=False)
    said = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    if done.returncode == CANNOT:
        return "", said
    assert done.returncode == 0, done.stderr
    return said, ""


def run_promtool(promtool: str, *arguments: str) -> tuple[bool, str]:
    """Return whether it was content, and what it said."""
    done = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode == 0, done.stdout + done.stderr


def verdict(promtool: str, cases: Sequence[Case], folder: Path) -> tuple[bool, str]:
    """Return whether ALERTS is what the cases say, and what promtool says. All cases have the same
    step."""
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{cases[0].step_minutes}m",
        "tests": [_test(case) for case in cases],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return run_promtool(promtool, "test", "rules", str(file))


def _test(case: Case) -> dict[str, object]:
    named = f'alertname="{case.alert}",' if case.alert else ""
    shown = f'ALERTS{{{named}alertstate="firing"'
    expected = [{"labels": f"{shown},{case.fires}}}", "value": 1}] if case.fires else []
    return {
        "interval": f"{case.step_minutes}m",
        "input_series": [{"series": name, "values": v} for name, v in case.series.items()],
        "promql_expr_test": [
            {"expr": f"{shown}}}", "eval_time": f"{case.minute}m", "exp_samples": expected}
        ],
    }
