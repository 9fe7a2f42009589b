"""The commands and the program of README.md, as they stand there, against a pool."""

import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from memkv.cli.exits import Exit

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
TIMEOUT_S = 120


def block(language: str, containing: str) -> str:
    found = [
        text
        for name, text in re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
        if name == language and containing in text
    ]
    assert len(found) == 1, f"one block with {containing} is expected"
    return str(found[0])


def test_the_readme_works_as_it_stands(tmp_path: Path) -> None:
    """Only the place of the files, the size and the port are others."""
    up = shlex.split(block("", "memkv up").strip())
    changes = {"/tmp/memkv": str(tmp_path / "pool"), "2GiB": "128MiB"}
    assert changes.keys() <= set(up)
    words = [changes.get(word, word) for word in up[1:]]
    process = subprocess.Popen(
        [sys.executable, "-m", "memkv.cli.main", *words, "--endpoint", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        endpoint = re.search(r"is up at (\S+):", first)
        assert endpoint, first + process.communicate(timeout=TIMEOUT_S)[1]
        run_program(endpoint[1])
        run_shell(endpoint[1], tmp_path)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == Exit.OK


def run_program(endpoint: str) -> None:
    text = block("python", "import memkv").replace("127.0.0.1:7443", endpoint)
    text += "assert (stored, block, count) == (0, b'...' * 100_000, 1), (stored, count)\n"
    # A machine under load may need longer than the default deadline.
    text = text.replace(f'connect("{endpoint}")', f'connect("{endpoint}", deadline_ms=30_000)')
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr


def run_shell(endpoint: str, directory: Path) -> None:
    """Paste the whole block into one shell of a newcomer, whose PATH knows no memkv."""
    (directory / ".venv").mkdir()
    (directory / ".venv" / "bin").symlink_to(sysconfig.get_path("scripts"))
    lines = [line.partition("  #")[0].strip() for line in block("", "memkv put").splitlines()]
    shorter = {
        "memkv top --count 3": "memkv top --count 1 --interval 50ms",
        "memkv replay --requests 10": "memkv replay --requests 3",
    }
    assert shorter.keys() <= set(lines)
    codes = {"memkv exists prompt-1 prompt-2": {Exit.FAILED}, "memkv doctor": {*Exit}}
    script = "".join(f"{shorter.get(line, line)}\necho $? >> codes\n" for line in lines)
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", script], cwd=directory,
        env={"PATH": "/usr/bin:/bin", "MEMKV_ENDPOINT": endpoint, "MEMKV_DEADLINE": "30s"},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    ended = [int(code) for code in (directory / "codes").read_text().split()]
    for line, code in zip(lines, ended, strict=True):
        assert code in codes.get(line, {Exit.OK}), line + done.stdout + done.stderr
    assert (directory / "copy.bin").read_bytes() == (directory / "block.bin").read_bytes()
