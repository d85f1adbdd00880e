"""What an app context borrows, when it gives that back, and in which state."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from flask import Flask, copy_current_request_context, g
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, namedtuple_row, scalar_row

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections
from flask_pgmonkey.errors import NoRowError, RowMismatchError

from ..round_trips import count_round_trips
from .conftest import MakeSite, Site

Items = Callable[[], list[int]]


def terminate(admin: psycopg.Connection[Any], conn: psycopg.Connection[Any]) -> None:
    """Have the server close *conn*; return when it has."""
    admin.execute("SELECT pg_terminate_backend(%s, 10000)", (conn.info.backend_pid,))


# What is borrowed


def test_a_request_that_does_not_query_borrows_nothing(site: Site) -> None:
    def view() -> None:
        assert borrowed_connections() == []

    site.visit(view)
    with site.app.app_context():
        assert site.db.cache_info["size"] == 0


def test_a_request_has_one_connection_until_its_end(site: Site, db: PGMonkey) -> None:
    def view() -> None:
        pids = {db.fetch_value("SELECT pg_backend_pid()") for _ in range(3)}
        with db.transaction() as tx, db.cursor() as cursor:
            pids.add(tx.fetch_value("SELECT pg_backend_pid()"))
            pids.add(cursor.execute("SELECT pg_backend_pid()").fetchone()[0])  # type: ignore[index]
        pids.add(db.connection.info.backend_pid)
        assert len(pids) == 1
        assert len(borrowed_connections()) == 1

    site.visit(view)
    assert borrowed_connections() == []


def test_requests_after_another_have_the_same_connection(site: Site, db: PGMonkey) -> None:
    pids = set()
    for _ in range(3):
        site.visit(lambda: pids.add(db.fetch_value("SELECT pg_backend_pid()")))
    assert len(pids) == 1


def test_requests_at_once_have_connections_of_their_own(site: Site, db: PGMonkey) -> None:
    together = threading.Barrier(4, timeout=10)
    pids = set()

    def view() -> None:
        pids.add(db.fetch_value("SELECT pg_backend_pid()"))
        together.wait()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: site.visit(view), range(4)))
    assert len(pids) == 4


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_each_query_costs_one_round_trip(site: Site, db: PGMonkey, queries: int) -> None:
    with site.app.app_context():
        conn = db.connection

    def view() -> None:
        for number in range(queries):
            assert db.fetch_value(f"SELECT {number} + %s", (number,)) == 2 * number
        assert db.connection is conn

    with count_round_trips(conn) as counted:
        site.visit(view)
    assert counted.count == queries


def test_a_transaction_costs_two_round_trips_more(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        conn = db.connection

    def view() -> None:
        with db.transaction() as tx:
            tx.fetch_value("SELECT 1")
            db.fetch_value("SELECT 2")

    with count_round_trips(conn) as counted:
        site.visit(view)
    assert counted.count == 4


def test_a_thread_with_a_copy_of_the_request_has_its_own_connection(
    site: Site, db: PGMonkey
) -> None:
    def view() -> None:
        mine = db.fetch_value("SELECT pg_backend_pid()")
        with ThreadPoolExecutor(1) as threads:
            query = copy_current_request_context(lambda: db.fetch_value("SELECT pg_backend_pid()"))
            assert threads.submit(query).result() != mine

    site.visit(view)


def test_threads_in_one_context_share_its_connection(site: Site, db: PGMonkey) -> None:
    def query_often(first: int) -> None:
        for n in range(first, first + 100):
            assert db.fetch_value("SELECT %s::int", (n,)) == n

    def view() -> None:
        with ThreadPoolExecutor(4) as threads:
            for done in [
                threads.submit(contextvars.copy_context().run, query_often, 1000 * n)
                for n in range(4)
            ]:
                done.result(timeout=30)
        assert len(borrowed_connections()) == 1

    site.visit(lambda: db.execute("SELECT 1"))
    site.visit(view)


# The queries


def test_fetch_one_gives_the_first_row_and_none_without_a_row(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        assert db.fetch_one("SELECT n, 'x' FROM generate_series(1, 3) AS n") == (1, "x")
        assert db.fetch_one("SELECT 1 WHERE false") is None


def test_fetch_all_gives_a_list_of_rows(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        rows = db.fetch_all("SELECT n FROM generate_series(1, %(last)s) AS n", {"last": 3})
        assert rows == [(1,), (2,), (3,)]
        assert db.fetch_all("SELECT 1 WHERE false") == []


def test_fetch_value_gives_the_first_column_and_none_without_a_row(
    site: Site, db: PGMonkey
) -> None:
    with site.app.app_context():
        assert db.fetch_value("SELECT 7, 8") == 7
        assert db.fetch_value("SELECT NULL") is None
        assert db.fetch_value("SELECT 1 WHERE false") is None


def test_execute_gives_the_rows_affected(
    site: Site, db: PGMonkey, admin: psycopg.Connection[Any], items: Items
) -> None:
    with site.app.app_context():
        assert db.execute("INSERT INTO items SELECT generate_series(1, 5)") == 5
        assert db.execute("DELETE FROM items WHERE n > %s", (3,)) == 2
        assert db.execute("CREATE TABLE more ()") == 0
        assert db.execute("SET statement_timeout = 0") == 0


def test_every_query_is_durable_when_it_returns(site: Site, db: PGMonkey, items: Items) -> None:
    with site.app.app_context():
        db.execute("INSERT INTO items VALUES (1)")
        assert items() == [1]
        assert db.fetch_value("INSERT INTO items VALUES (2) RETURNING n") == 2
        assert items() == [1, 2]
        db.execute_many("INSERT INTO items VALUES (%s)", [[3], [4]])
        assert items() == [1, 2, 3, 4]


def test_queries_are_durable_even_if_the_view_raises(
    site: Site, db: PGMonkey, items: Items
) -> None:
    def view() -> None:
        db.execute("INSERT INTO items VALUES (1)")
        raise LookupError

    with pytest.raises(LookupError):
        site.visit(view)
    assert items() == [1]


def test_the_autocommit_of_the_config_does_not_matter(
    make_site: MakeSite, database: dict[str, Any], items: Items
) -> None:
    for number, autocommit in enumerate((True, False)):
        site = make_site(connection_settings={**database, "autocommit": autocommit})
        with site.app.app_context():
            site.db.execute("INSERT INTO items VALUES (%s)", (number,))
            assert site.db.connection.autocommit
            assert number in items()


def test_execute_many_is_all_or_nothing(site: Site, db: PGMonkey, items: Items) -> None:
    with site.app.app_context():
        assert db.execute_many("INSERT INTO items VALUES (%s)", ([n] for n in range(3))) == 3
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute_many("INSERT INTO items VALUES (%s)", [[7], [8], [1]])
        assert items() == [0, 1, 2]
        assert db.execute_many("INSERT INTO items VALUES (%s)", []) == 0


def test_psycopg_sql_is_taken_wherever_a_string_is(site: Site, db: PGMonkey, items: Items) -> None:
    table = sql.Identifier("items")
    insert = sql.SQL("INSERT INTO {} VALUES (%s)").format(table)
    select = sql.SQL("SELECT n FROM {} ORDER BY n").format(table)
    with site.app.app_context():
        assert db.execute(insert, (1,)) == 1
        assert db.execute_many(insert, [(2,)]) == 1
        assert db.fetch_one(select) == (1,)
        assert db.fetch_all(select) == [(1,), (2,)]
        assert db.fetch_value(sql.SQL("SELECT 1")) == 1
        assert list(db.stream(select)) == [(1,), (2,)]
        with db.transaction() as tx:
            assert tx.fetch_all(select) == [(1,), (2,)]


def test_rows_are_tuples_unless_a_row_factory_says_otherwise(make_site: MakeSite) -> None:
    query = "SELECT 1 AS one"
    tuples, dicts = make_site(), make_site(PGMonkey(row_factory=dict_row))
    with tuples.app.app_context():
        assert tuples.db.fetch_all(query) == [(1,)]
        assert tuples.db.fetch_all(query, row_factory=dict_row) == [{"one": 1}]
        assert tuples.db.fetch_exactly_one(query, row_factory=namedtuple_row)[0] == 1
        assert list(tuples.db.stream(query, row_factory=dict_row)) == [{"one": 1}]
        assert tuples.db.cursor(row_factory=scalar_row).execute(query).fetchone() == 1
        assert tuples.db.fetch_one(query) == (1,)
    with dicts.app.app_context():
        assert dicts.db.fetch_all(query) == [{"one": 1}]
        assert dicts.db.fetch_value(query) == 1
        assert dicts.db.fetch_one(query, row_factory=scalar_row) == 1
        assert list(dicts.db.stream(query)) == [{"one": 1}]
        with dicts.db.transaction() as tx:
            assert tx.fetch_one(query) == {"one": 1}
        assert dicts.db.cursor().execute(query).fetchone() == {"one": 1}


def test_what_a_request_changes_on_its_connection_is_gone_in_the_next(
    site: Site, db: PGMonkey[Any]
) -> None:
    def change() -> None:
        db.connection.row_factory = dict_row
        db.connection.prepare_threshold = None
        db.connection.autocommit = False

    def look() -> None:
        assert db.fetch_one("SELECT 1") == (1,)
        assert db.connection.prepare_threshold == 5
        assert db.connection.autocommit

    site.visit(change)
    site.visit(look)


def test_configure_runs_on_every_new_connection(make_site: MakeSite) -> None:
    seen: list[int] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        seen.append(conn.info.backend_pid)
        conn.execute("SET application_name = 'configured'")

    site = make_site(PGMonkey(configure=configure))
    with site.app.app_context():
        assert site.db.fetch_value("SHOW application_name") == "configured"
        assert site.db.fetch_value("SELECT pg_backend_pid()") in seen


def test_a_failed_query_leaves_the_connection_usable(
    site: Site, db: PGMonkey, items: Items
) -> None:
    def view() -> None:
        pid = db.fetch_value("SELECT pg_backend_pid()")
        for query, error in {
            "SELEKT 1": psycopg.errors.SyntaxError,
            "SELECT * FROM nowhere": psycopg.errors.UndefinedTable,
            "SELECT 1 / 0": psycopg.errors.DivisionByZero,
        }.items():
            with pytest.raises(error):
                db.fetch_all(query)
        with pytest.raises(psycopg.ProgrammingError):
            db.fetch_one("SELECT %s", ())
        with pytest.raises(psycopg.ProgrammingError):
            db.fetch_all("SET work_mem = '1MB'")
        assert db.fetch_value("SELECT pg_backend_pid()") == pid

    site.visit(view)


# The end of a context


def test_a_transaction_left_open_is_rolled_back_and_logged_with_the_endpoint(
    site: Site, db: PGMonkey, items: Items, caplog: pytest.LogCaptureFixture
) -> None:
    def begin_by_hand() -> None:
        db.execute("BEGIN")
        db.execute("INSERT INTO items VALUES (1)")

    def leave_autocommit() -> None:
        db.connection.autocommit = False
        db.execute("INSERT INTO items VALUES (2)")

    def leave_block_open() -> None:
        g.kept_alive = db.transaction()
        g.kept_alive.__enter__()
        db.execute("INSERT INTO items VALUES (3)")

    def leave_nested_blocks_open() -> None:
        g.kept_alive = [db.transaction(), db.transaction()]
        for block in g.kept_alive:
            block.__enter__()
        db.execute("INSERT INTO items VALUES (4)")

    def leave_failed() -> None:
        db.execute("BEGIN")
        with pytest.raises(psycopg.errors.DivisionByZero):
            db.execute("SELECT 1 / 0")

    for view in (
        begin_by_hand, leave_autocommit, leave_block_open, leave_nested_blocks_open, leave_failed,
    ):  # fmt: skip
        caplog.clear()
        site.visit(view)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "left a transaction open" in record.message
        assert "endpoint page" in record.message
        assert items() == []
    site.visit(lambda: db.execute("INSERT INTO items VALUES (5)"))
    assert items() == [5]


def test_a_request_that_ends_well_logs_nothing(
    site: Site, db: PGMonkey, items: Items, caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> None:
        with db.transaction():
            db.execute("INSERT INTO items VALUES (1)")

    site.visit(view)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_connection_that_is_busy_at_the_end_is_closed(
    site: Site, db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []

    def view() -> None:
        kept.append(db.connection)
        db.connection.pgconn.send_query(b"SELECT pg_sleep(0.5)")

    site.visit(view)
    assert kept[0].closed
    assert "left a query running" in caplog.text
    with site.app.app_context():
        assert db.fetch_value("SELECT 1") == 1


def test_teardown_may_run_any_number_of_times(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        db.fetch_value("SELECT 1")
        site.app.do_teardown_appcontext()
        site.app.do_teardown_appcontext()
        assert borrowed_connections() == []


def test_teardown_never_raises(
    site: Site, db: PGMonkey, admin: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def die_in_transaction() -> None:
        g.block = db.transaction()
        g.block.__enter__()
        terminate(admin, db.connection)

    def die_by_hand() -> None:
        db.execute("BEGIN")
        terminate(admin, db.connection)

    def die_idle() -> None:
        terminate(admin, db.connection)

    def close() -> None:
        db.connection.close()

    def close_in_transaction() -> None:
        g.block = db.transaction()
        g.block.__enter__()
        db.connection.close()

    def release_by_hand() -> None:
        db.pool.release(db.connection)

    for view in (
        die_in_transaction, die_by_hand, die_idle, close, close_in_transaction, release_by_hand,
    ):  # fmt: skip
        assert site.visit(view).status_code == 200
        assert borrowed_connections() == []
        assert site.visit(lambda: db.fetch_one("SELECT 1") and "alive").text == "alive"


# Contexts around requests


def test_a_request_in_an_outer_context_shares_its_connection(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        outer = db.connection
        assert site.visit(lambda: str(db.connection is outer)).text == "True"
        assert db.connection is outer


def test_what_a_request_leaves_open_in_an_outer_context_is_rolled_back_at_its_end(
    site: Site, db: PGMonkey, items: Items
) -> None:
    def begin_by_hand() -> None:
        db.execute("BEGIN")
        db.execute("INSERT INTO items VALUES (1)")

    def leave_block_open() -> None:
        g.kept_alive = db.transaction()
        g.kept_alive.__enter__()
        db.execute("INSERT INTO items VALUES (1)")

    def leave_both_open() -> None:
        db.execute("BEGIN")
        leave_block_open()

    def send_a_request_in_between() -> None:
        begin_by_hand()
        site.visit(lambda: use(db))

    def use_a_copy_in_between() -> None:
        begin_by_hand()
        copy_current_request_context(lambda: use(db))()

    for view in (
        begin_by_hand, leave_block_open, leave_both_open, send_a_request_in_between,
        use_a_copy_in_between,
    ):  # fmt: skip
        for used_before in (True, False):
            with site.app.app_context():
                if used_before:
                    db.fetch_value("SELECT 1")
                site.visit(view)
                assert db.connection.info.transaction_status == TransactionStatus.IDLE
                assert db.fetch_value("SELECT count(*) FROM items") == 0


def test_a_teardown_function_that_raises_leaves_no_transaction_open(
    site: Site, db: PGMonkey, items: Items
) -> None:
    @site.app.teardown_request
    def fail(exc: BaseException | None) -> None:
        raise LookupError

    def begin_by_hand() -> None:
        db.execute("BEGIN")
        db.execute("INSERT INTO items VALUES (1)")

    with site.app.app_context():
        for _ in range(2):
            with pytest.raises(LookupError):
                site.visit(begin_by_hand)
            assert db.connection.info.transaction_status == TransactionStatus.IDLE
            assert db.fetch_value("SELECT count(*) FROM items") == 0


def test_a_teardown_function_that_raises_keeps_no_connection(site: Site, db: PGMonkey) -> None:
    fails = True

    @site.app.teardown_appcontext
    def fail(exc: BaseException | None) -> None:
        if fails:
            raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            site.visit(lambda: str(db.fetch_value("SELECT 1")))
        assert borrowed_connections() == []
    fails = False


def test_the_log_blames_no_request_that_is_over(
    site: Site, db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    with site.app.app_context():
        db.execute("BEGIN")
        site.visit(lambda: str(db.fetch_value("SELECT 1")))
    (record,) = caplog.records
    assert record.message.startswith("an app context left a transaction open")


def use(db: PGMonkey) -> None:
    db.execute("INSERT INTO items VALUES (2)")


def leave_a_savepoint(db: PGMonkey) -> None:
    g.kept_alive = db.transaction()
    g.kept_alive.__enter__()
    db.execute("INSERT INTO items VALUES (3)")


def leave_alone(db: PGMonkey) -> None:
    pass


@pytest.mark.parametrize(
    ("do", "expected"), [(use, [1, 2]), (leave_a_savepoint, [1]), (leave_alone, [1])]
)
def test_the_transaction_of_an_outer_context_survives_requests(
    site: Site,
    db: PGMonkey,
    items: Items,
    do: Callable[[PGMonkey], None],
    expected: list[int],
) -> None:
    with site.app.app_context():
        with db.transaction():
            db.execute("INSERT INTO items VALUES (1)")
            site.visit(lambda: do(db))
            site.visit(lambda: leave_alone(db))
            assert items() == []
        assert items() == expected


@pytest.mark.parametrize(("do", "expected"), [(use, [1, 2]), (leave_alone, [1])])
def test_the_psycopg_transaction_of_an_outer_context_survives_requests(
    site: Site,
    db: PGMonkey,
    items: Items,
    do: Callable[[PGMonkey], None],
    expected: list[int],
) -> None:
    with site.app.app_context():
        with db.connection.transaction():
            db.execute("INSERT INTO items VALUES (1)")
            site.visit(lambda: do(db))
            site.visit(lambda: leave_alone(db))
            assert items() == []
        assert items() == expected


def test_the_transaction_of_a_request_survives_a_request_that_it_sends_itself(
    site: Site, db: PGMonkey, items: Items
) -> None:
    def inner() -> None:
        db.execute("INSERT INTO items VALUES (2)")

    def view() -> None:
        with db.connection.transaction():
            db.execute("INSERT INTO items VALUES (1)")
            site.visit(inner)
            assert items() == []

    site.visit(view)
    assert items() == [1, 2]


def test_a_context_in_a_context_of_another_thread_ends_for_itself(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        outer = db.fetch_value("SELECT pg_backend_pid()")
        with site.app.app_context():
            assert db.fetch_value("SELECT pg_backend_pid()") != outer
        assert len(borrowed_connections()) == 1
        assert db.fetch_value("SELECT pg_backend_pid()") == outer


# Dead connections


def test_a_connection_that_died_is_replaced_within_one_context(
    site: Site, db: PGMonkey, admin: psycopg.Connection[Any]
) -> None:
    with site.app.app_context():
        for _ in range(3):
            conn = db.connection
            terminate(admin, conn)
            assert db.fetch_value("SELECT 1") == 1
            assert db.connection is not conn
        assert len(borrowed_connections()) == 1


def test_a_connection_that_died_in_a_transaction_is_not_replaced_within_it(
    site: Site, db: PGMonkey, admin: psycopg.Connection[Any], items: Items
) -> None:
    with site.app.app_context():
        with pytest.raises(psycopg.OperationalError), db.transaction():
            db.execute("INSERT INTO items VALUES (1)")
            terminate(admin, db.connection)
            db.execute("INSERT INTO items VALUES (2)")
        assert items() == []
        db.execute("INSERT INTO items VALUES (3)")
        db.execute("BEGIN")
        terminate(admin, db.connection)
        with pytest.raises(psycopg.OperationalError):
            db.execute("INSERT INTO items VALUES (4)")
    assert items() == [3]


# Code that outlives its request


def test_a_copied_context_of_a_request_that_has_ended_gets_an_error(
    site: Site, db: PGMonkey
) -> None:
    for first in (lambda: db.fetch_value("SELECT 1") and None, lambda: None):
        copies = []

        def view(first: Callable[[], object] = first) -> None:
            first()
            copies.append(contextvars.copy_context())  # noqa: B023

        site.visit(view)
        for query in (
            lambda: db.fetch_value("SELECT 1"),
            lambda: db.connection,
            lambda: db.stream("SELECT 1"),
            lambda: db.transaction().__enter__(),
        ):
            with pytest.raises(RuntimeError, match="has ended"):
                copies[0].run(query)
        assert borrowed_connections() == []


def test_a_thread_that_outlives_its_request_gets_an_error(site: Site, db: PGMonkey) -> None:
    ended = threading.Event()

    def query_later() -> None:
        assert ended.wait(10)
        db.fetch_value("SELECT 1")

    with ThreadPoolExecutor(1) as threads:
        futures = []

        def view() -> None:
            db.fetch_value("SELECT 1")
            context = contextvars.copy_context()
            futures.append(threads.submit(context.run, query_later))

        site.visit(view)
        ended.set()
        with pytest.raises(RuntimeError, match="has ended"):
            futures[0].result()


def test_a_copied_context_of_a_request_that_has_ended_may_push_one_of_its_own(
    site: Site, db: PGMonkey
) -> None:
    copies = []

    def query() -> Any:
        with site.app.app_context():
            return db.fetch_value("SELECT 1")

    site.visit(lambda: copies.append(contextvars.copy_context()))
    assert copies[0].run(query) == 1


def test_a_stream_leaves_the_connection_alone_that_another_thread_uses(
    site: Site, db: PGMonkey
) -> None:
    making, go_on = threading.Event(), threading.Event()

    def slow_row(cursor: psycopg.Cursor[Any]) -> Callable[[Any], Any]:
        def make(values: Any) -> Any:
            making.set()
            assert go_on.wait(10)
            return values[0]

        return make

    with site.app.app_context(), ThreadPoolExecutor(1) as threads:
        query = "SELECT pg_backend_pid()"
        copy = contextvars.copy_context()
        others = threads.submit(copy.run, lambda: db.fetch_all(query, row_factory=slow_row))
        assert making.wait(10)
        (mine,) = [pid for (pid,) in db.stream(query)]
        with site.app.app_context():
            db.fetch_value("SELECT 1")
        go_on.set()
        assert others.result() != [mine]
    assert borrowed_connections() == []


def test_a_connection_left_in_pipeline_mode_is_not_lent_again(
    site: Site, db: PGMonkey, items: Items
) -> None:
    def view() -> None:
        g.pipeline = db.connection.pipeline()
        g.pipeline.__enter__()

    site.visit(view)
    site.visit(lambda: db.execute("INSERT INTO items VALUES (1)"))
    assert items() == [1]


def test_a_context_that_is_pushed_again_borrows_again(site: Site, db: PGMonkey) -> None:
    context = site.app.app_context()
    for _ in range(2):
        with context:
            assert db.fetch_value("SELECT 1") == 1
        assert borrowed_connections() == []


# What lies underneath


def test_the_objects_underneath_can_be_reached(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        assert db.pool is db.get_connection("pool")
        assert db.pool is db.manager.connection_for(db.get_config(), "pool")
        with db.pool as conn:
            assert conn is not db.connection
        normal = db.get_connection()
        assert normal.connection_type == "normal"
        assert db.get_connection("normal", force_reload=True) is not normal
        assert sorted(db.cache_info["connection_types"].values()) == ["normal", "pool"]
        old = db.pool
        db.clear_cache()
        assert db.cache_info["size"] == 0
        assert db.pool is not old
        assert db.fetch_value("SELECT 1") == 1


def test_the_async_objects_underneath_can_be_reached(site: Site, db: PGMonkey) -> None:
    async def use() -> None:
        pool = await db.get_connection("async_pool")
        assert pool is await db.get_connection("async_pool")
        async with pool as conn:
            cursor = await conn.execute("SELECT 1")
            assert await cursor.fetchone() == (1,)
        assert db.cache_info["size"] == 1
        with pytest.raises(RuntimeError, match="clear_cache_async"):
            db.clear_cache()
        await db.clear_cache_async()
        assert db.cache_info["size"] == 0

    with site.app.app_context():
        asyncio.run(use())


def test_the_pool_serves_background_work_without_a_context(site: Site, db: PGMonkey) -> None:
    with site.app.app_context():
        pool = db.pool
    with pool as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_clearing_the_cache_in_a_request_disturbs_no_query(site: Site, db: PGMonkey) -> None:
    def view() -> None:
        db.fetch_value("SELECT 1")
        db.clear_cache()
        assert db.fetch_value("SELECT 1") == 1
        with db.transaction() as tx:
            assert tx.fetch_value("SELECT 1") == 1

    site.visit(view)
    site.visit(view)


def test_a_reload_in_a_request_lends_from_the_new_pool_next(site: Site, db: PGMonkey) -> None:
    pids = []

    def view() -> None:
        pids.append(db.fetch_value("SELECT pg_backend_pid()"))
        db.get_connection("pool", force_reload=True)
        assert db.fetch_value("SELECT pg_backend_pid()") == pids[-1]

    site.visit(view)
    site.visit(view)
    assert len(set(pids)) == 2


def test_an_app_that_is_gone_takes_its_pool_along(
    database: dict[str, Any], admin: psycopg.Connection[Any]
) -> None:
    db = PGMonkey(config={"connection_settings": database})
    app = Flask("tests")
    db.init_app(app)
    with app.app_context():
        db.fetch_value("SELECT 1")
    del app
    gc.collect()
    deadline = time.monotonic() + 5
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    while admin.execute(sessions).fetchone() != (1,):
        assert time.monotonic() < deadline, "the pool is still open"
        time.sleep(0.01)
    assert repr(db) == "<PGMonkey without an app>"


# Rows of the user's own classes


@dataclass
class Number:
    n: int


def test_rows_become_objects_in_every_call_of_a_request(
    site: Site, admin: psycopg.Connection[Any]
) -> None:
    query = "SELECT generate_series(1, 3) AS n"
    numbers = [Number(1), Number(2), Number(3)]

    def view() -> None:
        db = site.db
        assert db.fetch_all(query, into=Number) == numbers
        assert db.fetch_one_or_404(query, into=Number) == Number(1)
        assert list(db.stream(query, into=Number)) == numbers
        assert list(db.stream(query, into=int, batch_size=2)) == [1, 2, 3]
        with db.transaction() as tx:
            assert tx.fetch_all(query, into=Number) == numbers
            assert list(db.stream(query, into=Number)) == numbers
        with pytest.raises(RowMismatchError):
            db.stream("SELECT 1 AS other", into=Number)
        assert db.fetch_value(query) == 1

    assert site.visit(view).status_code == 200


def test_async_views_get_objects_too(site: Site) -> None:
    async def view() -> None:
        aio = site.db.aio
        assert await aio.fetch_all("SELECT 1 AS n", into=Number) == [Number(1)]
        assert await aio.fetch_exactly_one("SELECT 1 AS n", into=Number) == Number(1)
        with pytest.raises(NoRowError):
            await aio.fetch_exactly_one("SELECT 1 WHERE false")
        async with aio.transaction() as tx:
            assert await tx.fetch_value("SELECT 1.5", into=float) == 1.5

    assert site.visit(lambda: asyncio.run(view())).status_code == 200


def test_a_row_that_is_not_there_is_the_page_that_is_not_there(site: Site) -> None:
    site.app.testing = False
    nothing = "SELECT 1 WHERE false"
    plain = site.visit(lambda: site.db.fetch_one_or_404(nothing))
    worded = site.visit(lambda: site.db.fetch_one_or_404(nothing, description="no such order"))
    assert (plain.status_code, worded.status_code) == (404, 404)
    assert "no such order" in worded.text
    assert site.visit(lambda: str(site.db.fetch_one_or_404("SELECT 1"))).text == "(1,)"
