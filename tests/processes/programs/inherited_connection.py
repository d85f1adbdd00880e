"""A psycopg connection of the parent is of no use in the child, and no harm."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import psycopg

from flask_pgmonkey import PGConnectionManager
from tests.processes.forking import in_child

config = sys.argv[1]
manager = PGConnectionManager()


def refusal(use: Callable[[], object]) -> str:
    try:
        use()
    except psycopg.InterfaceError as error:
        return str(error)
    return "it worked"


def check(conn: psycopg.Connection | psycopg.AsyncConnection) -> bool:
    """In the child: closed for psycopg's purposes, and nothing happens on the socket."""
    if isinstance(conn, psycopg.Connection):
        conn.close()
        answer = refusal(lambda: conn.execute("SELECT 1"))
    else:
        asyncio.run(conn.close())
        answer = refusal(lambda: asyncio.run(use_async(conn)))
    assert "opened by the parent process" in answer, answer
    return conn.closed


async def use_async(conn: psycopg.AsyncConnection) -> None:
    await conn.execute("SELECT 1")


async def fork_with_async_pool() -> None:
    pool = await manager.get_database_connection(config, "async_pool")
    async with pool as conn:
        pid = conn.info.backend_pid
        assert in_child(lambda: check(conn))
        answer = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
        assert answer == (pid,)


with manager.get_database_connection(config, "pool") as conn:
    assert in_child(lambda: check(conn))
    assert conn.execute("SELECT pg_backend_pid()").fetchone() == (conn.info.backend_pid,)
asyncio.run(fork_with_async_pool())
