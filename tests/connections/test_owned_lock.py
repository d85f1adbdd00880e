"""A query within a query on the same connection is an error at once: it would wait for itself."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from types import FrameType
from typing import Any

import psycopg
import pytest
from flask import Flask
from psycopg.adapt import Dumper

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey
from flask_pgmonkey.config import CONNECTION_TYPES
from flask_pgmonkey.connections import borrowed_connections

from .every_type import AsyncCase, sync_and_async, within

__all__ = ["CONNECTION_TYPES"]

REFUSED = "a query within a query"


class Asking:
    """A parameter whose dumper queries."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.ask = ask


class AskingDumper(Dumper):
    def dump(self, obj: Asking) -> bytes:
        return str(obj.ask()).encode()


@pytest.fixture
def db(database: dict[str, Any]) -> Iterator[PGMonkey[Any]]:
    """A database in an app context."""
    app = Flask("tests")
    db = PGMonkey(app, config={"connection_settings": database})
    with app.app_context():
        db.execute("CREATE TABLE t (n integer)")
        yield db
        assert db.fetch_value("SELECT 1") == 1
        assert len(borrowed_connections()) == 1
        db.clear_cache()
    assert borrowed_connections() == []


def ask(db: PGMonkey[Any]) -> Any:
    return db.fetch_value("SELECT 41")


# What psycopg calls while it waits


def test_from_a_dumper(db: PGMonkey[Any]) -> None:
    db.connection.adapters.register_dumper(Asking, AskingDumper)
    with within(10), pytest.raises(RuntimeError, match=REFUSED):
        db.fetch_value("SELECT %s", [Asking(lambda: ask(db))])
    with within(10), pytest.raises(RuntimeError, match=REFUSED), db.transaction() as tx:
        tx.fetch_value("SELECT %s", [Asking(lambda: tx.fetch_value("SELECT 41"))])
    conn = db.connection
    with within(10), pytest.raises(RuntimeError, match=REFUSED):
        conn.execute("SELECT %s", [Asking(lambda: conn.execute("SELECT 41"))])
    with within(10), pytest.raises(RuntimeError, match=REFUSED):
        conn.execute("SELECT %s", [Asking(lambda: conn.transaction().__enter__())])


def test_from_the_parameters_of_executemany(db: PGMonkey[Any]) -> None:
    with within(10), pytest.raises(RuntimeError, match=REFUSED):
        db.cursor().executemany("INSERT INTO t VALUES (%s)", ([ask(db)] for _ in range(3)))


def test_from_a_notice_handler(db: PGMonkey[Any], caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str | None] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        heard.append(notice.message_primary)
        ask(db)

    db.connection.add_notice_handler(hear)
    with caplog.at_level(logging.ERROR, "psycopg"), within(10):
        db.execute("DO $$ BEGIN RAISE NOTICE 'hear'; END $$")
    assert heard == ["hear"]
    assert REFUSED in caplog.text  # psycopg logs what a handler raises


def test_from_the_row_factory_of_a_stream_within_a_transaction(db: PGMonkey[Any]) -> None:
    def factory(cursor: psycopg.Cursor[Any]) -> Callable[[Any], Any]:
        return lambda values: ask(db)

    with within(10), pytest.raises(RuntimeError, match=REFUSED), db.transaction():
        list(db.stream("SELECT generate_series(1, 3)", row_factory=factory))


def test_from_a_signal_handler(db: PGMonkey[Any]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        ask(db)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with within(10), pytest.raises(RuntimeError, match=REFUSED):
            db.execute("SELECT pg_sleep(60)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Bodies that hold the connection


@pytest.mark.parametrize("body", ["copy from", "copy to", "stream", "notifies"])
@sync_and_async
async def test_from_a_body_that_holds_the_connection(case: AsyncCase, body: str) -> None:
    case.run_on_server("CREATE TABLE t (n integer)")
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with within(10), pytest.raises(RuntimeError, match=REFUSED):
            if body == "copy from":
                async with conn.cursor().copy("COPY t FROM STDIN") as copy:
                    await copy.write_row([1])
                    await copy.write_row([await case.value(conn, "SELECT 41")])
            elif body == "copy to":
                async with conn.cursor().copy("COPY (SELECT 1 UNION SELECT 2) TO STDOUT") as copy:
                    async for _ in copy.rows():
                        await conn.execute("SELECT 41")
            elif body == "stream":
                async for _ in conn.cursor().stream("SELECT generate_series(1, 3)"):
                    await conn.execute("SELECT 41")
            else:
                await conn.execute("LISTEN news")
                case.run_on_server("NOTIFY news")
                async for _ in conn.notifies(timeout=10):
                    await conn.commit()
        for _ in range(2):
            assert await case.value(conn, "SELECT count(*) FROM t") == 0
        await conn.execute("UNLISTEN *")
        # Such a body that queries nothing is as ever.
        async with conn.cursor().copy("COPY t FROM STDIN") as copy:
            for n in range(10):
                await copy.write_row([n])
        async with conn.pipeline():
            await conn.execute("SELECT 1")
            await conn.execute("SELECT 2")
        read = [n async for (n,) in conn.cursor().stream("SELECT n FROM t ORDER BY n")]
        assert read == list(range(10))
        assert await case.value(conn, "SELECT count(*) FROM t") == 10


@sync_and_async
async def test_after_a_body_that_was_left_in_its_middle(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        async for _ in conn.cursor().stream("SELECT generate_series(1, 100000)"):
            break
        assert await case.value(conn, "SELECT 41") == 41
        with pytest.raises(ZeroDivisionError):
            async with conn.cursor().copy("COPY (SELECT generate_series(1, 9)) TO STDOUT") as copy:
                async for _ in copy:
                    raise ZeroDivisionError
        assert await case.value(conn, "SELECT 42") == 42


@sync_and_async
async def test_another_thread_or_task_waits_for_its_turn(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:

        async def query(n: int) -> Any:
            return await case.value(conn, "SELECT %s::int FROM pg_sleep(0.1)", n)

        assert await case.together(query, range(5)) == list(range(5))
        async with conn.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
            other = case.start(query, 5)
            await case.sleep(0.2)
            async for _ in copy:
                pass
        assert await case.outcome(other) == 5


def test_a_connection_that_a_body_still_holds_is_not_lent_again(db: PGMonkey[Any]) -> None:
    conn = db.pool.borrow(autocommit=True)
    conn.execute("LISTEN news")
    db.execute("NOTIFY news")
    notifies = conn.notifies(timeout=10)
    assert next(notifies).channel == "news"
    with within(10):
        db.pool.release(conn)
    assert conn.closed
    notifies.close()


# Connections that are asked for while they are opened


class AsksWhenCollected:
    """Garbage that queries."""

    def __init__(self, ask: Callable[[], Any], outcomes: list[Any]) -> None:
        self.circle = self
        self.ask = ask
        self.outcomes = outcomes

    def __del__(self) -> None:
        try:
            self.outcomes.append(self.ask())
        except Exception as error:
            self.outcomes.append(error)


def collect(conn: object) -> None:
    """A ``configure`` in whose middle garbage is collected, as it may be at any time."""
    gc.collect()


def test_from_garbage_that_is_collected_while_a_request_opens_the_pool(
    database: dict[str, Any],
) -> None:
    outcomes: list[Any] = []
    app = Flask("tests")
    db = PGMonkey(app, config={"connection_settings": database}, configure=collect)
    with app.app_context():
        here = copy_context()  # 'configure' has an empty one
        AsksWhenCollected(lambda: here.run(db.fetch_value, "SELECT 1"), outcomes)
        with within(20):
            assert db.fetch_value("SELECT 2") == 2
        assert isinstance(outcomes[0], RuntimeError)
        assert "__del__" in str(outcomes[0])
        assert db.fetch_value("SELECT 3") == 3
        assert len(borrowed_connections()) == 1
        db.clear_cache()
    assert borrowed_connections() == []


def test_from_garbage_that_is_collected_while_a_pool_opens(database: dict[str, Any]) -> None:
    outcomes: list[Any] = []
    db = Database({"connection_settings": database}, configure=collect)
    AsksWhenCollected(lambda: db.fetch_value("SELECT 1"), outcomes)
    with within(20):
        assert db.fetch_value("SELECT 2") == 2
    assert "while it is being opened" in str(outcomes[0])
    db.close()


def test_a_configure_that_asks_for_the_pool_it_opens_is_refused(database: dict[str, Any]) -> None:
    async def configure_async(conn: Any) -> None:
        await async_db.fetch_value("SELECT 1")

    async def run() -> None:
        with pytest.raises(RuntimeError, match="while it is being opened"):
            await asyncio.wait_for(async_db.fetch_value("SELECT 1"), 30)

    config = {"connection_settings": database}
    db: Database[Any] = Database(config, configure=lambda conn: db.fetch_value("SELECT 1"))
    with pytest.raises(RuntimeError, match="while it is being opened"):
        db.fetch_value("SELECT 1")
    async_db: AsyncDatabase[Any] = AsyncDatabase(config, configure=configure_async)
    asyncio.run(run())


def test_of_two_pools_that_wait_for_each_other_one_is_refused(database: dict[str, Any]) -> None:
    both_open = threading.Barrier(2)
    dbs: list[Database[Any]] = []

    def configure_with(n: int) -> Callable[[Any], None]:
        def configure(conn: Any) -> None:
            both_open.wait(20)
            dbs[1 - n].fetch_value("SELECT 1")

        return configure

    for n in range(2):
        dbs.append(Database({"connection_settings": database}, configure=configure_with(n)))
    outcomes: list[str] = []

    def query(db: Database[Any]) -> None:
        try:
            db.fetch_value("SELECT 1")
        except Exception as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=query, args=(db,), daemon=True) for db in dbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert any("while it is being opened" in outcome for outcome in outcomes)
    for db in dbs:
        db.close()


def test_of_two_async_pools_that_wait_for_each_other_one_is_refused(
    database: dict[str, Any],
) -> None:
    async def run() -> None:
        opening: list[None] = []

        def configure_with(n: int) -> Callable[[Any], Any]:
            async def configure(conn: Any) -> None:
                opening.append(None)
                while len(opening) < 2:
                    await asyncio.sleep(0.01)
                await dbs[1 - n].fetch_value("SELECT 1")

            return configure

        dbs: list[AsyncDatabase[Any]] = [
            AsyncDatabase({"connection_settings": database}, configure=configure_with(n))
            for n in range(2)
        ]
        queries = [db.fetch_value("SELECT 1") for db in dbs]
        outcomes = await asyncio.wait_for(asyncio.gather(*queries, return_exceptions=True), 30)
        assert any("while it is being opened" in str(outcome) for outcome in outcomes)
        for db in dbs:
            await db.disconnect()

    asyncio.run(run())


def ask_at_step(number: int, work: Callable[[], Any], ask: Callable[[], Any]) -> bool:
    """Run *work*, and *ask* at its step of that number; False if it does not have so many.

    Garbage may be collected, and a signal handled, at each step: a line outside of this file.
    """
    steps = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        if event == "line" and frame.f_code.co_filename != __file__:
            steps += 1
            if steps == number:
                sys.settrace(None)
                with suppress(RuntimeError):
                    ask()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps >= number


@pytest.mark.parametrize("where", ["Database", "PGMonkey"])
def test_no_query_waits_for_its_own_thread_wherever_it_comes_in_between(
    database: dict[str, Any], where: str
) -> None:
    config = {"connection_settings": database, "pool_settings": {"max_size": 2}}
    app = Flask("tests")
    db: Database[Any] | PGMonkey[Any]
    db = Database(config) if where == "Database" else PGMonkey(app, config=config)
    with app.app_context():
        db.fetch_value("SELECT 0")

    def query_twice() -> None:
        with app.app_context():
            assert db.fetch_value("SELECT 1") == 1
            if isinstance(db, PGMonkey):
                assert list(db.stream("SELECT 2")) == [(2,)]

    number = 1
    with within(120):
        while ask_at_step(number, query_twice, lambda: db.fetch_value("SELECT 3")):
            number += 1
        query_twice()
    assert number > 100
    assert borrowed_connections() == []
    with app.app_context():
        db.close() if isinstance(db, Database) else db.clear_cache()
