"""Tables that are made for a file, with types that give every value back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from .errors import CSVTransferError
from .inference import DECIMAL_COMMA_SQL, TEXT, WIDER, ColumnType
from .tables import TableName

NO_SUCH_VALUE = (
    psycopg.DataError,
    psycopg.errors.StatementTooComplex,
    psycopg.errors.ProgramLimitExceeded,
)
"""What the server says of a text that is no value of a type, or one beyond its limits."""


def create_table(
    connection: psycopg.Connection[Any], table: TableName, names: Iterable[str]
) -> None:
    """Create *table* with a column of text for each of *names*.

    :raises CSVTransferError: if its schema does not exist.
    """
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(each)) for each in names)
    try:
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table.identifier, columns))
    except psycopg.errors.InvalidSchemaName as error:
        raise CSVTransferError(
            f"{error.diag.message_primary}; --create makes a table, not its schema"
        ) from error


def settle_types(
    connection: psycopg.Connection[Any],
    table: TableName,
    candidates: Mapping[str, ColumnType],
    *,
    decimal_comma: bool = False,
) -> dict[str, ColumnType]:
    """Give the columns of *table*, which are text, the types of *candidates*, and return the types.

    A column gets a wider type, or stays text, if its candidate would not give every value back as
    the same text; a number with a decimal comma comes back with a point.
    """
    settled: dict[str, ColumnType] = {}
    tried: dict[str, ColumnType] = {
        name: type_name for name, type_name in candidates.items() if type_name != TEXT
    }
    while tried:
        changed = _that_change_values(connection, table, list(tried.items()), decimal_comma)
        settled |= {name: tried[name] for name in tried if name not in changed}
        tried = {name: WIDER[tried[name]] for name in changed if tried[name] in WIDER}
    if settled:
        changes = sql.SQL(", ").join(
            sql.SQL("ALTER COLUMN {} TYPE {} USING {}").format(
                sql.Identifier(name),
                sql.SQL(type_name),
                _as_type(name, type_name, decimal_comma),
            )
            for name, type_name in settled.items()
        )
        connection.execute(sql.SQL("ALTER TABLE {} {}").format(table.identifier, changes))
    return {name: settled.get(name, TEXT) for name in candidates}


def _that_change_values(
    connection: psycopg.Connection[Any],
    table: TableName,
    types: Sequence[tuple[str, ColumnType]],
    decimal_comma: bool,
) -> list[str]:
    """The columns whose types do not give back the text of every value."""
    # What format gives is what COPY writes, unlike a cast to text, which makes true of t.
    checks = sql.SQL(", ").join(
        sql.SQL("bool_and({} ~ {})").format(sql.Identifier(name), DECIMAL_COMMA_SQL)
        if decimal_comma and type_name == "numeric"
        else sql.SQL("bool_and(format('%s', {}) = {})").format(
            _as_type(name, type_name, decimal_comma), sql.Identifier(name)
        )
        for name, type_name in types
    )
    statement = sql.SQL("SELECT {} FROM {}").format(checks, table.identifier)
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            give_back = cursor.execute(statement).fetchone() or ()
    except NO_SUCH_VALUE:
        if len(types) == 1:
            return [types[0][0]]
        half = len(types) // 2
        return [
            *_that_change_values(connection, table, types[:half], decimal_comma),
            *_that_change_values(connection, table, types[half:], decimal_comma),
        ]
    return [name for (name, _), same in zip(types, give_back, strict=True) if same is False]


def _as_type(name: str, type_name: ColumnType, decimal_comma: bool) -> sql.Composable:
    if decimal_comma and type_name == "numeric":
        return sql.SQL("replace(replace({}, '.', ''), ',', '.')::numeric").format(
            sql.Identifier(name)
        )
    return sql.SQL("{}::{}").format(sql.Identifier(name), sql.SQL(type_name))
