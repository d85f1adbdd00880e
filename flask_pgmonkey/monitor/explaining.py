"""The plan of a recorded query, over a connection of the monitor's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import tuple_row

from ..config import Config
from ..config.redaction import REDACTED
from ..connections import NormalConnection
from ..connections.server_connection import ServerConnection
from ..events import QueryEvent
from ..plans import Plan, PlanNode, explaining, read_plan
from .recording import LONGEST_TEXT, Omitted

LONGEST = 15.0
"""Seconds for which EXPLAIN ANALYZE may run."""

_SETTINGS = """
SELECT set_config('application_name', 'flask_pgmonkey monitor', true),
    set_config('lock_timeout', '2s', true),
    set_config('plan_cache_mode', 'force_generic_plan', true)
"""
_NAME = "flask_pgmonkey_monitor"
_ESTIMATED_WRONG = 10.0
# psycopg's placeholders, wherever they stand.
_PLACEHOLDER = re.compile(r"%(?:%|\(([^)]*)\)[sbt]|[sbt])")
_BLANK = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/|\()*"
_IS_SELECT = re.compile(rf"(?s){_BLANK}(?:SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE)


class NotExplainedError(Exception):
    """Says why a query cannot be explained."""


def may_analyze(query: QueryEvent) -> bool:
    """Whether *query* may be run again, to measure it: a SELECT whose parameters are known."""
    return _IS_SELECT.match(query.sql) is not None and not _is_incomplete(query)


def explain(config: Config, query: QueryEvent, analyze: bool) -> Plan:
    """The plan of a recorded query.

    It is asked for in a transaction that may only read and is rolled back. Where the parameters are
    not known, the plan is the generic one, for any.

    :param analyze: run the query too.
    :raises NotExplainedError: for what has no plan or was not kept as a whole.
    :raises psycopg.Error: what the server says.
    """
    if query.kind not in ("query", "stream", "many"):
        raise NotExplainedError("A COPY, a pipeline, and BEGIN and its like have no plan.")
    if len(query.sql) > LONGEST_TEXT:
        raise NotExplainedError("This text is too long to be kept as a whole.")
    if analyze and not may_analyze(query):
        raise NotExplainedError("Only a SELECT whose parameters are known is run again.")
    with closing(ServerConnection.open(NormalConnection(config), None, tuple_row)) as conn:
        conn.query_timeout = LONGEST
        conn.prepare_threshold = None
        conn.read_only = True
        with conn.transaction(force_rollback=True):
            conn.execute(_SETTINGS)
            cursor = conn.cursor()
            if _is_incomplete(query):
                numbered, count = _numbered(query.sql)
                _ask(cursor, f"PREPARE {_NAME} AS {numbered}")
                nulls = f" ({', '.join(['NULL'] * count)})" if count else ""
                _ask(cursor, f"EXPLAIN (FORMAT JSON) EXECUTE {_NAME}{nulls}")
                plan = read_plan(cursor.pgresult)
                _ask(cursor, f"DEALLOCATE {_NAME}")
                return plan
            text: Any = query.sql  # the app's own, whatever it was made of
            _ask(cursor, explaining(text, analyze), query.parameters)
            return read_plan(cursor.pgresult)


def _ask(cursor: psycopg.Cursor[Any], text: Any, parameters: Any = None) -> None:
    # The protocol for binary results takes one statement alone: what stands before the first of
    # several would let the others run.
    cursor.execute(text, parameters, prepare=False, binary=True)


def _is_incomplete(query: QueryEvent) -> bool:
    """Whether parameters of *query* were not kept, were too large, or may be secrets."""
    if query.kind == "many" or query.parameters is None:
        return any(found[0] != "%%" for found in _PLACEHOLDER.finditer(query.sql))
    return any(map(_is_missing, _values(query.parameters)))


def _values(parameters: Any) -> Iterator[Any]:
    yield from parameters.values() if isinstance(parameters, Mapping) else parameters


def _is_missing(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_missing, value))
    return isinstance(value, Omitted) or value == REDACTED


def _numbered(text: str) -> tuple[str, int]:
    """*text* with PostgreSQL's placeholders in place of psycopg's, and how many there are."""
    names: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        name = found[1] if found[1] is not None else f"%{len(names)}"
        return f"${names.setdefault(name, len(names) + 1)}"

    return _PLACEHOLDER.sub(number, text), len(names)


class Step(NamedTuple):
    """A line of the picture of a plan.

    :ivar depth: how many steps it serves.
    :ivar share: its own part of the whole time, or of the whole cost where it has not run.
    :ivar own: its own time in milliseconds, or its own cost.
    :ivar details: its conditions and filters.
    :ivar is_wrong: whether the planner has expected many more or fewer rows.
    """

    depth: int
    node: PlanNode
    share: float
    own: float
    details: list[tuple[str, str]]
    is_wrong: bool


def steps(plan: Plan) -> list[Step]:
    """The plan, line by line."""
    is_measured = plan.root.time_ms is not None
    whole = (plan.root.time_ms if is_measured else plan.root.cost) or 1.0
    return [_step(node, depth, whole, is_measured) for node, depth in _descend(plan.root, 0)]


def _descend(node: PlanNode, depth: int) -> Iterator[tuple[PlanNode, int]]:
    yield node, depth
    for child in node.children:
        yield from _descend(child, depth + 1)


def _step(node: PlanNode, depth: int, whole: float, is_measured: bool) -> Step:
    own = (
        node.own_time_ms or 0.0
        if is_measured
        else max(0.0, node.cost - sum(child.cost for child in node.children))
    )
    details = [*node.conditions.items()]
    if node.filter is not None:
        details.append(("Filter", node.filter))
    if node.rows_removed:
        details.append(("Rows dropped by filters", f"{node.rows_removed:,.0f}"))
    for key in ("Sort Key", "Group Key"):
        if key in node.raw:
            details.append((key, ", ".join(map(str, node.raw[key]))))
    if node.raw.get("Sort Space Type") == "Disk":
        details.append(("Sorted on disk", f"{node.raw.get('Sort Space Used')} kB"))
    misestimated = node.misestimated
    is_wrong = misestimated is not None and misestimated >= _ESTIMATED_WRONG
    return Step(depth, node, own / whole, own, details, is_wrong)
