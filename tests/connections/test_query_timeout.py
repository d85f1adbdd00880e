"""``query_timeout``: no query runs for longer, whatever its server does."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psycopg
import pytest
from psycopg.errors import QueryCanceled, ReadOnlySqlTransaction

from flask_pgmonkey import AsyncDatabase, Database
from flask_pgmonkey.config import CONNECTION_TYPES
from flask_pgmonkey.connections import (
    server_connection,
    server_connection_async,
    server_connection_base,
)
from flask_pgmonkey.errors import QueryTimeoutError, ServerSilentError

from ..proxy import Proxy
from ..servers import PrivateServer
from .every_type import AsyncCase, sync_and_async, within

__all__ = ["CONNECTION_TYPES"]

MakeProxy = Callable[[str, int], Proxy]

SHORT = {"query_timeout": 0.3}
SLOW_TABLE = """
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
    CREATE TABLE slow (t text);
    CREATE TABLE slow_at_commit (t text);
    CREATE TRIGGER sleep BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION sleep();
    CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON slow_at_commit
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep();
"""


@pytest.mark.parametrize(
    "how",
    [
        "execute", "executemany", "prepared", "server cursor", "stream", "commit", "pipeline",
        "copy to", "copy from", "copy from, at its end",
    ],
)  # fmt: skip
@sync_and_async
async def test_a_query_that_runs_longer_is_cancelled(case: AsyncCase, how: str) -> None:
    case.run_on_server(SLOW_TABLE)
    connection = await case.open(pool=SHORT)
    async with connection as conn:
        pid = conn.info.backend_pid
        with within(20), pytest.raises(QueryTimeoutError) as raised:
            if how == "execute":
                await conn.execute("SELECT pg_sleep(60)")
            elif how == "executemany":
                await conn.cursor().executemany("SELECT pg_sleep(%s)", [[0], [60]])
            elif how == "prepared":
                for seconds in (0, 0, 60):
                    await conn.execute("SELECT pg_sleep(%s)", [seconds], prepare=True)
            elif how == "server cursor":
                async with conn.cursor("slow") as cursor:
                    cursor.itersize = 1
                    await cursor.execute("SELECT pg_sleep(n / 3 * 60) FROM generate_series(1, 5) n")
                    async for _ in cursor:
                        pass
            elif how == "stream":
                async for _ in conn.cursor().stream("SELECT generate_series(1, 3), pg_sleep(60)"):
                    pass
            elif how == "commit":
                await conn.execute("INSERT INTO slow_at_commit VALUES ('x')")
                await conn.commit()
            elif how == "pipeline":
                async with conn.pipeline():
                    await conn.execute("SELECT pg_sleep(60)")
            elif how == "copy to":
                async with conn.cursor().copy("COPY (SELECT pg_sleep(60)) TO STDOUT") as copy:
                    async for _ in copy:
                        pass
            else:
                async with conn.cursor().copy("COPY slow FROM STDIN") as copy:
                    for _ in range(1 if "end" in how else 300):
                        await copy.write("x" * 100_000 + "\n")
        assert isinstance(raised.value, QueryCanceled)
        assert isinstance(raised.value, psycopg.OperationalError)
        assert raised.value.sqlstate == "57014"
        assert "query_timeout allows (0.30 s): it was cancelled" in str(raised.value)
        # The connection is as after any error of the server's.
        await conn.rollback()
        assert await case.value(conn, "SELECT pg_backend_pid()") == pid


@sync_and_async
async def test_the_server_s_own_words_are_kept(case: AsyncCase) -> None:
    connection = await case.open(pool=SHORT)
    async with connection as conn:
        with pytest.raises(QueryTimeoutError) as raised:
            await conn.execute("SELECT pg_sleep(60)")
        assert raised.value.diag.message_primary == "canceling statement due to user request"
        await conn.rollback()
        await conn.execute("SET statement_timeout = 20")
        with pytest.raises(QueryCanceled, match="due to statement timeout") as raised_by_server:
            await conn.execute("SELECT pg_sleep(60)")
        assert not isinstance(raised_by_server.value, QueryTimeoutError)
        await conn.rollback()


@sync_and_async
async def test_a_query_that_ends_before_it_is_cancelled_gives_its_result(case: AsyncCase) -> None:
    survive = (
        "BEGIN PERFORM pg_sleep(60); RETURN 1; EXCEPTION WHEN query_canceled THEN RETURN 2; END"
    )
    case.run_on_server(f"CREATE FUNCTION survive() RETURNS integer LANGUAGE plpgsql AS '{survive}'")
    connection = await case.open(pool=SHORT)
    async with connection as conn:
        assert await case.value(conn, "SELECT survive()") == 2
        for _ in range(20):  # none of them is cancelled instead
            assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_what_takes_no_longer_is_left_alone(case: AsyncCase) -> None:
    connection = await case.open(pool={"query_timeout": 30})
    async with connection as conn:
        assert await case.value(conn, "SELECT 1 FROM pg_sleep(0.3)") == 1
        cursor = await conn.execute("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
        assert len(await cursor.fetchall()) == 100_000


@sync_and_async
async def test_a_result_that_flows_for_too_long_is_cancelled(case: AsyncCase) -> None:
    connection = await case.open(pool=SHORT)
    async with connection as conn:
        with within(20), pytest.raises(QueryTimeoutError):
            async with conn.cursor().copy("COPY (SELECT 1 FROM pg_sleep(0)) TO STDOUT") as copy:
                async for _ in copy:
                    pass
            await conn.execute("SELECT n, pg_sleep(0.001) FROM generate_series(1, 60000) n")
        await conn.rollback()


@sync_and_async
async def test_waiting_for_notifications_is_no_query(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, SHORT)
    async with connection as conn:
        await conn.execute("LISTEN news")
        sender = threading.Timer(1, case.run_on_server, ["NOTIFY news, 'late'"])
        sender.start()
        async for heard in conn.notifies(timeout=30, stop_after=1):
            assert heard.payload == "late"
        sender.join()
        await conn.execute("UNLISTEN *")


@sync_and_async
async def test_a_stopped_server_is_an_error_soon_after(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = await fragile.open(pool={"query_timeout": 2})
    with within(4), pytest.raises(ServerSilentError) as raised:
        async with connection as conn:
            await fragile.value(conn, "SELECT 1")
            private_server.pause()
            await conn.execute("SELECT 2")
    assert isinstance(raised.value, psycopg.OperationalError)
    assert not isinstance(raised.value, QueryCanceled)
    assert "query_timeout allows (2.00 s)" in str(raised.value)
    assert "did not answer its cancellation" in str(raised.value)
    assert conn.closed
    private_server.resume()
    async with connection as conn:
        assert await fragile.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_a_server_that_is_stopped_in_mid_query(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = await fragile.open(pool={"query_timeout": 2})
    stopping = threading.Timer(0.5, private_server.pause)
    stopping.start()
    with within(4), pytest.raises(ServerSilentError):
        async with connection as conn:
            await conn.execute("SELECT pg_sleep(60)")
    stopping.join()
    private_server.resume()
    fragile.terminate()  # nobody has told the backend


@sync_and_async
async def test_a_copy_left_early_does_not_wait_for_a_stopped_server(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = await fragile.open({"autocommit": True})
    query = "COPY (SELECT generate_series(1, 10000000)) TO STDOUT"
    with within(10), pytest.raises(psycopg.OperationalError, match="closed"):
        async with connection as conn:
            async with conn.cursor().copy(query) as copy:
                async for _ in copy:
                    private_server.pause()
                    break
            assert conn.closed
    private_server.resume()
    fragile.terminate()  # nobody has told the backend
    await connection.test_connection()


@pytest.mark.parametrize("when", ["begin", "commit", "copy"])
@sync_and_async
async def test_no_part_of_a_transaction_waits_longer_for_a_stopped_server(
    fragile: AsyncCase, private_server: PrivateServer, when: str
) -> None:
    connection = await fragile.open({"autocommit": True}, SHORT)
    with within(20), pytest.raises(ServerSilentError):
        async with connection as conn:
            if when == "begin":
                private_server.pause()
            async with conn.transaction():
                await conn.execute("CREATE TEMPORARY TABLE t (t text)")
                if when == "copy":
                    async with conn.cursor().copy("COPY t FROM STDIN") as copy:
                        private_server.pause()
                        for _ in range(300):
                            await copy.write("x" * 100_000 + "\n")
                private_server.pause()
    private_server.resume()


@pytest.mark.parametrize("fault", ["stall", "refuse"])
@sync_and_async
async def test_a_network_that_goes_silent_is_an_error_soon_after(
    fragile: AsyncCase, private_server: PrivateServer, proxy: MakeProxy, fault: str
) -> None:
    gate = proxy(private_server.host, private_server.port)
    connection = await fragile.open({"port": gate.port}, SHORT)
    with within(10), pytest.raises(ServerSilentError):
        async with connection as conn:
            getattr(gate, fault)()
            await conn.execute("SELECT pg_sleep(60)")
    gate.resume()
    gate.accept()
    async with connection as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    fragile.terminate()


# What is ours to ask does not wait for ever, though queries may


@sync_and_async
async def test_rolling_back_does_not_wait_for_a_stopped_server(
    fragile: AsyncCase, private_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection_base, "LONGEST_RELEASE", 0.1)
    for module in (server_connection, server_connection_async):
        monkeypatch.setattr(module, "LONGEST_SILENCE", 0.1)
    connection = await fragile.open({"autocommit": True})
    with within(10), pytest.raises(ServerSilentError, match="the end of a block") as raised:
        async with connection as conn:
            async with conn.transaction():
                await conn.execute("SELECT 1")
                private_server.pause()
                raise ZeroDivisionError
    assert conn.closed
    error: BaseException | None = raised.value
    while error is not None and not isinstance(error, ZeroDivisionError):
        error = error.__cause__ or error.__context__
    assert error is not None, "why it was rolled back is not told"
    private_server.resume()
    fragile.terminate()  # nobody has told the backend


@pytest.mark.parametrize("left", ["a transaction", "state", "a refused write"])
@sync_and_async
async def test_giving_back_does_not_wait_for_a_stopped_server(
    fragile: AsyncCase, private_server: PrivateServer, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection_base, "LONGEST_RELEASE", 0.1)
    for module in (server_connection, server_connection_async):
        monkeypatch.setattr(module, "LONGEST_SILENCE", 0.1)
    writable = {"autocommit": True, "target_session_attrs": "read-write"}
    pool = {"reset_on_return": left != "a refused write"}
    connection = await fragile.open(writable, pool)
    with within(10), pytest.raises(ZeroDivisionError):
        async with connection as conn:
            await conn.execute("SET default_transaction_read_only = on")
            if left == "a refused write":
                with pytest.raises(ReadOnlySqlTransaction):
                    await conn.execute("CREATE TABLE t (t text)")
            elif left == "a transaction":
                await conn.execute("BEGIN")
            private_server.pause()
            raise ZeroDivisionError
    assert conn.closed
    private_server.resume()
    fragile.terminate()  # nobody has told the backend
    await connection.test_connection()


# Who is interrupted waits no longer either, with and without a bound


@pytest.fixture(params=[0, 30])
def database_of_stopped_server(
    private_server: PrivateServer, request: pytest.FixtureRequest
) -> dict[str, Any]:
    pool = {"query_timeout": request.param}
    return {
        "connection_settings": private_server.settings(),
        "pool_settings": pool,
        "async_pool_settings": pool,
    }


def test_wait_for_ends_on_a_stopped_server(
    private_server: PrivateServer, database_of_stopped_server: dict[str, Any]
) -> None:
    async def run() -> None:
        db = AsyncDatabase(database_of_stopped_server)
        assert await db.fetch_value("SELECT 1") == 1
        private_server.pause()
        with within(10), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(db.fetch_value("SELECT 2"), 0.5)
        private_server.resume()
        assert await db.fetch_value("SELECT 3") == 3
        await db.disconnect()

    asyncio.run(run())


def test_a_cancelled_task_leaves_a_server_that_answers_a_usable_connection(
    database: dict[str, Any],
) -> None:
    async def run() -> None:
        db = AsyncDatabase({"connection_settings": database})
        pid = await db.fetch_value("SELECT pg_backend_pid()")
        with within(10), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(db.fetch_value("SELECT pg_sleep(60)"), 0.3)
        assert await db.fetch_value("SELECT pg_backend_pid()") == pid
        await db.disconnect()

    asyncio.run(run())


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """Interrupts the test as Ctrl-C does, after so many seconds."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_a_query_on_a_stopped_server(
    private_server: PrivateServer,
    database_of_stopped_server: dict[str, Any],
    alarm: Callable[[float], object],
) -> None:
    db = Database(database_of_stopped_server)
    assert db.fetch_value("SELECT 1") == 1
    private_server.pause()
    alarm(0.3)
    with within(10), pytest.raises(KeyboardInterrupt):
        db.fetch_value("SELECT 2")
    private_server.resume()
    assert db.fetch_value("SELECT 3") == 3
    db.close()
