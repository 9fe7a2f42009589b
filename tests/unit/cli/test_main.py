"""The command line before any command runs: parsing, errors, exit codes, what is imported."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from memkv.cli import main as cli
from memkv.cli import parsing, settings
from memkv.cli.command import Call, Command
from memkv.cli.exits import MEANINGS, Exit, Terminated
from memkv.errors import InternalBug, ProtocolError

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
        (["metadata"], "say one of --publish"),
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
    assert "there is no command 'gett'; did you mean get?" in done.stderr
    assert "exists" in done.stderr


def test_a_command_of_a_later_version_is_named() -> None:
    done = run("plan", "--json")
    assert done.returncode == Exit.USAGE
    assert "comes with the capacity planner" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize(
    "words",
    [["gett"], ["get"], ["--quiet", "map"], ["put", "a"], ["up", "--nods", "1"], ["top", "-x"]],
)
def test_mistakes_of_usage_are_json_too_when_asked(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--json"]) == Exit.USAGE
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == Exit.USAGE
    assert captured.err.startswith("memkv")


def test_every_command_has_examples_that_parse() -> None:
    """An example in --help is one that the parser takes."""
    for name in cli.COMMANDS:
        command = cli.load(name)
        assert command.examples, name
        for example in command.examples:
            text = example.replace("\\\n", " ").partition("#")[0].partition("&&")[0]
            words = next(
                words
                for part in text.split("|")
                if (words := shlex.split(part))[:2] == ["memkv", name]
            )
            parser = parsing.build_parser(cli.HELP, name, command)
            settings.resolve(
                command.fields, [settings.flag_source(vars(parser.parse_args(words[1:])))]
            )


class Broken(Exception):
    """What nobody expects."""


def failing(error: BaseException) -> Command:
    def run(call: Call) -> int:
        raise error

    return Command("Fails.", run)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Broken("odd"), Exit.BUG, "a bug in MemKV"),
        (InternalBug("count is off"), Exit.BUG, "count is off"),
        (ProtocolError("strange frame"), Exit.UNREACHABLE, "strange frame"),
        (OSError(28, "No space left on device"), Exit.UNFIT, "No space left on device"),
        (Terminated(), Exit.TERMINATED, "terminated"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "interrupted"),
    ],
)
def test_every_error_has_a_code_and_is_json_when_asked(
    error: BaseException, code: Exit, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cli, "load", lambda name: failing(error))
    assert cli.main(["map", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    assert message in document["error"]


def test_figures_of_an_earlier_run_do_not_survive_an_error(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text('{"passed": true}')
    assert cli.main(["demo", "--requests", "3", "--json", str(figures)]) == Exit.UNFIT
    document = json.loads(figures.read_text())
    assert document["exit_code"] == Exit.UNFIT
    assert "too few" in document["error"]


def test_a_demo_too_small_to_work_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--requests", "40"]) == Exit.UNFIT
    assert "take more --requests" in capsys.readouterr().err


def test_a_file_for_figures_that_cannot_be_written_is_named_before_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["demo", "--json", "/no/such/dir/figures.json"]) == Exit.USAGE
    assert "--json /no/such/dir/figures.json: No such file" in capsys.readouterr().err


def test_sigterm_ends_a_command_with_its_own_code() -> None:
    program = (
        "import os, signal, sys\nfrom memkv.cli import main\n"
        "from memkv.cli.command import Command\n"
        "def run(call):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        signal.pause()\n"
        "    finally:\n        print('cleaned up')\n"
        "main.load = lambda name: Command('Waits.', run)\n"
        "sys.exit(main.main(['map']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == Exit.TERMINATED
    assert done.stdout == "cleaned up\n"
    assert done.stderr == "memkv map: error: terminated\n"


def test_closed_streams_are_no_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m memkv.cli.main --help >&- 2>&-', sys.executable],
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.OK


def test_a_full_disk_below_stdout_is_told() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m memkv.cli.main doctor >/dev/full', sys.executable],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.UNFIT
    assert done.stderr == "memkv doctor: error: No space left on device\n"
