"""Writing to a terminal, or to what stands in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.table import Table

from ..printable import printable


def say(line: object = "") -> None:
    """Print a line of a result to stdout, as it is but for what a terminal would obey."""
    click.echo(printable(str(line)))


def say_aside(line: object) -> None:
    """Print a line that is no result to stderr."""
    click.echo(printable(str(line)), err=True)


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
    table = Table(*map(printable, headers), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(printable, row))
    for column in table.columns:
        column.overflow = "fold"
    stdout_console().print(table)
