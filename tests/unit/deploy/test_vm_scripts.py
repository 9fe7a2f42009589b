"""The scripts of the virtual machine where they can start none."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

VM = Path(__file__).resolve().parents[3] / "deploy" / "dev" / "vm"
NEEDED = (
    "bash", "cat", "cut", "dirname", "echo", "env", "head", "id", "sed", "sha256sum", "sort",
    "uname", "xargs",
)  # fmt: skip


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder for PATH with little in it: no QEMU, no apt-get."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(script: str, *arguments: str, path: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VM / script, *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": str(path), "MEMKV_CACHE": str(cache)},
    )  # fmt: skip


def test_what_is_missing_is_named_by_its_package_and_why_it_stays_so(
    bare: Path, tmp_path: Path
) -> None:
    command(bare, "uname", "echo x86_64")
    result = run("build.sh", "missing", path=bare, cache=tmp_path)
    assert result.returncode == 0, result.stderr
    *packages, reason = result.stdout.splitlines()
    assert {"qemu-system-x86", "perftest", "linux-image-amd64 (unpacked)"} <= set(packages)
    assert reason.startswith("cannot be had: this machine lacks ")
    assert "no apt-get" in reason


def test_who_may_not_install_is_told_what_to_ask_for(bare: Path, tmp_path: Path) -> None:
    command(bare, "uname", "echo x86_64")
    command(bare, "id", "echo 1000")
    command(bare, "apt-get", "exit 1")
    result = run("build.sh", path=bare, cache=tmp_path)
    assert result.returncode == 77
    assert "sudo apt-get install -y" in result.stdout.splitlines()[-1]
    assert "qemu-system-x86" in result.stdout
    assert not (tmp_path / "vm").exists(), "nothing was begun"


def test_another_processor_is_a_reason(bare: Path, tmp_path: Path) -> None:
    command(bare, "uname", "echo aarch64")
    result = run("build.sh", path=bare, cache=tmp_path)
    assert (result.returncode, result.stdout) == (
        77, "the virtual machine is made for x86_64, this is aarch64\n",
    )  # fmt: skip


def test_a_machine_without_a_kernel_is_not_started(bare: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.write_text("exit 0\n")
    result = run("run.sh", str(job), str(tmp_path / "out"), path=bare, cache=tmp_path)
    assert result.returncode == 77
    assert result.stderr == "", "one reason"
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_named(bare: Path, tmp_path: Path) -> None:
    result = run("build.sh", "fly", path=bare, cache=tmp_path)
    assert result.returncode == 2
    assert "unknown argument 'fly'" in result.stderr
    result = run("run.sh", "--fly", "1", "job", "out", path=bare, cache=tmp_path)
    assert result.returncode == 2
    assert "unknown argument '--fly'" in result.stderr


def test_a_kernel_whose_making_was_cut_off_is_none(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "vm" / "6.1.0-56-amd64").mkdir(parents=True)
    (tmp_path / "vm" / "6.1.0-56-amd64" / "accelerator").write_text("tcg\n")
    result = run("build.sh", "where", path=bare, cache=tmp_path)
    assert result.returncode == 77
    assert "no kernel yet" in result.stdout
