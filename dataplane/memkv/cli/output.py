"""What commands print: results on stdout (a table, or JSON with --json), the rest on stderr.

rich is imported when something is drawn, not before: `memkv --help` and `memkv get` stay quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from memkv.cli.settings import UsageError

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 160  # a pipe or a log wraps by itself, if at all
PLAIN_REPORT_LINES = 5  # without a terminal: as many lines of progress, and one for each phase

Report = Callable[[float, str], None]
"""Progress of a long job: (part done, 0 to 1; what happens now)."""


class Output:
    """Where one command writes. `forced_progress`: draw bars even when stderr is no terminal."""

    def __init__(
        self, *, as_json: bool = False, forced_progress: bool = False, quiet: bool = False,
        json_file: Path | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None,
    ) -> None:  # fmt: skip
        """`json_file` gets the document too, an error's as well: no figures of before stay."""
        self.as_json = as_json
        self.json_file = json_file
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._forced_progress = forced_progress
        self._quiet = quiet

    def result(self, document: object, draw: Callable[[Console], None]) -> None:
        """Print the result: `document` as JSON, or what `draw` draws."""
        if self.json_file is not None:
            write_json(self.json_file, document)
        if self.as_json:
            print(json.dumps(document, indent=2, ensure_ascii=False), file=self.stdout)
        else:
            draw(self.console())
        self.stdout.flush()

    def record(self, document: object) -> None:
        """Print one of many JSON documents, each on a line of its own."""
        print(json.dumps(document, ensure_ascii=False), file=self.stdout, flush=True)

    def note(self, text: str) -> None:
        """Say something to a person; never part of the result."""
        if not self._quiet:
            print(text, file=self.stderr, flush=True)

    def error(self, command: str, message: str, exit_code: int) -> None:
        """Print an error. With --json stdout also gets an object, so that scripts find it."""
        print(f"{command}: error: {message}", file=self.stderr)
        document = {"error": message, "exit_code": int(exit_code)}
        try:
            if self.json_file is not None:
                write_json(self.json_file, document)
            if self.as_json:
                print(json.dumps(document, indent=2), file=self.stdout, flush=True)
        except (OSError, UsageError) as error:  # the message above is out, and the code tells
            print(f"{command}: cannot write the error as JSON: {error}", file=self.stderr)

    def console(self) -> Console:
        """Return a console on stdout; tables keep their width when piped."""
        from rich.console import Console

        width = None if self.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
        return Console(file=self.stdout, highlight=False, emoji=False, width=width)

    @property
    def draws_progress(self) -> bool:
        return (self._forced_progress or self.stderr.isatty()) and not self._quiet

    @contextmanager
    def progress(self) -> Iterator[Report]:
        """Yield a `Report` drawn as a bar on stderr; without a terminal as a few lines."""
        if not self.draws_progress:
            yield self._plain_report()
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        terminal = True if self._forced_progress else None
        progress = Progress(
            SpinnerColumn(), BarColumn(bar_width=16), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn(
                "{task.description}", markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=Console(file=self.stderr, force_terminal=terminal, highlight=False),
            transient=True, expand=True,
        )  # fmt: skip
        with progress:
            task = progress.add_task("", total=1.0)
            yield lambda done, text: progress.update(task, completed=done, description=text)

    def _plain_report(self) -> Report:
        """A log has no bars: a line for each new phase (the text up to its first colon)."""
        seen, told = "", 0

        def report(done: float, text: str) -> None:
            nonlocal seen, told
            phase = text.partition(":")[0]
            part = int(done * PLAIN_REPORT_LINES + 1e-9)
            if phase != seen or part > told:
                seen, told = phase, part
                self.note(text)

        return report


def write_json(path: Path, document: object) -> None:
    """Write a document. UsageError when the file cannot be written."""
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {path}: {error.strerror}") from None


def check_writable(path: Path | None) -> None:
    """Raise UsageError before a long run whose figures could not be written afterwards."""
    if path is None:
        return
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise UsageError(
            f"--json {path}: {error.strerror}; name a file that can be written"
        ) from None
