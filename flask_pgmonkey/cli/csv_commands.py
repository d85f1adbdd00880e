"""What import-csv and export-csv share: options, the words of errors, and progress."""

from __future__ import annotations

import csv
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import click
import psycopg
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .. import csv_transfer
from ..csv_transfer import Dialect, check_character, check_encoding
from .targets import Target
from .terminal import say_aside, stderr_console

F = TypeVar("F", bound=Callable[..., Any])

LIMITS = ["statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"]
"""How long work may take, on any version of the server; not how long it may wait for locks."""
SHOW_EVERY = 0.1
"""Seconds: a look at the bar costs more than reading a block."""


def parse_encoding(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return value and check_encoding(value)
    except LookupError as error:
        raise click.BadParameter(str(error)) from error


def parse_character(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return value and check_character("\t" if value == r"\t" else value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def checked_dialect(
    delimiter: str | None, quote: str | None, null: str, escape: str | None = None
) -> Dialect:
    try:
        return Dialect(delimiter or ",", quote or '"', null, escape)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """The names between commas; a name with a comma stands in double quotes."""
    if value is None:
        return []
    try:
        names = [name.strip() for name in next(csv.reader([value]), [])]
    except csv.Error as error:  # A line break outside of quotes, or a name of 128 KiB.
        raise click.BadParameter("it is no line of names between commas.") from error
    if not names or "" in names:
        raise click.BadParameter("a name is empty.")
    return names


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def format_options(command: F) -> F:
    """Add the options that say how the file is written."""
    for option in (
        click.option(
            "--null",
            metavar="STRING",
            default="",
            help="What stands for NULL where it is not in quotes; nothing by default.",
        ),
        click.option(
            "--delimiter", metavar="CHAR", callback=parse_character, help=r"One character, or \t."
        ),
        click.option(
            "--encoding",
            metavar="NAME",
            callback=parse_encoding,
            help="Such as utf-8, utf-16, cp1252.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def bulk_connection(target: Target) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """:meth:`Target.connect` without the limits that are meant for the requests of an app."""
    with target.connect() as connection:
        connection.execute(
            "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY (%s)", (LIMITS,)
        )
        connection.commit()
        yield connection


@contextmanager
def progress_bar(verb: str) -> Iterator[csv_transfer.Progress | None]:
    """What shows progress on a terminal's stderr; None where there is no terminal."""
    console = stderr_console()
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(verb, total=None, rows=0)

        shown = 0.0

        def show(done: int, total: int | None, rows: int) -> None:
            nonlocal shown
            if (now := time.monotonic()) - shown < SHOW_EVERY:
                return
            shown = now
            bar.update(task, completed=done, total=total, rows=rows)

        yield show


class Ended(KeyboardInterrupt):
    """A signal told this process to end; psycopg cancels what runs, as after Ctrl-C."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


@contextmanager
def exiting_on_interrupt(outcome: str) -> Iterator[None]:
    """End with 128 and the signal's number after Ctrl-C, SIGTERM or SIGHUP, all rolled back."""

    def end(number: int, frame: object) -> NoReturn:
        raise Ended(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    caught = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    try:
        for number in caught:
            signal.signal(number, end)
        yield
    except KeyboardInterrupt as interrupt:
        ended_by = interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT
        with suppress(OSError):  # The terminal may be gone.
            say_aside(f"Interrupted: {outcome}.")
        sys.exit(128 + ended_by)
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
