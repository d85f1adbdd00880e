"""``db.aio``: the queries for async views, awaitable from any event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from asgiref.wsgi import WsgiToAsgi
from flask import Flask, abort, g
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey, extension

from .programs import run_program
from .servers import Server

NAME = "test_aio"
MAX_SIZE = 4
SCHEMA = "CREATE TABLE notes (note text UNIQUE)"


class Observer:
    """What the server says of the sessions of ``db.aio``."""

    def __init__(self, conn: psycopg.Connection[Any], dbname: str) -> None:
        self.conn = conn
        self.dbname = dbname

    def count(self, condition: str = "true") -> int:
        row = self.conn.execute(
            "SELECT count(*) FROM pg_stat_activity"
            f" WHERE datname = %s AND application_name = %s AND {condition}",
            (self.dbname, NAME),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def wait_for(self, count: int, condition: str = "true") -> None:
        deadline = time.monotonic() + 5
        while (found := self.count(condition)) != count:
            assert time.monotonic() < deadline, f"{found} sessions with {condition}, not {count}"
            time.sleep(0.01)

    def wait_until_idle(self) -> None:
        self.wait_for(0, "state <> 'idle'")


@pytest.fixture
def config(database: dict[str, Any]) -> dict[str, Any]:
    with psycopg.connect(**database) as conn:
        conn.execute(SCHEMA)
    return {
        "connection_settings": {**database, "application_name": NAME},
        "async_pool_settings": {"max_size": MAX_SIZE},
    }


@pytest.fixture
def observer(server: Server, database: dict[str, Any]) -> Iterator[Observer]:
    with server.connect() as conn:
        yield Observer(conn, database["dbname"])


@pytest.fixture
def app(config: dict[str, Any], observer: Observer) -> Iterator[Flask]:
    app = Flask("aio")
    app.config["PGMONKEY_CONFIG"] = config
    app.config["PGMONKEY_BINDS"] = {"second": {**config, "async_pool_settings": {"max_size": 1}}}
    db = PGMonkey(app)
    yield app
    with app.app_context():
        db.clear_cache()
    observer.wait_for(0)


@pytest.fixture
def db(app: Flask) -> Iterator[PGMonkey]:
    """The app's databases, within an app context."""
    with app.app_context():
        db: PGMonkey = app.extensions["pgmonkey"]
        yield db


@pytest.fixture(autouse=True)
def _fail_on_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of asyncio or psycopg is logged: no task destroyed, no error never retrieved."""
    yield
    gc.collect()
    assert [
        record.getMessage()
        for record in [*caplog.get_records("call"), *caplog.get_records("teardown")]
        if not record.name.startswith("flask_pgmonkey") and record.levelno >= logging.WARNING
    ] == []


def wait_until_whole(db: PGMonkey) -> int:
    """How many connections the background pool has, once all of them are free."""
    deadline = time.monotonic() + 5
    while True:
        stats = db.background.run(_own_pool(db)).get_stats()
        if stats["pool_size"] == stats["pool_available"]:
            return int(stats["pool_size"])
        assert time.monotonic() < deadline, f"connections are missing: {stats}"
        time.sleep(0.01)


async def _own_pool(db: PGMonkey) -> Any:
    return await db.get_connection("async_pool")


def notes(database: dict[str, Any]) -> list[Any]:
    with psycopg.connect(**database) as conn:
        return [note for (note,) in conn.execute("SELECT note FROM notes ORDER BY note")]


# Queries


def test_every_query_can_be_awaited_from_any_loop(db: PGMonkey) -> None:
    async def queries() -> None:
        insert = "INSERT INTO notes VALUES (%s)"
        assert await db.aio.execute(insert, ["a"]) == 1
        assert await db.aio.execute_many(insert, [["b"], ["c"]]) == 2
        rows = await db.aio.fetch_all("SELECT note FROM notes ORDER BY note")
        assert rows == [("a",), ("b",), ("c",)]
        assert await db.aio.fetch_one("SELECT note FROM notes WHERE note = %s", ["b"]) == ("b",)
        assert await db.aio.fetch_one("SELECT 1 WHERE false") is None
        assert await db.aio.fetch_value("SELECT count(*) FROM notes") == 3
        assert await db.aio.fetch_one("SELECT 1 AS n", row_factory=dict_row) == {"n": 1}
        with pytest.raises(psycopg.errors.UniqueViolation):
            await db.aio.execute_many(insert, [["d"], ["a"]])
        with pytest.raises(psycopg.errors.SyntaxError):
            await db.aio.fetch_all("SELEC 1")
        assert await db.aio.fetch_value("SELECT count(*) FROM notes") == 3

    for _ in range(2):
        asyncio.run(queries_and_clear(db, queries))
    db.background.run(queries_and_clear(db, queries))


async def queries_and_clear(db: PGMonkey, queries: Callable[[], Awaitable[None]]) -> None:
    await queries()
    await db.aio.execute("DELETE FROM notes")


def test_an_abandoned_call_complains_of_nothing_but_itself(db: PGMonkey) -> None:
    calls = [db.aio.fetch_all("SELECT 1")]
    with pytest.warns(RuntimeWarning, match="fetch_all' was never awaited"):
        calls.clear()


def test_each_bind_has_its_own_pool(db: PGMonkey) -> None:
    async def processes(database: Any) -> set[int]:
        ask = "SELECT pg_backend_pid() FROM pg_sleep(0.05)"
        return set(await asyncio.gather(*(database.fetch_value(ask) for _ in range(3))))

    assert len(asyncio.run(processes(db.aio))) == 3
    assert len(asyncio.run(processes(db.bind("second").aio))) == 1
    assert "password" not in repr(db.bind("second").aio)


def test_connect_and_disconnect(db: PGMonkey, observer: Observer) -> None:
    asyncio.run(db.aio.connect())
    assert observer.count() == 1
    asyncio.run(db.aio.disconnect())
    observer.wait_for(0)
    assert asyncio.run(db.aio.fetch_value("SELECT 1")) == 1


def test_disconnect_opens_nothing(db: PGMonkey, observer: Observer) -> None:
    asyncio.run(db.aio.disconnect())
    assert observer.count() == 0
    assert db.cache_info["size"] == 0


MEETING = """
    CREATE FUNCTION meet() RETURNS int LANGUAGE plpgsql AS $$
        DECLARE present int;
        BEGIN
            PERFORM pg_advisory_lock_shared(7);
            LOOP
                SELECT count(*) INTO present FROM pg_locks
                    WHERE locktype = 'advisory' AND objid = 7
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
                EXIT WHEN present >= 3;
                PERFORM pg_sleep(0.01);
            END LOOP;
            RETURN pg_backend_pid();
        END
    $$
"""


def test_gather_runs_as_many_connections_at_once(db: PGMonkey) -> None:
    async def three() -> list[int]:
        # Each waits until it sees all three at work.
        meetings = (db.aio.fetch_value("SELECT meet()") for _ in range(3))
        return list(await asyncio.gather(*meetings))

    asyncio.run(db.aio.execute(MEETING))
    assert len(set(asyncio.run(three()))) == 3


# Async views


def test_views_hooks_and_error_handlers_may_be_async(app: Flask) -> None:
    db: PGMonkey = app.extensions["pgmonkey"]

    @app.before_request
    async def find_user() -> None:
        g.user = await db.aio.fetch_value("SELECT 'Ada'")

    @app.get("/three")
    async def three() -> dict[str, Any]:
        values = await asyncio.gather(
            *(db.aio.fetch_value("SELECT %s::int", [n]) for n in range(3))
        )
        return {"user": g.user, "values": values, "sync": db.fetch_value("SELECT 'too'")}

    @app.get("/broken")
    async def broken() -> str:
        await db.aio.execute("SELECT 1 / 0")
        abort(404)

    @app.errorhandler(psycopg.errors.DivisionByZero)
    async def explain(error: Exception) -> tuple[str, int]:
        return await db.aio.fetch_value("SELECT 'by zero'"), 500

    client = app.test_client()
    assert client.get("/three").json == {"user": "Ada", "values": [0, 1, 2], "sync": "too"}
    answer = client.get("/broken")
    assert (answer.status_code, answer.text) == (500, "by zero")


def test_many_async_views_share_one_pool(app: Flask, observer: Observer) -> None:
    db: PGMonkey = app.extensions["pgmonkey"]

    @app.get("/<int:number>")
    async def echo(number: int) -> list[int]:
        queries = (db.aio.fetch_value("SELECT %s::int", [number + n]) for n in range(3))
        return list(await asyncio.gather(*queries))

    def ask(number: int) -> bool:
        return app.test_client().get(f"/{number}").json == [number, number + 1, number + 2]

    most, over = 0, threading.Event()
    with ThreadPoolExecutor(5) as threads:

        def watch() -> None:
            nonlocal most
            while not over.is_set():
                most = max(most, observer.count())
                time.sleep(0.01)

        watching = threads.submit(watch)
        assert all(threads.map(ask, range(500)))
        over.set()
        watching.result()
    assert 0 < most <= MAX_SIZE
    with app.app_context():
        assert list(db.cache_info["connection_types"].values()) == ["async_pool"]
        assert wait_until_whole(db) == observer.count()


def test_an_async_view_that_opens_a_pool_works_and_is_advised_once(
    app: Flask,
    observer: Observer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    extension._advise_against_async_in_views.cache_clear()
    db: PGMonkey = app.extensions["pgmonkey"]

    @app.get("/<kind>")
    async def by_mistake(kind: Any) -> list[Any]:
        connection = await db.get_connection(kind)
        async with connection as conn:
            return list(await (await conn.execute("SELECT 42")).fetchone())

    for kind in ("async", "async_pool") * 3:
        assert app.test_client().get(f"/{kind}").json == [42]
    observer.wait_for(0)
    (advice,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "await db.aio.fetch_all" in advice.getMessage()


def test_under_asgi(app: Flask, observer: Observer) -> None:
    db: PGMonkey = app.extensions["pgmonkey"]

    @app.get("/<int:number>")
    async def echo(number: int) -> list[int]:
        async with db.aio.transaction() as tx:
            inside = await tx.fetch_value("SELECT %s::int", [number])
        return [inside, await db.aio.fetch_value("SELECT %s::int", [number])]

    async def serve() -> list[Any]:
        to_asgi: Any = WsgiToAsgi
        transport = httpx.ASGITransport(to_asgi(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = await asyncio.gather(*(client.get(f"/{n}") for n in range(20)))
        return [answer.json() for answer in answers]

    assert asyncio.run(serve()) == [[n, n] for n in range(20)]
    observer.wait_until_idle()


# Transactions


def test_a_transaction_commits_at_its_end_on_one_connection(
    db: PGMonkey, observer: Observer, database: dict[str, Any]
) -> None:
    async def work() -> None:
        async with db.aio.transaction() as tx:
            pids = {await tx.fetch_value("SELECT pg_backend_pid()") for _ in range(3)}
            assert len(pids) == 1
            await tx.execute("INSERT INTO notes VALUES ('kept')")
            assert await db.aio.fetch_value("SELECT count(*) FROM notes") == 0
        assert await db.aio.fetch_value("SELECT count(*) FROM notes") == 1
        with pytest.raises(RuntimeError, match="this transaction is over"):
            await tx.execute("INSERT INTO notes VALUES ('late')")

    asyncio.run(work())
    db.background.run(queries_and_clear(db, lambda: asyncio.sleep(0)))
    db.background.run(work())
    assert notes(database) == ["kept"]
    observer.wait_until_idle()


def test_a_transaction_takes_isolation_level_and_access_mode(db: PGMonkey) -> None:
    async def write_read_only() -> None:
        serializable = psycopg.IsolationLevel.SERIALIZABLE
        async with db.aio.transaction(serializable, read_only=True) as tx:
            assert await tx.fetch_value("SHOW transaction_isolation") == "serializable"
            await tx.execute("INSERT INTO notes VALUES ('refused')")

    async def work() -> None:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await write_read_only()
        for _ in range(MAX_SIZE):
            async with db.aio.transaction() as tx:
                assert await tx.fetch_value("SHOW transaction_isolation") == "read committed"

    asyncio.run(work())


@pytest.mark.parametrize("from_where", ["another loop", "the background loop"])
def test_an_exception_rolls_back_and_gives_back(
    db: PGMonkey, database: dict[str, Any], from_where: str
) -> None:
    async def fail_here() -> None:
        async with db.aio.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES ('lost')")
            raise ZeroDivisionError

    async def fail_on_the_server() -> None:
        async with db.aio.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES ('lost')")
            await tx.execute("SELECT 1 / 0")

    async def work() -> None:
        for _ in range(2 * MAX_SIZE):
            with pytest.raises(ZeroDivisionError):
                await fail_here()
            with pytest.raises(psycopg.errors.DivisionByZero):
                await fail_on_the_server()

    if from_where == "another loop":
        asyncio.run(work())
    else:
        db.background.run(work())
    assert notes(database) == []
    assert wait_until_whole(db)


def test_a_nested_transaction_is_a_savepoint(db: PGMonkey, database: dict[str, Any]) -> None:
    async def work() -> None:
        async with db.aio.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES ('outer')")
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with tx.transaction() as nested:
                    await nested.execute("INSERT INTO notes VALUES ('inner'), ('outer')")
            async with tx.transaction() as nested:
                await nested.execute("INSERT INTO notes VALUES ('second')")

    asyncio.run(work())
    assert notes(database) == ["outer", "second"]


def test_an_error_of_the_commit_reaches_the_caller(db: PGMonkey, observer: Observer) -> None:
    async def work() -> None:
        await db.aio.execute("CREATE TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with db.aio.transaction() as tx:
                await tx.execute("INSERT INTO once VALUES (1), (1)")

    asyncio.run(work())
    observer.wait_until_idle()


def test_an_error_of_the_begin_reaches_the_caller() -> None:
    app = Flask("refused")
    app.config["PGMONKEY_CONFIG"] = "postgresql://nobody@127.0.0.1:1/nothing"
    db = PGMonkey(app)

    async def begin() -> None:
        async with db.aio.transaction():
            raise AssertionError("no transaction can begin")

    async def work() -> None:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await begin()

    with app.app_context():
        asyncio.run(work())
        db.background.run(work())
        asyncio.run(db.aio.disconnect())


# Cancelling


async def cancelled(awaitable: Any, when: Callable[[], Awaitable[object]]) -> None:
    task = asyncio.ensure_future(awaitable)
    await when()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_query_stops_on_the_server(db: PGMonkey, observer: Observer) -> None:
    async def work() -> None:
        async def when_it_runs() -> None:
            await asyncio.to_thread(observer.wait_for, 1, "query LIKE 'SELECT pg_sleep%%'")

        await cancelled(db.aio.execute("SELECT pg_sleep(60)"), when_it_runs)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(db.aio.execute("SELECT pg_sleep(60)"), 0.1)

    asyncio.run(work())
    observer.wait_until_idle()
    assert wait_until_whole(db)


def test_a_transaction_cancelled_in_its_body_rolls_back(
    db: PGMonkey, observer: Observer, database: dict[str, Any]
) -> None:
    async def transact(nap: str) -> None:
        async with db.aio.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES ('lost')")
            inserted.set()
            if nap == "on the server":
                await tx.execute("SELECT pg_sleep(60)")
            else:
                await asyncio.sleep(60)

    # Before it runs, a query cannot be cancelled: the server hears of that too early.
    async def when_it_runs() -> None:
        await asyncio.to_thread(observer.wait_for, 1, "query LIKE 'SELECT pg_sleep%%'")

    async def work() -> None:
        await cancelled(transact("on the server"), when_it_runs)
        inserted.clear()
        await cancelled(transact("here"), inserted.wait)

    inserted = asyncio.Event()
    asyncio.run(work())
    observer.wait_until_idle()
    assert notes(database) == []
    assert wait_until_whole(db)


def test_a_transaction_cancelled_as_it_begins_gives_back(db: PGMonkey, observer: Observer) -> None:
    async def transact(held: int) -> None:
        async with db.aio.transaction() as tx:
            await tx.fetch_value("SELECT 1")
            await asyncio.sleep(60)

    async def a_moment() -> None:
        await asyncio.sleep(0.05)

    async def hold_all_and_cancel_one_more() -> None:
        tasks = [asyncio.create_task(transact(n)) for n in range(MAX_SIZE)]
        await asyncio.to_thread(observer.wait_for, MAX_SIZE, "state = 'idle in transaction'")
        await cancelled(transact(MAX_SIZE), a_moment)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def work() -> None:
        await hold_all_and_cancel_one_more()
        # At every moment of a free one. Before psycopg 3.3.7 some of these end a connection.
        for moment in range(60):
            task = asyncio.create_task(transact(0))
            await asyncio.sleep(moment / 20_000)
            task.cancel()
            await asyncio.wait([task])
        observer.wait_until_idle()
        await hold_all_and_cancel_one_more()

    asyncio.run(work())
    observer.wait_until_idle()
    assert wait_until_whole(db) == MAX_SIZE


SLOW_COMMIT = """
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION nap();
"""


def test_a_transaction_cancelled_at_its_commit_rolls_back(
    db: PGMonkey, observer: Observer, database: dict[str, Any]
) -> None:
    async def transact() -> None:
        async with db.aio.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES ('lost')")

    async def work() -> None:
        await db.aio.execute(SLOW_COMMIT)

        async def when_it_commits() -> None:
            await asyncio.to_thread(observer.wait_for, 1, "query = 'COMMIT' AND state = 'active'")

        await cancelled(transact(), when_it_commits)

    asyncio.run(work())
    observer.wait_until_idle()
    assert notes(database) == []
    assert wait_until_whole(db)


def test_a_storm_of_cancellations_leaves_the_pool_whole(db: PGMonkey, observer: Observer) -> None:
    chance = random.Random(4)

    async def storm() -> int:
        async def query(number: int) -> Any:
            return await db.aio.fetch_value("SELECT %s::int FROM pg_sleep(0.001)", [number])

        async def perhaps_cancelled(number: int) -> bool:
            task = asyncio.create_task(query(number))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.uniform(0, 0.02))
                task.cancel()
            try:
                assert await task == number
            except asyncio.CancelledError:
                return True
            return False

        cancelled = 0
        for start in range(0, 2000, 50):
            batch = range(start, start + 50)
            cancelled += sum(await asyncio.gather(*map(perhaps_cancelled, batch)))
        return cancelled

    assert asyncio.run(storm()) > 100
    observer.wait_until_idle()

    async def all_at_once() -> set[int]:
        async def hold() -> Any:
            async with db.aio.transaction() as tx:
                pid = await tx.fetch_value("SELECT pg_backend_pid()")
                await barrier(pid)
                return pid

        waiting: set[int] = set()
        everybody = asyncio.Event()

        async def barrier(pid: int) -> None:
            waiting.add(pid)
            if len(waiting) == MAX_SIZE:
                everybody.set()
            await asyncio.wait_for(everybody.wait(), 10)

        return set(await asyncio.gather(*(hold() for _ in range(MAX_SIZE))))

    assert len(asyncio.run(all_at_once())) == MAX_SIZE
    assert wait_until_whole(db) == MAX_SIZE
    assert observer.count() == MAX_SIZE


# The server


def test_killed_connections_are_replaced_unseen(db: PGMonkey, observer: Observer) -> None:
    async def fill() -> None:
        await asyncio.gather(*(db.aio.execute("SELECT pg_sleep(0.2)") for _ in range(MAX_SIZE)))

    asyncio.run(fill())
    assert observer.count() == MAX_SIZE
    observer.conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = %s AND application_name = %s",
        [observer.dbname, NAME],
    )
    observer.wait_for(0)
    assert asyncio.run(db.aio.fetch_value("SELECT 42")) == 42


def test_a_transaction_whose_connection_is_killed_raises_what_the_server_said(
    db: PGMonkey,
) -> None:
    async def transact() -> None:
        async with db.aio.transaction() as tx:
            await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(psycopg.errors.AdminShutdown):
        asyncio.run(transact())


def test_a_transaction_whose_connection_is_killed_keeps_the_error_of_its_block(
    db: PGMonkey, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    async def transact() -> None:
        async with db.aio.transaction() as tx:
            pid = await tx.fetch_value("SELECT pg_backend_pid()")
            observer.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(transact())
    assert "error ignored in rollback" in caplog.text  # in psycopg's words
    caplog.clear()


def test_async_views_complain_of_nothing_in_a_process_of_their_own(config: dict[str, Any]) -> None:
    run = run_program(
        """
        from flask import Flask
        from flask_pgmonkey import PGMonkey, extension

        app = Flask("program")
        app.config["PGMONKEY_CONFIG"] = config
        db = PGMonkey(app)

        @app.get("/")
        async def view():
            try:
                await asyncio.wait_for(db.aio.execute("SELECT pg_sleep(60)"), 0.05)
            except asyncio.TimeoutError:
                pass
            async with db.aio.transaction() as tx:
                values = await asyncio.gather(*(tx.fetch_value("SELECT 1") for _ in range(3)))
            return values

        for _ in range(5):
            print(app.test_client().get("/").json)
        """,
        config,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["[1, 1, 1]"] * 5


def test_an_app_that_is_gone_is_not_kept_by_the_loop_that_it_started(
    config: dict[str, Any],
) -> None:
    program = """
        import gc, weakref
        from flask import Flask
        from flask_pgmonkey import PGMonkey

        app = Flask("gone")
        db = PGMonkey(app, config=config)

        @app.get("/")
        async def view():
            return str(await db.aio.fetch_value("SELECT 1"))

        assert app.test_client().get("/").text == "1"
        gone = weakref.ref(app)
        del app, db, view
        gc.collect()
        print(gone() is None)
    """
    ended = run_program(program, config)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


if sys.version_info >= (3, 11):  # Python 3.10 shows no notes

    def test_an_error_from_across_the_hop_says_which_query_and_where(app: Flask) -> None:
        db: PGMonkey = app.extensions["pgmonkey"]
        notes: list[str] = []

        async def view() -> str:
            try:
                await db.aio.fetch_all("SELECT 1/0")
            except psycopg.Error as error:
                notes.extend(getattr(error, "__notes__", ()))
            return "done"

        app.add_url_rule("/", "page", view)
        app.test_client().get("/")
        query, site = notes
        assert query == "Query: SELECT 1/0"
        assert site.startswith("Called at ")
        assert site.endswith(" in view")
