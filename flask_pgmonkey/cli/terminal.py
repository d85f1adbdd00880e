"""Writing to a terminal, or to what stands in its place."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from ..printable import printable
from .tables import laid_out, plain, wrapped

if TYPE_CHECKING:
    from rich.console import Console


def say(line: object = "") -> None:
    """Print a line of a result to stdout, as it is but for what a terminal would obey."""
    click.echo(printable(str(line)))


def say_sentence(sentence: object) -> None:
    """:func:`say` for what is read and not copied: a terminal gets it with its words whole."""
    width = terminal_width()
    for line in wrapped(printable(str(sentence)), width) if width else [sentence]:
        say(line)


def say_aside(line: object) -> None:
    """Print a line that is no result to stderr."""
    click.echo(printable(str(line)), err=True)


def terminal_width() -> int | None:
    """The columns of the terminal that stdout is; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def is_styled() -> bool:
    """Whether the terminal takes styles, and the user wants them (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def stderr_console() -> Console:
    """For progress and notes; without colours when NO_COLOR is set or stderr is no terminal."""
    from rich.console import Console  # takes as long to import as all the rest

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print *rows* to stdout in columns.

    Elsewhere than on a terminal each row is one line, whatever the width. A terminal gets no word
    in two: cells have several lines, and a row for which that does not do becomes a block with a
    line for each cell.
    """
    cells = [[*map(printable, row)] for row in rows]
    names = [*map(printable, headers)]
    width = terminal_width()
    if width is None:
        for line in plain([names, *cells]):
            say(line)
        return
    for line, is_head in laid_out(names, cells, width):
        if is_head and is_styled():
            click.secho(printable(line), bold=True)
        else:
            say(line)
