"""Databases outside Flask, for async code: queries over a pool for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakKeyDictionary, ref

from psycopg.rows import Row

from . import after_commit
from .config import Config, ConfigSource, read_config
from .connections import Configure
from .connections.blocks import entering_frame, let_dropped_generators_end, may_be_dropped
from .database import origin_of_database
from .manager import PGConnectionManager
from .queries import IsolationLevel, refuse_options_of_nested
from .queries_async import (
    AsyncTransaction,
    AsyncTransactionalQueries,
    nested_async_transaction,
    outermost_async_transaction,
)

if TYPE_CHECKING:
    from types import FrameType

    from psycopg.rows import AsyncRowFactory, TupleRow

    from .connections.local_settings import FindSettings
    from .connections.server_connection_async import AsyncServerConnection

T = TypeVar("T")


class PooledAsyncQueries(AsyncTransactionalQueries[AsyncTransaction[Row], Row]):
    """Async queries over a pool: each event loop that uses them has its own.

    :param find_settings: gives those with which each transaction begins.
    """

    def __init__(
        self,
        manager: PGConnectionManager,
        config: Config,
        find_settings: FindSettings | None = None,
    ) -> None:
        self.manager = manager
        self.config = config
        self._find_settings = find_settings

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

    async def refresh_types(self) -> None:
        """Ask the database again for the types that the config and *types* name, after a migration.

        By itself that is done when a connection is opened, at most once a minute, where types are
        missing or a migration was met.
        """
        pool = await self.manager.async_pool_for(self.config)
        await pool.refresh_types()

    @asynccontextmanager
    async def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> AsyncIterator[AsyncTransaction[Row]]:
        """A block whose queries, those of the object it gives, are committed together.

        An exception rolls all of them back. Borrows one connection for the block.

        :param isolation_level: psycopg's, or its SQL words, such as ``"serializable"``.
        """
        async with self._without_callbacks(isolation_level, read_only) as transaction:
            yield transaction
        await after_commit.call_and_await_all(transaction._after_commit)

    @asynccontextmanager
    async def _without_callbacks(
        self, isolation_level: IsolationLevel | str | None, read_only: bool | None
    ) -> AsyncIterator[AsyncTransaction[Row]]:
        """:meth:`transaction`, whose functions after the commit are the caller's to call."""
        pool = await self.manager.async_pool_for(self.config)
        conn = await pool.borrow(autocommit=True)
        try:
            if self._find_settings is not None:
                _lend_with_settings(conn, self._find_settings)
            async with outermost_async_transaction(conn, isolation_level, read_only) as transaction:
                yield transaction
        finally:
            await pool.release(conn)

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        pool = await self.manager.async_pool_for(self.config)
        conn = await pool.borrow(autocommit=True)
        try:
            if self._find_settings is not None:
                _lend_with_settings(conn, self._find_settings)
            return await work(conn)
        finally:
            await pool.release(conn)

    async def _is_in_transaction(self) -> bool:
        return False


def _lend_with_settings(conn: AsyncServerConnection, find_settings: FindSettings) -> None:
    from .connections.settings_cursor import lend_with_settings  # what many apps never use

    lend_with_settings(conn, find_settings)


class _TaskTransaction:
    """The open transaction of a task, and the frame that entered it."""

    __slots__ = ("conn", "frame")

    def __init__(self, conn: AsyncServerConnection, frame: FrameType) -> None:
        self.conn = conn
        self.frame = frame


class AsyncDatabase(PooledAsyncQueries[Row]):
    """:class:`Database` for async code: each event loop that uses it has its own pool, and each
    task its own transaction.

    :param config: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection; awaited if it returns an awaitable.
    :param types: further types of the database, as a mapping from the name of each to what it
        becomes: an Enum, a class with fields for a composite, or None for the type's own.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the config.
    :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
    :param direct: connect as ``direct_settings`` say, past a transaction pooler.
    :raises ConfigError: for a config that cannot be used.
    """

    @overload
    def __init__(
        self: AsyncDatabase[TupleRow],
        config: ConfigSource,
        *,
        row_factory: None = None,
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        direct: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: AsyncRowFactory[Row],
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        direct: bool = False,
    ) -> None: ...
    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        direct: bool = False,
    ) -> None:
        read = read_config(
            config, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults
        )
        super().__init__(
            PGConnectionManager(
                row_factory=row_factory,
                configure=configure,
                types=types,
                find_origin=partial(origin_of_database, ref(self)),
            ),
            read.direct() if direct else read,
        )
        self._of_task: WeakKeyDictionary[asyncio.Task[Any], _TaskTransaction] = WeakKeyDictionary()

    @asynccontextmanager
    async def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> AsyncIterator[AsyncTransaction[Row]]:
        """A block whose queries are committed together, or rolled back on an exception.

        Borrows one connection for the block, which the queries of this object join in the same
        task. Nested, it is a savepoint, which takes no *isolation_level* and no *read_only*.

        :param isolation_level: psycopg's, or its SQL words, such as ``"serializable"``.
        """
        frame = entering_frame()
        task = asyncio.current_task()
        joined = await self._joined(task)
        if joined is not None:
            refuse_options_of_nested(isolation_level, read_only)
            async with nested_async_transaction(joined) as transaction:
                yield transaction
            return
        async with super().transaction(isolation_level, read_only) as transaction:
            if task is not None:
                self._of_task[task] = _TaskTransaction(transaction._begin_use(), frame)
            try:
                yield transaction
            finally:
                if task is not None:
                    del self._of_task[task]  # before the end: nothing joins what ends

    async def disconnect(self) -> None:
        """Close the pool, and nothing that is not this object's own."""
        await self.manager.clear_cache_async()

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        joined = await self._joined(asyncio.current_task()) if self._of_task else None
        return await (super()._run(work) if joined is None else work(joined))

    async def _is_in_transaction(self) -> bool:
        return await self._joined(asyncio.current_task()) is not None

    async def _joined(self, task: asyncio.Task[Any] | None) -> AsyncServerConnection | None:
        """The connection of the task's open transaction."""
        if task is None:
            return None
        opened = self._of_task.get(task)
        if opened is not None and may_be_dropped(opened.frame):
            await let_dropped_generators_end()
            opened = self._of_task.get(task)
        return opened.conn if opened is not None else None
