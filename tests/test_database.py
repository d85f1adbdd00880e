"""``Database`` and ``AsyncDatabase``: the queries outside Flask."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import Depends, FastAPI
from flask import Flask
from psycopg import IsolationLevel, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from flask_pgmonkey import AsyncDatabase, ConfigError, Database, PGConnectionManager
from flask_pgmonkey.connections import PoolConnection, borrowed_connections

from .round_trips import count_round_trips

INSERT = "INSERT INTO items VALUES (%s)"
Items = Callable[[], list[int]]


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside, with a table ``items`` of one column ``n``."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (n integer PRIMARY KEY)")
        yield connection


@pytest.fixture
def items(admin: psycopg.Connection[Any]) -> Items:
    """What others see in the table ``items``."""
    return lambda: [n for (n,) in admin.execute("SELECT n FROM items ORDER BY n").fetchall()]


@pytest.fixture
def await_sessions(admin: psycopg.Connection[Any]) -> Callable[[int], None]:
    """Waits until so many others are connected to the database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def wait(expected: int) -> None:
        deadline = time.monotonic() + 5
        while (count := admin.execute(query).fetchone()) != (expected,):
            assert time.monotonic() < deadline, f"{count} sessions instead of {expected}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def db(config_file: Path) -> Iterator[Database]:
    db = Database(config_file)
    yield db
    db.close()


@asynccontextmanager
async def connected(config: Any, **options: Any) -> AsyncIterator[AsyncDatabase]:
    """An AsyncDatabase for the block."""
    db = AsyncDatabase(config, **options)
    await db.connect()
    try:
        yield db
    finally:
        await db.disconnect()


# Database


def test_it_takes_a_path_or_a_mapping(config_file: Path, database: dict[str, Any]) -> None:
    for config in (str(config_file), config_file, {"connection_settings": database}):
        db = Database(config)
        assert db.fetch_value("SELECT current_database()") == database["dbname"]
        db.close()


def test_a_bad_config_is_an_error_at_once() -> None:
    for make in (Database, AsyncDatabase):
        with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
            make("nowhere.yaml")


def test_environment_references_are_resolved_on_request(
    database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAME_OF_DATABASE", database["dbname"])
    settings = {**database, "dbname": "${NAME_OF_DATABASE}"}
    db = Database({"connection_settings": settings}, resolve_env=True)
    assert db.fetch_value("SELECT current_database()") == database["dbname"]
    db.close()


def test_nothing_connects_before_the_first_query(
    db: Database, await_sessions: Callable[[int], None]
) -> None:
    await_sessions(0)
    db.fetch_value("SELECT 1")
    await_sessions(1)


def test_the_queries(db: Database, items: Items) -> None:
    assert db.execute("INSERT INTO items SELECT generate_series(1, 3)") == 3
    assert items() == [1, 2, 3]
    assert db.execute_many(INSERT, [(4,), (5,)]) == 2
    assert db.fetch_value("DELETE FROM items WHERE n = %s RETURNING n", (5,)) == 5
    assert db.fetch_all("SELECT n FROM items ORDER BY n") == [(1,), (2,), (3,), (4,)]
    assert db.fetch_one("SELECT n FROM items WHERE n = %(n)s", {"n": 2}) == (2,)
    assert db.fetch_one("SELECT n FROM items WHERE false") is None
    assert db.fetch_value("SELECT n FROM items WHERE false") is None
    assert db.fetch_all(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("items"))) == [
        (4,)
    ]
    assert db.fetch_one("SELECT 1 AS one", row_factory=dict_row) == {"one": 1}
    assert items() == [1, 2, 3, 4]


def test_execute_many_is_all_or_nothing(db: Database, items: Items) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute_many(INSERT, [(1,), (2,), (1,)])
    assert items() == []


def test_each_call_borrows_and_gives_back(db: Database, items: Items) -> None:
    assert db.fetch_value("SELECT 1") == 1
    assert borrowed_connections() == []
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute("SELECT 1 / 0")
    assert borrowed_connections() == []
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute_many(INSERT, [(1,), (1,)])
    assert borrowed_connections() == []


def test_each_call_costs_one_round_trip(db: Database) -> None:
    with db.pool as conn:
        pass
    with count_round_trips(conn) as counted:
        db.fetch_value("SELECT 1")
        db.fetch_all("SELECT %s", (2,))
    assert counted.count == 2


def test_calls_of_threads_share_the_pool(db: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: db.fetch_value("SELECT %s::int", (n,)), range(200)))
    assert answers == [*range(200)]
    assert db.pool.get_stats()["pool_size"] <= 10


def test_a_transaction_has_one_connection_and_commits_at_its_end(
    db: Database, items: Items
) -> None:
    with db.transaction() as tx:
        tx.execute(INSERT, (1,))
        with pytest.raises(psycopg.errors.UniqueViolation), tx.transaction() as nested:
            nested.execute(INSERT, (1,))
        assert len({tx.fetch_value("SELECT pg_backend_pid()") for _ in range(3)}) == 1
        assert len(borrowed_connections()) == 1
        assert items() == []
    assert items() == [1]
    with pytest.raises(LookupError), db.transaction() as tx:
        tx.execute(INSERT, (2,))
        raise LookupError
    assert items() == [1]
    with pytest.raises(RuntimeError, match="over"):
        tx.execute(INSERT, (2,))


def test_a_transaction_takes_isolation_level_and_access_mode(db: Database) -> None:
    show = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    )
    with db.transaction(IsolationLevel.SERIALIZABLE, read_only=True) as tx:
        assert tx.fetch_one(show) == ("serializable", "on")
    assert db.fetch_one(show) == ("read committed", "off")


def test_queries_of_the_same_thread_join_the_transaction(
    database: dict[str, Any], items: Items
) -> None:
    db = Database({"connection_settings": database, "pool_settings": {"max_size": 1, "timeout": 1}})
    with pytest.raises(LookupError), db.transaction() as tx:
        db.execute(INSERT, (1,))
        assert tx.fetch_value("SELECT count(*) FROM items") == 1
        raise LookupError
    with db.transaction():
        db.execute_many(INSERT, [(2,), (3,)])
        with pytest.raises(psycopg.errors.UniqueViolation), db.transaction():
            db.execute(INSERT, (4,))
            db.execute(INSERT, (2,))
        with pytest.raises(psycopg.ProgrammingError, match="outermost"), db.transaction(None, True):
            pass
        assert db.fetch_all("SELECT n FROM items ORDER BY n") == [(2,), (3,)]
        assert items() == []
    assert items() == [2, 3]
    assert borrowed_connections() == []
    db.execute(INSERT, (5,))
    assert items() == [2, 3, 5]
    db.close()


def test_queries_of_other_threads_and_databases_do_not_join(
    db: Database, config_file: Path, items: Items
) -> None:
    other = Database(config_file)
    with ThreadPoolExecutor(1) as thread, db.transaction():
        db.execute(INSERT, (1,))
        assert thread.submit(db.fetch_all, "SELECT n FROM items").result() == []
        thread.submit(db.execute, INSERT, (2,)).result()
        assert other.fetch_all("SELECT n FROM items") == [(2,)]
    assert items() == [1, 2]
    other.close()


def test_a_transaction_that_ends_in_another_thread_is_joined_no_more(
    db: Database, items: Items
) -> None:
    block = db.transaction()
    with ThreadPoolExecutor(1) as thread:
        block.__enter__()
        db.execute(INSERT, (1,))
        assert thread.submit(block.__exit__, None, None, None).result() is False
    db.execute(INSERT, (2,))
    assert items() == [1, 2]
    assert borrowed_connections() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_does_not_join_its_parent_s_transaction(db: Database, items: Items) -> None:
    with db.transaction():
        db.execute(INSERT, (1,))
        pid = os.fork()
        if pid == 0:
            try:
                seen = db.fetch_all("SELECT n FROM items")
                with db.transaction():
                    db.execute(INSERT, (2,))
                os._exit(0 if seen == [] else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert items() == [2]
    assert items() == [1, 2]


def test_close_ends_every_session_and_the_next_query_opens_again(
    db: Database, await_sessions: Callable[[int], None]
) -> None:
    db.fetch_value("SELECT 1")
    db.close()
    db.close()
    await_sessions(0)
    assert db.fetch_value("SELECT 1") == 1


def test_a_row_factory_and_configure_hold_for_all_connections(config_file: Path) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SET application_name = 'configured'")

    db = Database(config_file, row_factory=dict_row, configure=configure)
    assert db.fetch_all("SHOW application_name") == [{"application_name": "configured"}]
    with db.transaction() as tx:
        assert tx.fetch_value("SHOW application_name") == "configured"
    db.close()


def test_reprs_show_the_server_and_no_secret(database: dict[str, Any]) -> None:
    planted = {"connection_settings": {**database, "password": "planted-secret"}}
    for db in (Database(planted), AsyncDatabase(planted)):
        assert database["dbname"] in repr(db)
        assert "planted" not in repr(db)
        assert "planted" not in repr(vars(db))


def test_the_page_s_flask_pattern_against_a_live_app(
    config_file: Path, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("INSERT INTO items VALUES (1), (2)")
    app = Flask("tests")
    db = Database(str(config_file))

    @app.route("/items")
    def list_items() -> dict[str, Any]:
        rows = db.fetch_all("SELECT n, n * 2 FROM items ORDER BY n;")
        return {"items": [{"n": r[0], "double": r[1]} for r in rows]}

    for _ in range(3):
        assert app.test_client().get("/items").json == {
            "items": [{"n": 1, "double": 2}, {"n": 2, "double": 4}]
        }
    assert isinstance(db.manager, PGConnectionManager)
    assert db.pool is db.manager.get_database_connection(str(config_file), "pool")
    db.close()


# AsyncDatabase


def test_the_async_queries(config_file: Path, items: Items) -> None:
    async def use() -> None:
        async with connected(config_file) as db:
            assert await db.execute("INSERT INTO items SELECT generate_series(1, 3)") == 3
            assert items() == [1, 2, 3]
            assert await db.execute_many(INSERT, [(4,), (5,)]) == 2
            assert items() == [1, 2, 3, 4, 5]
            with pytest.raises(psycopg.errors.UniqueViolation):
                await db.execute_many(INSERT, [(6,), (1,)])
            assert await db.fetch_value("DELETE FROM items WHERE n = 5 RETURNING n") == 5
            assert await db.fetch_all("SELECT n FROM items WHERE n < %s", (2,)) == [(1,)]
            assert await db.fetch_one("SELECT n FROM items WHERE false") is None
            assert await db.fetch_value("SELECT n FROM items WHERE false") is None
            query = sql.SQL("SELECT n AS number FROM {} WHERE n = 4")
            rows = await db.fetch_all(query.format(sql.Identifier("items")), row_factory=dict_row)
            assert rows == [{"number": 4}]
            with pytest.raises(psycopg.errors.UndefinedTable):
                await db.fetch_all("SELECT * FROM nowhere")
            assert borrowed_connections() == []

    asyncio.run(use())
    assert items() == [1, 2, 3, 4]


def test_each_async_call_costs_one_round_trip(config_file: Path) -> None:
    async def use() -> None:
        async with connected(config_file) as db:
            async with await db.manager.get_database_connection(config_file, "async_pool") as conn:
                pass
            with count_round_trips(conn) as counted:
                await db.fetch_value("SELECT 1")
                await db.fetch_all("SELECT %s", (2,))
            assert counted.count == 2

    asyncio.run(use())


def test_an_async_transaction_commits_at_its_end(config_file: Path, items: Items) -> None:
    show = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    )

    async def use() -> None:
        async with connected(config_file) as db:
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                await tx.execute_many(INSERT, [(2,), (3,)])
                with pytest.raises(psycopg.errors.UniqueViolation):
                    async with tx.transaction() as nested:
                        await nested.execute(INSERT, (1,))
                cursor = await tx.cursor().execute("SELECT count(*) FROM items")
                assert await cursor.fetchone() == (3,)
                assert items() == []
                assert repr(tx) == "<AsyncTransaction open>"
                assert tx.connection.info.transaction_status == TransactionStatus.INTRANS
            assert items() == [1, 2, 3]
            with pytest.raises(LookupError):
                async with db.transaction() as tx:
                    await tx.execute(INSERT, (4,))
                    raise LookupError
            with pytest.raises(RuntimeError, match="over"):
                await tx.execute(INSERT, (4,))
            async with db.transaction(IsolationLevel.REPEATABLE_READ, read_only=True) as tx:
                assert await tx.fetch_one(show) == ("repeatable read", "on")
            assert await db.fetch_one(show) == ("read committed", "off")

    asyncio.run(use())
    assert items() == [1, 2, 3]


def test_queries_of_the_same_task_join_the_async_transaction(
    database: dict[str, Any], items: Items
) -> None:
    config = {"connection_settings": database, "async_pool_settings": {"max_size": 1, "timeout": 1}}

    async def use() -> None:
        async with connected(config) as db:
            with pytest.raises(LookupError):
                async with db.transaction():
                    await db.execute(INSERT, (1,))
                    raise LookupError
            async with db.transaction():
                await db.execute_many(INSERT, [(2,), (3,)])
                with pytest.raises(psycopg.errors.UniqueViolation):
                    async with db.transaction():
                        await db.execute(INSERT, (4,))
                        await db.execute(INSERT, (2,))
                with pytest.raises(psycopg.ProgrammingError, match="outermost"):
                    async with db.transaction(read_only=True):
                        pass
                assert await db.fetch_all("SELECT n FROM items ORDER BY n") == [(2,), (3,)]
                assert items() == []
            await db.execute(INSERT, (5,))

    asyncio.run(use())
    assert items() == [2, 3, 5]
    assert borrowed_connections() == []


def test_queries_of_another_task_do_not_join(config_file: Path, items: Items) -> None:
    async def use() -> None:
        async with connected(config_file) as db:
            async with db.transaction():
                await db.execute(INSERT, (1,))
                assert await asyncio.create_task(db.fetch_all("SELECT n FROM items")) == []
                await asyncio.gather(db.execute(INSERT, (2,)))
            assert items() == [1, 2]

    asyncio.run(use())


def test_a_query_does_not_join_the_transaction_of_a_generator_that_was_dropped(
    config_file: Path, items: Items
) -> None:
    async def use() -> None:
        async with connected(config_file) as db:

            async def in_a_transaction() -> AsyncIterator[None]:
                async with db.transaction():
                    await db.execute(INSERT, (1,))
                    yield

            async for _ in in_a_transaction():
                break  # asyncio rolls it back in a task of its own
            await db.execute(INSERT, (2,))
            async for _ in in_a_transaction():
                break
            async with db.transaction(IsolationLevel.SERIALIZABLE):
                await db.execute(INSERT, (3,))
            assert items() == [2, 3]

            @asynccontextmanager
            async def unit_of_work() -> AsyncIterator[None]:
                async with db.transaction():
                    yield

            with pytest.raises(LookupError):
                async with unit_of_work():
                    await db.execute(INSERT, (4,))
                    raise LookupError
            assert items() == [2, 3]

    asyncio.run(use())


def test_gathered_queries_run_at_once(config_file: Path) -> None:
    async def use() -> None:
        async with connected(config_file) as db:
            pids = await asyncio.gather(
                *(db.fetch_exactly_one("SELECT pg_backend_pid(), pg_sleep(0.2)") for _ in range(3))
            )
            assert len({pid for pid, _ in pids}) == 3

    asyncio.run(use())


def test_disconnect_closes_only_its_own(
    config_file: Path, await_sessions: Callable[[int], None]
) -> None:
    async def use() -> None:
        async with connected(config_file) as one:
            async with connected(config_file) as other:
                assert await other.fetch_value("SELECT 1") == 1
            assert await one.fetch_value("SELECT 1") == 1

    asyncio.run(use())
    await_sessions(0)


def test_a_query_after_disconnect_connects_again(config_file: Path) -> None:
    async def use() -> None:
        async with connected(config_file) as db:
            await db.disconnect()
            assert await db.fetch_value("SELECT 1") == 1

    asyncio.run(use())


def test_connect_shows_a_server_that_cannot_be_reached() -> None:
    async def use() -> None:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await AsyncDatabase({"connection_settings": {"host": "127.0.0.1", "port": 1}}).connect()

    asyncio.run(use())


# FastAPI


def ask(app: FastAPI, *paths: str) -> list[Any]:
    """What a live app answers, all paths at once, within its lifespan."""

    async def get() -> list[Any]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answers = await asyncio.gather(*(client.get(path) for path in paths))
                return [answer.json() for answer in answers]

    return asyncio.run(get())


def test_the_page_s_fastapi_pattern_through_its_lifespan(
    config_file: Path, admin: psycopg.Connection[Any], await_sessions: Callable[[int], None]
) -> None:
    admin.execute("INSERT INTO items VALUES (1), (2)")
    db = AsyncDatabase(str(config_file))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await db.connect()
        await_sessions(1)
        yield
        await db.disconnect()

    app = FastAPI(lifespan=lifespan)

    @app.get("/items")
    async def list_items() -> dict[str, Any]:
        rows = await db.fetch_all("SELECT n FROM items ORDER BY n;")
        return {"items": [row[0] for row in rows]}

    assert ask(app, *["/items"] * 20) == [{"items": [1, 2]}] * 20
    await_sessions(0)


def test_a_generator_dependency_of_fastapi_gives_back_its_own_connection(
    config_file: Path,
) -> None:
    manager = PGConnectionManager()
    pool = manager.get_database_connection(config_file, "pool")
    assert isinstance(pool, PoolConnection)

    def borrow() -> Iterator[psycopg.Connection[Any]]:
        with pool as conn:
            yield conn

    app = FastAPI()

    @app.get("/{number}")
    def echo(number: int, conn: Any = Depends(borrow)) -> list[int]:  # noqa: B008
        first = conn.execute(
            "SELECT %s::int, pg_backend_pid(), pg_sleep(0.02)", (number,)
        ).fetchone()
        second = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert first[1] == second[0] == conn.info.backend_pid
        return [first[0]]

    paths = [f"/{number}" for number in range(30)]
    assert ask(app, *paths) == [[number] for number in range(30)]
    assert borrowed_connections() == []
    manager.clear_cache()


def test_interleaved_generators_give_back_each_its_own_connection(config_file: Path) -> None:
    manager = PGConnectionManager()
    pool = manager.get_database_connection(config_file, "pool")

    def pids() -> Generator[int, None, None]:
        with pool as conn:
            for _ in range(3):
                yield conn.info.backend_pid

    one, two = pids(), pids()
    seen = [(next(one), next(two)) for _ in range(3)]
    assert len(set(seen)) == 1
    assert len(borrowed_connections()) == 2
    one.close()
    assert len(borrowed_connections()) == 1
    assert next(two, None) is None
    assert borrowed_connections() == []
    manager.clear_cache()
