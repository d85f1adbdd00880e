"""Async objects end with their event loop, on the server too, however it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from flask_pgmonkey import AsyncDatabase, PGConnectionManager
from flask_pgmonkey.connections import loops

from .programs import run_program
from .proxy import Proxy
from .servers import Server

ASYNC_TYPES = ("async", "async_pool")
NAME = "test_loops"

Config: TypeAlias = "dict[str, Any]"
Using: TypeAlias = "Callable[[], Coroutine[Any, Any, Any]]"


@pytest.fixture
def config(database: dict[str, Any]) -> Config:
    return {
        "connection_settings": {**database, "application_name": NAME},
        "async_pool_settings": {"min_size": 2, "max_size": 4, "timeout": 30},
    }


class Sessions:
    """What the server says of the sessions under test."""

    def __init__(self, observer: psycopg.Connection[Any], dbname: str) -> None:
        self._observer = observer
        self._dbname = dbname

    def count(self) -> int:
        row = self._observer.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = %s",
            (self._dbname, NAME),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + 5
        while left := self.count():
            assert time.monotonic() < deadline, f"{left} sessions are left on the server"
            time.sleep(0.01)


@pytest.fixture
def sessions(server: Server, database: dict[str, Any]) -> Any:
    with server.connect() as observer:
        yield Sessions(observer, database["dbname"])


@pytest.fixture(autouse=True)
def _fail_on_complaints(caplog: pytest.LogCaptureFixture) -> Any:
    """Nothing is logged: no task destroyed, no exception never retrieved, no warning of a pool."""
    yield
    gc.collect()
    complaints = [
        record.getMessage()
        for record in [*caplog.get_records("call"), *caplog.get_records("teardown")]
        if record.levelno >= logging.WARNING and "Executing" not in record.getMessage()
    ]
    assert complaints == []


@pytest.fixture(params=ASYNC_TYPES)
def connection_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manager() -> PGConnectionManager:
    return PGConnectionManager()


@pytest.fixture
def use(manager: PGConnectionManager, config: Config, connection_type: Any) -> Using:
    """Open a connection object of the type on the running loop, and query through it."""

    async def use_it() -> Any:
        connection: Any = await manager.get_database_connection_from_dict(config, connection_type)
        async with connection as conn:
            await conn.execute("SELECT 1")
        return connection

    return use_it


# The ways in which a loop ends


def test_a_loop_that_returns(use: Using, sessions: Sessions) -> None:
    async def main() -> None:
        await use()
        assert sessions.count() > 0

    asyncio.run(main())
    sessions.wait_until_gone()


def test_a_loop_that_an_exception_ends(use: Using, sessions: Sessions) -> None:
    async def main() -> None:
        async with await use() as conn:
            await conn.execute("SELECT 1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    sessions.wait_until_gone()


def test_a_loop_that_is_cancelled_while_a_query_runs(use: Using, sessions: Sessions) -> None:
    async def main() -> None:
        connection = await use()
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        async with connection as conn:
            await conn.execute("SELECT pg_sleep(60)")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    sessions.wait_until_gone()


def test_a_loop_that_leaves_tasks_in_their_blocks(use: Using, sessions: Sessions) -> None:
    async def work(connection: Any) -> None:
        async with connection as conn:
            await conn.execute("SELECT pg_sleep(60)")

    async def main() -> None:
        connection = await use()
        tasks = [asyncio.create_task(work(connection)) for _ in range(6)]
        await asyncio.wait(tasks, timeout=0.2)

    asyncio.run(main())
    sessions.wait_until_gone()


def test_a_loop_that_was_closed_without_cancelling(
    use: Using, sessions: Sessions, manager: PGConnectionManager
) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    loop.close()
    assert manager.cache_info["size"] == 0
    sessions.wait_until_gone()


def test_a_loop_that_was_closed_ends_when_the_next_one_opens(
    use: Using, sessions: Sessions
) -> None:
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(use())
    loop.close()

    async def main() -> None:
        other = await use()
        assert other is not connection
        await other.disconnect()
        sessions.wait_until_gone()

    asyncio.run(main())
    sessions.wait_until_gone()


def test_a_loop_that_another_thread_stops(use: Using, sessions: Sessions) -> None:
    async def main() -> None:
        await use()
        loop = asyncio.get_running_loop()
        threading.Timer(0.05, lambda: loop.call_soon_threadsafe(loop.stop)).start()
        await asyncio.sleep(60)

    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        asyncio.run(main())
    sessions.wait_until_gone()


def test_a_loop_that_stays_behind_in_a_thread_that_ended(
    use: Using, sessions: Sessions, manager: PGConnectionManager
) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(use(), loop).result(10)
    assert sessions.count() > 0
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    try:
        assert manager.cache_info["size"] == 0
        sessions.wait_until_gone()
    finally:
        loop.close()


def test_a_loop_that_stays_behind_while_its_pool_connects(
    config: Config, sessions: Sessions, proxy: Callable[[str, int], Proxy]
) -> None:
    settings = config["connection_settings"]
    between = proxy(settings["host"], int(settings["port"]))
    settings.update(host=between.host, port=between.port, sslmode="disable", connect_timeout=60)
    config["async_pool_settings"]["min_size"] = 1
    manager = PGConnectionManager()

    async def open_and_grow() -> None:
        pool: Any = await manager.get_database_connection_from_dict(config, "async_pool")
        async with pool:
            between.deaf()
            with pytest.raises(PoolTimeout):
                await pool.borrow(timeout=0.1)

    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(loop.run_until_complete, open_and_grow()).result(10)
    loop.close()
    assert manager.cache_info["size"] == 0
    between.drop_all()
    sessions.wait_until_gone()


def test_a_loop_left_and_run_again_opens_its_objects_again(
    use: Using, sessions: Sessions, manager: PGConnectionManager
) -> None:
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        connection = thread.submit(loop.run_until_complete, use()).result(10)
    assert manager.cache_info["size"] == 0
    sessions.wait_until_gone()

    async def use_again() -> None:
        async with connection as conn:
            await conn.execute("SELECT 1")

    try:
        loop.run_until_complete(use_again())
        loop.run_until_complete(connection.disconnect())
        renewed = loop.run_until_complete(use())
        assert manager.cache_info["size"] == 1
        assert loop.run_until_complete(use()) is renewed
        loop.run_until_complete(manager.clear_cache_async())
    finally:
        loop.close()
    sessions.wait_until_gone()


def test_sys_exit_inside_a_coroutine(
    config: Config, connection_type: Any, sessions: Sessions
) -> None:
    run = run_program(
        f"""
        from flask_pgmonkey import PGConnectionManager

        async def main():
            manager = PGConnectionManager()
            connection = await manager.get_database_connection_from_dict(
                config, {connection_type!r}
            )
            async with connection as conn:
                await conn.execute("SELECT 1")
                sys.exit(3)

        asyncio.run(main())
        """,
        config,
    )
    assert (run.returncode, run.stderr) == (3, "")
    sessions.wait_until_gone()


@pytest.mark.parametrize("ending", ["loop.close()", "pass", "del loop"])
def test_a_program_that_forgets_its_loop(
    config: Config, connection_type: Any, sessions: Sessions, ending: str
) -> None:
    run = run_program(
        f"""
        from flask_pgmonkey import PGConnectionManager

        async def main():
            manager = PGConnectionManager()
            connection = await manager.get_database_connection_from_dict(
                config, {connection_type!r}
            )
            async with connection as conn:
                await conn.execute("SELECT 1")

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        {ending}
        """,
        config,
    )
    assert run.returncode == 0
    complaints = run.stderr.splitlines()
    if ending != "loop.close()":  # asyncio's own words about the loop, and nothing about ours
        complaints = [line for line in complaints if "psycopg" in line or "Task" in line]
    assert complaints == []
    sessions.wait_until_gone()


def test_a_deaf_server_does_not_hold_the_end_up(
    use: Using,
    config: Config,
    connection_type: Any,
    sessions: Sessions,
    proxy: Callable[[str, int], Proxy],
) -> None:
    settings = config["connection_settings"]
    between = proxy(settings["host"], int(settings["port"]))
    settings.update(host=between.host, port=between.port, sslmode="disable", connect_timeout=60)

    async def block(connection: Any) -> None:
        async with connection:
            await asyncio.sleep(60)

    async def open_and_grow() -> None:
        connection = await use()
        between.deaf()
        if connection_type == "async":
            await connection.disconnect()
        tasks = [asyncio.create_task(block(connection)) for _ in range(4)]
        await asyncio.wait(tasks, timeout=0.3)

    async def open_first() -> None:
        await asyncio.wait([asyncio.create_task(use())], timeout=0.3)

    start = time.monotonic()
    asyncio.run(open_and_grow())
    asyncio.run(open_first())
    assert time.monotonic() - start < 10
    sessions.wait_until_gone()


def test_clearing_the_cache_leaves_the_block_of_a_busy_loop_alone(
    monkeypatch: pytest.MonkeyPatch, manager: PGConnectionManager, use: Using, sessions: Sessions
) -> None:
    async def be_busy_within_a_block() -> None:
        async with await use() as conn:
            in_block.set()
            cleared.wait(10)
            await conn.execute("SELECT 1")

    monkeypatch.setattr("flask_pgmonkey.manager._SECONDS_FOR_CLEARING", 0.1)
    in_block, cleared = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as thread:
        block = thread.submit(asyncio.run, be_busy_within_a_block())
        assert in_block.wait(10)
        manager.clear_cache()
        cleared.set()
        block.result(10)
    sessions.wait_until_gone()


# Many loops


def test_a_loop_that_ends_after_a_disconnect_that_raced_a_reopening(
    use: Using,
    manager: PGConnectionManager,
    config: Config,
    connection_type: Any,
    sessions: Sessions,
) -> None:
    async def main() -> None:
        # A worker is still connecting, and the disconnect waits for it.
        connection: Any = await manager.get_database_connection_from_dict(config, connection_type)
        closing = asyncio.create_task(connection.disconnect())
        for _ in range(3):
            await asyncio.sleep(0)
        async with connection as conn:
            await conn.execute("SELECT 1")
        await closing
        kept.append(connection)
        loop.stop()

    kept: list[Any] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    loop.run_forever()
    assert task.done()
    assert sessions.count() > 0
    loop.close()

    async def another() -> None:
        await use()

    asyncio.run(another())
    sessions.wait_until_gone()


def test_a_loop_that_is_closed_while_a_block_outlives_its_disconnect(
    use: Using, sessions: Sessions
) -> None:
    async def main() -> None:
        connection = await use()
        async with connection as conn:
            await connection.disconnect()
            await conn.execute("SELECT 1")
            loop.stop()
            await asyncio.sleep(60)

    loop = asyncio.new_event_loop()
    left = loop.create_task(main())
    loop.run_forever()
    loop.close()
    asyncio.run(use())
    sessions.wait_until_gone()
    loops.drop_task(left)


def test_a_hundred_loops_after_each_other(use: Using, sessions: Sessions) -> None:
    for _ in range(100):
        asyncio.run(use())
    sessions.wait_until_gone()


def test_two_loops_at_once(
    manager: PGConnectionManager, config: Config, connection_type: Any, sessions: Sessions
) -> None:
    async def work(first: int) -> list[int]:
        connection: Any = await manager.get_database_connection_from_dict(config, connection_type)

        async def ask(number: int) -> int:
            async with connection as conn:
                cursor = await conn.execute("SELECT %s::int", [number])
                return int((await cursor.fetchone())[0])

        return [
            answer
            for start in range(first, first + 1000, 10)
            for answer in await asyncio.gather(*map(ask, range(start, start + 10)))
        ]

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda first: asyncio.run(work(first)), (0, 1000)))
    assert answers == [list(range(1000)), list(range(1000, 2000))]
    sessions.wait_until_gone()


def test_each_loop_has_its_own_object_and_always_the_same(
    use: Using, manager: PGConnectionManager, connection_type: Any
) -> None:
    async def main() -> Any:
        connection = await use()
        assert await use() is connection
        assert list(manager.cache_info["connection_types"].values()) == [connection_type]
        return connection

    assert asyncio.run(main()) is not asyncio.run(main())
    assert manager.cache_info["size"] == 0


def test_an_object_on_another_loop_is_an_error_that_names_the_remedy(use: Using) -> None:
    async def enter(connection: Any) -> None:
        async with connection:
            pass

    async def main() -> None:
        connection = await use()
        for method in (connection.connect, connection.disconnect, lambda: enter(connection)):
            error = await asyncio.to_thread(fails_on_another_loop, method)
            assert "await manager.get_database_connection(" in error
        async with connection as conn:
            await conn.execute("SELECT 1")

    asyncio.run(main())


def fails_on_another_loop(method: Callable[[], Coroutine[Any, Any, None]]) -> str:
    with pytest.raises(RuntimeError, match="belongs to another event loop") as failed:
        asyncio.run(method())
    return str(failed.value)


class ProactorEventLoop(asyncio.SelectorEventLoop):
    """Windows' default loop, by its name."""


def test_a_loop_that_psycopg_cannot_use_is_an_error_that_names_the_remedy(use: Using) -> None:
    loop = ProactorEventLoop()
    try:
        with pytest.raises(RuntimeError, match="run your program with"):
            loop.run_until_complete(use())
    finally:
        loop.close()


def test_an_async_database_has_a_pool_on_each_loop_and_closes_only_its_own(
    config: Config, sessions: Sessions
) -> None:
    db, other = AsyncDatabase(config), AsyncDatabase(config)

    async def main() -> None:
        for one in (db, other):
            await one.connect()
            assert await one.fetch_value("SELECT 1") == 1
        await db.disconnect()
        assert await other.fetch_value("SELECT 2") == 2
        assert await db.fetch_value("SELECT 3") == 3

    for _ in range(3):
        asyncio.run(main())
    sessions.wait_until_gone()
