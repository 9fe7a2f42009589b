"""What commands print: results on stdout (a table, or JSON with --json), the rest on stderr.

rich is imported when something is drawn, not before: `memkv --help` and `memkv get` stay quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 160  # a pipe or a log wraps by itself, if at all

Report = Callable[[float, str], None]
"""Progress of a long job: (part done, 0 to 1; what happens now)."""


def silent(done: float, text: str) -> None:
    """Report to nobody."""


class Output:
    """Where one command writes. `forced_progress`: draw bars even when stderr is no terminal."""

    def __init__(
        self, *, as_json: bool = False, forced_progress: bool = False, quiet: bool = False,
        stdout: TextIO | None = None, stderr: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.as_json = as_json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._forced_progress = forced_progress
        self._quiet = quiet

    def result(self, document: object, draw: Callable[[Console], None]) -> None:
        """Print the result: `document` as JSON, or what `draw` draws."""
        if self.as_json:
            print(json.dumps(document, indent=2, ensure_ascii=False), file=self.stdout)
        else:
            draw(self.console())

    def note(self, text: str) -> None:
        """Say something to a person; never part of the result."""
        if not self._quiet:
            print(text, file=self.stderr, flush=True)

    def error(self, command: str, message: str, exit_code: int) -> None:
        """Print an error. With --json stdout also gets an object, so that scripts find it."""
        print(f"{command}: error: {message}", file=self.stderr)
        if self.as_json:
            document = {"error": message, "exit_code": exit_code}
            print(json.dumps(document, indent=2, ensure_ascii=False), file=self.stdout)

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
        """Yield a `Report` drawn as a bar on stderr; without a terminal only changes of text."""
        if not self.draws_progress:
            yield self._plain_report()
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        terminal = True if self._forced_progress else None
        progress = Progress(
            SpinnerColumn(), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("{task.description}"),
            console=Console(file=self.stderr, force_terminal=terminal, highlight=False),
            transient=True,
        )  # fmt: skip
        with progress:
            task = progress.add_task("", total=1.0)
            yield lambda done, text: progress.update(task, completed=done, description=text)

    def _plain_report(self) -> Report:
        """A log has no bars: one line for each new phase (the text up to its first colon)."""
        seen = ""

        def report(done: float, text: str) -> None:
            nonlocal seen
            phase = text.partition(":")[0]
            if phase != seen:
                seen = phase
                self.note(text)

        return report


def plain(text: str) -> str:
    """Return a text of someone else's so that nothing in it is taken for markup."""
    from rich.markup import escape

    return escape(text)


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table; a column is (heading, "left" | "right")."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, side in columns:
        figure = side == "right" or heading == columns[0][0]  # names and figures stay in one piece
        drawn.add_column(heading, justify="right" if side == "right" else "left", no_wrap=figure)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def pairs_table(title: str, rows: Sequence[tuple[str, str, str]]) -> Table:
    """Return a table of figures: name, value, remark."""
    from rich import box
    from rich.table import Table

    drawn = Table(
        title=title or None, title_justify="left", box=box.SIMPLE, show_header=False, pad_edge=False
    )
    drawn.add_column("figure", style="bold")
    drawn.add_column("value", justify="right")
    drawn.add_column("remark", style="dim")
    for row in rows:
        drawn.add_row(*row)
    return drawn
