"""``flask pgmonkey import-csv`` and ``export-csv``: CSV files into tables and out of them."""

from __future__ import annotations

import csv
import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .. import csv_transfer
from ..csv_transfer import (
    Dialect,
    ImportResult,
    ImportSettings,
    check_character,
    check_encoding,
    read_import_settings,
    settings_path,
    write_import_settings,
)
from . import WorkFailed
from .common import Target, database_options, stderr_console

SHOW_EVERY = 0.1
"""Seconds: a look at the bar costs more than reading a block."""
INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended: 128 and the number of SIGINT."""


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


def checked_dialect(delimiter: str | None, quote: str | None, null: str) -> Dialect:
    try:
        return Dialect(delimiter or ",", quote or '"', null)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """The names between commas; a name with a comma stands in double quotes."""
    if value is None:
        return []
    names = [name.strip() for name in next(csv.reader([value]), [])]
    if not names or "" in names:
        raise click.BadParameter("a name is empty.")
    return names


def parse_sql(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip(" \t\r\n;"):
        raise click.BadParameter("there is no SQL in it.")
    return value


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def split_columns(names: list[str]) -> tuple[list[str], dict[str, str | None] | None]:
    """What ``--columns`` lists or maps."""
    pairs = [name.rpartition("=") for name in names]
    mapping = {header: column or None for header, equals, column in pairs if equals}
    if mapping and len(mapping) < len(names):
        raise click.UsageError("--columns takes either names or NAME=COLUMN pairs, not both.")
    return ([], mapping) if mapping else (names, None)


@contextmanager
def file_errors_in_words() -> Iterator[None]:
    """Say what is wrong with a file, without numbers of errors.

    :raises WorkFailed: for an OSError that names a file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        problem = error.strerror
        if error.errno == errno.EISDIR:
            problem = "is a folder"
        elif error.errno == errno.ENOENT:
            folder = Path(error.filename).parent
            problem = "no such file" if folder.exists() else f"there is no folder {folder}"
        raise WorkFailed(f"{error.filename}: {problem}") from error


_encoding_option = click.option(
    "--encoding", metavar="NAME", callback=parse_encoding, help="Such as utf-8, utf-16, cp1252."
)
_delimiter_option = click.option(
    "--delimiter", metavar="CHAR", callback=parse_character, help=r"One character, or \t."
)
_quote_option = click.option("--quote", metavar="CHAR", callback=parse_character)
_null_option = click.option(
    "--null",
    metavar="STRING",
    default="",
    help="What stands for NULL where it is not in quotes; nothing by default.",
)


@click.command("import-csv")
@click.argument("table")
@click.argument("file")
@database_options
@_encoding_option
@_delimiter_option
@_quote_option
@click.option("--header/--no-header", default=None, help="Whether the first line has names.")
@click.option(
    "--columns",
    metavar="LIST",
    callback=parse_names,
    help="The table's columns in the file's order, or NAME=COLUMN for names of the header; NAME="
    " leaves one out.",
)
@_null_option
@click.option("--create", is_flag=True, help="Make the table if there is none.")
@click.option("--text", is_flag=True, help="Make all its columns text.")
@click.option(
    "--sample",
    metavar="ROWS",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="How many rows to infer its types from.",
)
@click.option("--keep-names", is_flag=True, help="Name its columns exactly as the header does.")
@click.option("--truncate", is_flag=True, help="Empty the table first.")
@click.option("--dry-run", is_flag=True, help="Do everything, then roll it back.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Import nothing if a row is bad, or keep bad rows in FILE's .rejected.csv.",
)
@click.option("--save-settings", is_flag=True, help="Write what was used to FILE's .yaml.")
@file_errors_in_words()
def import_csv(
    target: Target,
    table: str,
    file: str,
    encoding: str | None,
    delimiter: str | None,
    quote: str | None,
    header: bool | None,
    columns: list[str],
    null: str,
    create: bool,
    text: bool,
    sample: int,
    keep_names: bool,
    truncate: bool,
    dry_run: bool,
    on_error: Literal["stop", "skip"],
    save_settings: bool,
) -> None:
    """Append the rows of a CSV file to a table, all of them or none.

    TABLE may be schema.table. FILE may end in .gz or .zst; - is standard input. Encoding,
    delimiter, quote and header are detected, unless an option or a YAML file beside FILE
    (orders.yaml for orders.csv) says what they are. Columns are found by the header's names.

    \b
      flask pgmonkey import-csv orders orders.csv
      flask pgmonkey import-csv sales.orders orders.csv.gz --create
      flask pgmonkey import-csv orders orders.csv --columns "Order No=id,Remarks="
      zcat orders.gz | flask pgmonkey import-csv orders - --no-header --config db.yaml
    """
    from_stdin = file == "-"
    if from_stdin and save_settings:
        raise click.UsageError("--save-settings needs a FILE to stand beside.")
    settings = ImportSettings() if from_stdin else read_import_settings(settings_path(file))
    create = create or bool(settings.auto_create_table)
    if text and not create:
        raise click.UsageError("--text goes with --create.")
    delimiter, quote = delimiter or settings.delimiter, quote or settings.quotechar
    if delimiter and quote:
        checked_dialect(delimiter, quote, null)
    names, mapping = split_columns(columns)
    keep_names = keep_names or settings.enforce_lowercase is False
    with exiting_on_interrupt("nothing was imported"):
        with target.connect() as connection, progress_bar("import") as progress:
            result = csv_transfer.import_csv(
                connection,
                table,
                sys.stdin.buffer if from_stdin else file,
                encoding=encoding or settings.encoding,
                delimiter=delimiter,
                quote=quote,
                null=null,
                header=settings.has_headers if header is None else header,
                columns=names,
                mapping=mapping,
                create=create,
                text=text,
                sample=sample,
                keep_names=keep_names,
                truncate=truncate,
                dry_run=dry_run,
                on_error=on_error,
                progress=progress,
            )
    report_import(result, table, dry_run)
    if save_settings:
        write_import_settings(
            settings_path(file),
            ImportSettings(
                has_headers=result.header,
                auto_create_table=create,
                enforce_lowercase=not keep_names,
                delimiter=result.dialect.delimiter,
                quotechar=result.dialect.quote,
                encoding=result.encoding,
            ),
        )


def report_import(result: ImportResult, table: str, dry_run: bool) -> None:
    console = stderr_console()
    if result.created is not None:
        columns = ", ".join(f"{name} {type_name}" for name, type_name in result.created.items())
        console.print(f"Made the table {table}: {columns}.", soft_wrap=True)
    for rejection in result.rejections:
        console.print(rejection, soft_wrap=True)
    if result.rejected_file:
        rejected = counted(result.rejected, "rejected row")
        verb = "is" if result.rejected == 1 else "are"
        console.print(f"{rejected} {verb} in {result.rejected_file}.", soft_wrap=True)
    elif result.rejected:
        console.print(f"{counted(result.rejected, 'row')} would be rejected.", soft_wrap=True)
    console.print(
        f"{counted(result.rows, 'row')} into {table} (read as {result.encoding}, delimiter"
        f" {result.dialect.delimiter!r}, {'with' if result.header else 'without'} header)"
        + (", all rolled back." if dry_run else "."),
        soft_wrap=True,
    )


@click.command("export-csv")
@click.argument("table", required=False)
@click.argument("file", required=False)
@database_options
@click.option(
    "--query",
    metavar="SQL",
    callback=parse_sql,
    help="Export the rows of this SELECT instead of a table.",
)
@click.option("--columns", metavar="LIST", callback=parse_names, help="The columns, in this order.")
@click.option(
    "--where",
    metavar="SQL",
    callback=parse_sql,
    help="Only the rows for which this condition holds.",
)
@_encoding_option
@_delimiter_option
@_quote_option
@_null_option
@click.option("--no-header", is_flag=True, help="Do not write the names of the columns.")
@file_errors_in_words()
def export_csv(
    target: Target,
    table: str | None,
    file: str | None,
    query: str | None,
    columns: list[str],
    where: str | None,
    encoding: str | None,
    delimiter: str | None,
    quote: str | None,
    null: str,
    no_header: bool,
) -> None:
    """Write a table, or the rows of a query, to a CSV file.

    TABLE may be schema.table. Without FILE, or with -, the rows go to standard output. FILE is
    compressed if it ends in .gz or .zst, and is there complete or not at all.

    \b
      flask pgmonkey export-csv orders orders.csv
      flask pgmonkey export-csv sales.orders orders.csv.zst --where "placed > '2026-01-01'"
      flask pgmonkey export-csv --query "SELECT id, total FROM orders" totals.csv --config db.yaml
      flask pgmonkey export-csv orders | head
    """
    if query is not None:
        if columns or where or file:
            raise click.UsageError("--query takes the place of TABLE, --columns and --where.")
        table, file = None, table
    elif table is None:
        raise click.UsageError("Name a TABLE or give --query SQL.")
    to_stdout = file in (None, "-")
    dialect = checked_dialect(delimiter, quote, null)
    with exiting_on_interrupt("nothing was written"):
        with target.connect() as connection, progress_bar("export") as progress:
            rows = csv_transfer.export_csv(
                connection,
                sys.stdout.buffer if to_stdout else Path(file or ""),
                table=table,
                query=query,
                columns=columns,
                where=where,
                dialect=dialect,
                encoding=encoding or "utf-8",
                header=not no_header,
                progress=progress,
            )
    if not to_stdout:
        stderr_console().print(f"{counted(rows, 'row')} into {file}.", soft_wrap=True)


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


@contextmanager
def exiting_on_interrupt(outcome: str) -> Iterator[None]:
    """End with exit code 130 after Ctrl-C, when everything has been rolled back."""
    try:
        yield
    except KeyboardInterrupt:
        stderr_console().print(f"Interrupted: {outcome}.")
        sys.exit(INTERRUPTED)
