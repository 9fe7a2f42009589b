"""The command line before any command runs: parsing, errors, exit codes, what is imported."""

import json
import subprocess
import sys

import pytest

from memkv.cli import main as cli
from memkv.cli.exits import MEANINGS, Exit

HEAVY = ("grpc", "rich", "memkv._hotpath", "memkv.client", "prometheus_client", "asyncio")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memkv.cli.main", *words], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_help_names_every_command_and_exit_code() -> None:
    done = run("--help")
    assert done.returncode == Exit.OK
    for name in cli.COMMANDS:
        assert f"    {name} " in done.stdout
    for code in Exit:
        assert f"\n  {code.value:<4} {MEANINGS[code]}" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom memkv.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_its_settings(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in cli.load(name).fields:
        assert field.flag in text
        assert field.variable in text
    assert "exit codes:" in text


def test_no_command_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == Exit.USAGE
    assert "memkv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["up", "--capacity", "2G"], "--capacity: '2G' is not a size"),
        (["get", "key", "--json"], "--json needs --output FILE"),
        (["put", "key", "no/such/file"], "cannot read no/such/file"),
        (["metadata"], "say either --publish"),
        (["metadata", "--publish"], "--publish needs --nodes"),
        (["doctor", "--dir", "/no/such/dir"], "no such directory"),
        (["exists", "key", "--endpoint", "nowhere"], "--endpoint: 'nowhere' is not HOST:PORT"),
        (["bench", "--size", "17MiB"], "16 MiB at most"),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == Exit.USAGE
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_errors_are_json_too_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--nodes", "0", "--json"]) == Exit.USAGE
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == Exit.USAGE
    assert "--nodes" in document["error"]


def test_an_unknown_command_lists_the_known_ones() -> None:
    done = run("gett")
    assert done.returncode == Exit.USAGE
    assert "invalid choice" in done.stderr
    assert "exists" in done.stderr
