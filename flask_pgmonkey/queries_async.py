"""Async queries, given connections to run them on. The twin of ``queries.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row

from .connections.cursor import is_stale_plan
from .connections.server_connection_async import AsyncServerConnection
from .queries import IsolationLevel

if TYPE_CHECKING:
    from psycopg.abc import Params, Query, QueryNoTemplate
    from psycopg.rows import AsyncRowFactory

T = TypeVar("T")


class AsyncQueries(ABC):
    """:class:`Queries` for async code."""

    @abstractmethod
    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        """The outcome of *work*, given a connection in autocommit, or in the transaction that the
        query joins."""

    async def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> Any:
        """The first row of the result, or None if there is none.

        :param query: a string, a :mod:`psycopg.sql` object, or on Python 3.14 a template string.
        :param params: the values of its placeholders.
        :param row_factory: how to make the row; the database's own without it.
        """

        async def fetch(conn: AsyncServerConnection) -> Any:
            return await (await _execute(conn, query, params, row_factory)).fetchone()

        return await self._run(fetch)

    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> list[Any]:
        """All rows of the result. Parameters as for :meth:`fetch_one`."""

        async def fetch(conn: AsyncServerConnection) -> list[Any]:
            return await (await _execute(conn, query, params, row_factory)).fetchall()

        return await self._run(fetch)

    async def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> Any:
        """The first column of the first row, or None if there is no row.

        Parameters as for :meth:`fetch_one`; with a *row_factory*, what it makes is the value.
        """
        return await self.fetch_one(query, params, row_factory=row_factory or scalar_row)

    async def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a query whose rows nobody wants.

        :return: the number of rows it affected; 0 for a command that affects none.
        """

        async def run(conn: AsyncServerConnection) -> int:
            return max(0, (await _execute(conn, query, params, None)).rowcount)

        return await self._run(run)

    async def execute_many(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a query with each set of parameters, all of them or none.

        :return: the number of rows affected in all.
        """
        params_list = list(params_seq)

        async def run(conn: AsyncServerConnection) -> int:
            is_outermost = conn.pgconn.transaction_status == TransactionStatus.IDLE
            try:
                return await _execute_many(conn, query, params_list)
            except psycopg.Error as error:
                if not (is_outermost and is_stale_plan(error) and not error.diag.context):
                    raise
            return await _execute_many(conn, query, params_list)

        return await self._run(run)


class AsyncTransaction(AsyncQueries):
    """What ``transaction()`` gives: the same queries, within the transaction."""

    def __init__(self, conn: AsyncServerConnection) -> None:
        self._conn: AsyncServerConnection | None = conn

    def __repr__(self) -> str:
        return f"<AsyncTransaction {'over' if self._conn is None else 'open'}>"

    @property
    def connection(self) -> psycopg.AsyncConnection[Any]:
        """The psycopg connection that the transaction is on."""
        return self._begin_use()

    def cursor(self, *args: Any, **kwargs: Any) -> psycopg.AsyncCursor[Any]:
        """A cursor; takes what :meth:`psycopg.AsyncConnection.cursor` takes."""
        return cast("psycopg.AsyncCursor[Any]", self._begin_use().cursor(*args, **kwargs))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """A savepoint: an exception in its block undoes what the block did."""
        async with nested_async_transaction(self._begin_use()) as nested:
            yield nested

    def _begin_use(self) -> AsyncServerConnection:
        if self._conn is None:
            raise RuntimeError("this transaction is over: use it within its block")
        return self._conn

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        return await work(self._begin_use())

    def _end(self) -> None:
        self._conn = None


@asynccontextmanager
async def outermost_async_transaction(
    conn: AsyncServerConnection, isolation_level: IsolationLevel | None, read_only: bool | None
) -> AsyncIterator[AsyncTransaction]:
    """:func:`outermost_transaction`, on the running loop."""
    before = conn.isolation_level, conn.read_only
    if isolation_level is not None:
        await conn.set_isolation_level(isolation_level)
    if read_only is not None:
        await conn.set_read_only(read_only)
    try:
        async with nested_async_transaction(conn) as transaction:
            yield transaction
    finally:
        if not conn.closed and before != (conn.isolation_level, conn.read_only):
            await conn.set_isolation_level(before[0])
            await conn.set_read_only(before[1])


@asynccontextmanager
async def nested_async_transaction(
    conn: AsyncServerConnection,
) -> AsyncIterator[AsyncTransaction]:
    """A transaction, or a savepoint where one is open."""
    async with conn.transaction():
        transaction = AsyncTransaction(conn)
        try:
            yield transaction
        finally:
            transaction._end()


async def _execute(
    conn: AsyncServerConnection,
    query: Query,
    params: Params | None,
    row_factory: AsyncRowFactory[Any] | None,
) -> psycopg.AsyncCursor[Any]:
    cursor = conn.cursor() if row_factory is None else conn.cursor(row_factory=row_factory)
    return await cursor.execute(cast("QueryNoTemplate", query), params)


async def _execute_many(
    conn: AsyncServerConnection, query: Query, params_list: list[Params]
) -> int:
    async with conn.transaction(), conn.cursor() as cursor:
        await cursor.executemany(query, params_list)
        return max(0, cursor.rowcount)
