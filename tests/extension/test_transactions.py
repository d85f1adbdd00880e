"""``db.transaction()``: queries that are committed together."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.transaction import OutOfOrderTransactionNesting

from flask_pgmonkey import PGMonkey

from .conftest import Site

Items = Callable[[], list[int]]
INSERT = "INSERT INTO items VALUES (%s)"


@pytest.fixture(autouse=True)
def context(site: Site) -> Iterator[None]:
    """An app context around each test."""
    with site.app.app_context():
        yield


def test_a_block_that_ends_well_commits_at_its_end(db: PGMonkey, items: Items) -> None:
    with db.transaction() as tx:
        tx.execute(INSERT, (1,))
        assert tx.execute_many(INSERT, [(2,), (3,)]) == 2
        assert items() == []
    assert items() == [1, 2, 3]


def test_a_block_that_raises_rolls_back(db: PGMonkey, items: Items) -> None:
    with pytest.raises(LookupError), db.transaction() as tx:
        tx.execute(INSERT, (1,))
        raise LookupError
    assert items() == []
    assert db.connection.info.transaction_status == TransactionStatus.IDLE


def test_every_query_of_the_database_joins_it(db: PGMonkey, items: Items) -> None:
    with pytest.raises(LookupError), db.transaction() as tx:
        db.execute(INSERT, (1,))
        assert db.fetch_value("INSERT INTO items VALUES (2) RETURNING n") == 2
        db.execute_many(INSERT, [(3,), (4,)])
        db.cursor().execute(INSERT, (5,))
        db.connection.execute(INSERT, (6,))
        tx.cursor().execute(INSERT, (7,))
        db.bind("default").execute(INSERT, (8,))
        assert tx.connection is db.connection
        assert [n for (n,) in db.stream("SELECT n FROM items ORDER BY n")] == [*range(1, 9)]
        raise LookupError
    assert items() == []


def test_a_nested_block_is_a_savepoint(db: PGMonkey, items: Items) -> None:
    with db.transaction() as tx:
        tx.execute(INSERT, (1,))
        with pytest.raises(psycopg.errors.UniqueViolation), db.transaction() as nested:
            nested.execute(INSERT, (2,))
            nested.execute(INSERT, (1,))
        with tx.transaction() as nested, nested.transaction() as innermost:
            innermost.execute(INSERT, (3,))
        with pytest.raises(LookupError), tx.transaction():
            tx.execute(INSERT, (4,))
            raise LookupError
        assert items() == []
    assert items() == [1, 3]


def test_an_outer_rollback_undoes_what_nested_blocks_did(db: PGMonkey, items: Items) -> None:
    with pytest.raises(LookupError), db.transaction():
        with db.transaction() as nested:
            nested.execute(INSERT, (1,))
        raise LookupError
    assert items() == []


def test_a_failed_statement_spoils_the_block_until_its_end(db: PGMonkey, items: Items) -> None:
    with pytest.raises(psycopg.errors.InFailedSqlTransaction), db.transaction() as tx:
        with pytest.raises(psycopg.errors.DivisionByZero):
            tx.execute("SELECT 1 / 0")
        tx.execute(INSERT, (1,))
    db.execute(INSERT, (2,))
    assert items() == [2]


def test_psycopg_rollback_ends_the_block_without_an_exception(db: PGMonkey, items: Items) -> None:
    with db.transaction():
        db.execute(INSERT, (1,))
        raise psycopg.Rollback
    assert items() == []


def test_isolation_level_and_access_mode_hold_for_the_block_alone(db: PGMonkey) -> None:
    show = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    )
    with db.transaction(IsolationLevel.SERIALIZABLE, read_only=True):
        assert db.fetch_one(show) == ("serializable", "on")
        with db.transaction():
            assert db.fetch_one(show) == ("serializable", "on")
    assert db.fetch_one(show) == ("read committed", "off")
    with db.transaction(isolation_level=IsolationLevel.REPEATABLE_READ):
        assert db.fetch_one(show) == ("repeatable read", "off")
    with db.transaction():
        assert db.fetch_one(show) == ("read committed", "off")


def test_a_read_only_block_refuses_to_write(db: PGMonkey, items: Items) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), db.transaction(read_only=True):
        db.execute(INSERT, (1,))
    db.execute(INSERT, (2,))
    assert items() == [2]


def test_a_nested_block_cannot_choose_an_isolation_level(db: PGMonkey, items: Items) -> None:
    with db.transaction() as tx:
        tx.execute(INSERT, (1,))
        with pytest.raises(psycopg.ProgrammingError, match="outermost"):
            with db.transaction(IsolationLevel.SERIALIZABLE):
                pass
    assert items() == [1]


def test_commit_inside_the_block_is_refused_by_psycopg(db: PGMonkey) -> None:
    with pytest.raises(psycopg.ProgrammingError), db.transaction() as tx:
        tx.connection.commit()


def test_a_transaction_that_is_over_cannot_be_used(db: PGMonkey) -> None:
    with db.transaction() as tx:
        pass
    for use in (
        lambda: tx.execute("SELECT 1"),
        lambda: tx.fetch_value("SELECT 1"),
        lambda: tx.connection,
        tx.cursor,
        lambda: tx.transaction().__enter__(),
    ):
        with pytest.raises(RuntimeError, match="over"):
            use()


def test_a_transaction_begun_by_hand_takes_a_block_as_its_savepoint(
    db: PGMonkey, items: Items
) -> None:
    with db.connection.transaction():
        db.execute(INSERT, (1,))
        with pytest.raises(LookupError), db.transaction():
            db.execute(INSERT, (2,))
            raise LookupError
        assert items() == []
    assert items() == [1]


def test_reprs_tell_whether_it_is_open(db: PGMonkey) -> None:
    with db.transaction() as tx:
        assert repr(tx) == "<Transaction open>"
    assert repr(tx) == "<Transaction over>"


def swallow(queries: Any) -> None:
    queries.execute("INSERT INTO items VALUES (1)")
    with suppress(psycopg.errors.DivisionByZero):
        queries.fetch_value("SELECT 1/0")


def test_a_swallowed_error_is_an_error_at_the_end_of_the_transaction(
    site: Site, items: Callable[[], list[int]]
) -> None:
    def view() -> None:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
            with site.db.transaction() as tx:
                swallow(tx)
        assert isinstance(raised.value.__cause__, psycopg.errors.DivisionByZero)
        with site.db.transaction() as tx:
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                with tx.transaction() as nested:
                    swallow(nested)
            tx.execute("INSERT INTO items VALUES (2)")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            with site.db.connection.transaction():
                swallow(site.db)

    site.visit(view)
    assert items() == [2]


def test_a_swallowed_error_is_an_error_in_async_views_too(
    site: Site, items: Callable[[], list[int]]
) -> None:
    async def view() -> None:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            async with site.db.aio.transaction() as tx:
                await tx.execute("INSERT INTO items VALUES (1)")
                with suppress(psycopg.errors.DivisionByZero):
                    await tx.fetch_value("SELECT 1/0")
        async with site.db.aio.transaction() as tx:
            await tx.execute("INSERT INTO items VALUES (1)")
            raise psycopg.Rollback
        async with site.db.aio.transaction() as tx:
            await tx.execute("INSERT INTO items VALUES (2)")
            async with tx.transaction() as nested:
                await nested.execute("INSERT INTO items VALUES (3)")
                raise psycopg.Rollback

    site.visit(lambda: asyncio.run(view()))
    assert items() == [2]


def test_the_connection_itself_as_a_block_is_a_transaction(
    site: Site, items: Callable[[], list[int]]
) -> None:
    def view() -> None:
        db = site.db
        with db.connection as conn:
            conn.execute("INSERT INTO items VALUES (1)")
            assert items() == []
        assert items() == [1]
        with pytest.raises(ZeroDivisionError):
            with db.connection as conn:
                conn.execute("INSERT INTO items VALUES (2)")
                raise ZeroDivisionError
        with db.transaction(), suppress(ZeroDivisionError):
            db.execute("INSERT INTO items VALUES (3)")
            with db.connection as inner:
                inner.execute("INSERT INTO items VALUES (4)")
                raise ZeroDivisionError
        assert db.connection is conn
        assert not conn.closed

    site.visit(view)
    assert items() == [1, 3]


def test_blocks_that_generators_end_out_of_order_are_refused(
    db: PGMonkey, items: Callable[[], list[int]]
) -> None:
    def write(n: int) -> Iterator[None]:
        with db.transaction():
            db.execute(INSERT, (n,))
            yield

    for end_of_outer in (Generator.close, next):
        for end_of_inner in (Generator.close, next):
            outer: Any = write(1)
            inner: Any = write(2)
            next(outer)
            next(inner)
            with suppress(OutOfOrderTransactionNesting):
                end_of_outer(outer)
            with pytest.raises(psycopg.errors.SyntaxError):
                db.execute("no SQL")
            for use in (db.fetch_one, db.cursor().execute, db.stream):
                with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
                    use("SELECT 1")
                assert isinstance(raised.value.__cause__, OutOfOrderTransactionNesting)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction), db.transaction():
                pass
            with suppress(OutOfOrderTransactionNesting):
                end_of_inner(inner)
            assert items() == []
            db.execute(INSERT, (4,))
            with db.transaction(IsolationLevel.SERIALIZABLE), db.transaction():
                db.execute(INSERT, (5,))
            assert items() == [4, 5]
            db.execute("TRUNCATE items")


def test_a_generator_that_another_thread_ends_within_an_outer_block_is_an_error_there(
    db: PGMonkey, items: Callable[[], list[int]]
) -> None:
    def nested() -> Generator[None, None, None]:
        with db.transaction():
            yield

    with pytest.raises(OutOfOrderTransactionNesting, match="closing"), db.transaction():
        generator: Any = nested()
        next(generator)
        db.execute(INSERT, (1,))
        with ThreadPoolExecutor(1) as thread:
            thread.submit(generator.close).result()
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            db.execute(INSERT, (2,))
    assert items() == []
    with db.transaction(), closing(nested()) as own:  # the remedy
        next(own)
    db.execute(INSERT, (3,))
    assert items() == [3]


def rollback_of(transaction: Any) -> psycopg.Rollback:
    return psycopg.Rollback(transaction)


def test_rollback_ends_the_block_that_it_names(
    site: Site, db: PGMonkey, items: Callable[[], list[int]]
) -> None:
    with db.transaction() as outer:
        db.execute(INSERT, (1,))
        with db.transaction():
            db.execute(INSERT, (2,))
            raise rollback_of(outer)
    with db.transaction():
        with db.transaction() as inner:
            db.execute(INSERT, (3,))
            raise rollback_of(inner)
        db.execute(INSERT, (4,))

    async def use() -> None:
        async with db.aio.transaction() as aio_outer:
            await aio_outer.execute(INSERT, (5,))
            async with aio_outer.transaction():
                raise rollback_of(aio_outer)

    asyncio.run(use())
    assert items() == [4]


def test_after_a_copy_that_nobody_ended_the_connection_is_usable(
    db: PGMonkey, items: Callable[[], list[int]]
) -> None:
    def rows() -> Iterator[Any]:
        with db.cursor().copy("COPY (SELECT generate_series(1, 1000000)) TO STDOUT") as copy:
            yield from copy

    for statement in ("COPY items TO STDOUT", "COPY items FROM STDIN"):
        pid = db.fetch_value("SELECT pg_backend_pid()")
        for use in (db.execute, db.fetch_all, db.cursor().execute):
            with pytest.raises(psycopg.ProgrammingError, match="use copy"):
                use(statement)
            assert db.fetch_value("SELECT pg_backend_pid()") == pid
        with pytest.raises(psycopg.ProgrammingError), db.transaction():
            db.execute(statement)
        with pytest.raises(psycopg.Error):
            db.execute_many(statement, [()])  # in a pipeline, which costs the connection
        db.execute("TRUNCATE items")
    pid = db.fetch_value("SELECT pg_backend_pid()")
    generator = rows()
    next(generator)
    del generator
    db.execute(INSERT, (1,))
    assert db.fetch_value("SELECT pg_backend_pid()") == pid
    assert items() == [1]
