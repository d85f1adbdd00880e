"""What is in a database: its tables and views, and the columns that a query would give.

Nothing here changes or runs anything. What waits for the lock of a migration gives up soon.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import psycopg
from psycopg import errors, generators, pq, sql
from psycopg.rows import tuple_row

from .errors import PGMonkeyError
from .printable import one_line

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

LONGEST_WAIT = "5s"
"""For a lock that a migration holds."""

T = TypeVar("T")

_TableName: TypeAlias = tuple[str, str]


class InspectionError(PGMonkeyError):
    """What cannot be inspected: the message says why, and what to write instead."""


@dataclass(frozen=True)
class Column:
    """A column of a table, a view or a result.

    :ivar type: as PostgreSQL writes it.
    :ivar nullable: whether NULL may stand there, as far as the server tells.
    :ivar default: the expression that fills it; None for a result.
    """

    name: str
    type: str
    nullable: bool
    default: str | None = None
    comment: str | None = None


@dataclass(frozen=True)
class Constraint:
    """A key, a check or an exclusion."""

    name: str
    definition: str


@dataclass(frozen=True)
class Index:
    """An index; *valid* is false for one that was not built to its end, which serves no query."""

    name: str
    definition: str
    bytes: int
    valid: bool


@dataclass(frozen=True)
class Relation:
    """A table, or what can be queried as one.

    :ivar table: its name as SQL writes it, with the schema where that is not in the search path.
    :ivar kind: table, partitioned table, partition, view, materialized view or foreign table.
    :ivar rows: as many as the last ANALYZE or VACUUM has counted or guessed; None if none has, and
        for views. That of a partitioned table is the sum of its partitions.
    :ivar bytes: on the disk, with indexes and with what was moved out of the rows (TOAST).
    :ivar index_bytes: those of the indexes alone.
    :ivar partitions: the names of those right below it.
    """

    schema: str
    name: str
    table: str
    kind: str
    rows: int | None
    bytes: int
    index_bytes: int
    comment: str | None
    columns: tuple[Column, ...]
    keys: tuple[Constraint, ...]
    indexes: tuple[Index, ...]
    partitions: tuple[str, ...]


@dataclass(frozen=True)
class ResultColumn:
    """A column of a result, by the server's own description of it.

    :ivar oid: of the type that is sent; that of a domain is the one below it.
    :ivar type: how PostgreSQL writes the type.
    """

    name: str
    oid: int
    type: str
    nullable: bool


_KINDS = """
    CASE WHEN c.relispartition THEN 'partition' ELSE
        CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END
    END"""

_RELATIONS = f"""
    SELECT c.oid, n.nspname, c.relname, c.oid::regclass::text, {_KINDS}, sizes.rows, sizes.bytes,
        sizes.index_bytes, obj_description(c.oid, 'pg_class'), parts.names
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT sum(nullif(leaf.reltuples, -1))
                FILTER (WHERE leaf.relkind NOT IN ('p', 'v'))::bigint AS rows,
            coalesce(sum(pg_total_relation_size(leaf.oid)), 0)::bigint AS bytes,
            coalesce(sum(pg_indexes_size(leaf.oid)), 0)::bigint AS index_bytes
        FROM pg_class leaf
        WHERE leaf.oid = c.oid OR c.relkind = 'p'
            AND leaf.oid IN (SELECT relid FROM pg_partition_tree(c.oid))
    ) sizes
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(part.name ORDER BY part.name), '{{}}')
        FROM (
            SELECT inhrelid::regclass::text FROM pg_inherits
            WHERE inhparent = c.oid AND c.relkind = 'p'
        ) part (name)
    ) parts (names)
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND """  # noqa: S608 - nothing of a user's

_LISTED = r"""NOT c.relispartition AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND n.nspname !~ '^pg_(toast|temp)' AND NOT EXISTS (
        SELECT FROM pg_depend WHERE objid = c.oid AND classid = 'pg_class'::regclass
            AND deptype = 'e'
    )
    ORDER BY n.nspname, c.relname"""

# Of the attribute a, its type d and its relation c. A constraint that is NOT VALID leaves the NULLs
# of older rows; a domain that is NOT NULL binds tables alone, and no view with an outer join.
_IS_NOT_NULL = """
    coalesce(a.attnotnull OR d.typnotnull AND c.relkind IN ('r', 'p'), false) AND NOT EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = a.attrelid AND contype = 'n'
            AND conkey = ARRAY[a.attnum] AND NOT convalidated
    )"""

_COLUMNS = f"""
    SELECT attrelid, attname, format_type(atttypid, atttypmod), NOT ({_IS_NOT_NULL}), CASE
            WHEN attidentity = 'a' THEN 'GENERATED ALWAYS AS IDENTITY'
            WHEN attidentity = 'd' THEN 'GENERATED BY DEFAULT AS IDENTITY'
            WHEN attgenerated <> '' THEN 'GENERATED ALWAYS AS (' || expression || ')'
            ELSE expression
        END, col_description(attrelid, attnum)
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = attrelid
    JOIN pg_type d ON d.oid = atttypid
    LEFT JOIN LATERAL (
        SELECT pg_get_expr(adbin, adrelid) AS expression FROM pg_attrdef
        WHERE adrelid = attrelid AND adnum = attnum
    ) defaults ON true
    WHERE attrelid = ANY (%s) AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum"""  # noqa: S608 - nothing of a user's

# Primary keys first. What PostgreSQL 18 calls a constraint NOT NULL stands with its column.
_KEYS = """
    SELECT conrelid, conname, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE conrelid = ANY (%s) AND contype IN ('p', 'u', 'f', 'c', 'x')
    ORDER BY position(contype::text IN 'pufcx'), conname"""

_INDEXES = """
    SELECT indrelid, indexrelid::regclass::text, pg_get_indexdef(indexrelid),
        coalesce(CASE c.relkind
            WHEN 'I' THEN (SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(c.oid))
            ELSE pg_relation_size(c.oid)
        END, 0)::bigint, indisvalid
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    WHERE indrelid = ANY (%s)
    ORDER BY 2"""


def relations(connection: psycopg.Connection[Any], oid: int | None = None) -> tuple[Relation, ...]:
    """The tables and views of the database in the order of their names, or the one with *oid*.

    Without those of the system and of extensions, and without the partitions of others.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        if oid is None:
            cursor.execute(_users_sql(_RELATIONS + _LISTED))
        else:
            cursor.execute(_users_sql(_RELATIONS + "c.oid = %s"), (oid,))
        rows = cursor.fetchall()
    oids = [row[0] for row in rows]
    columns = _by_relation(connection, _COLUMNS, oids, Column)
    keys = _by_relation(connection, _KEYS, oids, Constraint)
    indexes = _by_relation(connection, _INDEXES, oids, Index)
    found = []
    for row in rows:
        parts: list[Any] = [part.get(row[0], ()) for part in (columns, keys, indexes)]
        facts = [*row[1:-1], *parts, tuple(row[-1])]
        found.append(Relation(*facts))
    return tuple(found)


def _by_relation(
    connection: psycopg.Connection[Any], query: str, oids: Sequence[int], cls: type[T]
) -> dict[int, tuple[T, ...]]:
    found: dict[int, tuple[T, ...]] = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        for oid, *facts in cursor.execute(_users_sql(query), (list(oids),)):
            found[oid] = (*found.get(oid, ()), cls(*facts))
    return found


def find_relation(connection: psycopg.Connection[Any], schema: str | None, name: str) -> int:
    """The OID of a table or view; without *schema* it is looked for in the search path.

    :raises InspectionError: if there is none; the message has the names that are near.
    """
    identifier = sql.Identifier(*([name] if schema is None else [schema, name]))
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            "SELECT oid FROM pg_class WHERE oid = to_regclass(%s)"
            " AND relkind IN ('r', 'p', 'v', 'm', 'f')",
            (identifier.as_string(connection),),
        )
        if (row := cursor.fetchone()) is not None:
            oid: int = row[0]
            return oid
        cursor.execute(
            "SELECT c.oid::regclass::text, nspname, relname"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname !~ '^pg_'"
            " AND nspname <> 'information_schema' ORDER BY 1"
        )
        known = cursor.fetchall()
    wanted = name if schema is None else f"{schema}.{name}"
    if not known:
        raise InspectionError(f'There is no table or view "{wanted}", nor any other.')
    spellings: dict[str, list[str]] = {}
    for table, *parts in known:
        for spelling in (parts[1], ".".join(parts)):
            spellings.setdefault(spelling.lower(), []).append(table)
    near = {
        table: None
        for written in (wanted, name)
        for spelling in difflib.get_close_matches(written.lower(), spellings, cutoff=0.7)
        for table in spellings[spelling]
    }
    remedy = f"did you mean {' or '.join([*near][:3])}?" if near else "the command lists them all."
    raise InspectionError(f'There is no table or view "{wanted}"; {remedy}')


def columns_of_relation(connection: psycopg.Connection[Any], oid: int) -> tuple[ResultColumn, ...]:
    """The columns that ``SELECT *`` from the table or view with *oid* gives."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            "SELECT format('SELECT * FROM %%I.%%I', nspname, relname)"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = %s",
            (oid,),
        )
        (select,) = cursor.fetchone() or ("",)
    _, result = _prepare(connection, select)
    return _columns(connection, result, None)


def columns_of_query(connection: psycopg.Connection[Any], query: str) -> tuple[ResultColumn, ...]:
    """The columns that *query* would give. The server describes and plans it, and does not run it.

    psycopg's placeholders may stand in it. A column is not nullable where it is one of a table that
    is NOT NULL there, and nothing in the plan, such as an outer join, puts a NULL in its place.

    :raises InspectionError: if it gives no columns, or is several statements.
    """
    query = _with_numbers(query.strip().removesuffix(";"))
    statement, result = _prepare(connection, query)
    plan = _plan(connection, statement, result.nparams)
    return _columns(connection, result, _tables_without_nulls(plan, query))


_LITERAL_OR_PLACEHOLDER = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | %s(?!\w) | %\((\w+)\)s(?!\w)""", re.VERBOSE
)


def _with_numbers(query: str) -> str:
    """*query* with $1, $2 for placeholders of psycopg's, and then with % for each %%."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        if found[0][0] != "%":
            return found[0]
        return f"${numbers.setdefault(found[1] or f'%{len(numbers)}', len(numbers) + 1)}"

    numbered = _LITERAL_OR_PLACEHOLDER.sub(number, query)
    return numbered.replace("%%", "%") if numbers else query


def _columns(
    connection: psycopg.Connection[Any], result: PGresult, kept: Container[_TableName] | None
) -> tuple[ResultColumn, ...]:
    if not result.nfields:
        raise InspectionError("The query gives no columns; write a SELECT, or RETURNING.")
    columns = [
        (
            (result.fname(i) or b"").decode(connection.info.encoding),
            result.ftype(i),
            result.fmod(i),
            result.ftable(i),
            result.ftablecol(i),
        )
        for i in range(result.nfields)
    ]
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(_FACTS_OF_COLUMNS, [*map(list, zip(*columns, strict=True))])
        return tuple(
            ResultColumn(name, oid, type_, not not_null or not (kept is None or table in kept))
            for name, oid, type_, not_null, *schema_and_name in cursor
            for table in [tuple(schema_and_name)]
        )


_FACTS_OF_COLUMNS = f"""
    SELECT given.name, given.oid, format_type(given.oid, given.mod), {_IS_NOT_NULL},
        n.nspname, c.relname
    FROM unnest(%s::text[], %s::oid[], %s::integer[], %s::oid[], %s::smallint[])
        WITH ORDINALITY AS given (name, oid, mod, tab, col, number)
    LEFT JOIN pg_attribute a ON a.attrelid = given.tab AND a.attnum = given.col
    LEFT JOIN pg_type d ON d.oid = a.atttypid
    LEFT JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
    ORDER BY given.number"""  # noqa: S608 - nothing of a user's


_numbers = count()


def _prepare(connection: psycopg.Connection[Any], query: str) -> tuple[str, PGresult]:
    """The name of the prepared *query*, and the server's description of it."""
    name = f"inspected_{next(_numbers)}"
    pgconn = connection.pgconn
    pgconn.send_prepare(name.encode(), query.encode(connection.info.encoding))
    result: PGresult
    (result,) = connection.wait(generators.execute(pgconn))
    if result.status == pq.ExecStatus.COMMAND_OK:
        pgconn.send_describe_prepared(name.encode())
        (result,) = connection.wait(generators.execute(pgconn))
    if result.status == pq.ExecStatus.COMMAND_OK:
        return name, result
    error = errors.error_from_result(result)
    if isinstance(error, errors.SyntaxError) and error.diag.statement_position is None:
        raise InspectionError("The query is several statements; give one.") from error
    if isinstance(error, (errors.IndeterminateDatatype, errors.AmbiguousParameter)):
        raise InspectionError(
            f"{one_line(error)}: write its type after it, as in %s::integer."
        ) from error
    raise error


def _plan(
    connection: psycopg.Connection[Any], statement: str, parameters: int
) -> dict[str, Any] | None:
    """The plan of a prepared statement for any parameters; None where there is none, or several."""
    values = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)")
        cursor.execute(
            _users_sql(f"EXPLAIN (VERBOSE, FORMAT json) EXECUTE {statement} {values}"),
            prepare=False,
        )
        ((explained,),) = cursor.fetchall()
    plans = [each["Plan"] for each in explained if isinstance(each, dict)]
    return plans[0] if len(plans) == 1 else None


def _tables_without_nulls(plan: dict[str, Any] | None, query: str) -> Container[_TableName] | None:
    """The tables of *query* in place of whose columns it puts no NULL; None for all of them."""
    if plan is None:
        return ()
    nodes = list(_nodes(plan))
    if any("Grouping Sets" in node for node in nodes):
        return ()
    # What RETURNING calls old is NULL for a row that is new, and the other way round.
    changes = any(node["Node Type"] == "ModifyTable" for node in nodes)
    if changes and re.search(r"\b(old|new)\b", query, re.IGNORECASE):
        return ()
    nullable = [below for node in nodes for side in _nullable_sides(node) for below in _nodes(side)]
    if not nullable:
        return None
    if any("CTE Name" in node for node in nullable):
        return ()  # whose tables stand elsewhere in the plan
    return _tables(nodes) - _tables(nullable)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


# An outer join of which only the rows without a partner are wanted is planned as an anti-join.
_NULLABLE_SIDES = {
    **dict.fromkeys(("Left", "Anti"), ("Inner",)),
    **dict.fromkeys(("Right", "Right Anti"), ("Outer",)),
    "Full": ("Inner", "Outer"),
}


def _nullable_sides(join: dict[str, Any]) -> Iterator[dict[str, Any]]:
    sides = _NULLABLE_SIDES.get(join.get("Join Type", ""), ())
    for child in join.get("Plans", ()):
        if child["Parent Relationship"] in sides:
            yield child


def _tables(nodes: Iterable[dict[str, Any]]) -> set[_TableName]:
    return {(node["Schema"], node["Relation Name"]) for node in nodes if "Relation Name" in node}


@contextmanager
def reading(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction on *connection* that only reads, and waits for no lock for long.

    :raises InspectionError: where something else keeps a lock.
    """
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (LONGEST_WAIT,))
            yield
    except errors.LockNotAvailable as error:
        raise InspectionError(
            f"Something else, such as a migration, has kept a table locked for {LONGEST_WAIT}; try"
            " again when it has ended."
        ) from error


def _users_sql(text: str) -> sql.SQL:
    return sql.SQL(text)  # pyright: ignore[reportArgumentType]
