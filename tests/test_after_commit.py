"""``tx.on_commit()``: what is called when a transaction is committed, and only then."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import psycopg
import pytest
from flask import Flask, g

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey

INSERT = "INSERT INTO items VALUES (%s)"
Begin = Callable[[], AbstractContextManager[Any]]


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside, with a table whose constraint is checked at COMMIT."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE items (n integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"
        )
        yield connection


@pytest.fixture
def items(admin: psycopg.Connection[Any]) -> Callable[[], list[int]]:
    return lambda: [n for (n,) in admin.execute("SELECT n FROM items ORDER BY n").fetchall()]


@pytest.fixture(params=["PGMonkey", "Database"])
def db(request: pytest.FixtureRequest, database: dict[str, Any]) -> Iterator[Any]:
    """Both that begin sync transactions."""
    config = {"connection_settings": database}
    if request.param == "Database":
        pooled = Database(config)
        yield pooled
        pooled.close()
        return
    app = Flask(__name__)
    bound = PGMonkey(app, config=config)
    with app.app_context():
        yield bound
        bound.clear_cache()


@pytest.fixture
def begin(db: Any) -> Begin:
    begun: Begin = db.transaction
    return begun


def test_functions_run_in_order_once_others_see_what_was_committed(
    begin: Begin, items: Callable[[], list[int]]
) -> None:
    seen: list[Any] = []
    with begin() as tx:
        tx.execute(INSERT, [1])
        tx.on_commit(lambda: seen.append(("first", items())))
        with begin() as nested:
            nested.execute(INSERT, [2])
            nested.on_commit(lambda: seen.append(("nested", items())))
        tx.on_commit(lambda: seen.append(("last", items())))
        assert seen == []
    assert seen == [("first", [1, 2]), ("nested", [1, 2]), ("last", [1, 2])]


def test_a_savepoint_that_is_rolled_back_takes_its_functions_along(
    begin: Begin, items: Callable[[], list[int]]
) -> None:
    seen: list[str] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: seen.append(what)

    with begin() as tx:
        tx.on_commit(note("before"))
        with suppress(LookupError), begin() as nested:
            nested.on_commit(note("raised"))
            with nested.transaction() as innermost:
                innermost.on_commit(note("innermost of what raised"))
            raise LookupError
        with tx.transaction() as nested:
            nested.on_commit(note("rolled back quietly"))
            raise psycopg.Rollback
        with tx.connection.transaction(force_rollback=True):
            tx.on_commit(note("within psycopg's own block"))
        with suppress(psycopg.errors.DivisionByZero), tx.transaction() as nested:
            nested.on_commit(note("failed"))
            nested.execute("SELECT 1 / 0")
        with tx.transaction() as nested:
            nested.on_commit(note("kept"))
    assert seen == ["before", "kept"]


def test_nothing_runs_where_nothing_is_committed(begin: Begin, admin: object) -> None:
    seen: list[int] = []

    def add(tx: Any) -> None:
        tx.on_commit(lambda: seen.append(1))

    with pytest.raises(LookupError), begin() as tx:
        add(tx)
        raise LookupError
    with begin() as tx:
        add(tx)
        raise psycopg.Rollback
    with begin() as tx:
        add(tx)
        raise psycopg.Rollback(tx)
    with begin() as tx:
        with begin() as nested:
            add(nested)
        raise psycopg.Rollback
    with pytest.raises(psycopg.errors.InFailedSqlTransaction), begin() as tx:
        add(tx)
        with suppress(psycopg.errors.DivisionByZero):
            tx.execute("SELECT 1 / 0")
    with pytest.raises(psycopg.errors.UniqueViolation), begin() as tx:  # at COMMIT
        add(tx)
        tx.execute_many(INSERT, [[1], [1]])
    assert seen == []


def test_nothing_runs_where_the_connection_is_lost(
    begin: Begin, admin: psycopg.Connection[Any]
) -> None:
    seen: list[int] = []
    with pytest.raises(psycopg.OperationalError), begin() as tx:
        tx.on_commit(lambda: seen.append(1))
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [tx.connection.info.backend_pid])
    with begin() as tx:
        tx.on_commit(lambda: seen.append(1))
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [tx.connection.info.backend_pid])
        with suppress(psycopg.OperationalError):
            tx.execute("SELECT 1")
        raise psycopg.Rollback
    with pytest.raises(psycopg.OperationalError), begin() as tx, begin() as nested:
        nested.on_commit(lambda: seen.append(1))
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [tx.connection.info.backend_pid])
    assert seen == []


def test_one_that_raises_is_logged_and_keeps_no_other_from_running(
    begin: Begin, items: Callable[[], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def send(token: str) -> None:
        raise LookupError(f"no mail today, {len(token)}")

    with begin() as tx:
        tx.execute(INSERT, [1])
        tx.on_commit(functools.partial(send, "s3cret"))
        tx.on_commit(lambda: seen.append("after"))
    assert seen == ["after"]
    assert items() == [1]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("flask_pgmonkey", "ERROR")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert "s3cret" not in record.getMessage()


def test_functions_may_query_and_begin_transactions_with_functions_of_their_own(
    db: Any, items: Callable[[], list[int]]
) -> None:
    seen: list[Any] = []

    def after() -> None:
        db.execute(INSERT, [2])
        with db.transaction(isolation_level="serializable") as tx:
            tx.execute(INSERT, [3])
            tx.on_commit(lambda: seen.append(items()))

    with db.transaction() as tx:
        tx.execute(INSERT, [1])
        tx.on_commit(after)
        tx.on_commit(lambda: seen.append("the other"))
    assert seen == [[1, 2, 3], "the other"]


def test_a_function_that_fails_there_undoes_nothing_and_tries_nothing_again(
    db: Any, items: Callable[[], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        db.execute("DO $$ BEGIN RAISE serialization_failure; END $$")

    def insert(tx: Any) -> None:
        tx.execute(INSERT, [1])
        tx.on_commit(fail)

    db.run_transaction(insert)
    assert items() == [1]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_what_cannot_be_called_is_refused_at_once(begin: Begin) -> None:
    async def send() -> None:
        pass

    with begin() as tx:
        with pytest.raises(TypeError, match=r"not an object of type NoneType.*'lambda: …'"):
            tx.on_commit(None)
        with pytest.raises(TypeError, match=r"send is a coroutine function.*db\.background"):
            tx.on_commit(send)
    with pytest.raises(RuntimeError, match="this transaction is over"):
        tx.on_commit(print)


def test_a_transaction_that_was_begun_by_hand_has_no_end_that_is_seen(
    database: dict[str, Any],
) -> None:
    app = Flask(__name__)
    db = PGMonkey(app, config={"connection_settings": database})
    with app.app_context():
        db.execute("BEGIN")
        with db.transaction() as tx, pytest.raises(RuntimeError, match=r"begun by hand.*'with db"):
            tx.on_commit(print)
        db.execute("ROLLBACK")
        with (
            db.connection.transaction(),
            db.transaction() as tx,
            pytest.raises(RuntimeError, match="begun by hand"),
        ):
            tx.on_commit(print)
        db.clear_cache()


def test_it_sees_the_request_whose_transaction_it_was(database: dict[str, Any]) -> None:
    app = Flask(__name__)
    db = PGMonkey(app, config={"connection_settings": database})
    told: list[str] = []

    @app.get("/<name>")
    def page(name: str) -> str:
        g.name = name
        with db.transaction() as tx:
            tx.on_commit(lambda: told.append(g.name))
        return str(db.run_transaction(lambda tx: tx.on_commit(lambda: told.append(g.name * 2))))

    @app.get("/left")
    def left_open() -> str:
        g.block = db.transaction()
        g.block.__enter__().on_commit(lambda: told.append("left open"))
        return ""

    assert app.test_client().get("/ada").text == "None"
    app.test_client().get("/left")
    assert told == ["ada", "adaada"]
    with app.app_context():
        db.clear_cache()


# Async


@pytest.mark.parametrize("kind", ["AsyncDatabase", "aio"])
def test_async_transactions_await_what_coroutine_functions_give(
    kind: str, database: dict[str, Any], items: Callable[[], list[int]]
) -> None:
    seen: list[Any] = []
    config = {"connection_settings": database}
    app = Flask(__name__)
    bound = PGMonkey(app, config=config)

    async def main(db: Any) -> None:
        loop = asyncio.get_running_loop()

        async def note(what: str) -> None:
            assert asyncio.get_running_loop() is loop
            seen.append((what, items(), await db.fetch_value("SELECT count(*) FROM items")))

        async def fail() -> None:
            raise LookupError

        async with db.transaction() as tx:
            await tx.execute(INSERT, [1])
            tx.on_commit(lambda: seen.append("plain"))
            tx.on_commit(fail)
            tx.on_commit(functools.partial(note, "first"))
            with suppress(LookupError):
                async with tx.transaction() as nested:
                    nested.on_commit(functools.partial(note, "undone"))
                    raise LookupError
            async with tx.transaction() as nested:
                nested.on_commit(functools.partial(note, "undone"))
                raise psycopg.Rollback
            async with tx.transaction() as nested:
                nested.on_commit(functools.partial(note, "second"))
        async with db.transaction() as tx:
            tx.on_commit(functools.partial(note, "undone"))
            raise psycopg.Rollback
        with suppress(LookupError):
            async with db.transaction() as tx:
                tx.on_commit(functools.partial(note, "undone"))
                raise LookupError
        with suppress(psycopg.errors.UniqueViolation):
            async with db.transaction() as tx:
                await tx.execute(INSERT, [1])
                tx.on_commit(functools.partial(note, "undone"))
        await db.disconnect()

    logging.getLogger("flask_pgmonkey").addFilter(filtered := _NoLookupErrors())
    try:
        if kind == "aio":
            with app.app_context():
                asyncio.run(main(bound.aio))
                assert bound.background.run(_count_on_background(bound)) == 1
                bound.clear_cache()
        else:
            asyncio.run(main(AsyncDatabase(config)))
    finally:
        logging.getLogger("flask_pgmonkey").removeFilter(filtered)
    assert seen == ["plain", ("first", [1], 1), ("second", [1], 1)]
    assert filtered.count == 1


class _NoLookupErrors(logging.Filter):
    """Counts what on_commit() logs of LookupErrors."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.count += record.exc_info is not None and record.exc_info[0] is LookupError
        return True


async def _count_on_background(db: PGMonkey[Any]) -> int:
    called = []
    async with db.aio.transaction() as tx:
        tx.on_commit(lambda: called.append(1))
    return len(called)
