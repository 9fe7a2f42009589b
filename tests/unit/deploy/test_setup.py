"""`make setup` with uv and without it, in a throw-away project that needs nothing from outside.

With uv only what it is asked for is looked at: most machines have none.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[3] / "deploy" / "dev"

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "throwaway"
version = "1"
"""

# The least that makes an editable install: a wheel with a path file.
BACKEND = """
import os, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    info = "throwaway-1.dist-info/"
    with zipfile.ZipFile(os.path.join(directory, "throwaway-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("throwaway.pth", os.getcwd())
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: throwaway\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\n"
                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "throwaway-1-py3-none-any.whl"
"""

# Writes down what it is asked for; an environment of it is only a Python.
UV = """#!/bin/sh
echo "$@" >>"$UV_LOG"
if [ "$1" = venv ]; then
    mkdir -p .venv/bin
    ln -s "$PYTHON" .venv/bin/python
fi
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    shutil.copytree(DEV, project / "deploy/dev")
    (project / "deploy/dev/requirements.txt").write_text("")
    (project / "dataplane/native").mkdir(parents=True)
    (project / "dataplane/native/CMakeLists.txt").write_text("")
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "backend.py").write_text(BACKEND)
    return project


def path_without_uv() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "uv").exists())


def run_setup(project: Path, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    python = getattr(sys, "_base_executable", sys.executable)
    return subprocess.run(
        [project / "deploy/dev/setup.sh", *arguments], capture_output=True, text=True, timeout=240,
        env={
            **os.environ, "PATH": path, "PYTHON": python, "UV_LOG": str(project / "uv.log"),
            "PIP_NO_INDEX": "1",
        },
    )  # fmt: skip


def set_up(project: Path, path: str) -> str:
    """Return what it says. A machine set up with uv may lack what pip would need: skip there."""
    if missing := run_setup(project, path, "missing").stdout.split():
        pytest.skip(f"this machine lacks {', '.join(missing)}; a test installs nothing on it")
    result = run_setup(project, path)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_without_uv_pip_makes_the_environment(project: Path) -> None:
    said = set_up(project, path_without_uv())
    assert "with pip" in said
    # What was installed is found from elsewhere.
    found = subprocess.run(
        [project / ".venv/bin/python", "-c", "import backend; print(backend.__file__)"],
        cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.strip() == str(project / "backend.py")
    assert set_up(project, path_without_uv()) == "", "a second run has nothing to do"


def test_with_uv_it_makes_the_environment(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uv").write_text(UV)
    (folder / "uv").chmod(0o755)
    said = set_up(project, f"{folder}:{path_without_uv()}")
    assert "with uv" in said
    made, *installed = (project / "uv.log").read_text().splitlines()
    assert made.startswith("venv ")
    python = "--python .venv/bin/python"
    assert installed == [
        f"pip install --quiet {python} -r deploy/dev/requirements.txt",
        f"pip install --quiet {python} --no-build-isolation --no-deps -e .",
    ]
    assert not (project / ".venv/bin/pip").exists()
