"""A hostile server holds nobody, and gets no password in clear where the config forbids that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent
from time import monotonic
from typing import Any

import psycopg
import pytest

from flask_pgmonkey import PGConnectionManager
from flask_pgmonkey.config import CONNECTION_TYPES, read_config
from flask_pgmonkey.errors import ServerSilentError

from ..fake_server import (
    Act,
    FakeServer,
    demand_clear_password,
    demand_hashed_password,
    demand_scram_rounds,
    fall_silent,
    flood,
    flood_ping,
)
from ..programs import run_program
from ..servers import PASSWORD

StartFake = Callable[[Act], FakeServer]

PATIENCE = 30.0

# These run in processes of their own, because the thread that is left behind goes on computing.
PROLOGUE = """
from flask_pgmonkey import PGConnectionManager
from flask_pgmonkey.config import read_config

config = read_config(config)

def connect(manager, type_):
    if not type_.startswith("async"):
        return manager.connection_for(config, type_)
    async def connect_async():
        return await manager.connection_for(config, type_)
    return asyncio.run(connect_async())

def attempt(type_):
    began_at = time.monotonic()
    try:
        connect(PGConnectionManager(), type_)
    except BaseException as error:
        print(type(error).__name__, error)
    print(time.monotonic() - began_at, flush=True)
"""


def config_for(server: FakeServer, **sections: Any) -> dict[str, Any]:
    settings = sections.pop("connection_settings", {})
    return {
        "connection_settings": {
            "host": server.host,
            "port": server.port,
            "user": "app",
            "password": PASSWORD,
            "dbname": "shop",
            "connect_timeout": 2,
            **settings,
        },
        **sections,
    }


def run_against(server: FakeServer, body: str, before: str = "") -> list[str]:
    """The lines that a program prints which attempts to connect to *server*."""
    ended = run_program(before + PROLOGUE + dedent(body), config_for(server), timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


@pytest.mark.parametrize("implementation", ["binary", "python"])
@pytest.mark.parametrize("type_", CONNECTION_TYPES)
def test_a_server_that_has_libpq_compute_for_ever_is_left_in_time(
    start_fake: StartFake, type_: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSYCOPG_IMPL", implementation)
    server = start_fake(demand_scram_rounds)

    first, took, again, took_again = run_against(
        server, f"attempt({type_!r})\nattempt({type_!r})\n"
    )

    assert first.startswith("ConnectionTimeout the server at 127.0.0.1, port")
    assert "sslmode=verify-full" in first
    assert "in an earlier login" in again
    assert float(took_again) < float(took) < PATIENCE / 2
    assert server.count == 1, "the second attempt reached it and held another thread"


def test_other_tasks_run_while_libpq_computes(start_fake: StartFake) -> None:
    ticks, *_ = run_against(
        start_fake(demand_scram_rounds),
        """
        async def main():
            ticks = 0
            async def connect():
                await PGConnectionManager().connection_for(config, "async")
            connecting = asyncio.ensure_future(connect())
            while not connecting.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert "has had libpq compute" in str(connecting.exception())
            print(ticks)
        asyncio.run(main())
        """,
    )
    assert int(ticks) > 20


def test_other_greenlets_run_while_libpq_computes(start_fake: StartFake) -> None:
    ticks, *_ = run_against(
        start_fake(demand_scram_rounds),
        """
        ticks = 0
        connecting = gevent.spawn(attempt, "pool")
        while not connecting.dead:
            gevent.sleep(0.01)
            ticks += 1
        print(ticks)
        """,
        before="import gevent, gevent.monkey\ngevent.monkey.patch_all()\n",
    )[-1:]
    assert int(ticks) > 20


@pytest.mark.parametrize("type_", CONNECTION_TYPES)
def test_ctrl_c_leaves_a_server_that_has_libpq_compute(start_fake: StartFake, type_: str) -> None:
    interrupted, took, refused, _ = run_against(
        start_fake(demand_scram_rounds),
        f"""
        import os, signal
        threading.Timer(1.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        attempt({type_!r})
        attempt({type_!r})
        """,
    )
    assert interrupted.strip() == "KeyboardInterrupt"
    assert float(took) < 2
    assert "in an earlier login" in refused


def test_a_forked_child_is_not_refused_what_its_parent_is(start_fake: StartFake) -> None:
    server = start_fake(demand_scram_rounds)
    run_against(
        server,
        """
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork
        attempt("normal")
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            attempt("normal")
            os._exit(0)
        os.waitpid(child, 0)
        """,
    )
    assert server.count == 2


@pytest.mark.parametrize("type_", CONNECTION_TYPES)
def test_a_server_that_falls_silent_after_the_login_is_left_in_time(
    start_fake: StartFake, type_: str
) -> None:
    settings = {"sync_settings": {"work_mem": "16MB"}, "async_settings": {"work_mem": "16MB"}}
    config = read_config(config_for(start_fake(fall_silent), **settings))
    manager = PGConnectionManager()
    began_at = monotonic()

    async def connect() -> None:
        connecting = manager.connection_for(config, type_)
        if type_.startswith("async"):
            await connecting

    with pytest.raises(psycopg.errors.ConnectionTimeout, match=r"did not answer within 2\.00 s"):
        asyncio.run(connect())

    assert monotonic() - began_at < PATIENCE / 2


def test_a_server_that_falls_silent_in_configure_is_left_in_time(start_fake: StartFake) -> None:
    server = start_fake(fall_silent)
    config = read_config(config_for(server))

    def configure(conn: Any) -> Any:
        return conn.execute("SELECT 1")

    async def connect_async(type_: str) -> None:
        await PGConnectionManager(configure=configure).connection_for(config, type_)

    def connect(type_: str) -> None:
        if type_.startswith("async"):
            asyncio.run(connect_async(type_))
        else:
            PGConnectionManager(configure=configure).connection_for(config, type_)

    began_at = monotonic()
    with ThreadPoolExecutor() as threads:
        attempts = [threads.submit(connect, type_) for type_ in CONNECTION_TYPES]
        for attempt in attempts:
            with pytest.raises(ServerSilentError, match=r"than connect_timeout allows \(2\.00 s\)"):
                attempt.result()
    assert monotonic() - began_at < PATIENCE / 2


@pytest.mark.parametrize("act", [flood, flood_ping])
@pytest.mark.parametrize("type_", ["pool", "async_pool"])
def test_a_server_that_never_stops_to_talk_is_left_in_time(
    start_fake: StartFake, type_: str, act: Act
) -> None:
    pool = {"check_on_checkout": True, "timeout": 0.6}
    server = start_fake(act)
    config = read_config(config_for(server, pool_settings=pool, async_pool_settings=pool))
    manager = PGConnectionManager()

    def borrow() -> None:
        with manager.connection_for(config, type_):
            pass

    async def borrow_async() -> None:
        async with await manager.connection_for(config, type_):
            pass

    began_at = monotonic()
    with pytest.raises(psycopg.OperationalError, match="could be had within"):
        asyncio.run(borrow_async()) if type_ == "async_pool" else borrow()
    manager.clear_cache()
    assert monotonic() - began_at < PATIENCE / 2
    assert server.count > 1, "it gave up without another connection"


SAFE = {"require_auth": "scram-sha-256"}
SUGGESTED = {**SAFE, "sslmode": "verify-full", "sslrootcert": "system"}  # by create-config
ACTS = [demand_clear_password, demand_hashed_password, fall_silent]  # which lets in without one


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("settings", [SAFE, SUGGESTED])
@pytest.mark.parametrize("type_", CONNECTION_TYPES)
def test_no_server_gets_a_password_that_scram_does_not_protect(
    start_fake: StartFake, type_: str, settings: dict[str, str], act: Act
) -> None:
    server = start_fake(act)
    config = read_config(config_for(server, connection_settings=settings))

    async def connect() -> None:
        connecting = PGConnectionManager().connection_for(config, type_)
        if type_.startswith("async"):
            await connecting

    with pytest.raises(psycopg.OperationalError, match=r'"scram-sha-256" failed|SSL') as caught:
        asyncio.run(connect())

    assert server.passwords == []
    assert server.count == 1, "it was tried again"
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_the_fake_server_gets_a_password_where_nothing_forbids_it(start_fake: StartFake) -> None:
    server = start_fake(demand_clear_password)
    with pytest.raises(psycopg.OperationalError, match="wrong password"):
        PGConnectionManager().connection_for(read_config(config_for(server)), "normal")
    assert server.passwords == [PASSWORD]
