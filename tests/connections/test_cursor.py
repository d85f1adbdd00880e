"""The cursor of our connections: stale plans, and what leaves state on the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from flask_pgmonkey.config import CONNECTION_TYPES as ALL_TYPES

from ..round_trips import count_round_trips
from .every_type import AsyncCase, sync_and_async

CONNECTION_TYPES = ALL_TYPES

TABLE = "CREATE TABLE items (id int, name text); INSERT INTO items VALUES (1, 'one')"
# What an ordinary migration does, and a query whose plan does not survive it.
MIGRATIONS = {
    "a column is added": ("ALTER TABLE items ADD size int", "SELECT * FROM items"),
    "a type is changed": ("ALTER TABLE items ALTER id TYPE bigint", "SELECT id FROM items"),
    "a column is dropped": ("ALTER TABLE items DROP name", "SELECT * FROM items"),
    "a function is changed": (
        "DROP FUNCTION found(); CREATE FUNCTION found() RETURNS TABLE (id int, name text, n int)"
        " LANGUAGE sql AS 'SELECT id, name, 1 FROM items'",
        "SELECT * FROM found()",
    ),
    "what is returned": (
        "ALTER TABLE items ADD size int",
        "UPDATE items SET id = 1 RETURNING *",
    ),
}
FUNCTION = (
    "CREATE FUNCTION found() RETURNS TABLE (id int, name text) LANGUAGE sql AS"
    " 'SELECT id, name FROM items'"
)


@sync_and_async
async def test_a_stale_plan_is_dropped_and_the_query_run_again_unseen(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    for migration, query in MIGRATIONS.values():
        case.run_on_server(f"{TABLE}; {FUNCTION}")
        async with connection as conn:
            await case.prepare(conn, query)
            case.run_on_server(migration)
            found = await (await conn.execute(query)).fetchall()
            assert len(found) == 1
            assert await case.value(conn, "SELECT 1") == 1
        case.run_on_server("DROP TABLE items CASCADE; DROP FUNCTION IF EXISTS found()")


@sync_and_async
async def test_a_statement_that_the_server_does_not_have_is_run_again(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        await case.prepare(conn, "SELECT 1")
        await conn.execute("DEALLOCATE _pg3_0")
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_running_again_costs_its_round_trips_once(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        await case.prepare(conn, "SELECT * FROM items")
        case.run_on_server("ALTER TABLE items ADD size int")
        with count_round_trips(conn) as counted:
            await conn.execute("SELECT * FROM items")
        assert counted.count == 3  # refused, run, DEALLOCATE ALL
        with count_round_trips(conn) as counted:
            await conn.execute("SELECT * FROM items")
        assert counted.count == 1


@sync_and_async
async def test_in_a_transaction_a_stale_plan_surfaces_and_the_next_one_works(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        await case.prepare(conn, "SELECT * FROM items")
    case.run_on_server("ALTER TABLE items ADD size int")
    async with connection as conn:
        with pytest.raises(errors.FeatureNotSupported):
            async with conn.transaction():
                await conn.execute("SELECT * FROM items")
        async with conn.transaction():
            row = await (await conn.execute("SELECT * FROM items")).fetchone()
            assert len(row) == 3


@sync_and_async
async def test_a_procedure_that_met_a_stale_plan_inside_runs_once(case: AsyncCase) -> None:
    case.run_on_server(
        f"{TABLE}; CREATE TABLE calls (n int);"
        " CREATE PROCEDURE work() LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO calls VALUES (1); COMMIT; EXECUTE 'EXECUTE stale'; END $$"
    )
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        await conn.execute("PREPARE stale AS SELECT * FROM items")
        await conn.execute("EXECUTE stale")
        case.run_on_server("ALTER TABLE items ADD size int")
        with pytest.raises(errors.FeatureNotSupported) as raised:
            await conn.execute("CALL work()")
        assert raised.value.diag.context
    assert case.rows("SELECT count(*) FROM calls") == [(1,)]


@sync_and_async
async def test_in_a_pipeline_a_stale_plan_surfaces(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        await case.prepare(conn, "SELECT * FROM items")
        case.run_on_server("ALTER TABLE items ADD size int")
        with pytest.raises(errors.FeatureNotSupported):
            async with conn.pipeline():
                await conn.execute("SELECT * FROM items")
        assert await case.value(conn, "SELECT count(*) FROM items") == 1
        assert len(await (await conn.execute("SELECT * FROM items")).fetchone()) == 3


@sync_and_async
async def test_other_refusals_of_a_feature_are_not_run_again(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with count_round_trips(conn) as counted:
            with pytest.raises(errors.FeatureNotSupported):
                await conn.execute("SELECT 1 UNION SELECT 2 FOR UPDATE")
        assert counted.count == 1


@sync_and_async
async def test_once_met_the_pools_other_connections_drop_theirs(case: AsyncCase) -> None:
    if not case.is_pool:
        return
    case.run_on_server(TABLE)
    pool = await case.open({"autocommit": True}, {"max_size": 2})
    async with pool as first:
        async with pool as second:
            await case.prepare(first, "SELECT * FROM items")
            await case.prepare(second, "SELECT * FROM items")
    case.run_on_server("ALTER TABLE items ADD size int")
    failures = 0
    for _ in range(4):
        async with pool as first:
            async with pool as second:
                for conn in (first, second):
                    try:
                        async with conn.transaction():
                            await conn.execute("SELECT * FROM items")
                    except errors.FeatureNotSupported:
                        failures += 1
    assert failures == 2  # both were out when the first met it


@sync_and_async
async def test_a_connection_that_comes_later_meets_no_stale_plan(case: AsyncCase) -> None:
    if not case.is_pool:
        return
    case.run_on_server(TABLE)
    pool = await case.open({"autocommit": True}, {"max_size": 2})
    async with pool as first:
        async with pool as second:
            for conn in (first, second):
                await case.prepare(conn, "SELECT * FROM items")
    case.run_on_server("ALTER TABLE items ADD size int")
    async with pool as first:
        await first.execute("SELECT * FROM items")
        async with pool as second, second.transaction():
            assert second is not first
            await second.execute("SELECT * FROM items")


MARKS: list[Any] = [
    "SET work_mem TO '5MB'",
    "set role none",
    b"SET search_path TO pg_catalog",
    sql.SQL("SET {} TO 1").format(sql.Identifier("extra_float_digits")),
    "/* from a view */ SET work_mem TO '5MB'",
    "-- from a view\nSET work_mem TO '5MB'",
    "SELECT 1; SET work_mem TO '5MB'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "RESET work_mem",
    "LISTEN news",
    "PREPARE p AS SELECT 1",
    "CREATE TEMP TABLE t ()",
    "CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1",
    "SELECT 1 AS n INTO TEMP t2",
    "CREATE TABLE pg_temp.t3 ()",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1)",
    'SELECT "pg_advisory_lock"(1)',
    "WITH locked AS (SELECT pg_advisory_lock(1)) SELECT * FROM locked",
    "SELECT set_config('work_mem', '5MB', false)",
    "SELECT pg_catalog.set_config('work_mem', '5MB', $$f$$)",
    "DO $$ BEGIN PERFORM set_config('work_mem', '5MB', false); END $$",
]
NO_MARKS: list[Any] = [
    "SELECT 1",
    "CREATE TABLE settings (name text, value text)",
    "UPDATE settings SET value = 'x' WHERE name = 'SET'",
    "INSERT INTO settings VALUES ('; SET a TO 1', '') ON CONFLICT DO NOTHING",
    "SELECT $$; SET work_mem TO '5MB'$$",
    "SELECT $q$; SET a TO 1$q$, E'\\'; SET a TO 1'",
    "SELECT 1 /* ; SET work_mem TO '5MB' */ -- ; SET a TO 1",
    "SELECT 1 AS temp, 2 AS hold",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT set_config('work_mem', '5MB', true)",
    sql.SQL("SELECT {}").format(sql.Literal("LISTEN x")),
]


@sync_and_async
async def test_what_leaves_state_on_the_session_marks_it(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, {"max_size": 1})
    for statement in MARKS:
        async with connection as conn:
            conn.record.is_marked = False
            await conn.execute(statement)
            assert conn.record.is_marked, statement
            await conn.execute("DISCARD ALL")
            conn.prepare_threshold = None
    await connection.disconnect()


@sync_and_async
async def test_what_leaves_nothing_marks_nothing(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        for statement in NO_MARKS:
            await conn.execute(statement)
            assert not conn.record.is_marked, statement
        async with conn.transaction():
            for local in ("SET LOCAL work_mem TO '5MB'", "SET TRANSACTION READ ONLY"):
                await conn.execute(local)
            await conn.execute("DECLARE c CURSOR FOR SELECT 1")
        assert not conn.record.is_marked


@sync_and_async
async def test_every_way_to_run_a_statement_marks(case: AsyncCase) -> None:
    setting = "SELECT set_config('work_mem', %s, false)"
    connection = await case.open({"autocommit": True}, {"max_size": 1})

    async def mark(run: Callable[[Any], Any]) -> None:
        async with connection as conn:
            conn.record.is_marked = False
            await run(conn)
            assert conn.record.is_marked

    async def many(conn: Any) -> None:
        async with conn.cursor() as cursor:
            await cursor.executemany(setting, [["5MB"], ["6MB"]])

    async def in_pipeline(conn: Any) -> None:
        async with conn.pipeline():
            await conn.execute(setting, ["5MB"])

    async def prepared(conn: Any) -> None:
        for _ in range(7):
            conn.record.is_marked = False
            await conn.execute(setting, ["5MB"])

    async def held(conn: Any) -> None:
        async with conn.cursor("held", withhold=True) as cursor:
            await cursor.execute("SELECT 1")

    for run in (many, in_pipeline, prepared, held):
        await mark(run)


@sync_and_async
async def test_configure_may_set_another_cursor_class(case: AsyncCase) -> None:
    def configure(conn: Any) -> None:
        is_async = isinstance(conn, psycopg.AsyncConnection)
        conn.cursor_factory = psycopg.AsyncRawCursor if is_async else psycopg.RawCursor

    connection = await case.open(configure=configure)
    async with connection as conn:
        assert await case.value(conn, "SELECT $1::int", 7) == 7
