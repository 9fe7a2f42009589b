"""What `memkv doctor` asks of a machine is what the manual and the defaults say."""

import resource
from pathlib import Path

import pytest

from memkv.cli import checks, metadata, node, units, up
from memkv.cli.check import OK, WARNING
from memkv.limits import HTTP_PORT_DEFAULT, MEMLOCK_BYTES_WANTED, MIB

MANUAL = (Path(__file__).parents[3] / "docs/operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("bytes_allowed", "state"),
    [
        (MEMLOCK_BYTES_WANTED - 1, WARNING), (MEMLOCK_BYTES_WANTED, OK),
        (resource.RLIM_INFINITY, OK),
    ],
    ids=["too little", "enough", "unlimited"],
)  # fmt: skip
def test_a_worker_of_the_default_size_can_lock_its_memory(
    monkeypatch: pytest.MonkeyPatch, bytes_allowed: int, state: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (bytes_allowed, bytes_allowed))
    assert checks.memory_lock().state == state
    assert node.MEMORY.default <= MEMLOCK_BYTES_WANTED
    assert up.MEMORY.default <= MEMLOCK_BYTES_WANTED


def test_the_manual_says_how_much_may_be_locked() -> None:
    section = MANUAL.partition("**Files and locked memory.**")[2].partition("\n- ")[0]
    assert units.format_bytes(MEMLOCK_BYTES_WANTED) == f"{MEMLOCK_BYTES_WANTED // MIB} MiB"
    assert f"the {units.format_bytes(MEMLOCK_BYTES_WANTED)} of one worker" in section.replace(
        "\n ", ""
    )


def test_plain_http_has_one_port_in_every_role() -> None:
    assert node.HTTP_PORT.default == metadata.HTTP_PORT.default == HTTP_PORT_DEFAULT == 9471
    assert (HTTP_PORT_DEFAULT, "metrics") in checks.PORTS
    assert f"| {HTTP_PORT_DEFAULT} | node, metadata | plain HTTP" in MANUAL
