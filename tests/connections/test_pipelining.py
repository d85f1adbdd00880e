"""Statements that go to the server together: one round trip, all of them or none."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.pq import TransactionStatus

from flask_pgmonkey import AsyncDatabase, Database
from flask_pgmonkey.connections.pipelining import Statement, run_together, run_together_async
from flask_pgmonkey.connections.server_connection import ServerConnection
from flask_pgmonkey.signals import query_executed, transaction_ended

from ..round_trips import count_round_trips
from .test_interrupts import interrupt_step

INSERT = "INSERT INTO items VALUES (%s)"
COUNT = "SELECT count(*) FROM items"


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside, with a table ``items`` of one column ``n``."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE items (n integer, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)"
        )
        yield connection


@pytest.fixture
def conn(database: dict[str, Any], admin: object) -> Iterator[ServerConnection]:
    """A connection in autocommit, of a pool."""
    with closing(Database({"connection_settings": database})) as db:
        conn = db.pool.borrow(autocommit=True)
        yield conn
        db.pool.release(conn)


def statements(conn: Any, *queries: str, params: Any = None) -> list[Statement]:
    return [Statement(conn, query.encode(), params) for query in queries]


def status_of(conn: Any) -> int:
    status: int = conn.pgconn.transaction_status
    return status


def values_of(given: list[Statement]) -> list[Any]:
    return [each.cursor().fetchone()[0] for each in given]


@pytest.mark.parametrize("wrapped", [None, True])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_any_number_of_statements_is_one_round_trip(
    conn: ServerConnection, count: int, wrapped: bool | None
) -> None:
    given = [Statement(conn, "SELECT %s::int", [n]) for n in range(count)]
    with count_round_trips(conn) as trips:
        run_together(conn, given, wrapped)
    assert trips.count == 1
    assert values_of(given) == list(range(count))
    assert status_of(conn) == TransactionStatus.IDLE


def test_on_a_loop_it_is_one_round_trip_too(database: dict[str, Any], admin: object) -> None:
    async def run() -> list[Any]:
        db = AsyncDatabase({"connection_settings": database})
        pool = await db.manager.async_pool_for(db.config)
        conn = await pool.borrow(autocommit=True)
        given = [Statement(conn, "SELECT %s::int", [n]) for n in range(3)]
        with count_round_trips(conn) as trips:
            await run_together_async(conn, given)
        assert trips.count == 1
        rows = [await each.cursor().fetchone() for each in given]
        await pool.release(conn)
        await db.disconnect()
        return rows

    assert asyncio.run(run()) == [(0,), (1,), (2,)]


def test_a_statement_sees_what_those_before_it_did(conn: ServerConnection) -> None:
    given = [Statement(conn, INSERT, [1]), Statement(conn, COUNT)]
    run_together(conn, given)
    assert given[0].rows() == 1
    assert given[1].cursor().fetchone() == (1,)


def test_what_fails_undoes_all_and_leaves_the_connection_as_it_was(
    conn: ServerConnection, admin: psycopg.Connection[Any]
) -> None:
    given = [
        Statement(conn, INSERT, [1]), Statement(conn, "SELECT 1 / %s", [0]), Statement(conn, COUNT)
    ]  # fmt: skip
    with pytest.raises(errors.DivisionByZero, match="in query 2 of 3 of the batch"):
        run_together(conn, given)
    assert status_of(conn) == TransactionStatus.IDLE
    assert not conn.pgconn.pipeline_status
    assert admin.execute(COUNT).fetchone() == (0,)
    assert conn.execute(COUNT).fetchone() == (0,)


def test_a_constraint_that_is_checked_at_commit_fails_with_its_own_error(
    conn: ServerConnection,
) -> None:
    given = [Statement(conn, INSERT, [1]), Statement(conn, INSERT, [1])]
    with pytest.raises(errors.UniqueViolation, match="at the COMMIT of the batch of 2 queries"):
        run_together(conn, given)
    assert status_of(conn) == TransactionStatus.IDLE
    run_together(conn, given[:1])
    assert conn.execute(COUNT).fetchone() == (1,)


def test_in_a_transaction_it_is_one_round_trip_more_and_ends_with_it(
    conn: ServerConnection, admin: psycopg.Connection[Any]
) -> None:
    with conn.transaction():
        with count_round_trips(conn) as trips:
            run_together(conn, statements(conn, INSERT, INSERT, params=[1])[:1])
            run_together(conn, [Statement(conn, INSERT, [2]), Statement(conn, COUNT)])
        assert trips.count == 2
        assert admin.execute(COUNT).fetchone() == (0,)
    assert admin.execute(COUNT).fetchone() == (2,)


def test_in_a_transaction_what_fails_fails_that(conn: ServerConnection) -> None:
    with pytest.raises(errors.InFailedSqlTransaction) as caught, conn.transaction():
        with pytest.raises(errors.DivisionByZero):
            run_together(conn, statements(conn, "SELECT 1", "SELECT 1/0"))
        assert status_of(conn) == TransactionStatus.INERROR
    assert "query 2 of 2" in str(caught.value.__cause__)


def test_after_one_that_failed_no_prepared_statement_is_missing(conn: ServerConnection) -> None:
    conn.prepare_threshold = 0
    for wrong in (0, 1, 2):
        queries = ["SELECT 1, %s::int", "SELECT 2, %s::int", "SELECT 3, %s::int"]
        queries.insert(wrong, "SELECT 1 / (%s::int - 1)")
        with pytest.raises(errors.DivisionByZero):
            run_together(conn, statements(conn, *queries, params=[1]))
        for _ in range(2):
            run_together(conn, statements(conn, *queries, params=[2]))
            for query in queries:
                conn.execute(query.encode(), [3])


def test_a_stale_plan_is_not_seen(conn: ServerConnection, admin: psycopg.Connection[Any]) -> None:
    conn.prepare_threshold = 0
    query = "SELECT * FROM items"
    run_together(conn, statements(conn, query, COUNT))
    admin.execute("ALTER TABLE items ADD m integer")
    given = statements(conn, query, INSERT % 1, query)
    run_together(conn, given)
    assert given[2].cursor().fetchall() == [(1, None)]
    assert admin.execute(COUNT).fetchone() == (1,)


def test_a_table_that_one_changes_makes_no_plan_stale(conn: ServerConnection) -> None:
    conn.prepare_threshold = 0
    query = "SELECT * FROM items"
    for column in ("a", "b", "c"):
        given = statements(conn, query, f"ALTER TABLE items ADD {column} integer", query)
        run_together(conn, given)
        assert len(given[2].cursor().description) == len(given[0].cursor().description) + 1
        conn.execute(query)


def test_statements_that_are_not_prepared_any_more_are_dropped_on_the_server(
    conn: ServerConnection,
) -> None:
    conn.prepare_threshold, conn.prepared_max = 0, 2
    for n in range(10):
        run_together(conn, statements(conn, f"SELECT {n}", f"SELECT {n}, {n}"))
    ((count,),) = conn.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False)
    assert count <= 4


def test_a_copy_that_nobody_saw_closes_the_connection(conn: ServerConnection) -> None:
    given = statements(conn, "SELECT 1", "COPY (SELECT 1) TO STDOUT")
    with pytest.raises(psycopg.ProgrammingError, match="COPY cannot be in a batch"):
        run_together(conn, given)
    assert conn.closed


def test_within_a_pipeline_it_is_refused(conn: ServerConnection) -> None:
    with conn.pipeline(), pytest.raises(psycopg.ProgrammingError, match="before or after that"):
        run_together(conn, statements(conn, "SELECT 1", "SELECT 2"))
    run_together(conn, statements(conn, "SELECT 1", "SELECT 2"))


def test_more_parameters_than_the_protocol_counts_are_refused_where_they_are_given(
    conn: ServerConnection,
) -> None:
    with pytest.raises(psycopg.ProgrammingError, match=r"65536 parameters.* ANY"):
        Statement(conn, b"SELECT " + b",".join([b"%s"] * 65536), [1] * 65536)
    given = Statement(conn, "SELECT 65536 = ANY(%s)", [list(range(65537))])
    run_together(conn, [given, *statements(conn, "SELECT 1")])
    assert given.cursor().fetchone() == (True,)


def test_big_statements_and_big_answers_do_not_wait_for_each_other(conn: ServerConnection) -> None:
    text = "x" * 4_000_000
    given = [Statement(conn, "SELECT %s::text", [text]) for _ in range(5)]
    run_together(conn, given)
    assert [len(value) for value in values_of(given)] == [len(text)] * 5


def test_a_lost_connection_is_the_servers_own_error(
    conn: ServerConnection, admin: psycopg.Connection[Any]
) -> None:
    given = statements(
        conn, "SELECT 1", "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 2"
    )
    with pytest.raises(psycopg.OperationalError, match="terminat"):
        run_together(conn, given)
    assert conn.broken


def test_settings_that_travel_along_are_neither_told_nor_counted(conn: ServerConnection) -> None:
    told: list[Any] = []

    def hear(sender: object, event: Any) -> None:
        told.append(event)

    setting = Statement(conn, "SELECT set_config('app.user', 'anna', true)", is_told=False)
    query = Statement(conn, "SELECT current_setting('app.user')")
    query_executed.connect(hear)
    transaction_ended.connect(hear)
    try:
        run_together(conn, [setting, query], wrapped=True)
        with pytest.raises(errors.DivisionByZero) as caught:
            run_together(conn, [setting, *statements(conn, "SELECT 1/0")], wrapped=True)
    finally:
        query_executed.disconnect(hear)
        transaction_ended.disconnect(hear)
    assert query.cursor().fetchone() == ("anna",)
    assert "batch" not in str(caught.value)
    outcomes = [
        (e.kind, e.sql, e.rows, e.error) if hasattr(e, "sql") else e.committed for e in told
    ]
    assert outcomes == [
        True,
        ("query", "SELECT current_setting('app.user')", 1, None),
        ("command", "ROLLBACK", None, None),
        False,
        ("query", "SELECT 1/0", None, "DivisionByZero"),
    ]
    assert conn.execute("SELECT current_setting('app.user', true)").fetchone() == ("",)


def test_a_lost_transaction_is_told_as_not_committed(conn: ServerConnection) -> None:
    told: list[Any] = []

    def hear(sender: object, event: Any) -> None:
        told.append(event)

    transaction_ended.connect(hear)
    try:
        with pytest.raises(psycopg.OperationalError):
            run_together(
                conn, statements(conn, "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1")
            )
    finally:
        transaction_ended.disconnect(hear)
    assert [event.committed for event in told] == [False]


def test_settings_alone_are_a_round_trip_that_nobody_hears_of(conn: ServerConnection) -> None:
    def hear(sender: object, event: object) -> None:
        raise AssertionError(event)

    setting = Statement(conn, "SELECT set_config('app.user', 'anna', true)", is_told=False)
    with conn.transaction():
        query_executed.connect(hear)
        try:
            with count_round_trips(conn) as trips:
                run_together(conn, [setting])
        finally:
            query_executed.disconnect(hear)
        assert trips.count == 1
        assert conn.execute("SELECT current_setting('app.user')").fetchone() == ("anna",)


def test_a_setting_that_fails_is_no_query_of_the_batch(conn: ServerConnection) -> None:
    wrong = Statement(conn, "SELECT set_config('no such name', 'x', true)", is_told=False)
    with pytest.raises(psycopg.DatabaseError, match="no such name") as raised:
        run_together(conn, [wrong, *statements(conn, "SELECT 1", "SELECT 2")], wrapped=True)
    assert "batch" not in str(raised.value)


@pytest.mark.parametrize("cursor", [psycopg.ClientCursor, psycopg.RawCursor])
def test_cursors_of_other_kinds_do_too(conn: ServerConnection, cursor: Any) -> None:
    conn.cursor_factory = cursor
    query = "SELECT $1::int" if cursor is psycopg.RawCursor else "SELECT %s::int"
    for _ in range(2):
        given = statements(conn, query, query, params=[7])
        run_together(conn, given)
        assert values_of(given) == [7, 7]
    with pytest.raises(errors.DivisionByZero, match="query 2 of 2"):
        run_together(conn, statements(conn, "SELECT 1", "SELECT 1/0"))


def test_threads_that_share_a_connection_wait_for_each_other(conn: ServerConnection) -> None:
    def batch(number: int) -> list[Any]:
        given = statements(conn, "SELECT %s::int", "SELECT %s::int", params=[number])
        run_together(conn, given)
        return values_of(given)

    def many(number: int) -> list[Any]:
        with conn.cursor() as cursor:
            cursor.executemany("SELECT %s::int", [[number], [number]], returning=True)
            return [row[0] for each in cursor.results() for row in each]

    with ThreadPoolExecutor(4) as threads:
        for work in (batch, many):
            conn.execute("SELECT 1")
            assert list(threads.map(work, range(100))) == [[n, n] for n in range(100)]
        mixed = list(threads.map(lambda n: (batch, many)[n % 2](n), range(200)))
    assert mixed == [[n, n] for n in range(200)]


def test_a_connection_that_was_reset_meanwhile_is_marked_again(conn: ServerConnection) -> None:
    given = statements(conn, "SET work_mem = '7MB'", "SELECT 1")
    conn.reset_session()
    assert not conn.record.is_marked
    run_together(conn, given)
    assert conn.record.is_marked


@pytest.mark.parametrize("queries", [[COUNT, COUNT], [COUNT, "SELECT 1/0"], [COUNT]])
def test_wherever_it_is_interrupted_the_next_borrower_gets_a_clean_connection(
    database: dict[str, Any], admin: object, queries: list[str]
) -> None:
    def work() -> None:
        with suppress(errors.DivisionByZero):
            run_together(borrowed, statements(borrowed, *queries))

    pool = {"min_size": 1, "max_size": 1, "timeout": 20}
    with closing(Database({"connection_settings": database, "pool_settings": pool})) as db:
        number = 0
        was_raised = True
        while was_raised:
            number += 1
            borrowed = db.pool.borrow(autocommit=True)
            was_raised = interrupt_step(number, work, within="pipelining")
            db.pool.release(borrowed)
            borrowed = db.pool.borrow(autocommit=True)
            assert borrowed.record.pipelined is None
            work()
            assert status_of(borrowed) == TransactionStatus.IDLE
            db.pool.release(borrowed)
    assert number > 30
