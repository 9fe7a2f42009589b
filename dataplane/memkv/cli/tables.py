"""Tables that fit the terminal: what does not fit is left out whole, never cut to `n…`.

rich is imported when a table is made, as in output.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2  # blanks between two columns


@dataclass(frozen=True, slots=True)
class Column:
    """One column. The higher its rank, the sooner it is left out; rank 0 always stays."""

    heading: str
    figure: bool = False
    """Stands to the right."""
    rank: int = 0
    wraps: bool = False
    """Prose: takes the space that is left and goes on below."""


WORDS_MIN = 24  # narrower prose is hard to read


def plain(text: str) -> str:
    """Return a text of someone else's so that nothing in it is taken for markup."""
    from rich.markup import escape

    return escape(text)


def fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> list[int]:
    """Return the positions of the columns to show within `width`, those of high rank left out."""
    kept = list(range(len(columns)))
    while total_width([columns[i] for i in kept], [[row[i] for i in kept] for row in rows]) > width:
        worst = max(kept, key=lambda i: (columns[i].rank, i))
        if columns[worst].rank == 0:
            break
        kept.remove(worst)
    return kept


def total_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """Return how wide a table is; cells may hold markup."""
    from rich.text import Text

    total = 2
    for position, column in enumerate(columns):
        cells = [*column.heading.split("\n"), *(row[position] for row in rows)]
        widest = max(Text.from_markup(cell).cell_len for cell in cells)
        total += GAP + (min(widest, WORDS_MIN) if column.wraps else widest)
    return total


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None
) -> Table:
    """Return a table; with a width, of the columns that fit it."""
    from rich import box
    from rich.table import Table

    kept = list(range(len(columns))) if width is None else fitting(columns, rows, width)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in (columns[i] for i in kept):
        drawn.add_column(
            column.heading, justify="right" if column.figure else "left", no_wrap=not column.wraps
        )
    for row in rows:
        drawn.add_row(*(row[i] for i in kept))
    return drawn


def pairs_table(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Return a table of figures: name, value, remark."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE, show_header=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    drawn.add_column("figure", style="bold", no_wrap=True)
    drawn.add_column("value", justify="right", no_wrap=True)
    drawn.add_column("remark", style="dim")
    for row in rows:
        drawn.add_row(*row)
    return drawn
