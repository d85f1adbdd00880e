"""``explain()``: how PostgreSQL would run a query, or has run it, as a tree and as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psycopg
from psycopg import sql

from .printable import printable

if TYPE_CHECKING:
    from psycopg.abc import Query
    from psycopg.pq.abc import PGresult

_REFUSED = (
    "EXPLAIN was put before the statement. It takes one statement: SELECT, VALUES, INSERT, UPDATE,"
    " DELETE, MERGE, EXECUTE, DECLARE, CREATE TABLE … AS or CREATE MATERIALIZED VIEW; any other has"
    " no plan."
)
_AGGREGATES = {"Sorted": "GroupAggregate", "Hashed": "HashAggregate", "Mixed": "MixedAggregate"}
# What stands below a node in the text, besides every condition and filter.
_DETAILS = (
    "Output", "Sort Key", "Presorted Key", "Group Key", "Sort Method", "Sort Space Used",
    "Sort Space Type", "Hash Batches", "Peak Memory Usage", "Workers Planned", "Workers Launched",
    "Subplans Removed", "Heap Fetches", "Exact Heap Blocks", "Lossy Heap Blocks", "Conflict Filter",
    "Tuples Inserted", "Conflicting Tuples",
)  # fmt: skip
_UNITS = {"Sort Space Used": " kB", "Peak Memory Usage": " kB"}


class Buffers(NamedTuple):
    """Pages, of 8 kB as a rule, that a node and those below it have used.

    :ivar hit: found in the server's memory.
    :ivar read: asked of the operating system.
    :ivar dirtied: changed.
    :ivar written: written to make room.
    :ivar temp_read: read back from temporary files, for want of ``work_mem``.
    :ivar temp_written: written to them.
    """

    hit: int
    read: int
    dirtied: int
    written: int
    temp_read: int
    temp_written: int


@dataclass(frozen=True, eq=False)
class PlanNode:
    """One step of a plan. What was measured is None in a plan that has not run.

    :ivar type: PostgreSQL's *node type*, such as ``Seq Scan``.
    :ivar relation: the table, function or CTE that it reads or changes.
    :ivar alias: what the query calls that.
    :ivar index: the index that it uses.
    :ivar subplan: the name of the subquery or CTE that it is the first step of.
    :ivar startup_cost: the cost before its first row, in the planner's unit.
    :ivar cost: the cost of all its rows, with the steps below it.
    :ivar width: the size of a row in bytes, as estimated.
    :ivar rows_estimated: how many rows the planner expects each time that it runs.
    :ivar rows_actual: how many it gave each time, on average.
    :ivar rows_removed: how many its filters have dropped each time, on average.
    :ivar loops: how often it ran; each of several parallel processes counts.
    :ivar time_ms: how long it ran in all, with the steps below it. Times of parallel processes are
        added up.
    :ivar buffers: the pages that it used, with the steps below it.
    :ivar conditions: what it joins on or looks up, as SQL, by PostgreSQL's names such as
        ``Hash Cond``.
    :ivar filter: what drops rows after they were read, as SQL.
    :ivar children: the steps below it.
    :ivar raw: the node as PostgreSQL gave it.
    """

    type: str
    relation: str | None
    alias: str | None
    index: str | None
    subplan: str | None
    startup_cost: float
    cost: float
    width: int
    rows_estimated: float
    rows_actual: float | None
    rows_removed: float | None
    loops: int | None
    time_ms: float | None
    buffers: Buffers | None
    conditions: Mapping[str, str]
    filter: str | None
    children: tuple[PlanNode, ...]
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def own_time_ms(self) -> float | None:
        """How long it ran without the steps below it; 0 where those ran beside each other."""
        if self.time_ms is None:
            return None
        return max(0.0, self.time_ms - sum(child.time_ms or 0.0 for child in self.children))

    @property
    def misestimated(self) -> float | None:
        """By which factor estimated and actual rows differ, from 1 on; fewer than one row count as
        one."""
        if self.rows_actual is None or not self.loops:
            return None
        estimated, actual = max(1.0, self.rows_estimated), max(1.0, self.rows_actual)
        return max(estimated, actual) / min(estimated, actual)

    @cached_property
    def label(self) -> str:
        """The step as PostgreSQL's own text names it: ``Hash Left Join``, ``Index Scan using …``.
        It may hold any character that names can."""
        label = _step(self.raw)
        if self.index is not None:
            label += f" {'on' if self.relation is None else 'using'} {self.index}"
        if self.relation is not None:
            label += f" on {self.relation}"
            if self.alias not in (None, self.relation):
                label += f" {self.alias}"
        return label

    def walk(self) -> Iterator[PlanNode]:
        """It and every step below it, from the top."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, eq=False)
class Plan:
    """What ``explain()`` gives; ``str()`` of it is the plan as text.

    :ivar root: the first node of the tree.
    :ivar planning_ms: how long planning took; None in a plan that has not run.
    :ivar execution_ms: how long it ran, triggers and all.
    :ivar triggers: what PostgreSQL says of the triggers that ran.
    :ivar raw: all that PostgreSQL gave, read from its JSON.
    """

    root: PlanNode
    planning_ms: float | None
    execution_ms: float | None
    triggers: tuple[Mapping[str, Any], ...]
    raw: list[Any] = field(repr=False)

    def walk(self) -> Iterator[PlanNode]:
        """Every node, from the top."""
        return self.root.walk()

    @cached_property
    def text(self) -> str:
        """The plan as lines, those of a step indented below the one that it serves."""
        return "\n".join([*_lines(self.root, ""), *self._ends()])

    def __str__(self) -> str:
        return self.text

    def _ends(self) -> Iterator[str]:
        for trigger in self.triggers:
            name = printable(str(trigger.get("Trigger Name") or trigger.get("Constraint Name")))
            relation = printable(str(trigger.get("Relation")))
            calls, time = trigger.get("Calls", 0), trigger.get("Time", 0.0)
            yield f"Trigger {name} on {relation}: {_number(time)} ms, {_times(calls)}"
        if self.execution_ms is not None:
            yield (
                f"Planned in {_number(self.planning_ms or 0.0)} ms, ran in"
                f" {_number(self.execution_ms)} ms"
            )


# Asking


def explaining(query: Query, analyze: bool) -> Query:
    """*query* with EXPLAIN before it."""
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " if analyze else "EXPLAIN (FORMAT JSON) "
    if isinstance(query, str):
        return cast("Query", explain + query)
    if isinstance(query, bytes):
        return explain.encode() + query
    if isinstance(query, sql.Composable):
        return sql.SQL(explain) + query
    template: Any = type(query)  # of Python 3.14
    return cast("Query", template(explain, *query))


def note_refusal(error: psycopg.Error) -> None:
    """Note on *error* which statements can be explained."""
    if sys.version_info >= (3, 11):
        error.add_note(_REFUSED)


def read_plan(result: PGresult | None) -> Plan:
    """The plan in the *result* of an EXPLAIN.

    Not in its row, since the app may have a way of its own to load JSON.
    """
    answer = result.get_value(0, 0) if result is not None else None
    if answer is None:
        raise psycopg.InterfaceError("PostgreSQL answered EXPLAIN without a plan")
    # Rules make several statements of one, or none; one that has no plan is a word.
    raw: list[Any] = json.loads(answer)
    plans: list[dict[str, Any]] = [each for each in raw if isinstance(each, dict)]
    return Plan(
        root=_read_node(plans[0]["Plan"]) if len(plans) == 1 else _rewritten(plans),
        planning_ms=_sum(plans, "Planning Time"),
        execution_ms=_sum(plans, "Execution Time"),
        triggers=tuple(trigger for plan in plans for trigger in plan.get("Triggers", ())),
        raw=raw,
    )


def _rewritten(plans: list[dict[str, Any]]) -> PlanNode:
    """A node above the plans of the statements that rules made of one."""
    children = [plan["Plan"] for plan in plans]
    raw: dict[str, Any] = {
        "Node Type": "Rewritten by rules" if children else "Rewritten to nothing",
        "Plans": children,
        "Startup Cost": 0.0,
        "Total Cost": _sum(children, "Total Cost") or 0.0,
        "Plan Rows": _sum(children, "Plan Rows") or 0,
        "Plan Width": 0,
    }
    return _read_node(raw)


def _sum(parts: list[dict[str, Any]], key: str) -> float | None:
    numbers = [part[key] for part in parts if key in part]
    return sum(numbers) if numbers else None


def _read_node(raw: dict[str, Any]) -> PlanNode:
    loops, time, rows = (raw.get(f"Actual {what}") for what in ("Loops", "Total Time", "Rows"))
    removed = [number for key, number in raw.items() if key.startswith("Rows Removed by ")]
    relation = raw.get("Relation Name") or raw.get("Function Name") or raw.get("CTE Name")
    return PlanNode(
        type=raw["Node Type"],
        relation=relation or raw.get("Tuplestore Name") or raw.get("Table Function Name"),
        alias=raw.get("Alias"),
        index=raw.get("Index Name"),
        subplan=raw.get("Subplan Name"),
        startup_cost=raw["Startup Cost"],
        cost=raw["Total Cost"],
        width=raw["Plan Width"],
        rows_estimated=float(raw["Plan Rows"]),
        rows_actual=float(rows) if rows is not None else None,
        rows_removed=float(sum(removed)) if removed else None,
        loops=loops,
        time_ms=time * loops if time is not None and loops is not None else None,
        buffers=_buffers(raw) if "Shared Hit Blocks" in raw else None,
        conditions={key: raw[key] for key in raw if key.endswith(" Cond") or key == "Join Filter"},
        filter=raw.get("Filter"),
        children=tuple(map(_read_node, raw.get("Plans", ()))),
        raw=raw,
    )


def _buffers(raw: dict[str, Any]) -> Buffers:
    # Local ones are those of temporary tables.
    hit, read, dirtied, written = (
        raw[f"Shared {what} Blocks"] + raw[f"Local {what} Blocks"]
        for what in ("Hit", "Read", "Dirtied", "Written")
    )
    return Buffers(hit, read, dirtied, written, raw["Temp Read Blocks"], raw["Temp Written Blocks"])


# Writing


def _step(raw: Mapping[str, Any]) -> str:
    step: str = raw["Node Type"]
    join = raw.get("Join Type", "Inner")
    if step == "ModifyTable":
        step = raw["Operation"]
    elif step == "Aggregate":
        mode = raw.get("Partial Mode", "Simple")
        step = _AGGREGATES.get(raw.get("Strategy", ""), step)
        step = step if mode == "Simple" else f"{mode} {step}"
    elif step == "SetOp":
        step = f"{'Hash' if raw.get('Strategy') == 'Hashed' else ''}SetOp {raw['Command']}"
    elif join != "Inner":
        step = f"{step.removesuffix(' Join')} {join} Join"
    if raw.get("Scan Direction") == "Backward":
        step += " Backward"
    return f"Parallel {step}" if raw.get("Parallel Aware") else step


def _lines(node: PlanNode, indent: str) -> Iterator[str]:
    name = f"{printable(node.subplan)}: " if node.subplan is not None else ""
    yield f"{indent}{name}{printable(node.label)} ({_figures(node)})"
    for key, said in node.raw.items():
        if key.endswith((" Cond", " Filter")) or key in ("Filter", *_DETAILS):
            said = ", ".join(map(str, said)) if isinstance(said, list) else f"{said}"
            yield f"{indent}    {key}: {printable(said)}{_UNITS.get(key, '')}"
        elif key.startswith("Rows Removed by ") and said:
            yield f"{indent}    {key}: {_number(said)}"
    for child in node.children:
        yield from _lines(child, f"{indent}  ")


def _figures(node: PlanNode) -> str:
    estimated = f"about {_rows(node.rows_estimated)}, cost {_number(node.cost)}"
    if node.loops is None or node.rows_actual is None:
        return estimated
    if not node.loops:
        return f"never ran; {estimated}"
    figures = [_rows(node.rows_actual)]
    if node.time_ms is not None:
        figures.append(f"{_number(node.time_ms)} ms")
    if node.loops > 1:
        figures[0] += " each time"
        figures.append(_times(node.loops))
    used = node.buffers
    if used is not None and any(used):
        figures.append(f"pages {_pages(used)}")
    return f"{', '.join(figures)}; {estimated}"


def _pages(used: Buffers) -> str:
    return " + ".join(
        f"{number} {what.replace('_', ' ')}" for what, number in used._asdict().items() if number
    )


def _rows(number: float) -> str:
    return f"{_number(number)} {'row' if number == 1 else 'rows'}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _number(number: float) -> str:
    """Two decimal places where they say something, three below one."""
    if number == int(number):
        return str(int(number))
    return f"{number:.2f}" if number >= 1 else f"{number:.3f}"
