"""Async queries, given connections to run them on. The twin of ``queries.py``."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import Row, scalar_row, tuple_row

from . import after_commit
from .connections.cursor import AsyncCursor, is_stale_plan
from .mistakes import (
    explain_missing_names,
    explain_parameters,
    isolation_level_of,
    require_row_factory,
)
from .queries import IsolationLevel
from .retries import MAY_PASS, Retries, require_awaitable, within_transaction
from .rows import instead_of, require_one_row, row_into, rows_into, value_into

if TYPE_CHECKING:
    from psycopg.abc import Params, Query, QueryNoTemplate
    from psycopg.rows import AsyncRowFactory
    from typing_extensions import TypeVarTuple, Unpack

    from .batches_async import AsyncBatch
    from .connections.server_connection_async import AsyncServerConnection
    from .plans import Plan

    Arguments = TypeVarTuple("Arguments")

T = TypeVar("T")
Transaction_co = TypeVar("Transaction_co", covariant=True)

_IDLE = TransactionStatus.IDLE


class AsyncQueries(ABC, Generic[Row]):
    """:class:`Queries` for async code."""

    @abstractmethod
    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        """The outcome of *work*, given a connection in autocommit, or in the transaction that the
        query joins."""

    @overload
    async def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> T | None: ...
    @overload
    async def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> T | None: ...
    @overload
    async def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> Row | None: ...
    async def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """The first row of the result, or None if there is none.

        :param query: a string, a :mod:`psycopg.sql` object, or on Python 3.14 a template string.
        :param params: the values of its placeholders.
        :param row_factory: how to make the row, as psycopg has it; the database's own without it.
        :param into: the class of the row instead: see *Rows of your own classes* in the docs.
        :raises RowMismatchError: where the columns do not fit *into*.
        """
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)

        async def fetch(conn: AsyncServerConnection) -> Any:
            cursor = await _execute(conn, query, params, factory)
            row = await cursor.fetchone()
            return row if into is None else row_into(into, cursor, row)

        return await self._run(fetch)

    @overload
    async def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> T: ...
    @overload
    async def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> T: ...
    @overload
    async def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> Row: ...
    async def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """The row of a result that has one row. Parameters as for :meth:`fetch_one`.

        :raises NoRowError: if there is none.
        :raises SeveralRowsError: if there are more; what the query wrote is not undone.
        """
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)

        async def fetch(conn: AsyncServerConnection) -> Any:
            cursor = await _execute(conn, query, params, factory)
            row = await cursor.fetchone()
            require_one_row(cursor)
            return row if into is None else row_into(into, cursor, row)

        return await self._run(fetch)

    @overload
    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> list[T]: ...
    @overload
    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> list[T]: ...
    @overload
    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> list[Row]: ...
    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """All rows of the result. Parameters as for :meth:`fetch_one`."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)

        async def fetch(conn: AsyncServerConnection) -> Any:
            cursor = await _execute(conn, query, params, factory)
            rows = await cursor.fetchall()
            return rows if into is None else rows_into(into, cursor, rows)

        return await self._run(fetch)

    @overload
    async def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> T | None: ...
    @overload
    async def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> T | None: ...
    @overload
    async def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> Any: ...
    async def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """The first column of the first row, or None if there is no row.

        Parameters as for :meth:`fetch_one`; with a *row_factory*, what it makes is the value, and
        with *into* the value is of that type: as it is, or by a call with it.
        """
        factory: AsyncRowFactory[Any] = (
            row_factory or scalar_row if into is None else instead_of(row_factory, scalar_row)
        )

        async def fetch(conn: AsyncServerConnection) -> Any:
            value = await (await _execute(conn, query, params, factory)).fetchone()
            return value if into is None else value_into(into, value)

        return await self._run(fetch)

    async def fetch_json(self, query: Query, params: Params | None = None) -> bytes:
        """All rows of the result as a JSON array of objects, in UTF-8, which PostgreSQL makes.

        ``[]`` if there is none. Parameters as for :meth:`fetch_one`. How it writes numbers, times
        and the rest: see *JSON and CSV* in the docs.

        :raises psycopg.errors.SyntaxError: for a statement that is no query, and for several.
        """

        async def fetch(conn: AsyncServerConnection) -> bytes:
            return await _fetch_json(conn, query, params)

        return await self._run(fetch)

    async def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a statement, for its effect and not for its rows.

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

    def batch(self) -> AsyncBatch[Row]:
        """A block that collects queries: they go to the server at its end, in one round trip, all
        or nothing, and an exception in it sends none.

        In a transaction they are part of that, else they are one of their own.
        """
        from .batches_async import AsyncBatch  # what many apps never use

        return AsyncBatch(self._run)

    async def explain(
        self, query: Query, params: Params | None = None, *, analyze: bool = False
    ) -> Plan:
        """How PostgreSQL would run a query: its plan, whose ``str()`` is a text.

        :param analyze: run it too, to measure what it does. That happens in a transaction that is
            rolled back, in a savepoint where one is open; what transactions do not undo, such as
            the next value of a sequence, stays done.
        :raises psycopg.errors.SyntaxError: for a statement that has no plan, and for several.
        """

        async def explain(conn: AsyncServerConnection) -> Plan:
            async with _transaction_to_explain(conn, analyze):
                return await _explain(conn, query, params, analyze)

        return await self._run(explain)


explain_missing_names(AsyncQueries)


class AsyncTransaction(AsyncQueries[Row]):
    """What ``transaction()`` gives: the same queries, within the transaction."""

    def __init__(self, conn: AsyncServerConnection) -> None:
        self._conn: AsyncServerConnection | None = conn
        self._after_commit = conn.record.after_commit

    def __repr__(self) -> str:
        return f"<AsyncTransaction {'over' if self._conn is None else 'open'}>"

    @property
    def connection(self) -> psycopg.AsyncConnection[Row]:
        """The psycopg connection that the transaction is on."""
        return self._hand_out()

    def cursor(self, *args: Any, **kwargs: Any) -> psycopg.AsyncCursor[Any]:
        """A cursor; takes what :meth:`psycopg.AsyncConnection.cursor` takes."""
        return cast("psycopg.AsyncCursor[Any]", self._hand_out().cursor(*args, **kwargs))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction[Row]]:
        """A savepoint: an exception in its block undoes what the block did."""
        async with nested_async_transaction(self._begin_use()) as nested:
            yield nested

    def on_commit(self, fn: Callable[[], object]) -> None:
        """Have *fn* called when all is committed: after the COMMIT of the outermost block.

        A coroutine function too: what it gives is awaited. Those of a transaction are called in
        their order, outside of it. What is rolled back, with its savepoint too, takes its functions
        along. One that raises is logged, and keeps no other from being called.

        :raises RuntimeError: where the outermost transaction was begun by hand.
        """
        self._begin_use()
        after_commit.add(self._after_commit, fn, takes_coroutines=True)

    def _hand_out(self) -> AsyncServerConnection:
        conn = self._begin_use()
        conn.record.is_handed_out = True
        return conn

    def _begin_use(self) -> AsyncServerConnection:
        if self._conn is None:
            raise RuntimeError("this transaction is over: use it within its block")
        return self._conn

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        return await work(self._begin_use())

    def _end(self) -> None:
        self._conn = None


class AsyncTransactionalQueries(AsyncQueries[Row], Generic[Transaction_co, Row]):
    """:class:`TransactionalQueries` for async code."""

    @abstractmethod
    def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> AbstractAsyncContextManager[Transaction_co]:
        """A block whose queries are committed together, or rolled back on an exception."""

    @abstractmethod
    async def _is_in_transaction(self) -> bool:
        """Whether a transaction is open that a query here would join."""

    async def run_transaction(
        self,
        fn: Callable[[Transaction_co, Unpack[Arguments]], Awaitable[T]],
        *args: Unpack[Arguments],
        isolation_level: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        retries: int = 3,
    ) -> T:
        """What *fn*, a coroutine function, gives with the transaction and *args*, once that is
        committed.

        It is called again, in a transaction of its own, where one ends with SQLSTATE 40001 or 40P01
        (serialization failure, deadlock), be it at COMMIT. Before that it waits: up to 10 ms at
        first, twice as much each time, and a second at most.

        :param retries: how many times it is called again. None of them begins when the time of a
            ``db.timeout()`` around it is up.
        :return: None where *fn* raises :exc:`psycopg.Rollback`.
        :raises psycopg.Error: that of the last time.
        :raises RuntimeError: within a transaction.
        """
        if await self._is_in_transaction():
            raise within_transaction()
        allowed = Retries(fn, retries)
        while True:
            value: Any = None  # where the block swallows a Rollback
            try:
                async with self.transaction(isolation_level, read_only) as transaction:
                    value = fn(transaction, *args)
                    require_awaitable(value, fn)
                    value = await value
                return cast("T", value)
            except MAY_PASS as error:
                pause = allowed.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)


@asynccontextmanager
async def outermost_async_transaction(
    conn: AsyncServerConnection,
    isolation_level: IsolationLevel | str | None,
    read_only: bool | None,
) -> AsyncIterator[AsyncTransaction[Any]]:
    """:func:`outermost_transaction`, on the running loop."""
    level = isolation_level_of(isolation_level)
    # Not where it was begun by hand.
    conn.record.after_commit = [] if conn.pgconn.transaction_status == _IDLE else None
    before = conn.isolation_level, conn.read_only
    if level is not None:
        await conn.set_isolation_level(level)
    if read_only is not None:
        await conn.set_read_only(read_only)
    try:
        async with nested_async_transaction(conn) as transaction:
            yield transaction
    finally:
        conn.record.after_commit = None
        if not conn.closed and before != (conn.isolation_level, conn.read_only):
            await conn.set_isolation_level(before[0])
            await conn.set_read_only(before[1])


@asynccontextmanager
async def nested_async_transaction(
    conn: AsyncServerConnection,
) -> AsyncIterator[AsyncTransaction[Any]]:
    """A transaction, or a savepoint where one is open."""
    async with conn.transaction() as block:
        transaction: AsyncTransaction[Any] = AsyncTransaction(conn)
        try:
            yield transaction
        except psycopg.Rollback as rollback:
            if cast("object", rollback.transaction) is transaction:
                rollback.transaction = block
            raise
        finally:
            transaction._end()


async def _execute(
    conn: AsyncServerConnection,
    query: Query,
    params: Params | None,
    row_factory: AsyncRowFactory[Any] | None,
) -> psycopg.AsyncCursor[Any]:
    if row_factory is None:
        row_factory = conn.row_factory
    elif type(row_factory) is not FunctionType:
        require_row_factory(row_factory)
    cursor = conn.cursor(row_factory=row_factory)
    try:
        return await cursor.execute(cast("QueryNoTemplate", query), params)
    except TypeError:
        explain_parameters(params)
        raise


async def _execute_many(
    conn: AsyncServerConnection, query: Query, params_list: list[Params]
) -> int:
    async with conn.transaction(), conn.cursor() as cursor:
        try:
            await cursor.executemany(query, params_list)
        except TypeError:
            for params in params_list:
                explain_parameters(params)
            raise
        return max(0, cursor.rowcount)


async def _fetch_json(conn: AsyncServerConnection, query: Query, params: Params | None) -> bytes:
    from .connections.enclosing import enclosing_async_cursor  # what not every app uses
    from .json_rows import enclosure_for_json, read_json

    cursor = enclosing_async_cursor(conn, enclosure_for_json(conn.pgconn))
    try:
        await cursor.execute(cast("QueryNoTemplate", query), params)
    except TypeError:
        explain_parameters(params)
        raise
    if cursor.pgresult is None:
        await cursor.fetchone()  # in a pipeline, the result is there when a row is asked for
    return read_json(conn.pgconn, cursor.pgresult)


def _transaction_to_explain(
    conn: AsyncServerConnection, analyze: bool
) -> AbstractAsyncContextManager[object]:
    # Also for settings of transactions, whatever cursor asks for the plan.
    if analyze or conn.record.find_settings is not None:
        return conn.transaction(force_rollback=True)
    return nullcontext()


async def _explain(
    conn: AsyncServerConnection, query: Query, params: Params | None, analyze: bool
) -> Plan:
    from .plans import explaining, note_refusal, read_plan  # few explain

    query = explaining(query, analyze)
    cursor = conn.cursor(row_factory=tuple_row)
    if isinstance(cursor, psycopg.AsyncClientCursor):
        # It would send several statements as one query, and EXPLAIN stands before the first alone.
        query, params = cast("Query", cursor.mogrify(cast("QueryNoTemplate", query), params)), None
        cursor = AsyncCursor(conn, row_factory=tuple_row)
    try:
        # Nor does psycopg send several in the protocol for binary results.
        await cursor.execute(cast("QueryNoTemplate", query), params, prepare=False, binary=True)
    except psycopg.errors.SyntaxError as error:
        note_refusal(error)
        raise
    except TypeError:
        explain_parameters(params)
        raise
    await cursor.fetchone()
    return read_plan(cursor.pgresult)
