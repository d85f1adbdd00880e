"""Databases outside Flask: queries over a pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from psycopg.rows import Row

from .config import Config, ConfigSource, read_config
from .connections import Configure, PoolConnection
from .manager import PGConnectionManager
from .queries import IsolationLevel, Queries, Transaction, outermost_transaction
from .queries_async import AsyncQueries, AsyncTransaction, outermost_async_transaction

if TYPE_CHECKING:
    from psycopg.rows import AsyncRowFactory, RowFactory, TupleRow

    from .connections.server_connection import ServerConnection
    from .connections.server_connection_async import AsyncServerConnection

T = TypeVar("T")


class Database(Queries[Row]):
    """Queries over a pool, outside Flask. Each call borrows a connection and gives it back.

    Opens its pool at the first query. Safe to share between threads and to hold across a fork.

    :param config: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the config.
    :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
    :raises ConfigError: for a config that cannot be used.
    """

    @overload
    def __init__(
        self: Database[TupleRow],
        config: ConfigSource,
        *,
        row_factory: None = None,
        configure: Configure | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: RowFactory[Row],
        configure: Configure | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> None: ...
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
        """The pool; it opens when somebody borrows from it."""
        return self.manager.pool_for(self._config)

    @contextmanager
    def transaction(
        self, isolation_level: IsolationLevel | None = None, read_only: bool | None = None
    ) -> Iterator[Transaction[Row]]:
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
        conn.record.source.release(conn)


class PooledAsyncQueries(AsyncQueries[Row]):
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
        pool = await self.manager.async_pool_for(self.config)
        await pool.connect()

    async def disconnect(self) -> None:
        """Close the pool of this loop; the next query opens it again."""
        pool = self.manager.cached_async_pool(self.config)
        if pool is not None:
            await pool.disconnect()

    @asynccontextmanager
    async def transaction(
        self, isolation_level: IsolationLevel | None = None, read_only: bool | None = None
    ) -> AsyncIterator[AsyncTransaction[Row]]:
        """A block whose queries, those of the object it gives, are committed together.

        An exception rolls all of them back. Borrows one connection for the block.
        """
        pool = await self.manager.async_pool_for(self.config)
        conn = await pool.borrow(autocommit=True)
        try:
            async with outermost_async_transaction(conn, isolation_level, read_only) as transaction:
                yield transaction
        finally:
            await pool.release(conn)

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        pool = await self.manager.async_pool_for(self.config)
        conn = await pool.borrow(autocommit=True)
        try:
            return await work(conn)
        finally:
            await pool.release(conn)


class AsyncDatabase(PooledAsyncQueries[Row]):
    """:class:`Database` for async code: each event loop that uses it has its own pool.

    :param config: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection; awaited if it returns an awaitable.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the config.
    :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
    :raises ConfigError: for a config that cannot be used.
    """

    @overload
    def __init__(
        self: AsyncDatabase[TupleRow],
        config: ConfigSource,
        *,
        row_factory: None = None,
        configure: Configure | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: AsyncRowFactory[Row],
        configure: Configure | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> None: ...
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
