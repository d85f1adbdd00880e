"""Tables and queries into CSV files."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import psycopg
from psycopg import errors, generators, pq, sql
from psycopg.rows import tuple_row

from .dialect import Dialect
from .errors import CSVTransferError
from .streams import Progress, check_encoding, open_target
from .tables import TableName, check_text, column_types, no_such_column, no_such_table

Write = Callable[[Any], object]


def export_csv(
    connection: psycopg.Connection[Any],
    target: str | os.PathLike[str] | BinaryIO,
    *,
    table: str | None = None,
    query: str | None = None,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    dialect: Dialect | None = None,
    encoding: str = "utf-8",
    header: bool = True,
    safe_formulas: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a table or the rows of a query to *target* and return how many rows there were.

    A file appears under its name complete or not at all, compressed if it ends in ``.gz``,
    ``.zst`` or ``.zstd``. The transaction is read-only. Memory does not grow with the rows.

    :param table: ``table`` or ``schema.table``, instead of *query*.
    :param query: a SELECT, VALUES or WITH statement.
    :param columns: the table's columns to write; all but the generated ones if None.
    :param where: an SQL condition on the table's rows.
    :param encoding: one that Python knows.
    :param safe_formulas: put an apostrophe before texts, and names of columns, that a spreadsheet
        would take for a formula: those that begin with ``=``, ``+``, ``-``, ``@`` or a control
        character. Numbers and dates stay as they are.
    :param progress: is called after each block; the bytes in all are the planner's estimate.
    :raises CSVTransferError: if there is no such table, the query is more than one statement, or
        the encoding lacks a character.
    :raises OSError: if the file cannot be written.
    """
    dialect = dialect or Dialect()
    for what, text in (("the query", query), ("the condition", where), ("NULL", dialect.null)):
        check_text(text or "", what)
    for column in columns or ():
        check_text(column, "a column's name")
    check_encoding(encoding)
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        select = _select(connection, table, query, columns, where)
        columns_of_select = _check_alone(connection, select)
        if safe_formulas:
            select = _without_formulas(connection, select, columns_of_select)
        expected = _expected_rows(connection, select) if progress else 0
        # The line break ends a comment that the query may end with.
        copy = sql.SQL(
            "COPY ({}\n) TO STDOUT (FORMAT csv, HEADER {}, DELIMITER {}, QUOTE {}, NULL {},"
            " ENCODING 'UTF8')"
        ).format(
            select,
            sql.SQL("true" if header else "false"),
            sql.Literal(dialect.delimiter),
            sql.Literal(dialect.quote),
            sql.Literal(dialect.null),
        )
        with open_target(target) as file:
            write: Write = file.write
            if codecs.lookup(encoding).name != "utf-8":
                write = _transcoding(file.write, encoding)
            return _copy_out(connection, copy, write, expected, progress)


def _select(
    connection: psycopg.Connection[Any],
    table: str | None,
    query: str | None,
    columns: Sequence[str] | None,
    where: str | None,
) -> sql.Composable:
    if query is not None:
        return _users_sql(query.rstrip("; \t\r\n"))
    name = TableName.parse(table or "")
    types = column_types(connection, name)
    if types is None:
        raise no_such_table(connection, name)
    if missing := next((column for column in columns or () if column not in types), None):
        there = column_types(connection, name, all_columns=True) or {}
        if missing not in there:
            raise no_such_column(name, missing, there)
    select: sql.Composable = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(sql.Identifier(column) for column in columns or types),
        name.identifier,
    )
    return sql.SQL("{} WHERE {}").format(select, _users_sql(where)) if where else select


def _check_alone(
    connection: psycopg.Connection[Any], select: sql.Composable
) -> list[tuple[str, int]]:
    """Make sure that *select* is one whole statement, which cannot end the COPY around it.

    :return: the name and the type's OID of each column that it gives.
    :raises CSVTransferError: if it is several.
    """
    # The server runs nothing here, and takes one statement only, unlike in the simple protocol.
    connection.pgconn.send_prepare(b"", select.as_bytes(connection))
    (result,) = connection.wait(generators.execute(connection.pgconn))
    if result.status == pq.ExecStatus.COMMAND_OK:
        connection.pgconn.send_describe_prepared(b"")
        (result,) = connection.wait(generators.execute(connection.pgconn))
    if result.status == pq.ExecStatus.COMMAND_OK:
        encoding = connection.info.encoding
        return [
            ((result.fname(number) or b"").decode(encoding), result.ftype(number))
            for number in range(result.nfields)
        ]
    error = errors.error_from_result(result)
    if isinstance(error, errors.SyntaxError) and error.diag.statement_position is None:
        raise CSVTransferError(
            "the query is several statements; give one SELECT, VALUES or WITH statement"
        ) from error
    raise error


HARMLESS_TYPES = (
    *("bool", "int2", "int4", "int8", "oid", "float4", "float8", "numeric", "money"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "interval", "uuid", "bytea"),
)
"""The types of which no value is more than a number or a word to a spreadsheet."""
BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def _without_formulas(
    connection: psycopg.Connection[Any], select: sql.Composable, columns: list[tuple[str, int]]
) -> sql.Composable:
    """*select* with an apostrophe before what a spreadsheet would take for a formula."""
    if not columns:
        return select
    aliases, shown = guarded_columns(connection, columns)
    return sql.SQL("SELECT {} FROM ({}\n) AS rows ({})").format(shown, select, aliases)


def guarded_columns(
    connection: psycopg.Connection[Any], columns: list[tuple[str, int]]
) -> tuple[sql.Composed, sql.Composed]:
    """Names for *columns*, and what to select of them so that no spreadsheet finds a formula.

    :param columns: the name and the type's OID of each.
    """
    harmless = {connection.adapters.types[name].oid for name in HARMLESS_TYPES}
    aliases = [sql.Identifier(f"c{number}") for number in range(len(columns))]
    # What concat gives is what COPY writes, unlike a cast to text, which drops a char(n)'s blanks.
    guarded = sql.SQL(
        "CASE WHEN num_nulls({c}) = 0 THEN"
        " concat(CASE WHEN left(concat({c}), 1) IN ({begins}) THEN '''' END, {c}) END"
    )
    begins = sql.SQL(", ").join(map(sql.Literal, BEGINS_FORMULA))
    shown = [
        sql.SQL("{} AS {}").format(
            alias if type_oid in harmless else guarded.format(c=alias, begins=begins),
            sql.Identifier(f"'{name}" if name.startswith(BEGINS_FORMULA) else name),
        )
        for alias, (name, type_oid) in zip(aliases, columns, strict=True)
    ]
    return sql.SQL(", ").join(aliases), sql.SQL(", ").join(shown)


def _users_sql(text: str) -> sql.SQL:
    return sql.SQL(text)  # pyright: ignore[reportArgumentType]


def _expected_rows(connection: psycopg.Connection[Any], select: sql.Composable) -> int:
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(sql.SQL("EXPLAIN (FORMAT json) {}").format(select))
        (plans,) = cursor.fetchone() or ([],)
    match plans:
        case [{"Plan": {"Plan Rows": int(rows)}}]:
            return rows
    return 0  # What a rule makes of a statement may have no plan, or several.


def _copy_out(
    connection: psycopg.Connection[Any],
    copy_statement: sql.Composed,
    write: Write,
    expected_rows: int,
    progress: Progress | None,
) -> int:
    pgconn = connection.pgconn
    next_row = pgconn.get_copy_data
    size = rows = 0
    with connection.cursor() as cursor, _copying(connection, cursor, copy_statement) as copy:
        while row := copy.read():
            # psycopg waits for the first row that is not here yet; taking from libpq those that
            # are spares the cost of a wait for each, which is over half the time of an export.
            length = len(row)
            while length > 0:
                write(row)
                size += length
                rows += 1
                length, row = next_row(1)
            if progress:
                total = max(size, size * expected_rows // rows) if expected_rows else None
                progress(size, total, rows)
            if length < 0:
                return _finish(connection)
        return cursor.rowcount


@contextmanager
def _copying(
    connection: psycopg.Connection[Any], cursor: psycopg.Cursor[Any], statement: sql.Composed
) -> Iterator[psycopg.Copy]:
    try:
        with cursor.copy(statement) as copy:
            yield copy
    except BaseException:
        # Interrupted before the first row, psycopg leaves the connection in the middle of the copy,
        # where nobody can use it again.
        if connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            connection.close()
        raise


COPYING = (pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH)


def _finish(connection: psycopg.Connection[Any]) -> int:
    """The number of rows, when libpq has said that the copy is over."""
    rows = 0
    failed: psycopg.Error | None = None
    while (result := connection.pgconn.get_result()) is not None:  # All, or it stays busy.
        if result.status in COPYING:  # libpq would give this result again for ever.
            connection.close()
            raise CSVTransferError("the server began another copy than the one it was asked for")
        if result.status != pq.ExecStatus.COMMAND_OK:
            failed = failed or errors.error_from_result(result)
        rows = result.command_tuples or 0
    if failed is not None:
        raise failed
    return rows


def _transcoding(write: Write, encoding: str) -> Write:
    encoder = codecs.getincrementalencoder(encoding)()
    record = 0

    def write_row(row: Any) -> None:
        nonlocal record
        record += 1
        try:
            write(encoder.encode(str(row, "utf-8")))
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise CSVTransferError(
                f"record {record}: the character {character!r} (U+{ord(character):04X}) does not"
                f" exist in {encoding}; export with another encoding, such as utf-8"
            ) from error

    return write_row
