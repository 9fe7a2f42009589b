"""`memkv doctor`: exit code by severity, and what it prints."""

import json
import tempfile
from pathlib import Path

import pytest

from memkv.cli import checks, main
from memkv.cli.check import BROKEN, OK, WARNING, Check
from memkv.cli.exits import Exit

FINE = Check("clock", OK, "tsc")
TABLE = Check("RDMA mlx5_0 port 1", OK, "active", "", (" *   3  10.0.0.1", "     4  [fe80::1]"))
ODD = Check("open files", WARNING, "256", "ulimit -n 4096")
BAD = Check("O_DIRECT", BROKEN, "refused", "choose a directory on ext4")


@pytest.mark.parametrize(
    ("found", "code", "strict_code", "said"),
    [
        ([FINE, TABLE], Exit.OK, Exit.OK, "fit to run"),
        ([FINE, ODD], Exit.OK, Exit.FAILED, "1 to look at"),
        ([BAD, FINE, ODD], Exit.UNFIT, Exit.UNFIT, "1 broken"),
    ],
    ids=["fine", "a warning", "broken"],
)
def test_exit_code_by_severity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: list[Check],
    code: Exit, strict_code: Exit, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(checks, "all_checks", lambda directory: found)
    assert main.main(["doctor"]) == code
    assert said in capsys.readouterr().out
    assert main.main(["doctor", "--strict"]) == strict_code
    capsys.readouterr()
    assert main.main(["doctor", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["fit"] == (code == Exit.OK)
    assert [check["state"] for check in document["checks"]] == [check.state for check in found]


def test_details_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "all_checks", lambda directory: [FINE, TABLE])
    main.main(["doctor"])
    shown = capsys.readouterr().out
    assert "\nRDMA mlx5_0 port 1\n *   3  10.0.0.1\n     4  [fe80::1]\n" in shown
    main.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["checks"][1]["details"] == list(TABLE.details)


def test_what_fails_while_looking_is_a_finding() -> None:
    def failing() -> list[Check]:
        raise OSError(5, "Input/output error")

    (found,) = checks.several("drives", failing)
    assert (found.name, found.state) == ("drives", WARNING)
    assert "Input/output error" in found.found


def test_a_pod_that_can_write_nowhere_names_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The root of data-plane pods is read-only, and there is no /tmp in them."""

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(checks, "all_checks", lambda directory: [FINE])
    assert main.main(["doctor"]) == Exit.USAGE
    assert "name a directory by --dir" in capsys.readouterr().err
    assert main.main(["doctor", "--dir", str(tmp_path)]) == Exit.OK
