"""Writing to a terminal, or to what stands in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def stderr_console() -> Console:
    """For progress and notes; without colours when NO_COLOR is set or stderr is no terminal."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def stdout_console() -> Console:
    """For results; when piped, lines are as long as their text."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 100_000
    return console


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print *rows* to stdout in columns, each text whole; a terminal folds the long ones."""
    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    for column in table.columns:
        column.overflow = "fold"
    stdout_console().print(table)
