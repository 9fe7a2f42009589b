"""Runs Helm on the chart, for tests."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import cast

import yaml

from memkv_operator.testing.crds import Object

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts/memkv"
BUILD = ROOT / "deploy/dev/cluster/build.sh"
SCENARIOS = tuple(
    path.name.removesuffix("-values.yaml") for path in sorted(CHART.glob("ci/*-values.yaml"))
)
"""One for each values file of the chart's folder ci/."""
OPTIONAL_APIS = ("monitoring.coreos.com/v1", "nfd.k8s-sigs.io/v1alpha1")
NAMESPACE = "memkv-system"
DEADLINE_S = 120


def find_helm() -> str | None:
    """Return the path of Helm: on PATH, or built by deploy/dev/cluster/build.sh."""
    folders = os.environ.get("PATH", "")
    if BUILD.exists():
        where = subprocess.run([BUILD, "where"], capture_output=True, text=True, check=False)
        folders = f"{folders}:{where.stdout.strip()}"
    return shutil.which("helm", path=folders)


def values(scenario: str) -> list[str]:
    """Return the arguments that choose a scenario."""
    return ["-f", str(CHART / f"ci/{scenario}-values.yaml")]


def run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def template(helm: str, *arguments: str) -> str:
    """Return what Helm renders, as on a cluster with every optional API."""
    apis = [word for api in OPTIONAL_APIS for word in ("--api-versions", api)]
    done = run([helm, "template", "memkv", str(CHART), "-n", NAMESPACE, *apis, *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> list[Object]:
    """Return the objects of a stream of YAML documents."""
    return [cast(Object, document) for document in yaml.safe_load_all(text) if document]
