"""``flask pgmonkey import-csv``: a CSV file into a table."""

from __future__ import annotations

import sys
from typing import Literal

import click

from .. import csv_transfer
from ..csv_transfer import (
    NO_QUOTE,
    ImportResult,
    ImportSettings,
    read_import_settings,
    settings_path,
    write_import_settings,
)
from .csv_commands import (
    bulk_connection,
    checked_dialect,
    counted,
    exiting_on_interrupt,
    format_options,
    parse_character,
    parse_names,
    progress_bar,
)
from .errors import file_errors_in_words
from .targets import Target, database_options
from .terminal import say_aside


def parse_quote(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return NO_QUOTE if value == "none" else parse_character(ctx, param, value)


def parse_escape(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return "" if value == "double" else parse_character(ctx, param, value)


@click.command("import-csv")
@click.argument("table")
@click.argument("file")
@database_options
@format_options
@click.option(
    "--quote",
    metavar="CHAR",
    callback=parse_quote,
    help="One character, or none where quotes are plain characters.",
)
@click.option(
    "--escape",
    metavar="CHAR",
    callback=parse_escape,
    help=r"What stands before a quote within quotes, such as \, or double.",
)
@click.option(
    "--null-quoted", is_flag=True, help="Take it for NULL in quotes too, where all is quoted."
)
@click.option("--decimal-comma", is_flag=True, help="Numbers have a comma for a point: 1.234,50.")
@click.option(
    "--skip", metavar="LINES", type=click.IntRange(min=0), help="Leave out the first lines."
)
@click.option("--header/--no-header", default=None, help="Whether the first line has names.")
@click.option(
    "--columns",
    metavar="LIST",
    callback=parse_names,
    help="The table's columns in the file's order, or NAME=COLUMN for names of the header or"
    " positions, as in 2=COLUMN; NAME= leaves one out.",
)
@click.option(
    "--ignore-rest", is_flag=True, help="Leave out the file's columns that have none in the table."
)
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
    escape: str | None,
    header: bool | None,
    columns: list[str],
    null: str,
    null_quoted: bool,
    decimal_comma: bool,
    skip: int | None,
    ignore_rest: bool,
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
      zcat orders.gz | flask pgmonkey import-csv orders - --no-header --config database.yaml
    """
    from_stdin = file == "-"
    if from_stdin and save_settings:
        raise click.UsageError("--save-settings needs a FILE to stand beside.")
    settings = ImportSettings() if from_stdin else read_import_settings(settings_path(file))
    create = create or bool(settings.auto_create_table)
    if text and not create:
        raise click.UsageError("--text goes with --create.")
    delimiter, quote = delimiter or settings.delimiter, quote or settings.quotechar
    if escape is None:
        escape = settings.escapechar
    if delimiter:
        checked_dialect(delimiter, quote, null, None if escape == quote else escape or None)
    names, mapping = split_columns(columns)
    keep_names = keep_names or settings.enforce_lowercase is False
    with exiting_on_interrupt("nothing was imported"):
        with bulk_connection(target) as connection, progress_bar("import") as progress:
            result = csv_transfer.import_csv(
                connection,
                table,
                sys.stdin.buffer if from_stdin else file,
                encoding=encoding or settings.encoding,
                delimiter=delimiter,
                quote=quote,
                escape=escape,
                null=null,
                null_quoted=null_quoted,
                decimal_comma=decimal_comma,
                skip=skip,
                header=settings.has_headers if header is None else header,
                columns=names,
                mapping=mapping,
                ignore_rest=ignore_rest,
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
                escapechar=result.dialect.escape,
                encoding=result.encoding,
            ),
        )


def report_import(result: ImportResult, table: str, dry_run: bool) -> None:
    if result.created is not None:
        columns = ", ".join(f"{name} {type_name}" for name, type_name in result.created.items())
        say_aside(f"Made the table {table}: {columns}.")
    for sequence in result.sequences:
        if sequence.last is not None:
            say_aside(f"The sequence of {sequence.column} goes on behind {sequence.last}.")
        else:
            say_aside(
                f"The sequence of {sequence.column} may be behind the file's values, and you may"
                f" not set it; its owner may: {sequence.statement};"
            )
    for rejection in result.rejections:
        say_aside(rejection)
    if result.rejected_file:
        rejected = counted(result.rejected, "rejected row")
        verb = "is" if result.rejected == 1 else "are"
        say_aside(f"{rejected} {verb} in {result.rejected_file}.")
    elif result.rejected:
        say_aside(f"{counted(result.rejected, 'row')} would be rejected.")
    say_aside(
        f"{counted(result.rows, 'row')} into {table} (read as {result.encoding}, delimiter"
        f" {result.dialect.delimiter!r}, {'with' if result.header else 'without'} header)"
        + (", all rolled back." if dry_run else ".")
    )


def split_columns(names: list[str]) -> tuple[list[str], dict[str, str | None] | None]:
    """What ``--columns`` lists or maps."""
    pairs = [name.rpartition("=") for name in names]
    mapping = {header: column or None for header, equals, column in pairs if equals}
    if mapping and len(mapping) < len(names):
        raise click.UsageError("--columns takes either names or NAME=COLUMN pairs, not both.")
    return ([], mapping) if mapping else (names, None)
