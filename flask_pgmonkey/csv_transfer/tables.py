"""Tables and their columns, named by a user."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from .errors import CSVTransferError, shortened

SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")

LONGEST_NAME = 63
"""Bytes: what PostgreSQL keeps of a name, cutting off the rest without an error."""
LONGEST_GUESSED = 100
"""Characters: of a name for which a near one is looked for."""

_QUOTED_PART = re.compile(r'"((?:[^"]|"")+)"(?:\.|\Z)')


@dataclass(frozen=True)
class TableName:
    """A table, with its schema if the user named one."""

    schema: str | None
    table: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """The table that ``table`` or ``schema.table`` names, upper and lower case as written.

        A part that holds a dot stands in double quotes; any other character may stand as it is.

        :raises CSVTransferError: for another number of parts, or an empty one.
        """
        check_text(text, "the table's name")
        if (quoted := _QUOTED_PART.match(text)) is not None:
            first, rest = quoted[1].replace('""', '"'), text[quoted.end() :]
            if quoted.end() == len(text) and not text.endswith("."):
                return cls(None, fitted(first))
        else:
            first, dot, rest = text.partition(".")
            if not first:
                raise _no_table_name(text)
            if not dot:
                return cls(None, fitted(first))
        if (quoted := _QUOTED_PART.fullmatch(rest)) is not None and not rest.endswith("."):
            rest = quoted[1].replace('""', '"')
        elif "." in rest or not rest:
            raise _no_table_name(text)
        return cls(fitted(first), fitted(rest))

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(*(part for part in (self.schema, self.table) if part is not None))

    def __str__(self) -> str:
        return self.table if self.schema is None else f"{self.schema}.{self.table}"


def check_text(text: str, what: str) -> str:
    """*text* itself.

    :raises CSVTransferError: if PostgreSQL cannot take it.
    """
    if "\0" in text or not _is_unicode(text):
        raise CSVTransferError(f"{what} has a character that PostgreSQL cannot take: {text}")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # A lone surrogate, which stands for a byte that is not UTF-8.
        return False
    return True


def _no_table_name(text: str) -> CSVTransferError:
    return CSVTransferError(
        f"{text!r} is not the name of a table; write TABLE or SCHEMA.TABLE, and put a part that"
        " holds a dot in double quotes"
    )


def column_types(
    connection: psycopg.Connection[Any], table: TableName, *, all_columns: bool = False
) -> dict[str, str] | None:
    """The types of the columns that can be written, in the table's order; None without a table.

    :param all_columns: those that can only be read too, system columns included.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        name = table.identifier.as_string(connection)
        cursor.execute("SELECT to_regclass(%s)::oid", (name,))
        row = cursor.fetchone()
        if row is None or row[0] is None:
            return None
        cursor.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s AND NOT attisdropped"
            " AND (%s OR (attnum > 0 AND attgenerated = '')) ORDER BY attnum",
            (row[0], all_columns),
        )
        return dict(cursor.fetchall())


def plain_name(name: str) -> str:
    """*name* in lower case, with ``_`` for all but letters, digits and ``_``."""
    return re.sub(r"\W", "_", name.strip().lower())


def fitted(name: str) -> str:
    """*name* as far as PostgreSQL keeps it."""
    return name if len(name) < 16 else name.encode()[:LONGEST_NAME].decode(errors="ignore")


def find_column(name: str, columns: Sequence[str]) -> str | None:
    """The one of *columns* that *name* spells, or that its :func:`plain_name` spells."""
    spelt = (fitted(name), fitted(plain_name(name)))
    return next((each for each in spelt if each in columns), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """The question of an error whether the one of *names* is meant that is nearest to *name*."""
    if len(name) > LONGEST_GUESSED:
        return ""
    by_plain = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.strip().lower(), by_plain, 1, 0.7)
    return f'did you mean "{by_plain[near[0]]}"?' if near else ""


def no_such_table(
    connection: psycopg.Connection[Any], table: TableName, remedy: str = ""
) -> CSVTransferError:
    """The error for a table that is not there, with the name of the one that may be meant."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            "SELECT nspname, relname, pg_table_is_visible(pg_class.oid) FROM pg_class"
            " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE relkind = ANY ('{r,p,v,m,f}') AND nspname <> 'information_schema'"
            " AND nspname !~ '^pg_' LIMIT 5000"
        )
        there = cursor.fetchall()
    visible = [relation for _, relation, is_visible in there if is_visible]
    full = [f"{schema}.{relation}" for schema, relation, _ in there]
    offer = nearest(str(table), full if table.schema else visible)
    if not offer:
        elsewhere = [f"{schema}.{name}" for schema, name, _ in there if name == table.table]
        offer = nearest(elsewhere[0], elsewhere) if elsewhere else ""
    clauses = (f'there is no table "{shortened(str(table))}"', offer, remedy)
    return CSVTransferError("; ".join(filter(None, clauses)))


def no_such_column(table: TableName, name: str, columns: Iterable[str]) -> CSVTransferError:
    """The error for a column that *table* does not have, with the one that may be meant."""
    shown = [column for column in columns if column not in SYSTEM_COLUMNS]
    told = f'the table {table} has no column "{shortened(name)}", only {listed(shown)}'
    return CSVTransferError("; ".join(filter(None, (told, nearest(name, shown)))))


def listed(names: Sequence[str]) -> str:
    """The first of *names*, as an error shows them."""
    shown = ", ".join(f'"{shortened(name)}"' for name in names[:20])
    return shown if len(names) <= 20 else f"{shown}, …"
