"""``explain()``: plans of queries, as a structure and as text."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import psycopg
import pytest
from flask import Flask
from psycopg import sql
from psycopg.types.json import set_json_loads

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey
from flask_pgmonkey.plans import Plan

from .round_trips import count_round_trips

T = TypeVar("T")

SCHEMA = """
    CREATE TABLE users (id integer PRIMARY KEY, name text NOT NULL);
    CREATE TABLE orders (id integer PRIMARY KEY, "user" integer REFERENCES users, total integer);
    INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 100) n;
    INSERT INTO orders SELECT n, n % 100 + 1, n FROM generate_series(1, 1000) n;
    ANALYZE users, orders;
"""
JOIN = 'SELECT u.name, o.total FROM orders o JOIN users u ON u.id = o."user" WHERE o.total > %s'


@pytest.fixture
def config(database: dict[str, Any]) -> dict[str, Any]:
    with psycopg.connect(**database) as conn:
        conn.execute(SCHEMA)
    return {"connection_settings": database}


@pytest.fixture
def db(config: dict[str, Any]) -> Iterator[Database]:
    db = Database(config)
    yield db
    db.close()


def run_async(
    config: dict[str, Any], use: Callable[[AsyncDatabase], Awaitable[T]], configure: Any = None
) -> T:
    async def run() -> T:
        db = AsyncDatabase(config, configure=configure)
        try:
            return await use(db)
        finally:
            await db.disconnect()

    return asyncio.run(run())


# The structure


def test_a_plan_is_a_tree_of_what_postgresql_would_do(db: Database) -> None:
    plan = db.explain(JOIN, (990,))
    assert plan.root.type.endswith(("Loop", "Join"))
    assert {node.relation for node in plan.walk()} >= {"orders", "users"}
    (scan,) = (node for node in plan.walk() if node.relation == "orders")
    assert (scan.type, scan.alias) == ("Seq Scan", "o")
    assert scan.filter == "(total > '990'::smallint)"
    assert plan.root.cost > scan.cost > scan.startup_cost == 0
    assert 1 <= scan.rows_estimated < 100
    assert scan.width > 0
    assert plan.root.conditions or plan.root.children[-1].conditions
    assert scan.raw["Node Type"] == "Seq Scan"
    assert plan.raw[0]["Plan"] is plan.root.raw


def test_nothing_is_measured_without_analyze(db: Database) -> None:
    plan = db.explain("SELECT 1 / (count(*) - 1000) FROM orders")
    assert (plan.planning_ms, plan.execution_ms, plan.triggers) == (None, None, ())
    for node in plan.walk():
        assert (node.rows_actual, node.rows_removed, node.loops) == (None, None, None)
        assert (node.time_ms, node.own_time_ms, node.buffers) == (None, None, None)
        assert node.misestimated is None
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.explain("SELECT 1 / (count(*) - 1000) FROM orders", analyze=True)


def test_analyze_measures_rows_time_loops_and_pages(db: Database) -> None:
    plan = db.explain(JOIN, (990,), analyze=True)
    (scan,) = (node for node in plan.walk() if node.relation == "orders")
    assert (scan.rows_actual, scan.rows_removed, scan.loops) == (10, 990, 1)
    assert scan.buffers is not None
    assert scan.buffers.hit + scan.buffers.read > 0
    assert plan.root.rows_actual == 10
    assert plan.root.time_ms is not None
    assert scan.time_ms is not None
    assert plan.root.time_ms >= scan.time_ms > 0
    assert plan.execution_ms is not None
    assert plan.execution_ms >= plan.root.time_ms
    assert plan.planning_ms is not None
    below = sum(child.time_ms or 0 for child in plan.root.children)
    assert plan.root.own_time_ms == max(0, plan.root.time_ms - below)
    assert scan.own_time_ms == scan.time_ms


def test_time_and_rows_of_a_step_that_ran_often(db: Database) -> None:
    query = "SELECT (SELECT name FROM users WHERE id = n) FROM generate_series(1, 50) n"
    plan = db.explain(query, analyze=True)
    (lookup,) = (node for node in plan.walk() if node.relation == "users")
    assert (lookup.loops, lookup.rows_actual, lookup.subplan) == (50, 1, "SubPlan 1")
    assert lookup.index == "users_pkey" or lookup.type == "Seq Scan"
    assert lookup.time_ms == lookup.raw["Actual Total Time"] * 50


def test_estimates_that_are_far_off_are_told_by_their_factor(db: Database) -> None:
    far_off = db.explain("SELECT * FROM orders WHERE total % 1 = 0", analyze=True).root
    assert far_off.rows_estimated < 10
    assert far_off.misestimated == 1000 / far_off.rows_estimated
    assert db.explain("SELECT * FROM orders WHERE total < 0", analyze=True).root.misestimated == 1
    assert db.explain("SELECT * FROM orders", analyze=True).root.misestimated == 1


def test_what_rules_make_of_a_statement_is_a_plan_too(db: Database) -> None:
    db.execute("CREATE RULE also AS ON INSERT TO users DO ALSO INSERT INTO orders VALUES (0)")
    plan = db.explain("INSERT INTO users VALUES (0, 'Zoe')", analyze=True)
    assert [node.relation for node in plan.root.children] == ["users", "orders"]
    assert str(plan).startswith("Rewritten by rules (")
    db.execute("CREATE OR REPLACE RULE also AS ON INSERT TO users DO INSTEAD NOTHING")
    plan = db.explain("INSERT INTO users VALUES (0, 'Zoe')", analyze=True)
    assert (plan.root.type, plan.root.children) == ("Rewritten to nothing", ())
    assert str(plan).startswith("Rewritten to nothing (")


def test_triggers_that_ran_are_in_the_plan(db: Database) -> None:
    plan = db.explain("INSERT INTO orders VALUES (0, 1, 1)", analyze=True)
    assert [trigger["Calls"] for trigger in plan.triggers] == [1]
    assert "Trigger RI_ConstraintTrigger" in str(plan) or "Trigger orders_user_fkey" in str(plan)


# What can be asked


def test_parameters_of_every_kind_work(db: Database) -> None:
    assert db.explain("SELECT 1 WHERE 5 = %(n)s", {"n": 5}).root.type == "Result"
    assert db.explain("SELECT * FROM users WHERE id = ANY(%s)", [[1, 2]]).root.relation == "users"
    assert db.explain(b"SELECT %s", ["a; DROP TABLE users"]).root.type == "Result"
    assert "LIKE" not in str(db.explain("SELECT '%'"))
    with pytest.raises(TypeError, match="for one value write"):
        db.explain("SELECT %s", 5)  # type: ignore[arg-type]


def test_composed_queries_work(db: Database) -> None:
    query = sql.SQL("SELECT * FROM {} WHERE {} = {}").format(
        sql.Identifier("users"), sql.Identifier("id"), sql.Literal(3)
    )
    assert db.explain(query).root.relation == "users"
    assert db.explain(sql.SQL("VALUES (1), (2)"), analyze=True).root.rows_actual == 2


def test_data_definition_with_a_query_has_a_plan(db: Database) -> None:
    plan = db.explain("CREATE TABLE copied AS SELECT * FROM users", analyze=True)
    assert plan.root.rows_actual == 100
    assert db.fetch_value("SELECT to_regclass('copied')") is None


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE t ()", "COMMIT", "ANALYZE SELECT 1", "SELEC 1", "SELECT 1; SELECT 2"],
)
def test_a_statement_that_cannot_be_explained_is_psycopgs_error_with_one_note(
    db: Database, statement: str
) -> None:
    with pytest.raises(psycopg.errors.SyntaxError) as caught:
        db.explain(statement)
    if sys.version_info >= (3, 11):
        notes = [note for note in caught.value.__notes__ if "EXPLAIN was put before" in note]
        assert len(notes) == 1


def use_client_cursors(conn: psycopg.Connection[Any]) -> None:
    conn.cursor_factory = psycopg.ClientCursor


async def use_async_client_cursors(conn: psycopg.AsyncConnection[Any]) -> None:
    conn.cursor_factory = psycopg.AsyncClientCursor


def test_the_second_of_two_statements_never_runs(config: dict[str, Any]) -> None:
    """EXPLAIN stands before the first alone."""
    query = "SELECT 1; DELETE FROM orders"
    for configure in (None, use_client_cursors):
        db = Database(config, configure=configure)
        for analyze in (False, True):
            with pytest.raises(psycopg.errors.SyntaxError):
                db.explain(query, analyze=analyze)
        assert db.fetch_value("SELECT count(*) FROM orders") == 1000
        db.close()

    async def use(db: AsyncDatabase) -> None:
        for analyze in (False, True):
            with pytest.raises(psycopg.errors.SyntaxError):
                await db.explain(query, analyze=analyze)
        assert await db.fetch_value("SELECT count(*) FROM orders") == 1000

    for configure_async in (None, use_async_client_cursors):
        run_async(config, use, configure_async)


def test_cursors_that_bind_in_the_client_are_explained_too(config: dict[str, Any]) -> None:
    db = Database(config, configure=use_client_cursors)
    assert db.explain(JOIN, (990,), analyze=True).root.rows_actual == 10
    assert db.explain("SELECT '%'").root.type == "Result"
    db.close()

    async def use(db: AsyncDatabase) -> Plan:
        return await db.explain(JOIN, (990,), analyze=True)

    assert run_async(config, use, use_async_client_cursors).root.rows_actual == 10


def test_an_app_that_loads_json_in_its_own_way_gets_plans(config: dict[str, Any]) -> None:
    db = Database(config, configure=lambda conn: set_json_loads(lambda text: "mine", conn))
    assert db.explain("SELECT 1").root.type == "Result"
    assert db.fetch_value("SELECT '{}'::json") == "mine"
    db.close()


def test_explain_costs_one_round_trip(db: Database) -> None:
    with db.pool as conn:
        pass
    with count_round_trips(conn) as counted:
        db.explain(JOIN, (5,))
    assert counted.count == 1


# What analyze leaves


def test_what_analyze_does_is_undone(db: Database) -> None:
    plan = db.explain("DELETE FROM orders RETURNING id", analyze=True)
    assert plan.root.rows_actual == 1000
    assert str(plan).startswith("Delete on orders (1000 rows")
    assert db.fetch_value("SELECT count(*) FROM orders") == 1000


def test_within_a_transaction_analyze_undoes_its_own_alone(db: Database) -> None:
    with db.transaction() as tx:
        tx.execute("DELETE FROM orders WHERE id > 10")
        assert tx.explain("DELETE FROM orders", analyze=True).root.children[0].rows_actual == 10
        assert db.explain("SELECT * FROM orders", analyze=True).root.rows_actual == 10
        with pytest.raises(psycopg.errors.DivisionByZero):
            tx.explain("SELECT 1 / id FROM (VALUES (0)) t (id)", analyze=True)
        with tx.transaction() as nested:
            assert nested.explain("DELETE FROM orders", analyze=True).execution_ms is not None
    assert db.fetch_value("SELECT count(*) FROM orders") == 10


# Everywhere


def test_async_databases_and_transactions_explain(config: dict[str, Any]) -> None:
    async def use(db: AsyncDatabase) -> None:
        assert (await db.explain(JOIN, (990,))).root.loops is None
        plan = await db.explain("DELETE FROM orders", analyze=True)
        assert plan.root.children[0].rows_actual == 1000
        async with db.transaction() as tx:
            assert (await tx.explain("SELECT * FROM orders", analyze=True)).root.rows_actual == 1000
        with pytest.raises(psycopg.errors.SyntaxError):
            await db.explain("COMMIT")
        with pytest.raises(TypeError, match="for one value write"):
            await db.explain("SELECT %s", 5)  # type: ignore[arg-type]

    run_async(config, use)


def test_apps_explain_on_every_bind_and_across_the_background_loop(config: dict[str, Any]) -> None:
    app = Flask("plans")
    app.config["PGMONKEY_CONFIG"] = config
    app.config["PGMONKEY_BINDS"] = {"second": config}
    db = PGMonkey(app)

    async def use() -> list[Plan]:
        async with db.aio.transaction() as tx:
            return [await db.aio.explain(JOIN, (1,)), await tx.explain(JOIN, (1,), analyze=True)]

    with app.app_context():
        for each in (db, db.bind("second")):
            assert each.explain(JOIN, (990,), analyze=True).root.rows_actual == 10
        with db.transaction() as tx:
            tx.execute("DELETE FROM orders")
            assert tx.explain("SELECT * FROM orders", analyze=True).root.rows_actual == 0
            assert db.explain("SELECT * FROM orders", analyze=True).root.rows_actual == 0
        for plan in asyncio.run(use()):
            assert {node.relation for node in plan.walk()} >= {"orders"}
        db.clear_cache()


def test_a_program_that_explains_nothing_loads_no_plans() -> None:
    program = "import sys, flask_pgmonkey; print('flask_pgmonkey.plans' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert run.stdout.strip() == "False"


# The text


def test_the_text_shows_steps_conditions_and_estimates(db: Database) -> None:
    query = "SELECT * FROM orders WHERE total > %s ORDER BY total DESC"
    sort, key, scan, condition = str(db.explain(query, (990,))).splitlines()
    assert sort.startswith("Sort (about 10 rows, cost ")
    assert key == "    Sort Key: total DESC"
    assert scan.startswith("  Seq Scan on orders (about 10 rows, cost ")
    assert condition == "      Filter: (total > '990'::smallint)"
    assert str(db.explain("SELECT 1")) == "Result (about 1 row, cost 0.010)"


def test_the_text_of_what_ran_shows_what_was_measured(db: Database) -> None:
    plan = db.explain("SELECT count(*) FROM orders WHERE total > 990", analyze=True)
    top, scan, condition, removed, end = plan.text.splitlines()
    assert top.startswith("Aggregate (1 row, ")
    assert scan.startswith("  Seq Scan on orders (10 rows, ")
    assert "pages " in scan
    assert condition == "      Filter: (total > 990)"
    assert removed == "      Rows Removed by Filter: 990"
    assert end.startswith("Planned in ")


def test_steps_are_named_as_postgresqls_own_text_names_them(db: Database) -> None:
    """The labels, against EXPLAIN's text of the same queries."""
    queries = [
        JOIN.replace("%s", "1"),
        'SELECT u.id FROM users u LEFT JOIN orders o ON u.id = o."user"',
        'SELECT * FROM users u WHERE NOT EXISTS (SELECT FROM orders o WHERE o."user" = u.id)',
        'SELECT "user", count(*) FROM orders GROUP BY "user"',
        "SELECT * FROM orders ORDER BY id DESC LIMIT 2",
        "SELECT * FROM generate_series(1, 3) n",
        "WITH w AS MATERIALIZED (SELECT * FROM users) SELECT * FROM w, w v",
        "SELECT id FROM users EXCEPT SELECT id FROM orders",
        "SELECT id FROM users INTERSECT SELECT id FROM orders",
        "UPDATE users SET name = '' WHERE id = 5",
        'SELECT * FROM users WHERE id IN (SELECT "user" FROM orders WHERE total > 990)',
        "SELECT count(*), sum(total) OVER () FROM orders GROUP BY total",
        "SELECT total FROM orders WHERE id < 3 OR id > 995",
        "MERGE INTO users u USING orders o ON u.id = o.id WHEN MATCHED THEN DELETE",
    ]
    for query in queries:
        (said,) = zip(*db.fetch_all(f"EXPLAIN (COSTS OFF) {query}"), strict=True)
        steps = [
            line.strip().removeprefix("->").strip()
            for i, line in enumerate(said)
            if i == 0 or "->" in line
        ]
        assert [node.label for node in db.explain(query).walk()] == steps


def test_hostile_names_cannot_drive_a_terminal(db: Database) -> None:
    db.execute('CREATE TABLE "a\x1b[31m\nb" (n integer)')
    text = str(db.explain('SELECT n "x\x1by" FROM "a\x1b[31m\nb" WHERE n = 1'))
    assert all(line.isprintable() for line in text.splitlines())
    assert "Seq Scan on a\\x1b[31m\\nb (" in text
