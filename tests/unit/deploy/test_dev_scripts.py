"""The scripts behind the Makefile: results of lanes, and what a machine is told it lacks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[3] / "deploy" / "dev"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEV / script, *arguments],
        env={**os.environ, "MEMKV_LANES": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("command", "status", "record"),
    [
        pytest.param("echo fine", 0, "passed 1 0 0 ", id="no counts"),
        pytest.param("echo 'remark: slow'; echo end", 0, "passed 1 0 0 slow", id="remark"),
        pytest.param("echo oh; exit 3", 1, "failed 0 1 0 exit status 3", id="failure"),
        pytest.param("echo no device; exit 77", 0, "skipped 0 0 1 no device", id="cannot run"),
        pytest.param(
            "echo '= 2 failed, 5 passed, 1 skipped, 1 error in 0.30s ='; exit 1",
            1,
            "failed 5 3 1 exit status 1",
            id="pytest",
        ),
        pytest.param(
            "echo '=== 1234 passed in 75.00s (0:01:15) ==='", 0, "passed 1234 0 0 ", id="long run"
        ),
        pytest.param(
            "echo '100% tests passed, 0 tests failed out of 4'", 0, "passed 4 0 0 ", id="ctest"
        ),
        pytest.param("echo '100% tests passed out of 4'", 0, "passed 4 0 0 ", id="newer ctest"),
        pytest.param(
            "echo '25% tests passed, 3 tests failed out of 4'; exit 8",
            1,
            "failed 1 3 0 exit status 8",
            id="failing ctest",
        ),
    ],
)
def test_a_lane_records_its_result(tmp_path: Path, command: str, status: int, record: str) -> None:
    lanes = tmp_path / "lanes"
    result = run("lane.sh", "name", "bash", "-c", command, MEMKV_LANES=str(lanes))
    assert result.returncode == status
    name, outcome, seconds, *rest = lanes.read_text().removesuffix("\n").split("\t")
    assert (name, " ".join([outcome, *rest])) == ("name", record)
    assert float(seconds) >= 0
    assert f"-- name: {outcome} in " in result.stdout


@pytest.mark.parametrize(
    ("total_s", "demo_status", "status", "said"),
    [
        (75.4, 0, 0, "remark: the demo took 75 s of the 120 s"),
        (190.2, 0, 0, "remark: the demo took 190 s, OVER the 120 s"),
        (361.0, 0, 1, "three times"),
        (75.4, 1, 1, ""),
    ],
)
def test_the_demo_is_judged_by_its_figures_and_told_its_time(
    tmp_path: Path, total_s: float, demo_status: int, status: int, said: str
) -> None:
    shutil.copytree(DEV, tmp_path / "deploy/dev")
    bin_ = tmp_path / ".venv/bin"
    bin_.mkdir(parents=True)
    command(bin_, "python", f'exec {sys.executable} "$@"')
    command(bin_, "memkv", f"echo '{{\"total_s\": {total_s}}}' >\"$3\"; exit {demo_status}")
    result = subprocess.run(
        [tmp_path / "deploy/dev/demo_check.sh"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == status, result.stderr
    assert said in result.stdout
    assert ("remark" in result.stdout) == (status == 0)


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_missing_headers_are_named_by_their_package(tmp_path: Path) -> None:
    command(tmp_path, "cc", '! grep -qE "liburing|blake2"')
    result = run("setup.sh", "missing", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert {"liburing-dev", "libb2-dev"} <= set(result.stdout.split())
    assert "libssl-dev" not in result.stdout


def test_who_may_not_install_is_told_what_to_ask_for(tmp_path: Path) -> None:
    shutil.copytree(DEV, tmp_path / "deploy/dev")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    command(bin_, "cc", '! grep -qE "liburing|blake2"')
    command(bin_, "id", "echo 1000")
    result = subprocess.run(
        [tmp_path / "deploy/dev/setup.sh"], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert result.returncode == 1
    assert "sudo apt-get install -y liburing-dev libb2-dev" in result.stderr
    assert not (tmp_path / ".venv").exists(), "nothing was begun"


def test_a_python_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    """Version managers put commands on PATH for interpreters that are not active."""
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "uv"):
        command(tmp_path, name, "echo 'command not found' >&2; exit 127")
    result = run("setup.sh", "missing", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert {"python3", "python3-dev", "python3-venv"} <= set(result.stdout.split())


def test_a_wrong_argument_is_named() -> None:
    result = run("setup.sh", "fly")
    assert result.returncode == 1
    assert "unknown argument 'fly'" in result.stderr


def ci_run(folder: Path, **settings: str) -> tuple[str, list[list[str]]]:
    """Run CI with nothing behind its lanes but notes of their calls; return output and notes."""
    (folder / ".ci").mkdir()
    shutil.copy(DEV.parents[1] / ".ci/run", folder / ".ci/run")
    cluster = folder / "deploy/dev/cluster"
    cluster.mkdir(parents=True)
    shutil.copy(DEV / "lane.sh", folder / "deploy/dev/lane.sh")
    command(folder / "deploy/dev", "demo_check.sh", "exit 0")
    called = folder / "called"
    called.touch()
    note = f'echo "$(basename "$0") $*" >>{called}'
    command(cluster, "build.sh", f'{note}; [ "$1" != missing ] || echo kubelet')
    for lane in (DEV / "cluster").glob("lane_*.sh"):
        command(cluster, lane.name, note)
    command(folder, "make", f"{note}; exit 0")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **settings}
    for name in {"KUBECONFIG", "MEMKV_TEST_IMAGE"} - settings.keys():
        environment.pop(name, None)
    result = subprocess.run(
        [folder / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, [line.split() for line in called.read_text().splitlines()]


@pytest.mark.parametrize("given", [True, False])
def test_no_kubernetes_is_built_where_a_cluster_is_named(tmp_path: Path, given: bool) -> None:
    names = ("KUBECONFIG", "MEMKV_TEST_IMAGE") if given else ()
    told, called = ci_run(tmp_path, **{name: f"some {name}" for name in names})
    assert (["build.sh"] in called) != given
    assert ["lane_cluster.sh"] in called
    assert ("name a cluster" in told) == given


def test_lanes_without_time_are_skipped_and_the_table_is_printed(tmp_path: Path) -> None:
    told, called = ci_run(tmp_path, MEMKV_CI_MINUTES="2")
    assert not [words for words in called if words[0] != "build.sh"]
    lanes = ("test", "sanitize", "crash", "vm", "demo", "apiserver", "scale", "cluster", "engines")
    for lane in lanes:
        assert re.search(rf"^{lane} +skipped .*no time left", told, re.MULTILINE), told
    assert "\n0 passed, 0 failed" in told


def test_packages_of_the_image_are_pinned_by_version_and_sum() -> None:
    """Each one, in the version that tests run with; `make lock` writes them."""
    tested = pins(DEV / "requirements.txt")
    for part, some in (("build", "cython"), ("run", "grpcio")):
        path = DEV / f"requirements-image-{part}.txt"
        found = pins(path)
        assert some in found
        assert found.items() <= tested.items(), path
        text = path.read_text().replace("\\\n", "")
        assert all("--hash=sha256:" in line for line in text.splitlines())
        wanted = subprocess.run(
            [sys.executable, "deploy/dev/image_requirements.py", part], cwd=DEV.parents[1],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        names = {re.split(r"[<>=\[]", line)[0] for line in wanted}
        assert names <= found.keys(), f"run make lock: {names - found.keys()}"
    image = (DEV.parents[1] / "Dockerfile").read_text()
    assert image.count("--require-hashes") == 2


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)", path.read_text(), re.MULTILINE))
