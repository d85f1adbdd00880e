"""The manager: one connection object for each config and type, whoever asks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from flask_pgmonkey import ConfigError, PGConnectionManager
from flask_pgmonkey.config import CONNECTION_TYPES

from .connections.every_type import AsyncCase, Case, SyncCase, case_for, sync_and_async, within
from .proxy import Proxy
from .servers import PrivateServer


@pytest.fixture(params=CONNECTION_TYPES)
def case(request: pytest.FixtureRequest, database: dict[str, Any]) -> Case:
    """A connection type on an empty database."""
    return case_for(request.param, database)


@pytest.fixture(params=CONNECTION_TYPES)
def fragile(request: pytest.FixtureRequest, private_server: PrivateServer) -> Case:
    """A connection type on the private server, over TCP with a password."""
    return case_for(request.param, private_server.settings())


@pytest.fixture(params=["pool", "async_pool"])
def fragile_pool(request: pytest.FixtureRequest, private_server: PrivateServer) -> Case:
    """Either pool on the private server."""
    return case_for(request.param, private_server.settings())


@pytest.fixture
def sync_case(database: dict[str, Any]) -> SyncCase:
    """A pool, for what has no twin."""
    return SyncCase("pool", database)


@pytest.fixture
def async_case(database: dict[str, Any]) -> AsyncCase:
    """An async pool, for what has no twin."""
    return AsyncCase("async_pool", database)


def _write(path: Path, settings: dict[str, Any], **sections: Any) -> Path:
    path.write_text(yaml.safe_dump({"connection_settings": settings, **sections}))
    path.chmod(0o600)
    return path


# Same content and type, same object


@sync_and_async
async def test_the_same_config_and_type_give_the_same_object(
    case: AsyncCase, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = PGConnectionManager()
    kind = case.connection_type
    connection = await manager.get_database_connection(config_file, kind)
    assert connection.connection_type == kind
    assert await manager.get_database_connection(config_file, kind) is connection
    assert (
        await manager.get_database_connection(str(config_file), connection_type=kind) is connection
    )
    monkeypatch.chdir(config_file.parent)
    assert await manager.get_database_connection(config_file.name, kind) is connection
    copy = _write(tmp_path / "copy.yaml", case.settings)
    assert await manager.get_database_connection(str(copy), kind) is connection
    mapping = {"connection_settings": {**case.settings, "port": str(case.settings["port"])}}
    assert await manager.get_database_connection_from_dict(mapping, kind) is connection
    case.assert_sessions(1)
    await manager.clear_cache_async()


@sync_and_async
async def test_another_config_or_manager_gives_another_object(
    case: AsyncCase, config_file: Path
) -> None:
    manager, other_manager = PGConnectionManager(), PGConnectionManager()
    kind = case.connection_type
    connection = await manager.get_database_connection(config_file, kind)
    other = {"connection_settings": {**case.settings, "application_name": "other"}}
    assert await manager.get_database_connection_from_dict(other, kind) is not connection
    assert await other_manager.get_database_connection(config_file, kind) is not connection
    case.assert_sessions(3)
    await manager.clear_cache_async()
    case.assert_sessions(1)
    await other_manager.clear_cache_async()


def test_each_type_has_its_own_object(config_file: Path) -> None:
    manager = PGConnectionManager()

    async def open_all() -> None:
        opened: list[Any] = [
            manager.get_database_connection(config_file, "normal"),
            manager.get_database_connection(config_file, "pool"),
            await manager.get_database_connection(config_file, "async"),
            await manager.get_database_connection(config_file, "async_pool"),
        ]
        assert [connection.connection_type for connection in opened] == [*CONNECTION_TYPES]
        assert len(set(map(id, opened))) == 4
        info = manager.cache_info
        assert info["size"] == 4
        assert sorted(info["connection_types"].values()) == sorted(CONNECTION_TYPES)
        assert len(info["connection_types"]) == 4
        assert repr(manager) == "<PGConnectionManager 4 cached>"
        await manager.clear_cache_async()
        assert manager.cache_info == {"size": 0, "connection_types": {}}

    asyncio.run(open_all())


def test_the_type_of_the_file_serves_where_none_is_given(
    sync_case: SyncCase, tmp_path: Path
) -> None:
    manager = PGConnectionManager()
    path = _write(tmp_path / "pool.yaml", sync_case.settings, connection_type="pool")
    pool = manager.get_database_connection(path)
    assert pool.connection_type == "pool"
    assert manager.get_database_connection(path, "pool") is pool
    without = manager.get_database_connection_from_dict({"connection_settings": sync_case.settings})
    assert without.connection_type == "normal"
    manager.clear_cache()


@pytest.mark.parametrize("kind", ["Pool", "asynch", "thread"])
def test_an_unknown_type_is_an_error_that_names_the_known_ones(
    config_file: Path, kind: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"'{kind}': use one of normal, pool, async, async_pool"):
        PGConnectionManager().get_database_connection(config_file, kind)


def test_a_mapping_in_place_of_a_path_is_an_error_that_names_the_other_function() -> None:
    mapping: Any = {"connection_settings": {"password": "hunter2"}}
    with pytest.raises(ConfigError, match="get_database_connection_from_dict") as raised:
        PGConnectionManager().get_database_connection(mapping)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("path", [None, 5.0, ["db.yaml"], "a\0b"])
def test_what_is_no_path_is_an_error_of_ours(path: Any) -> None:
    with pytest.raises(ConfigError):
        PGConnectionManager().get_database_connection(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        PGConnectionManager().get_database_connection(tmp_path / "nowhere.yaml")


@sync_and_async
async def test_row_factory_and_configure_of_the_manager_serve_every_type(
    case: AsyncCase, config_file: Path
) -> None:
    configured: list[Any] = []
    manager = PGConnectionManager(row_factory=dict_row, configure=configured.append)
    connection = await manager.get_database_connection(config_file, case.connection_type)
    async with connection as conn:
        assert await (await conn.execute("SELECT 1 AS n")).fetchone() == {"n": 1}
        assert configured == [conn]
    await manager.clear_cache_async()


def test_a_file_is_read_again_only_when_it_has_changed(sync_case: SyncCase, tmp_path: Path) -> None:
    path = _write(tmp_path / "named.yaml", {**sync_case.settings, "application_name": "one"})
    written = path.stat()
    manager = PGConnectionManager()
    first = manager.get_database_connection(path, "pool")
    _write(path, {**sync_case.settings, "application_name": "two"})
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    # Nothing tells the files apart without opening them.
    assert manager.get_database_connection(path, "pool") is first
    os.utime(path)
    second = manager.get_database_connection(path, "pool")
    assert second is not first
    with second as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("two",)
    manager.clear_cache()


# Racing callers open once


@sync_and_async
async def test_racing_callers_open_once(case: AsyncCase, config_file: Path) -> None:
    opened: list[Any] = []
    manager = PGConnectionManager(configure=opened.append)

    async def get(_: int) -> Any:
        return await manager.get_database_connection(config_file, case.connection_type)

    connections = await case.together(get, range(32))
    assert len({id(connection) for connection in connections}) == 1
    assert connections[0].connection_type == case.connection_type
    assert len(opened) == 1
    assert manager.cache_info["size"] == 1
    await manager.clear_cache_async()


@sync_and_async
async def test_racing_callers_share_the_error_of_one_attempt(
    fragile_pool: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate: Proxy = proxy(private_server.host, private_server.port)
    manager = PGConnectionManager()
    settings = {**fragile_pool.settings, "port": gate.port, "connect_timeout": 2}

    async def get(_: int) -> Any:
        return await manager.get_database_connection_from_dict(
            {"connection_settings": settings}, fragile_pool.connection_type
        )

    gate.deaf()
    with within(3):
        outcomes = await fragile_pool.together(get, range(32))
    assert gate.count == 1
    assert [type(one) for one in outcomes] == [type(outcomes[0])] * 32
    assert isinstance(outcomes[0], psycopg.OperationalError)
    assert len(set(map(id, outcomes))) == 32
    assert manager.cache_info["size"] == 0
    gate.resume()
    connection = await get(0)
    await connection.test_connection()
    await manager.clear_cache_async()


def test_a_cancelled_opener_hands_over(
    async_case: AsyncCase,
    private_server: PrivateServer,
    proxy: Callable[[str, int], Proxy],
) -> None:
    gate = proxy(private_server.host, private_server.port)
    manager = PGConnectionManager()
    settings = private_server.settings(port=gate.port, connect_timeout=20)

    async def race() -> None:
        def get() -> asyncio.Task[Any]:
            opening = manager.get_database_connection_from_dict(
                {"connection_settings": settings}, "async_pool"
            )
            return asyncio.ensure_future(opening)

        gate.stall()
        opener, first, second = get(), get(), get()
        while not gate.count:
            await asyncio.sleep(0.01)
        opener.cancel()
        await asyncio.wait([opener])
        assert opener.cancelled()
        gate.resume()
        connection = await first
        assert await second is connection
        await connection.test_connection()
        await manager.clear_cache_async()

    asyncio.run(race())


def test_an_interrupted_opener_hands_over(
    private_server: PrivateServer, proxy: Callable[[str, int], Proxy]
) -> None:
    gate = proxy(private_server.host, private_server.port)
    manager = PGConnectionManager()
    settings = private_server.settings(port=gate.port, connect_timeout=20)

    def get() -> Any:
        return manager.get_database_connection_from_dict({"connection_settings": settings}, "pool")

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    gate.stall()
    try:
        with ThreadPoolExecutor() as threads:
            interrupting = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGUSR1))
            waiting = threads.submit(lambda: (threading.Event().wait(0.1), get())[1])
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                get()
            interrupting.join()
            gate.resume()
            waiting.result(10).test_connection()
    finally:
        signal.signal(signal.SIGUSR1, before)
    manager.clear_cache()


# force_reload


@sync_and_async
async def test_force_reload_disturbs_no_block(case: AsyncCase, config_file: Path) -> None:
    case.run_on_server("CREATE TABLE notes (note text)")
    manager = PGConnectionManager()
    kind = case.connection_type
    old = await manager.get_database_connection(config_file, kind)
    async with old as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
        own = await case.value(conn, "SELECT pg_backend_pid()")
        new = await manager.get_database_connection(config_file, kind, True)
        assert new is not old
        assert await manager.get_database_connection(config_file, kind) is new
        async with new as other:
            assert await case.value(other, "SELECT pg_backend_pid()") != own
        assert await case.value(conn, "SELECT pg_backend_pid()") == own
    assert case.rows("SELECT note FROM notes") == [("kept",)]
    assert manager.cache_info["size"] == 1
    # What the old one had is closed; whoever still holds it is served by the new.
    await case.wait_for_sessions(1)
    async with old as conn:
        assert await case.value(conn, "SELECT pg_backend_pid()") != own
    case.assert_sessions(1)
    await manager.clear_cache_async()


@sync_and_async
async def test_force_reload_under_load_fails_no_request(case: AsyncCase, config_file: Path) -> None:
    config = yaml.safe_load(config_file.read_text())
    config["pool_settings"] = config["async_pool_settings"] = {"max_size": 4, "timeout": 30}
    manager = PGConnectionManager()
    kind = case.connection_type
    held = await manager.get_database_connection_from_dict(config, kind)
    finished = case.event()

    async def request(n: int) -> int:
        done = 0
        while not finished.is_set():
            connection = (
                held if n % 2 else await manager.get_database_connection_from_dict(config, kind)
            )
            async with connection as conn:
                done += await case.value(conn, "SELECT 1")
            await case.sleep(0)
        return done

    working = [case.start(request, n) for n in range(8)]
    try:
        for _ in range(15):
            await manager.get_database_connection_from_dict(config, kind, force_reload=True)
            await case.sleep(0.02)
    finally:
        finished.set()
    for one in working:
        assert await case.outcome(one) > 0
    assert manager.cache_info["size"] == 1
    newest = await manager.get_database_connection_from_dict(config, kind)
    size = newest.get_stats()["pool_size"] if case.is_pool else 1
    await case.wait_for_sessions(size)
    await manager.clear_cache_async()


@sync_and_async
async def test_a_force_reload_that_fails_keeps_the_old_object(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    manager = PGConnectionManager()
    config = {"connection_settings": fragile.settings}
    kind = fragile.connection_type
    old = await manager.get_database_connection_from_dict(config, kind)
    private_server.set_password("app", "another")
    with within(1), pytest.raises(psycopg.OperationalError, match="password authentication"):
        await manager.get_database_connection_from_dict(config, kind, force_reload=True)
    assert await manager.get_database_connection_from_dict(config, kind) is old
    async with old as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    await manager.clear_cache_async()


@sync_and_async
async def test_racing_reloads_leave_one_object(case: AsyncCase, config_file: Path) -> None:
    manager = PGConnectionManager()
    kind = case.connection_type

    async def reload(n: int) -> Any:
        return await manager.get_database_connection(config_file, kind, force_reload=n % 2 == 0)

    for _ in range(5):
        for connection in await case.together(reload, range(12)):
            async with connection as conn:
                assert await case.value(conn, "SELECT 1") == 1
    assert manager.cache_info["size"] == 1
    await case.wait_for_sessions(1)
    await manager.clear_cache_async()


# Clearing


@sync_and_async
async def test_clearing_closes_everything_and_the_next_call_opens_anew(
    case: AsyncCase, config_file: Path
) -> None:
    manager = PGConnectionManager()
    kind = case.connection_type
    first = await manager.get_database_connection(config_file, kind)
    assert [*manager.cache_info["connection_types"].values()] == [kind]
    await manager.clear_cache_async()
    await manager.clear_cache_async()
    case.assert_sessions(0)
    second = await manager.get_database_connection(config_file, kind)
    assert second is not first
    case.assert_sessions(1)
    await manager.clear_cache_async()


@sync_and_async
async def test_clearing_waits_for_no_borrower(case: AsyncCase, config_file: Path) -> None:
    manager = PGConnectionManager()
    connection = await manager.get_database_connection(config_file, case.connection_type)
    async with connection as conn:
        with within(2):
            await manager.clear_cache_async()
        assert await case.value(conn, "SELECT 1") == 1
    await case.wait_for_sessions(0)


@sync_and_async
async def test_who_waits_while_the_cache_is_cleared_leaves_nothing_forgotten_open(
    case: AsyncCase, config_file: Path
) -> None:
    config = yaml.safe_load(config_file.read_text())
    config["pool_settings"] = config["async_pool_settings"] = {"max_size": 1, "timeout": 30}
    manager = PGConnectionManager()
    kind = case.connection_type

    async def query(n: int) -> Any:
        connection = await manager.get_database_connection_from_dict(config, kind)
        async with connection as conn:
            await case.sleep(0.02)
            return await case.value(conn, "SELECT %s::int", n)

    for _ in range(5):
        working = [case.start(query, n) for n in range(6)]
        await case.sleep(0.03)
        await manager.clear_cache_async()
        working += [case.start(query, n) for n in range(6, 9)]
        assert [await case.outcome(one) for one in working] == [*range(9)]
    assert manager.cache_info["size"] == 1
    await case.wait_for_sessions(1)
    await manager.clear_cache_async()
    await case.wait_for_sessions(0)


@sync_and_async
async def test_an_object_that_is_used_after_clearing_is_in_the_cache_again(
    case: AsyncCase, config_file: Path
) -> None:
    manager = PGConnectionManager()
    kind = case.connection_type
    first = await manager.get_database_connection(config_file, kind)
    await manager.clear_cache_async()
    async with first as conn:
        assert await case.value(conn, "SELECT 1") == 1
    assert await manager.get_database_connection(config_file, kind) is first
    await manager.clear_cache_async()
    second = await manager.get_database_connection(config_file, kind)
    await first.connect()
    async with first as conn:
        pid = await case.value(conn, "SELECT pg_backend_pid()")
    async with second as conn:
        assert await case.value(conn, "SELECT pg_backend_pid()") == pid
    case.assert_sessions(1)
    await manager.clear_cache_async()


def test_clearing_that_is_cancelled_forgets_nothing_that_is_open(
    async_case: AsyncCase, config_file: Path
) -> None:
    manager = PGConnectionManager()

    async def clear_and_cancel() -> None:
        manager.get_database_connection(config_file, "pool")
        await manager.get_database_connection(config_file, "async_pool")
        await manager.get_database_connection(config_file, "async")
        clearing = asyncio.create_task(manager.clear_cache_async())
        await asyncio.sleep(0)
        clearing.cancel()
        await asyncio.wait([clearing])
        assert clearing.cancelled()
        assert manager.cache_info["size"] == 2
        await async_case.wait_for_sessions(2)
        await manager.clear_cache_async()
        await async_case.wait_for_sessions(0)

    asyncio.run(clear_and_cancel())


def test_sync_clearing_on_a_loop_with_async_objects_says_what_to_do(config_file: Path) -> None:
    manager = PGConnectionManager()

    async def clear() -> None:
        pool = manager.get_database_connection(config_file, "pool")
        async_pool = await manager.get_database_connection(config_file, "async_pool")
        with pytest.raises(RuntimeError, match=r"await manager\.clear_cache_async\(\)"):
            manager.clear_cache()
        pool.test_connection()
        await async_pool.test_connection()
        await manager.clear_cache_async()

    asyncio.run(clear())


# Event loops, threads, exit


@pytest.mark.parametrize("kind", ["async", "async_pool"])
def test_each_event_loop_has_its_own_object_which_ends_with_it(
    async_case: AsyncCase, config_file: Path, kind: Any
) -> None:
    manager = PGConnectionManager()

    async def get() -> Any:
        connection = await manager.get_database_connection(config_file, kind)
        assert await manager.get_database_connection(config_file, kind) is connection
        await connection.test_connection()
        return connection

    first = asyncio.run(get())
    async_case.assert_sessions(0)
    second = asyncio.run(get())
    assert second is not first
    async_case.assert_sessions(0)
    assert manager.cache_info["size"] == 0


@pytest.mark.parametrize("kind", ["async", "async_pool"])
def test_an_object_refuses_to_cross_loops(config_file: Path, kind: Any) -> None:
    manager = PGConnectionManager()

    async def get() -> Any:
        return await manager.get_database_connection(config_file, kind)

    async def enter() -> None:
        async with connection:
            pass

    connection = asyncio.run(get())
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(enter())


PROGRAM = """
import asyncio, sys
from flask_pgmonkey import PGConnectionManager

manager = PGConnectionManager()
normal = manager.get_database_connection(sys.argv[1], "normal")
pool = manager.get_database_connection(sys.argv[1], "pool")
borrowed = pool.borrow()

async def main():
    connection = await manager.get_database_connection(sys.argv[1], "async")
    async_pool = await manager.get_database_connection(sys.argv[1], "async_pool")
    async with connection as one, async_pool as other:
        await one.execute("SELECT 1")
        await other.execute("SELECT 1")

asyncio.run(main())
loop = asyncio.new_event_loop()
left_open = loop.run_until_complete(manager.get_database_connection(sys.argv[1], "async_pool"))
with normal as conn:
    conn.execute("SELECT 1")
print("done")
"""


def test_a_program_that_closes_nothing_exits_quietly(
    sync_case: SyncCase, config_file: Path
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(config_file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
    sync_case.assert_sessions(0)
