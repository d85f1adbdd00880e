"""Logins that change while the app runs, and logins that the server refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flask_pgmonkey import Database, PGConnectionManager
from flask_pgmonkey.connections import login_attempts
from flask_pgmonkey.connections.connect_errors import is_login_refused

from ..proxy import Proxy
from ..servers import PrivateServer

TYPES = ["normal", "pool", "async", "async_pool"]
MakeProxy = Callable[[str, int], Proxy]


@pytest.fixture(autouse=True)
def _no_refusals_are_left() -> Iterator[None]:
    yield
    login_attempts._refusals.clear()


class User:
    """Opens connections of one type, and asks who serves them."""

    def __init__(self, type_: Any, settings: dict[str, Any]) -> None:
        self._type = type_
        self._config = {"connection_settings": settings, "pool_settings": {"min_size": 0}}
        self._config["async_pool_settings"] = self._config["pool_settings"]
        self._manager = PGConnectionManager()

    def run(self, body: Callable[[Callable[[], Any]], Any]) -> None:
        """Call *body*, on a loop if need be, with what gives (or awaits) a backend's pid."""
        try:
            asyncio.run(self._run(body))
        finally:
            self._manager.clear_cache()

    async def _run(self, body: Callable[[Callable[[], Any]], Any]) -> None:
        try:
            await body(self._pid)
        finally:
            await self._manager.clear_cache_async()

    async def _pid(self) -> int:
        get = self._manager.get_database_connection_from_dict
        if self._type.startswith("async"):
            async with await get(self._config, self._type, resolve_env=True) as conn:
                return int(conn.info.backend_pid)

        def pid() -> int:
            with get(self._config, self._type, resolve_env=True) as conn:
                return int(conn.info.backend_pid)

        return await asyncio.to_thread(pid)


def terminate(server: PrivateServer) -> None:
    with server.connect() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'app'"
        )


@pytest.mark.parametrize("type_", TYPES)
def test_a_password_that_changes_at_the_server_is_asked_for_once_more(
    type_: str, private_server: PrivateServer, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(private_server.password)
    settings = private_server.settings()
    settings["password"] = {"from_command": ["cat", str(file)], "ttl": 3600}

    async def body(pid: Callable[[], Any]) -> None:
        first = await pid()
        file.write_text("another password")
        private_server.set_password("app", "another password")
        terminate(private_server)
        assert await pid() != first
        private_server.set_password("app", "a third")
        terminate(private_server)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            await pid()

    User(type_, settings).run(body)


@pytest.mark.parametrize("type_", TYPES)
def test_a_login_that_ends_takes_its_connection_with_it(
    type_: str, private_server: PrivateServer
) -> None:
    def login() -> dict[str, Any]:
        return {"user": "app", "password": private_server.password, "expiry": time.time() + 1.5}

    settings = private_server.settings(user="somebody", password=login)

    async def body(pid: Callable[[], Any]) -> None:
        first = await pid()
        assert await pid() == first
        await asyncio.sleep(1.6)
        assert await pid() != first

    User(type_, settings).run(body)


def test_a_connection_of_a_pool_is_replaced_before_its_login_ends(
    private_server: PrivateServer,
) -> None:
    expiry = time.time() + 100
    settings = private_server.settings(
        password=lambda: {"password": private_server.password, "expiry": expiry}
    )
    manager = PGConnectionManager()
    pool = manager.get_database_connection_from_dict({"connection_settings": settings}, "pool")
    with pool as conn:
        assert 85 < conn._expire_at - time.monotonic() < 96
    manager.clear_cache()


@pytest.mark.parametrize("type_", ["async", "async_pool"])
def test_asking_does_not_block_the_loop(type_: str, private_server: PrivateServer) -> None:
    def login() -> str:
        time.sleep(0.5)
        return private_server.password

    async def body(pid: Callable[[], Any]) -> None:
        opening = asyncio.create_task(pid())
        longest = 0.0
        while not opening.done():
            start = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - start)
        assert longest < 0.4
        await opening

    User(type_, private_server.settings(password=login)).run(body)


@pytest.mark.parametrize("type_", TYPES)
def test_while_logins_fail_there_is_one_at_a_time_and_those_who_wait_hear_of_it(
    type_: str, private_server: PrivateServer, proxy: MakeProxy
) -> None:
    between = proxy(private_server.host, private_server.port)
    settings = private_server.settings(port=between.port, password="wrong", sslmode="disable")
    settings["connect_timeout"] = 20
    users = [User(type_, settings) for _ in range(8)]  # who share nothing but the config

    def open_one(user: User) -> None:
        async def body(pid: Callable[[], Any]) -> None:
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                await pid()

        user.run(body)

    open_one(users[0])
    assert between.count == 1
    between.stall()
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(open_one, user) for user in users]
        time.sleep(1)
        assert between.count == 2
        between.resume()
        for one in running:
            one.result(30)
    assert between.count == 2

    private_server.set_password("app", "wrong")
    asked: list[int] = []

    async def body(pid: Callable[[], Any]) -> None:
        asked.append(await pid())

    with ThreadPoolExecutor(8) as threads:
        for one in [threads.submit(user.run, body) for user in users]:
            one.result(30)
    assert len(asked) == 8
    assert login_attempts._refusals == {}


def test_no_more_logins_fail_than_requests(private_server: PrivateServer, proxy: MakeProxy) -> None:
    between = proxy(private_server.host, private_server.port)
    settings = private_server.settings(port=between.port, sslmode="disable")
    db = Database({"connection_settings": settings, "pool_settings": {"min_size": 4}})
    db.fetch_value("SELECT 1")
    deadline = time.monotonic() + 10
    while db.pool.get_stats()["pool_available"] < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    private_server.set_password("app", "another password")
    terminate(private_server)
    while between._sockets:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = between.count

    def request(_: int) -> None:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            db.fetch_value("SELECT 1")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(request, range(100)))
    assert 1 <= between.count - before <= 100
    db.close()


@pytest.mark.parametrize(
    ("words", "is_refused"),
    [
        ('FATAL:  password authentication failed for user "app"', True),
        ("FATAL:  28P01: password authentication failed", True),
        ('FATAL:  role "temp" does not exist', True),
        ('FATAL:  PAM authentication failed for user "app"', True),
        ('FATAL:  database "shop" does not exist', False),
        ("Connection refused", False),
        ("FATAL:  sorry, too many clients already", False),
    ],
)
def test_a_refused_login_is_known_by_its_words(words: str, is_refused: bool) -> None:
    assert is_login_refused(psycopg.OperationalError(f"connection failed: {words}")) is is_refused
    assert not is_login_refused(ValueError(words))
