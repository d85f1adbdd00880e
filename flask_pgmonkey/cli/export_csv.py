"""``flask pgmonkey export-csv``: a table, or the rows of a query, into a CSV file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .. import csv_transfer
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


def parse_sql(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip(" \t\r\n;"):
        raise click.BadParameter("there is no SQL in it.")
    return value


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
@format_options
@click.option("--quote", metavar="CHAR", callback=parse_character)
@click.option("--no-header", is_flag=True, help="Do not write the names of the columns.")
@click.option(
    "--safe-formulas",
    is_flag=True,
    help="Put ' before texts that a spreadsheet would take for a formula.",
)
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
    safe_formulas: bool,
) -> None:
    """Write a table, or the rows of a query, to a CSV file.

    TABLE may be schema.table. Without FILE, or with -, the rows go to standard output. FILE is
    compressed if it ends in .gz or .zst, and is there complete or not at all.

    \b
      flask pgmonkey export-csv orders orders.csv
      flask pgmonkey export-csv sales.orders orders.csv.zst --where "placed > '2026-01-01'"
      flask pgmonkey export-csv --query "SELECT id, total FROM orders" totals.csv
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
        with bulk_connection(target) as connection, progress_bar("export") as progress:
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
                safe_formulas=safe_formulas,
                progress=progress,
            )
    if not to_stdout:
        say_aside(f"{counted(rows, 'row')} into {file}.")
