"""Queries, given a source of connections.

A single query is durable when it returns: connections are borrowed in autocommit, so that it costs
one round trip. ``transaction()`` groups several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import psycopg
from psycopg.rows import scalar_row

from .config import Config, ConfigSource, read_config
from .connections import AsyncPoolConnection, Configure, PoolConnection
from .connections.opening import AsyncServerConnection, ServerConnection
from .manager import PGConnectionManager

if TYPE_CHECKING:
    from psycopg.abc import Params, Query, QueryNoTemplate
    from psycopg.rows import AsyncRowFactory, RowFactory

IsolationLevel: TypeAlias = psycopg.IsolationLevel


class Queries(ABC):
    """The queries of everything that has a source of connections."""

    @abstractmethod
    def _begin_use(self) -> ServerConnection:
        """A connection in autocommit, or in the transaction that the query joins."""

    @abstractmethod
    def _end_use(self, conn: ServerConnection) -> None:
        """The query is over."""

    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
    ) -> Any:
        """The first row of the result, or None if there is none.

        :param query: a string, a :mod:`psycopg.sql` object, or on Python 3.14 a template string.
        :param params: the values of its placeholders.
        :param row_factory: how to make the row; the database's own without it.
        """
        conn = self._begin_use()
        try:
            return _run(conn, query, params, row_factory).fetchone()
        finally:
            self._end_use(conn)

    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
    ) -> list[Any]:
        """All rows of the result. Parameters as for :meth:`fetch_one`."""
        conn = self._begin_use()
        try:
            return _run(conn, query, params, row_factory).fetchall()
        finally:
            self._end_use(conn)

    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
    ) -> Any:
        """The first column of the first row, or None if there is no row.

        Parameters as for :meth:`fetch_one`; with a *row_factory*, what it makes is the value.
        """
        return self.fetch_one(query, params, row_factory=row_factory or scalar_row)

    def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a query whose rows nobody wants.

        :return: the number of rows it affected; 0 for a command that affects none.
        """
        conn = self._begin_use()
        try:
            return max(0, _run(conn, query, params, None).rowcount)
        finally:
            self._end_use(conn)

    def execute_many(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a query with each set of parameters, all of them or none.

        :return: the number of rows affected in all.
        """
        # At once: a generator that queries would wait for the connection that executemany holds.
        params_list = list(params_seq)
        conn = self._begin_use()
        try:
            with conn.transaction(), conn.cursor() as cursor:
                cursor.executemany(query, params_list)
                return max(0, cursor.rowcount)
        finally:
            self._end_use(conn)


class Transaction(Queries):
    """What ``transaction()`` gives: the same queries, within the transaction.

    :ivar connection: the psycopg connection that the transaction is on.
    """

    def __init__(self, conn: ServerConnection) -> None:
        self._conn: ServerConnection | None = conn

    def __repr__(self) -> str:
        return f"<Transaction {'over' if self._conn is None else 'open'}>"

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The psycopg connection that the transaction is on."""
        return self._begin_use()

    def cursor(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        """A cursor; takes what :meth:`psycopg.Connection.cursor` takes."""
        return cast("psycopg.Cursor[Any]", self._begin_use().cursor(*args, **kwargs))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A savepoint: an exception in its block undoes what the block did."""
        with nested_transaction(self._begin_use()) as nested:
            yield nested

    def _begin_use(self) -> ServerConnection:
        if self._conn is None:
            raise RuntimeError("this transaction is over: use it within its block")
        return self._conn

    def _end_use(self, conn: ServerConnection) -> None:
        pass

    def _end(self) -> None:
        self._conn = None


@contextmanager
def outermost_transaction(
    conn: ServerConnection, isolation_level: IsolationLevel | None, read_only: bool | None
) -> Iterator[Transaction]:
    """A transaction on a connection that is in none.

    Isolation level and access mode go with BEGIN, so they cost no round trip.
    """
    before = conn.isolation_level, conn.read_only
    if isolation_level is not None:
        conn.isolation_level = isolation_level
    if read_only is not None:
        conn.read_only = read_only
    try:
        with nested_transaction(conn) as transaction:
            yield transaction
    finally:
        if not conn.closed and before != (conn.isolation_level, conn.read_only):
            conn.isolation_level, conn.read_only = before


@contextmanager
def nested_transaction(conn: ServerConnection) -> Iterator[Transaction]:
    """A transaction, or a savepoint where one is open."""
    with conn.transaction():
        transaction = Transaction(conn)
        try:
            yield transaction
        finally:
            transaction._end()


def _run(
    conn: ServerConnection,
    query: Query,
    params: Params | None,
    row_factory: RowFactory[Any] | None,
) -> psycopg.Cursor[Any]:
    # As conn.cursor() makes it, without what execute() checks again.
    cursor = conn.cursor_factory(conn, row_factory=row_factory or conn.row_factory)
    # The signature wants template strings apart, which take no parameters.
    return cursor.execute(query, params)  # type: ignore[arg-type]


class Database(Queries):
    """Queries over a pool, outside Flask. Each call borrows a connection and gives it back.

    Opens its pool at the first query. Safe to share between threads and to hold across a fork.

    :param config: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the config.
    :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
    :raises ConfigError: for a config that cannot be used.
    """

    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: RowFactory[Any] | None = None,
        configure: Configure | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> None:
        self._config = read_config(
            config, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults
        )
        self.manager: PGConnectionManager = PGConnectionManager(
            row_factory=row_factory, configure=configure
        )

    def __repr__(self) -> str:
        return f"<Database {self._config.target}>"

    @property
    def pool(self) -> PoolConnection:
        """The pool, opened if need be."""
        pool: PoolConnection = self.manager.connection_for(self._config, "pool")
        return pool

    @contextmanager
    def transaction(
        self, isolation_level: IsolationLevel | None = None, read_only: bool | None = None
    ) -> Iterator[Transaction]:
        """A block whose queries, those of the object it gives, are committed together.

        An exception rolls all of them back. Borrows one connection for the block.
        """
        conn = self._begin_use()
        try:
            with outermost_transaction(conn, isolation_level, read_only) as transaction:
                yield transaction
        finally:
            self._end_use(conn)

    def close(self) -> None:
        """Close the pool; the next query opens it again."""
        self.manager.clear_cache()

    def _begin_use(self) -> ServerConnection:
        return self.pool.borrow(autocommit=True)

    def _end_use(self, conn: ServerConnection) -> None:
        pool: PoolConnection = conn.ledger.owner
        pool.release(conn)


class AsyncQueries(ABC):
    """:class:`Queries` for async code."""

    @abstractmethod
    async def _begin_use(self) -> AsyncServerConnection:
        """A connection in autocommit, or in the transaction that the query joins."""

    @abstractmethod
    async def _end_use(self, conn: AsyncServerConnection) -> None:
        """The query is over."""

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
        conn = await self._begin_use()
        try:
            return await (await _run_async(conn, query, params, row_factory)).fetchone()
        finally:
            await self._end_use(conn)

    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> list[Any]:
        """All rows of the result. Parameters as for :meth:`fetch_one`."""
        conn = await self._begin_use()
        try:
            return await (await _run_async(conn, query, params, row_factory)).fetchall()
        finally:
            await self._end_use(conn)

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
        conn = await self._begin_use()
        try:
            return max(0, (await _run_async(conn, query, params, None)).rowcount)
        finally:
            await self._end_use(conn)

    async def execute_many(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a query with each set of parameters, all of them or none.

        :return: the number of rows affected in all.
        """
        params_list = list(params_seq)
        conn = await self._begin_use()
        try:
            async with conn.transaction(), conn.cursor() as cursor:
                await cursor.executemany(query, params_list)
                return max(0, cursor.rowcount)
        finally:
            await self._end_use(conn)


class AsyncTransaction(AsyncQueries):
    """What ``transaction()`` gives: the same queries, within the transaction."""

    def __init__(self, conn: AsyncServerConnection) -> None:
        self._conn: AsyncServerConnection | None = conn

    def __repr__(self) -> str:
        return f"<AsyncTransaction {'over' if self._conn is None else 'open'}>"

    @property
    def connection(self) -> psycopg.AsyncConnection[Any]:
        """The psycopg connection that the transaction is on."""
        return self._connection_in_use()

    def cursor(self, *args: Any, **kwargs: Any) -> psycopg.AsyncCursor[Any]:
        """A cursor; takes what :meth:`psycopg.AsyncConnection.cursor` takes."""
        return cast("psycopg.AsyncCursor[Any]", self._connection_in_use().cursor(*args, **kwargs))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """A savepoint: an exception in its block undoes what the block did."""
        async with nested_async_transaction(self._connection_in_use()) as nested:
            yield nested

    def _connection_in_use(self) -> AsyncServerConnection:
        if self._conn is None:
            raise RuntimeError("this transaction is over: use it within its block")
        return self._conn

    async def _begin_use(self) -> AsyncServerConnection:
        return self._connection_in_use()

    async def _end_use(self, conn: AsyncServerConnection) -> None:
        pass

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


async def _run_async(
    conn: AsyncServerConnection,
    query: Query,
    params: Params | None,
    row_factory: AsyncRowFactory[Any] | None,
) -> psycopg.AsyncCursor[Any]:
    cursor = conn.cursor() if row_factory is None else conn.cursor(row_factory=row_factory)
    return await cursor.execute(cast("QueryNoTemplate", query), params)


class PooledAsyncQueries(AsyncQueries):
    """Async queries over a pool: each event loop that uses them has its own."""

    def __init__(self, manager: PGConnectionManager, config: Config) -> None:
        self.manager = manager
        self.config = config

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.target}>"

    async def connect(self) -> None:
        """Open the pool, so that a server that cannot be reached shows at the start.

        :raises psycopg.OperationalError: at once, with the server's words.
        """
        await self._pool()

    async def disconnect(self) -> None:
        """Close the pool of this loop; the next query opens it again."""
        pool: AsyncPoolConnection | None = self.manager.cached_connection(self.config, "async_pool")
        if pool is not None:
            await pool.disconnect()

    @asynccontextmanager
    async def transaction(
        self, isolation_level: IsolationLevel | None = None, read_only: bool | None = None
    ) -> AsyncIterator[AsyncTransaction]:
        """A block whose queries, those of the object it gives, are committed together.

        An exception rolls all of them back. Borrows one connection for the block.
        """
        conn = await self._begin_use()
        try:
            async with outermost_async_transaction(conn, isolation_level, read_only) as transaction:
                yield transaction
        finally:
            await self._end_use(conn)

    async def _pool(self) -> AsyncPoolConnection:
        pool: AsyncPoolConnection = await self.manager.connection_for(self.config, "async_pool")
        return pool

    async def _begin_use(self) -> AsyncServerConnection:
        return await (await self._pool()).borrow(autocommit=True)

    async def _end_use(self, conn: AsyncServerConnection) -> None:
        pool: AsyncPoolConnection = conn.ledger.owner
        await pool.release(conn)


class AsyncDatabase(PooledAsyncQueries):
    """:class:`Database` for async code: each event loop that uses it has its own pool.

    :param config: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection; awaited if it returns an awaitable.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the config.
    :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
    :raises ConfigError: for a config that cannot be used.
    """

    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        configure: Configure | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> None:
        super().__init__(
            PGConnectionManager(row_factory=row_factory, configure=configure),
            read_config(
                config, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults
            ),
        )

    async def disconnect(self) -> None:
        """Close the pool, and nothing that is not this object's own."""
        await self.manager.clear_cache_async()
