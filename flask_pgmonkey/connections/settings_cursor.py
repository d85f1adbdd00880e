"""Cursors whose statements bring settings along, where they begin a transaction.

A statement by itself gets BEGIN, settings and COMMIT into its round trip. What cannot have them
needs a transaction, and says so.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import TransactionStatus

from .local_settings import FindSettings, LocalSettings, needs_transaction
from .pipelining import Statement, run_together, run_together_async

if TYPE_CHECKING:
    from psycopg.abc import Params, PQGen, Query

    from .server_connection import ServerConnection
    from .server_connection_async import AsyncServerConnection

_BEGINS_OR_COPIES = re.compile(
    rb"(?:\s|;|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*(BEGIN|START\s+TRANSACTION|COPY)\b",
    re.IGNORECASE | re.DOTALL,
)


def lend_with_settings(
    conn: ServerConnection | AsyncServerConnection, find_settings: FindSettings
) -> None:
    """Have every transaction on *conn* begin with settings, until it goes back to its pool."""
    lent: Any = conn
    lent.record.find_settings = find_settings
    lent.cursor_factory = _with_settings(lent.cursor_factory)
    lent.server_cursor_factory = _with_settings(lent.server_cursor_factory)


class _Given(Statement):
    """The statement of a cursor that somebody has."""

    __slots__ = ("_binary", "_given", "_wants_prepare", "settings")

    def __init__(
        self,
        cursor: Any,
        query: Query,
        params: Params | None,
        prepare: bool | None,
        binary: bool | None,
        settings: LocalSettings,
    ) -> None:
        self.settings = settings
        self._given = cursor
        self._wants_prepare = prepare
        self._binary = binary
        super().__init__(cursor.connection, query, params)
        if found := _BEGINS_OR_COPIES.match(self._adapted.query):
            raise needs_transaction(b" ".join(found[1].upper().split()).decode())

    def send_gen(self, prepare: bool | None) -> PQGen[None]:
        yield from self._given._maybe_prepare_gen(
            self._adapted,
            prepare=self._wants_prepare if prepare is None else prepare,
            binary=self._binary,
        )

    def _make_cursor(self, conn: object) -> Any:
        self._given._reset()
        self._given._tx = Transformer(self._given)
        return self._given


def _statement_of(
    cursor: Any, query: Query, params: Params | None, prepare: bool | None, binary: bool | None
) -> _Given | None:
    """The statement that gets a transaction of its own; None where it needs none."""
    conn = cursor.connection
    settings = _settings_to_begin_with(conn)
    if settings is None:
        return None
    if cursor.closed:
        raise psycopg.InterfaceError("the cursor is closed")
    if conn._pipeline is not None:
        raise needs_transaction("a pipeline")
    if not conn.autocommit:
        raise needs_transaction("a query without autocommit")
    return _Given(cursor, query, params, prepare, binary, settings)


def _settings_to_begin_with(conn: Any) -> LocalSettings | None:
    """Those of the transaction that a statement would begin; None within one."""
    find_settings: FindSettings | None = conn.record.find_settings
    if find_settings is None or conn.pgconn.transaction_status != TransactionStatus.IDLE:
        return None
    return find_settings()


def _refuse_outside(cursor: Any, what: str) -> None:
    if _settings_to_begin_with(cursor.connection) is not None:
        raise needs_transaction(what)


class _SettingsCursor(psycopg.Cursor[Any]):
    __slots__ = ()

    def execute(
        self,
        query: Any,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Any:
        statement = _statement_of(self, query, params, prepare, binary)
        if statement is None:
            return super().execute(query, params, prepare=prepare, binary=binary)
        conn: Any = self.connection
        run_together(conn, [statement], settings=statement.settings)
        return statement.cursor()

    def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        _refuse_outside(self, "executemany()")
        super().executemany(query, params_seq, returning=returning)

    def stream(self, query: Any, params: Params | None = None, **options: Any) -> Iterator[Any]:
        _refuse_outside(self, "stream()")
        return super().stream(query, params, **options)

    def copy(self, statement: Any, params: Params | None = None, **options: Any) -> Any:
        _refuse_outside(self, "COPY")
        return super().copy(statement, params, **options)


class _AsyncSettingsCursor(psycopg.AsyncCursor[Any]):
    __slots__ = ()

    async def execute(
        self,
        query: Any,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Any:
        statement = _statement_of(self, query, params, prepare, binary)
        if statement is None:
            return await super().execute(query, params, prepare=prepare, binary=binary)
        conn: Any = self.connection
        await run_together_async(conn, [statement], settings=statement.settings)
        return statement.cursor()

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        _refuse_outside(self, "executemany()")
        await super().executemany(query, params_seq, returning=returning)

    def stream(
        self, query: Any, params: Params | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        _refuse_outside(self, "stream()")
        return super().stream(query, params, **options)

    def copy(self, statement: Any, params: Params | None = None, **options: Any) -> Any:
        _refuse_outside(self, "COPY")
        return super().copy(statement, params, **options)


class _SettingsServerCursor(psycopg.ServerCursor[Any]):
    __slots__ = ()

    def execute(self, query: Query, params: Params | None = None, **options: Any) -> Any:
        _refuse_outside(self, "a stream or a named cursor")
        return super().execute(query, params, **options)


class _AsyncSettingsServerCursor(psycopg.AsyncServerCursor[Any]):
    __slots__ = ()

    async def execute(self, query: Query, params: Params | None = None, **options: Any) -> Any:
        _refuse_outside(self, "a stream or a named cursor")
        return await super().execute(query, params, **options)


_OURS: tuple[tuple[type[Any], type[Any]], ...] = (
    (psycopg.ServerCursor, _SettingsServerCursor),
    (psycopg.AsyncServerCursor, _AsyncSettingsServerCursor),
    (psycopg.Cursor, _SettingsCursor),
    (psycopg.AsyncCursor, _AsyncSettingsCursor),
)


@cache
def _with_settings(cursor_class: type[Any]) -> type[Any]:
    """A class of cursors that do what those of *cursor_class* do, with settings."""
    for of_psycopg, own in _OURS:
        if issubclass(cursor_class, own):
            return cursor_class
        if issubclass(cursor_class, of_psycopg):
            return type(cursor_class.__name__, (own, cursor_class), {"__slots__": ()})
    raise TypeError(f"cursor_factory={cursor_class!r} makes no cursors of psycopg's")
