"""Running the user's ``configure`` on a new connection, and saying of an error that it is its."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Coroutine
from contextvars import Context
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from ..errors import ConfigError

if TYPE_CHECKING:
    from .protocols import AnyConnection
    from .server_connection_base import Configure


def require_plain(configure: Configure | None) -> None:
    """Refuse a coroutine function for a sync connection, which could not await it."""
    if inspect.iscoroutinefunction(configure) or inspect.iscoroutinefunction(
        getattr(configure, "__call__", None)  # noqa: B004 - of an object, which may be async
    ):
        raise _needs_plain(configure)


def run(configure: Configure, conn: AnyConnection) -> None:
    """Call *configure* with a new sync connection, in an empty context: the workers of a pool have
    none either.

    :raises ConfigError: if it gives something to await.
    """
    try:
        done = Context().run(configure, conn)
    except Exception as error:
        _note(error, configure)
        raise
    if inspect.isawaitable(done):
        if isinstance(done, Coroutine):
            done.close()  # or Python would warn that nobody awaited it
        raise _needs_plain(configure)
    _require_idle(conn, configure)


async def run_async(configure: Configure, conn: AnyConnection) -> None:
    """:func:`run` with a new async connection; awaits what *configure* gives, if it can."""
    is_awaited = False
    try:
        done = Context().run(configure, conn)
        if inspect.isawaitable(done):
            is_awaited = True
            await done  # not in another task, which the opening would not know for its own
    except Exception as error:
        _note(error, configure, "" if is_awaited else _AWAIT)
        raise
    _require_idle(conn, configure)


_AWAIT = (
    " It was called with a psycopg.AsyncConnection, whose methods give coroutines: have it return"
    " an awaitable then."
)


def _needs_plain(configure: object) -> ConfigError:
    return ConfigError(
        f"configure, {_name(configure)}, is a coroutine function, and this connection is sync:"
        " give a plain function, which may return an awaitable where it is called with a"
        " psycopg.AsyncConnection."
    )


def _name(configure: object) -> str:
    function = getattr(configure, "func", configure)  # of a partial
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}.{name}"


def _note(error: Exception, configure: object, hint: str = "") -> None:
    text = f"Raised by configure, {_name(configure)}, on a new connection.{hint}"
    vars(error).setdefault("__notes__", []).append(text)
    if sys.version_info < (3, 11) and error.__cause__ is None:
        error.__cause__ = RuntimeError(text)  # Tracebacks show no notes there.


def _require_idle(conn: AnyConnection, configure: Configure) -> None:
    """Refuse a new connection on which *configure* left a transaction open."""
    status = conn.pgconn.transaction_status
    if status != TransactionStatus.IDLE:
        raise psycopg.ProgrammingError(
            f"configure, {_name(configure)}, left a connection in status"
            f" {TransactionStatus(status).name}; it must leave no transaction open"
        )
