"""``batch()``: queries that go to the server together, wherever there are queries."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import inspect
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast

import psycopg
import pytest
from flask import Flask
from psycopg import errors, sql
from psycopg.rows import dict_row

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey
from flask_pgmonkey.batches import Batch, BatchResult
from flask_pgmonkey.errors import (
    NoRowError,
    QueryTimeoutError,
    RowMismatchError,
    ServerSilentError,
    SeveralRowsError,
)
from flask_pgmonkey.signals import query_executed, transaction_ended

from .round_trips import count_round_trips
from .servers import PrivateServer

KINDS = (
    "db", "bind", "tx", "Database", "Database tx", "aio", "aio tx", "AsyncDatabase",
    "AsyncDatabase tx",
)  # fmt: skip
IN_TRANSACTION = ("tx", "Database tx", "aio tx", "AsyncDatabase tx")
INSERT = "INSERT INTO items VALUES (%s)"
COUNT = "SELECT count(*) FROM items"
SLEEPING = (
    "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
)


@dataclass
class Item:
    n: int


@asynccontextmanager
async def entered(batch: Any) -> AsyncIterator[Any]:
    """The block of a batch, sync or async."""
    if isinstance(batch, Batch):
        with batch as b:
            yield b
    else:
        async with batch as b:
            yield b


async def outcome(value: Any) -> Any:
    """What a call gives, of sync or async code."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def source_of(kind: str, config: dict[str, Any]) -> AsyncIterator[Any]:
    """Something that has queries."""
    if kind.startswith("AsyncDatabase"):
        async_database = AsyncDatabase(config)
        try:
            if kind.endswith("tx"):
                async with async_database.transaction() as tx:
                    yield tx
            else:
                yield async_database
        finally:
            await async_database.disconnect()
        return
    if kind.startswith("Database"):
        with closing(Database(config)) as database:
            if kind.endswith("tx"):
                with database.transaction() as tx:
                    yield tx
            else:
                yield database
        return
    app = Flask("batches")
    app.config.update(PGMONKEY_CONFIG=config, PGMONKEY_BINDS={"second": config})
    db = PGMonkey(app)
    with app.app_context():
        try:
            if kind == "tx":
                with db.transaction() as tx:
                    yield tx
            elif kind == "aio tx":
                async with db.aio.transaction() as there:
                    yield there
            else:
                yield {"db": db, "bind": db.bind("second"), "aio": db.aio}[kind]
        finally:
            db.clear_cache()


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside, with a table ``items`` of one column ``n``."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (n integer PRIMARY KEY)")
        yield connection


@pytest.fixture
def items(admin: psycopg.Connection[Any]) -> Callable[[], list[int]]:
    """What others see in the table ``items``."""
    return lambda: [n for (n,) in admin.execute("SELECT n FROM items ORDER BY n").fetchall()]


@pytest.fixture
def config(database: dict[str, Any], admin: object) -> dict[str, Any]:
    pool = {"max_size": 1, "timeout": 10}  # so nothing works that holds a connection for long
    return {"connection_settings": database, "pool_settings": pool, "async_pool_settings": pool}


Test = Callable[..., Awaitable[None]]


def for_each(*kinds: str) -> Callable[[Test], Callable[..., None]]:
    """A test that gets a ``source`` of each of *kinds*, and runs on a loop of its own."""

    def decorate(test: Test) -> Callable[..., None]:
        @pytest.mark.parametrize("kind", kinds)
        @wraps(test)
        def run(kind: str, config: dict[str, Any], **fixtures: Any) -> None:
            async def within_source() -> None:
                async with source_of(kind, config) as source:
                    await asyncio.wait_for(test(source=source, **fixtures), 30)

            asyncio.run(within_source())

        own = inspect.signature(run, follow_wrapped=False).parameters
        others = [
            each for each in inspect.signature(test).parameters.values() if each.name != "source"
        ]
        signature = inspect.Signature([own["kind"], own["config"], *others])
        cast("Any", run).__signature__ = signature
        return cast("Callable[..., None]", run)

    return decorate


every_kind = for_each(*KINDS)
every_kind_outside = for_each(*(kind for kind in KINDS if kind not in IN_TRANSACTION))
every_kind_in_a_transaction = for_each(*IN_TRANSACTION)


# Results


@every_kind
async def test_each_method_gives_what_it_gives_outside_a_batch(source: Any) -> None:
    series = "SELECT n FROM generate_series(1, %s) n"
    async with entered(source.batch()) as b:
        inserted = b.execute("INSERT INTO items SELECT n FROM generate_series(1, %s) n", [3])
        created = b.execute("CREATE TEMP TABLE t (n integer) ON COMMIT DROP")
        every = b.fetch_all(series, [2])
        first, nothing = b.fetch_one(series, [2]), b.fetch_one(series, [0])
        only = b.fetch_exactly_one(series, [1])
        value, no_value = b.fetch_value(series, [2]), b.fetch_value(series, [0])
        dicts = b.fetch_all(series, [1], row_factory=dict_row)
        objects, an_object = (
            b.fetch_all(series, [2], into=Item),
            b.fetch_one(series, [1], into=Item),
        )
        number = b.fetch_value("SELECT '12'", into=int)
        named = b.fetch_value(sql.SQL("SELECT {}::int").format(sql.Placeholder("n")), {"n": 5})
    assert (inserted.result(), created.result()) == (3, 0)
    assert every.result() == [(1,), (2,)]
    assert every.result() is every.result()
    assert (first.result(), nothing.result(), only.result()) == ((1,), None, (1,))
    assert (value.result(), no_value.result(), number.result(), named.result()) == (1, None, 12, 5)
    assert dicts.result() == [{"n": 1}]
    assert (objects.result(), an_object.result()) == ([Item(1), Item(2)], Item(1))


@every_kind
async def test_a_result_that_does_not_fit_is_its_own_error_and_no_other_result_is_lost(
    source: Any,
) -> None:
    def fails(cursor: Any) -> Any:
        raise ValueError("no rows of mine")

    async with entered(source.batch()) as b:
        b.execute(INSERT, [1])
        none, several = (
            b.fetch_exactly_one("SELECT 1 WHERE false"),
            b.fetch_exactly_one("SELECT generate_series(1, 2)"),
        )
        misfit = b.fetch_one("SELECT 1 AS m", into=Item)
        no_rows, of_factory = b.fetch_all(INSERT, [2]), b.fetch_all("SELECT 1", row_factory=fails)
        fine = b.fetch_value("SELECT 1")
    for _ in range(2):
        with pytest.raises(NoRowError):
            none.result()
        with pytest.raises(SeveralRowsError, match="2 rows"):
            several.result()
        with pytest.raises(RowMismatchError):
            misfit.result()
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce records"):
            no_rows.result()
        with pytest.raises(ValueError, match="no rows of mine"):
            of_factory.result()
    assert fine.result() == 1
    assert await outcome(source.fetch_value(COUNT)) == 2


@every_kind
async def test_before_the_end_of_the_block_there_is_no_result(source: Any) -> None:
    async with entered(source.batch()) as b:
        result = b.fetch_value("SELECT 1")
        with pytest.raises(RuntimeError, match=r"when its block ends, so call result\(\) after"):
            result.result()
        assert repr(result) == "<BatchResult, not sent yet>"
    assert result.result() == 1


@every_kind
async def test_an_exception_in_the_block_sends_nothing(
    source: Any, items: Callable[[], list[int]]
) -> None:
    results: list[BatchResult[int]] = []
    with pytest.raises(KeyError):
        async with entered(source.batch()) as b:
            results.append(b.execute(INSERT, [1]))
            raise KeyError("mine")
    assert await outcome(source.fetch_value(COUNT)) == 0
    with pytest.raises(RuntimeError, match="an exception left its block"):
        results[0].result()


@every_kind
async def test_a_batch_takes_queries_in_its_block_alone_and_once(source: Any) -> None:
    batch = source.batch()
    if isinstance(batch, Batch):
        with pytest.raises(RuntimeError, match=r"not begun: .*'with db\.batch\(\) as b:"):
            batch.execute("SELECT 1")
    async with entered(batch):
        pass
    with pytest.raises(RuntimeError, match="the batch is done"):
        batch.execute("SELECT 1")
    with pytest.raises(RuntimeError, match="make another one"):
        async with entered(batch):
            pass


# What belongs together


@every_kind_outside
async def test_it_is_committed_as_a_whole(source: Any, items: Callable[[], list[int]]) -> None:
    async with entered(source.batch()) as b:
        for n in range(5):
            b.execute(INSERT, [n])
        count = b.fetch_value(COUNT)
    assert count.result() == 5
    assert items() == [0, 1, 2, 3, 4]


@every_kind_outside
async def test_when_one_fails_none_is_done_and_every_result_raises_its_error(
    source: Any, items: Callable[[], list[int]]
) -> None:
    results: list[BatchResult[int]] = []
    with pytest.raises(errors.UniqueViolation, match="in query 2 of 3 of the batch") as raised:
        async with entered(source.batch()) as b:
            results += [b.execute(INSERT, [n]) for n in (1, 1, 2)]
    assert raised.value.diag.table_name == "items"
    for result in results:
        with pytest.raises(errors.UniqueViolation, match="query 2 of 3") as again:
            result.result()
        assert again.value is not raised.value
        assert again.value.diag.table_name == "items"
    assert items() == []
    assert await outcome(source.fetch_value(COUNT)) == 0


@every_kind_in_a_transaction
async def test_in_a_transaction_it_is_part_of_that(
    source: Any, items: Callable[[], list[int]]
) -> None:
    async with entered(source.batch()) as b:
        b.execute(INSERT, [1])
        b.execute(INSERT, [2])
    assert items() == []
    with pytest.raises(errors.UniqueViolation):
        nested = source.transaction()
        if hasattr(nested, "__aenter__") and not hasattr(nested, "__enter__"):
            async with nested as tx, entered(tx.batch()) as b:
                [b.execute(INSERT, [n]) for n in (3, 1)]
        else:
            with nested as tx, tx.batch() as b:
                [b.execute(INSERT, [n]) for n in (3, 1)]
    assert await outcome(source.fetch_value(COUNT)) == 2


def test_the_batch_of_a_database_joins_the_transaction_of_its_thread(
    config: dict[str, Any], items: Callable[[], list[int]]
) -> None:
    with closing(Database(config)) as db, db.transaction():
        with db.batch() as b:
            b.execute(INSERT, [1])
            b.execute(INSERT, [2])
        assert items() == []


@for_each("db", "Database")
async def test_a_constraint_that_is_checked_at_commit_is_its_own_error(
    source: Any, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("CREATE TABLE late (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(errors.UniqueViolation, match="at the COMMIT of the batch of 2 queries"):
        with source.batch() as b:
            b.execute("INSERT INTO late VALUES (1)")
            b.execute("INSERT INTO late VALUES (1)")
    with pytest.raises(errors.UniqueViolation):
        with source.batch() as b:
            b.execute("INSERT INTO late VALUES (1), (1)")
    assert source.fetch_value("SELECT count(*) FROM late") == 0


# Mistakes


@every_kind
async def test_what_is_wrong_with_the_parameters_is_said_at_the_call(source: Any) -> None:
    async with entered(source.batch()) as b:
        b.execute(INSERT, [1])
        for wrong, error in (
            (object(), psycopg.ProgrammingError), ("a\0b", psycopg.DataError)
        ):  # fmt: skip
            with pytest.raises(error) as raised:
                b.fetch_one("SELECT %s", [wrong])
            if sys.version_info >= (3, 11):
                assert "Query: SELECT %s" in raised.value.__notes__
        with pytest.raises(psycopg.ProgrammingError, match="placeholders"):
            b.fetch_one("SELECT %s", [1, 2])
        with pytest.raises(TypeError, match=r"\[value\]"):
            b.fetch_one("SELECT %s", "text")
        with pytest.raises(TypeError, match="row_factory=dict"):
            b.fetch_one("SELECT 1", row_factory=dict)
        with pytest.raises(TypeError, match="either row_factory or into"):
            b.fetch_one("SELECT 1", row_factory=dict_row, into=Item)
        count = b.fetch_value(COUNT)
    assert count.result() == 1


@every_kind
async def test_parameters_are_taken_as_they_are_at_the_call(source: Any) -> None:
    values = [1, 2]
    async with entered(source.batch()) as b:
        total = b.fetch_value("SELECT sum(n) FROM unnest(%s::int[]) n", [values])
        b.execute("SELECT 1")
        values.append(100)
    assert total.result() == 3


@pytest.mark.parametrize(
    ("query", "command"),
    [
        ("COPY items TO STDOUT", "COPY"),
        ("  -- all\n/* of\nthem */ copy items FROM STDIN", "COPY"),
        ("BEGIN", "BEGIN"),
        ("start  transaction READ ONLY", "START TRANSACTION"),
        ("commit", "COMMIT"),
        ("END", "END"),
        ("ROLLBACK", "ROLLBACK"),
        ("abort", "ABORT"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
    ],
)
@for_each("db", "AsyncDatabase")
async def test_what_cannot_be_in_a_batch_is_refused_at_the_call(
    source: Any, query: str, command: str
) -> None:
    async with entered(source.batch()) as b:
        with pytest.raises(psycopg.ProgrammingError, match=f"^{command} cannot be in a batch"):
            b.execute(query)
        fine = b.fetch_value("SELECT 1")
    assert fine.result() == 1


@for_each("db")
async def test_a_query_after_many_comments_is_looked_at_in_no_time(source: Any) -> None:
    with source.batch() as b:
        fine = b.fetch_value("/* a */ -- b\n" * 200 + "SELECT 1")
        for query in ("/**/ " * 200 + "COPY items TO STDOUT", "/* ** / */ commit"):
            with pytest.raises(psycopg.ProgrammingError, match="cannot be in a batch"):
                b.execute(query)
    assert fine.result() == 1


@for_each("db")
async def test_the_remedies_of_those_errors_work(source: Any) -> None:
    with source.transaction() as tx, tx.batch() as b:
        b.execute("SAVEPOINT here")
        b.execute(INSERT, [1])
        b.execute("ROLLBACK TO here")
        b.execute(INSERT, [2])
    with source.cursor().copy("COPY items TO STDOUT") as copy:
        assert b"".join(copy) == b"2\n"


@every_kind_outside
async def test_an_error_names_the_query_and_the_line_that_gave_it(source: Any) -> None:
    with pytest.raises(errors.DivisionByZero) as raised:
        async with entered(source.batch()) as b:
            b.fetch_value("SELECT 1")
            b.fetch_value("SELECT 1 / %s", [0])
            b.fetch_value("SELECT 2")
    assert str(raised.value) == "division by zero\nin query 2 of 3 of the batch"
    if sys.version_info >= (3, 11):
        query, place = raised.value.__notes__
        assert query == "Query: SELECT 1 / %s"
        line = int(place.rpartition(" in ")[0].rpartition(":")[2])
        with open(__file__, encoding="utf-8") as here:
            assert here.readlines()[line - 1].strip() == 'b.fetch_value("SELECT 1 / %s", [0])'


# What it costs


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_batch_is_one_round_trip(config: dict[str, Any], count: int) -> None:
    app = Flask("batches")
    db = PGMonkey(app, config=config)
    with app.app_context():
        for turn in range(7):
            with count_round_trips(db.connection) as trips, db.batch() as b:
                results = [b.fetch_value("SELECT %s::int", [n]) for n in range(count)]
            # When psycopg prepares a single query, that has a round trip of its own.
            assert trips.count == (2 if count == 1 and turn == 5 else 1)
            assert [result.result() for result in results] == list(range(count))
        with db.transaction() as tx:
            with count_round_trips(db.connection) as trips, tx.batch() as b:
                [b.execute(INSERT, [n]) for n in range(count)]
            assert trips.count == 1
        db.clear_cache()


def test_a_batch_of_nothing_borrows_nothing() -> None:
    app = Flask("batches")
    db = PGMonkey(app, config="postgresql://127.0.0.1:1/nothing-listens")
    with app.app_context(), db.batch() as b:
        pass
    assert repr(b) == "<Batch of 0 queries, done>"


@for_each("Database", "AsyncDatabase", "aio")
async def test_in_its_block_it_holds_no_connection(source: Any) -> None:
    async with entered(source.batch()) as b:
        b.fetch_value("SELECT 1")
        async with entered(source.batch()) as inner:
            inner.execute(INSERT, [1])
        assert await outcome(source.fetch_value(COUNT)) == 1


@for_each("Database", "AsyncDatabase")
async def test_a_connection_that_ends_meanwhile_does_not_matter(source: Any) -> None:
    async with entered(source.batch()) as b:
        first = b.fetch_value("SELECT %s", ["a"])
        await outcome(b._seen.close())
        second = b.fetch_value("SELECT %s", ["ä"])
    assert (first.result(), second.result()) == ("a", "ä")


@for_each("Database", "AsyncDatabase")
async def test_what_it_leaves_on_the_session_ends_with_the_loan(source: Any) -> None:
    async with entered(source.batch()) as b:
        b.execute("SET work_mem = '7MB'")
        changed = b.fetch_value("SHOW work_mem")
    assert changed.result() == "7MB"
    assert await outcome(source.fetch_value("SHOW work_mem")) != "7MB"


def test_it_marks_the_connection_that_it_runs_on_and_not_only_one_like_it(
    config: dict[str, Any],
) -> None:
    with closing(Database({**config, "pool_settings": {"min_size": 2, "max_size": 2}})) as db:
        for _ in range(4):  # the pool gives its connections in turn
            with db.batch() as b:
                b.execute("SET work_mem = '7MB'")
                b.fetch_value("SELECT 1")
        assert {db.fetch_value("SHOW work_mem") for _ in range(4)} == {"4MB"}


# Events


@for_each("db", "aio", "Database")
async def test_it_is_told_as_one_pipeline_and_one_transaction(source: Any) -> None:
    told: list[Any] = []

    def hear(sender: object, event: Any) -> None:
        told.append(event)

    query_executed.connect(hear)
    transaction_ended.connect(hear)
    try:
        async with entered(source.batch()) as b:
            b.execute(INSERT, [1])
            b.fetch_value(COUNT)
        async with entered(source.batch()) as b:
            b.fetch_value(COUNT)
        with pytest.raises(errors.UniqueViolation):
            async with entered(source.batch()) as b:
                b.fetch_value(COUNT)
                b.execute(INSERT, [1])
    finally:
        query_executed.disconnect(hear)
        transaction_ended.disconnect(hear)
    queries = [(e.kind, e.sql, e.statements, e.error) for e in told if hasattr(e, "sql")]
    assert queries == [
        ("pipeline", f"{INSERT};\n{COUNT}", 2, None),
        ("query", COUNT, 1, None),
        ("command", "ROLLBACK", 1, None),
        ("pipeline", f"{COUNT};\n{INSERT}", 2, "UniqueViolation"),
    ]
    assert [e.committed for e in told if hasattr(e, "committed")] == [True, False]
    assert all(e.call_site.file == __file__ for e in told)


# Faults


@for_each("db", "AsyncDatabase")
async def test_what_the_server_cancels_is_undone_with_all_the_rest(
    source: Any, items: Callable[[], list[int]]
) -> None:
    with pytest.raises(errors.QueryCanceled, match="query 3 of 3"):
        async with entered(source.batch()) as b:
            b.execute(INSERT, [1])
            b.execute("SET LOCAL statement_timeout = '200ms'")
            b.execute("SELECT pg_sleep(60)")
    assert items() == []


@pytest.mark.parametrize("kind", ["Database", "AsyncDatabase"])
def test_query_timeout_is_for_the_batch_as_a_whole(
    kind: str, config: dict[str, Any], items: Callable[[], list[int]]
) -> None:
    pools = {"pool_settings": {"query_timeout": 1}, "async_pool_settings": {"query_timeout": 1}}

    async def run() -> None:
        async with source_of(kind, config | pools) as source:
            # None of its queries takes that long.
            with pytest.raises(QueryTimeoutError, match=r"query_timeout[^$]*in query \d+ of 42"):
                async with entered(source.batch()) as b:
                    b.execute(INSERT, [1])
                    for _ in range(40):
                        b.execute("SELECT pg_sleep(0.1)")
                    b.execute(INSERT, [2])
            assert await outcome(source.fetch_value(COUNT)) == 0

    asyncio.run(asyncio.wait_for(run(), 20))
    assert items() == []


@pytest.mark.parametrize("kind", ["db", "Database", "aio", "AsyncDatabase"])
def test_a_server_that_falls_silent_is_an_error_in_time(
    kind: str, private_server: PrivateServer
) -> None:
    short = {"query_timeout": 0.3}
    config = {
        "connection_settings": private_server.settings(),
        "pool_settings": short,
        "async_pool_settings": short,
    }

    async def run() -> None:
        async with source_of(kind, config) as source:
            assert await outcome(source.fetch_value("SELECT 1")) == 1
            results = []
            with pytest.raises(ServerSilentError):
                async with entered(source.batch()) as b:
                    results = [b.fetch_value("SELECT 1"), b.fetch_value("SELECT 2")]
                    private_server.pause()
            with pytest.raises(ServerSilentError):
                results[1].result()
            private_server.resume()
            async with entered(source.batch()) as b:
                results = [b.fetch_value("SELECT 1"), b.fetch_value("SELECT 2")]
            assert [each.result() for each in results] == [1, 2]

    asyncio.run(asyncio.wait_for(run(), 20))


@for_each("db", "Database", "aio", "AsyncDatabase")
async def test_a_terminated_session_is_an_error_of_that_batch_alone(
    source: Any, admin: psycopg.Connection[Any], items: Callable[[], list[int]]
) -> None:
    def terminate() -> None:
        deadline = time.monotonic() + 10
        while (
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND query LIKE '%pg_sleep(60)%' AND wait_event = 'PgSleep'"
            ).rowcount
            != 1
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(errors.AdminShutdown, match="query 2 of 3"):
        async with entered(source.batch()) as b:
            b.execute(INSERT, [1])
            b.execute("SELECT pg_sleep(60)")
            b.execute(INSERT, [2])
    thread.join(10)
    assert items() == []
    async with entered(source.batch()) as b:
        b.execute(INSERT, [3])
        count = b.fetch_value(COUNT)
    assert count.result() == 1


@for_each("aio", "AsyncDatabase")
async def test_a_task_that_is_cancelled_in_mid_batch_leaves_nothing(
    source: Any, admin: psycopg.Connection[Any], items: Callable[[], list[int]]
) -> None:
    async def run() -> BatchResult[Any]:
        async with source.batch() as b:
            b.execute(INSERT, [1])
            results.append(b.fetch_value("SELECT pg_sleep(60)"))
            b.execute(INSERT, [2])
        return results[0]

    results: list[BatchResult[Any]] = []
    for _ in range(3):
        results.clear()
        task = asyncio.create_task(run())
        while admin.execute(SLEEPING).fetchone() is None:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RuntimeError, match="whether it took effect is unknown"):
            results[0].result()
        while admin.execute(SLEEPING).fetchone() is not None:
            await asyncio.sleep(0.01)
        assert items() == []
        async with source.batch() as b:
            b.execute("SELECT 1")
            count = b.fetch_value(COUNT)
        assert count.result() == 0


class InterruptionError(Exception):
    """What a handler of signals raises, as Celery's soft time limit does."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptionError])
def test_a_signal_in_mid_batch_cancels_it(
    config: dict[str, Any],
    admin: psycopg.Connection[Any],
    items: Callable[[], list[int]],
    error: type[BaseException],
) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise error

    def await_query() -> None:
        deadline = time.monotonic() + 10
        while admin.execute(SLEEPING).fetchone() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with closing(Database(config)) as db:
            pid = db.fetch_value("SELECT pg_backend_pid()")
            thread = threading.Thread(target=await_query)
            thread.start()
            results = []
            with pytest.raises(error):
                with db.batch() as b:
                    results = [b.execute(INSERT, [1]), b.execute("SELECT pg_sleep(60)")]
            thread.join(10)
            assert admin.execute(SLEEPING).fetchone() is None
            with pytest.raises((RuntimeError, error)):
                results[0].result()
            assert db.fetch_value("SELECT pg_backend_pid()") == pid
            assert items() == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_many_batches_of_many_threads_of_which_a_third_fails(
    config: dict[str, Any], admin: psycopg.Connection[Any], items: Callable[[], list[int]]
) -> None:
    chance = random.Random(14)
    batches = []
    for number in range(1000):
        size = chance.randint(1, 5)
        wrong = chance.randrange(size) if chance.random() < 1 / 3 else None
        batches.append((number, size, wrong))
    seen: Counter[str] = Counter()

    def run(batch: tuple[int, int, int | None]) -> list[int]:
        number, size, wrong = batch
        try:
            with db.batch() as b:
                for place in range(size):
                    if place == wrong:
                        # Different statements, some prepared and some not, fail.
                        b.fetch_value(b"SELECT 1 / %%s AS q%d" % (number % 3), [0])
                    else:
                        b.execute(INSERT, [number * 10 + place])
                        b.fetch_value(b"SELECT %%s::int AS q%d" % (number % 7), [number])
        except psycopg.Error as error:
            seen[type(error).__name__] += 1
            return []
        return [number * 10 + place for place in range(size)]

    with closing(
        Database({**config, "pool_settings": {"min_size": 4, "max_size": 4, "timeout": 30}})
    ) as db:
        with ThreadPoolExecutor(8) as threads:
            done = [n for some in threads.map(run, batches) for n in some]
        failing = sum(wrong is not None for _, _, wrong in batches)
        assert seen == {"DivisionByZero": failing}
        assert 250 < failing < 420
        assert items() == sorted(done)
        stats = db.pool.get_stats()
        assert (stats["pool_size"], stats["pool_available"]) == (4, 4)
        states = admin.execute(
            "SELECT state, count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1"
        ).fetchall()
        assert states == [("idle", 4)]
