"""What went wrong with a CSV file, and where in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg

from ..errors import PGMonkeyError
from ..printable import one_line
from .inference import FRACTIONS, decimal_comma_class, value_class

ROW_ERRORS = ("22", "23", "P0")
"""The SQLSTATE classes that lie in a row: its values, a constraint, what a trigger raises."""
UNDECODABLE = "22021"
TOO_LARGE = "54000"
WORDS_FOR_NULL = ("\\N", "NULL", "null", "None", "N/A", "n/a", "-")
NO_NUL = "that is a NUL, which PostgreSQL takes in no text; take it out, as with tr -d '\\000'"
LONGEST_CONTEXT = 10_000
"""Characters: more than a server says that means well."""
SHOWN_DETAILS = {"23503", "23505", "23P01"}
"""The SQLSTATEs whose detail names a key; the detail of others may hold a whole row."""


class CSVTransferError(PGMonkeyError):
    """A file or a table that cannot be transferred; the database is as it was.

    Errors of the server that do not lie in the file pass through as psycopg's own.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: str | None = None,
        value_class: str | None = None,
    ) -> None:
        super().__init__(one_line(message))  # Names and values of the file are in it.
        self.file = file
        self.line = line
        """The line of the file as an editor counts it; the last of a record with several."""
        self.column = column
        """The table's column."""
        self.value_class = value_class
        """The narrowest type that the value would have fitted."""


def line_of(error: psycopg.Error, table: str) -> int | None:
    """The line of the COPY data that *error* is about, if the server says one."""
    place = _place_of(error, table)
    return int(place["line"]) if place else None


def located_error(
    error: psycopg.Error,
    *,
    file: str,
    table: str,
    types: Mapping[str, str],
    line: int | None,
    lines_skipped: int = 0,
) -> psycopg.Error | CSVTransferError:
    """The server's *error* with its place in *file*; itself if it does not lie in the file.

    :param table: the table's name without its schema.
    :param types: the type of each column.
    :param line: the line of the file, or None where it is the one that the server counted.
    :param lines_skipped: the lines of the file that the server did not get.
    """
    sqlstate = error.sqlstate or ""
    if not sqlstate.startswith(ROW_ERRORS) and sqlstate != TOO_LARGE:
        return error
    place = _place_of(error, table)
    if line is None:
        if place is None:
            return error
        line = int(place["line"]) + lines_skipped
    column = place["column"] if place and place["column"] in types else None
    where = f"{file}, line {line}"
    found = None
    if place and column:
        where += f', column "{column}" ({types[column]}'
        if place["value"] is not None:
            found = value_class(place["value"])
            where += f", value: {found}"
        where += ")"
    message = f"{where}: {shortened(error.diag.message_primary or str(error))}"
    if sqlstate == TOO_LARGE:
        message += "; PostgreSQL takes 1 GB for a record: is a quote left open there?"
    if "unterminated CSV quoted" in message:
        message += "; if quotes are plain characters in this file, say --quote none"
    if sqlstate in SHOWN_DETAILS and error.diag.message_detail:
        message += f" ({shortened(error.diag.message_detail)})"
    if sqlstate == UNDECODABLE and "0x00" in message:
        message += f"; {NO_NUL}"
    elif sqlstate == UNDECODABLE:
        message += "; name the file's encoding with --encoding"
    elif column and place and (advice := _advice(place["value"], types[column])):
        message += f"; {advice}"
    return CSVTransferError(message, file=file, line=line, column=column, value_class=found)


def _advice(value: str | None, type_name: str) -> str:
    """The option that may give a value its meaning."""
    if value == "":
        return "if it stands for NULL, say --null-quoted"
    if value in WORDS_FOR_NULL:
        return f"if it stands for NULL, say --null '{value}'"
    if value and type_name.startswith(FRACTIONS) and decimal_comma_class(value) == "numeric":
        return "if its comma is a decimal one, say --decimal-comma"
    return ""


def _place_of(error: psycopg.Error, table: str) -> re.Match[str] | None:
    # The words of the context follow the server's lc_messages; its order does not.
    pattern = (
        rf"^COPY {re.escape(table)}, \D*?(?P<line>\d+)"
        r"""(?:, \S+ (?P<column>.+?)(?:\s?: ["«„“]\s?(?P<value>.*?)\s?["»“”]$|: .*$|$))?"""
    )
    context = (error.diag.context or "")[:LONGEST_CONTEXT]
    return re.search(pattern, context, re.MULTILINE | re.DOTALL)


def shortened(text: str) -> str:
    """*text*, its middle left out where it is long."""
    return text if len(text) <= 200 else f"{text[:150]}…{text[-30:]}"
