"""The sequences that number rows, after rows with numbers of their own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from .tables import TableName

_BEHIND_COLUMNS = """
SELECT DISTINCT attname, nspname, relname, seqmax
  FROM pg_attribute
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
  JOIN pg_depend AS link
    ON link.classid = 'pg_attrdef'::regclass AND link.objid = pg_attrdef.oid
    OR link.refclassid = 'pg_class'::regclass AND link.refobjid = attrelid
       AND link.refobjsubid = attnum AND link.deptype = 'i'
  JOIN pg_class ON relkind = 'S' AND pg_class.oid = CASE
       WHEN link.classid = 'pg_attrdef'::regclass THEN link.refobjid ELSE link.objid END
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
  JOIN pg_sequence ON seqrelid = pg_class.oid AND seqincrement > 0
 WHERE attrelid = %s::regclass AND attname = ANY (%s)
   AND atttypid = ANY ('{int2,int4,int8}'::regtype[])
 ORDER BY attname, nspname, relname
"""
"""The sequences in the defaults of some columns, and those of identities."""

_ADVANCE = """
SELECT setval({name}, largest)
  FROM (SELECT max({column}) AS largest FROM {table} WHERE {column} <= {limit}) AS found,
       pg_sequence, {sequence}
 WHERE seqrelid = {name}::regclass
   AND largest >= last_value + CASE WHEN is_called THEN seqincrement ELSE 0 END
"""


@dataclass(frozen=True)
class AdvancedSequence:
    """A sequence that was behind the values of its column."""

    column: str
    last: int | None
    """Its last value now; None where the user may not set it, or not read the column."""
    statement: str
    """What sets it, run by one who may."""


def advance_sequences(
    connection: psycopg.Connection[Any], table: TableName, columns: Iterable[str]
) -> list[AdvancedSequence]:
    """Let the sequences that number *columns* go on behind the largest value there is.

    No rollback takes that back.
    """
    advanced: list[AdvancedSequence] = []
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(_BEHIND_COLUMNS, (table.identifier.as_string(connection), [*columns]))
        for column, schema, name, limit in cursor.fetchall():
            sequence = sql.Identifier(schema, name)
            parts = {
                "name": sql.Literal(sequence.as_string(connection)),
                "sequence": sequence,
                "column": sql.Identifier(column),
                "table": table.identifier,
                "limit": sql.Literal(limit),
            }
            remedy = sql.SQL("SELECT setval({name}, max({column})) FROM {table}").format(**parts)
            row: tuple[int | None] | None = (None,)
            with suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
                row = cursor.execute(sql.SQL(_ADVANCE).format(**parts)).fetchone()
            if row:
                advanced.append(AdvancedSequence(column, row[0], remedy.as_string(connection)))
    return advanced
