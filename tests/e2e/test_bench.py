"""`memkv bench` with real processes: the shape of what it prints, not its speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memkv.cli.exits import Exit

TIMEOUT_S = 240
MEMKV = [sys.executable, "-m", "memkv.cli.main"]


def bench(*words: str) -> dict[str, object]:
    done = subprocess.run(
        [*MEMKV, "bench", "--pairs", "2", "--seconds", "400ms", "--json", *words],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.OK, done.stderr
    results = json.loads(done.stdout)["results"]
    assert len(results) == 1
    found: dict[str, object] = results[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "limit"), [("tcp", "bare stream"), ("local", "memcpy + xxh3_128")]
)
def test_a_get_is_measured_next_to_its_limit(
    tmp_path: Path, transport: str, limit: str
) -> None:
    found = bench(
        "--transport", transport, "--op", "get", "--size", "1MiB", "--dir", str(tmp_path)
    )
    assert (found["op"], found["transport"], found["tier"]) == ("get", transport, "dram")
    assert found["size_bytes"] == 1 << 20
    for name in ("gbps", "limit_gbps", "ratio", "p50_us", "p99_us", "cpu_s_per_gb"):
        figure = found[name]
        assert isinstance(figure, int | float)
        assert figure > 0
    pairs = found["pairs"]
    assert isinstance(pairs, list)
    assert len(pairs) == 2
    assert found["limit"] == limit
    assert list(tmp_path.iterdir()) == [], "its files are removed"


@pytest.mark.slow
def test_existence_is_measured() -> None:
    found = bench("--op", "exists")
    assert found["blocks_per_call"] == 512
    assert "keys/s" in str(found["remark"])


@pytest.mark.slow
def test_gets_under_tls_are_measured_beside_a_bare_openssl_stream(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MEMKV, "bench", "--suite", "must-reach", "--only", "tls", "--pairs", "2", "--seconds",
         "400ms", "--dir", str(tmp_path), "--json"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode in (Exit.OK, Exit.FAILED), done.stderr  # its figures are not judged
    gets, loop = json.loads(done.stdout)["verdicts"]
    assert gets["what"] == "tls get, dram, 2 MiB"
    assert "bare OpenSSL stream, TLS_AES_128_GCM_SHA256" in gets["limit"]
    assert gets["ratio"] > 0
    assert len(gets["result"]["pairs"]) == 2
    assert loop["what"] == "slowdown of a busy Python loop under TLS"
    assert "GB/s inside" in loop["remark"]
    assert list(tmp_path.iterdir()) == [], "its files are removed"
