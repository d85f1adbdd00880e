from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types import TypeInfo

from flask_pgmonkey import ConfigError, PGConnectionManager
from flask_pgmonkey.connections.connect_errors import copy_for_waiter, notes_of

Configure = Callable[[Any], Any]


async def set_up(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("SET application_name = 'set up'")


async def set_up_named(conn: psycopg.AsyncConnection[Any], *, name: str) -> None:
    await conn.execute("SET application_name = 'set up'")


class SetUp:
    async def __call__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await set_up(conn)


def begin_set_up(conn: psycopg.AsyncConnection[Any]) -> Awaitable[None]:
    return set_up(conn)


def open_and_close(config_file: Path, type_: Any, configure: Configure) -> None:
    manager = PGConnectionManager(configure=configure)

    async def on_a_loop() -> None:
        connection = await manager.get_database_connection(config_file, type_)
        async with connection as conn:
            cursor = await conn.execute("SHOW application_name")
            assert await cursor.fetchone() == ("set up",)
        await manager.clear_cache_async()

    if type_.startswith("async"):
        asyncio.run(on_a_loop())
    else:
        manager.get_database_connection(config_file, type_)
        manager.clear_cache()


@pytest.mark.parametrize("type_", ["normal", "pool", "async", "async_pool"])
@pytest.mark.parametrize(
    "configure", [set_up, partial(set_up_named, name="hunter2"), SetUp(), begin_set_up]
)
def test_what_has_to_be_awaited_is_for_async_connections(
    config_file: Path, type_: str, configure: Configure
) -> None:
    if type_.startswith("async"):
        open_and_close(config_file, type_, configure)
        return
    with pytest.raises(ConfigError, match="this connection is sync: give a plain func") as caught:
        open_and_close(config_file, type_, configure)
    assert "test_configuring." in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_coroutine_function_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    nowhere = tmp_path / "db.yaml"
    nowhere.write_text("connection_settings: {host: 127.0.0.1, port: 1}")
    with pytest.raises(ConfigError, match="coroutine function"):
        open_and_close(nowhere, "pool", set_up)


@pytest.mark.parametrize("type_", ["normal", "pool", "async", "async_pool"])
def test_an_exception_keeps_its_type_and_says_that_it_came_from_configure(
    config_file: Path, type_: str
) -> None:
    def query_what_is_not_there(conn: Any) -> Any:
        return conn.execute("SELECT * FROM not_there")

    with pytest.raises(psycopg.errors.UndefinedTable) as caught:
        open_and_close(config_file, type_, query_what_is_not_there)
    note = notes_of(caught.value)[-1]
    assert note.startswith("Raised by configure, tests.connections.test_configuring.test_an_exc")
    assert note.endswith("query_what_is_not_there, on a new connection.")
    assert notes_of(copy_for_waiter(caught.value)) == notes_of(caught.value)


def test_a_configure_that_does_not_await_is_told_that_it_could(config_file: Path) -> None:
    def register(conn: Any) -> None:
        info: Any = TypeInfo.fetch(conn, "int4")
        try:
            info.register(conn)
        finally:
            if asyncio.iscoroutine(info):
                info.close()

    open_and_close(config_file, "normal", register)
    with pytest.raises(AttributeError, match="'coroutine' object has no attribute") as caught:
        open_and_close(config_file, "async", register)
    assert "have it return an awaitable" in notes_of(caught.value)[0]
    del caught
    gc.collect()  # here, where Python may complain of the coroutine
