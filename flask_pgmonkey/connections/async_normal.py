"""The ``async`` connection type: one server connection on one loop. The twin of ``normal.py``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from ..config import Config
from .failures import can_pass, seconds
from .liveness import IDLE_BEFORE_PING, Pulse, is_connected, ping_async
from .loops import end_with_running_loop, release_from_loop, require_own_loop
from .opening import AsyncServerConnection, Configure, get_attributes
from .racing import AsyncRacers

if TYPE_CHECKING:
    from psycopg.rows import AsyncRowFactory

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_PAUSE_BETWEEN_ATTEMPTS = 0.1


class _ProcessState:
    """What an async connection object has in one process: after a fork the child starts anew."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.conn: AsyncServerConnection | None = None
        self.openings: AsyncRacers[AsyncServerConnection] = AsyncRacers()
        self.free = asyncio.Event()
        self.holder: asyncio.Task[Any] | None = None  # the task whose block it is
        self.held_by = ""
        self.held_since = 0.0
        self.lent: AsyncServerConnection | None = None
        self.nested: list[AbstractAsyncContextManager[Any]] = []


class AsyncNormalConnection:
    """One server connection on one event loop, opened again when it died.

    The block gets a :class:`psycopg.AsyncConnection`; its end commits, or rolls back on an
    exception. One block at a time: other tasks wait, at most ``async_pool_settings.timeout``. A
    block nested in the same task is a savepoint. Belongs to the loop that opened it, and closes
    when that loop ends.

    :param config: which server, which settings.
    :param configure: called with every new psycopg connection; awaited if it returns an awaitable.
    :param row_factory: how the connection makes rows; tuples without it.
    """

    connection_type = "async"

    def __init__(
        self,
        config: Config,
        *,
        configure: Configure | None = None,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> None:
        self.config = config
        self._timeout = config.async_pool.timeout
        self._configure = configure
        self._row_factory = row_factory
        self._successor: AsyncNormalConnection | None = None
        self._states: dict[int, _ProcessState] = {}

    def __repr__(self) -> str:
        state = self._state()
        if state.holder is not None:
            return f"<AsyncNormalConnection {self.config.target} in use>"
        is_open = state.conn is not None and not state.conn.closed
        return f"<AsyncNormalConnection {self.config.target} {'idle' if is_open else 'closed'}>"

    # Opening and closing

    async def connect(self) -> None:
        """Open the connection; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        :raises RuntimeError: on another loop than the object's own.
        """
        await self._open(self._state_on_own_loop())

    async def disconnect(self) -> None:
        """Close the connection; one that is in use closes at the end of its block. The next block
        opens it again."""
        state = self._state_on_own_loop()
        conn, state.conn = state.conn, None
        if conn is not None and state.holder is None:
            await conn.close()
        if state.loop is not None:
            release_from_loop(self, state.loop)

    async def retire(self, successor: AsyncNormalConnection) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        await self.disconnect()
        self._state().free.set()

    async def close_on_loop(self, deadline: float) -> None:
        """:meth:`disconnect`, which waits for nobody."""
        await self.disconnect()

    def finish(self) -> None:
        """Close where no loop runs any more that could do it."""
        state = self._state()
        for conn in (state.conn, state.lent):
            if conn is not None:
                conn.pgconn.finish()
        state.conn = None

    def tasks_of_its_own(self) -> Collection[asyncio.Task[Any]]:
        """None."""
        return ()

    def _state(self) -> _ProcessState:
        try:
            return self._states[os.getpid()]
        except KeyError:
            return self._states.setdefault(os.getpid(), _ProcessState())

    def _state_on_own_loop(self) -> _ProcessState:
        state = self._state()
        state.loop = require_own_loop(state.loop, self)
        return state

    async def _open(self, state: _ProcessState) -> AsyncServerConnection:
        return state.conn or await state.openings.run("connection", lambda: self._open_new(state))

    async def _open_new(self, state: _ProcessState) -> AsyncServerConnection:
        if state.conn is None:
            state.conn = await AsyncServerConnection.open(
                self.config, self.config.async_settings, self._configure, self._row_factory
            )
            end_with_running_loop(self)
        return state.conn

    async def _reopen(self, state: _ProcessState, deadline: float) -> AsyncServerConnection:
        while True:
            try:
                return await self._open(state)
            except psycopg.OperationalError as error:
                if not can_pass(error) or monotonic() + _PAUSE_BETWEEN_ATTEMPTS >= deadline:
                    raise
            await asyncio.sleep(_PAUSE_BETWEEN_ATTEMPTS)

    # Blocks

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        return await self._enter_block()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        return await self._leave_block(exc_type, exc, tb)

    async def _enter_block(self) -> psycopg.AsyncConnection[Any]:
        state = self._state_on_own_loop()
        if state.holder is asyncio.current_task() and state.lent is not None:
            return await self._enter_nested_block(state, state.lent)
        deadline = monotonic() + self._timeout
        if not await self._take_turn(state, deadline) and self._successor is not None:
            return await self._successor._enter_block()
        try:
            conn = await self._live_connection(state, deadline)
            if conn.autocommit != self.config.autocommit:
                await conn.set_autocommit(self.config.autocommit)
        except BaseException:
            self._end_turn(state)
            raise
        state.lent = conn
        return conn

    async def _take_turn(self, state: _ProcessState, deadline: float) -> bool:
        """Wait for this task's turn; False if a successor serves it instead.

        :raises psycopg_pool.PoolTimeout: at the deadline, naming the holder.
        """
        while state.holder is not None and self._successor is None:
            state.free.clear()
            try:
                await asyncio.wait_for(state.free.wait(), max(0.0, deadline - monotonic()))
            except asyncio.TimeoutError:
                if state.holder is not None and self._successor is None:
                    raise PoolTimeout(
                        f"the async connection to {self.config.target} did not come free within"
                        f" {seconds(self._timeout)}: {state.held_by} has held it for"
                        f" {seconds(monotonic() - state.held_since)}. Use the async_pool type where"
                        " tasks work at the same time"
                    ) from None
        if self._successor is not None:
            return False
        state.holder = task = asyncio.current_task()
        state.held_by = f"task {task.get_name()!r}" if task is not None else "a callback"
        state.held_since = monotonic()
        return True

    def _end_turn(self, state: _ProcessState) -> None:
        state.lent = None
        state.holder = None
        state.free.set()

    async def _live_connection(
        self, state: _ProcessState, deadline: float
    ) -> AsyncServerConnection:
        conn = state.conn
        if conn is None:
            return await self._open(state)
        if await self._is_alive(conn):
            return conn
        await conn.close()
        state.conn = None
        return await self._reopen(state, deadline)

    async def _is_alive(self, conn: AsyncServerConnection) -> bool:
        if not is_connected(conn):
            return False
        if monotonic() - conn.ledger.released_at > IDLE_BEFORE_PING:
            return await ping_async(conn.pgconn) is Pulse.ALIVE
        return True

    async def _enter_nested_block(
        self, state: _ProcessState, conn: AsyncServerConnection
    ) -> psycopg.AsyncConnection[Any]:
        nested: AbstractAsyncContextManager[Any] = nullcontext()
        if not conn.autocommit:
            if conn.pgconn.transaction_status == TransactionStatus.IDLE:
                # Otherwise the savepoint would be the outermost transaction, and commit.
                await conn.execute("", prepare=False)
            nested = conn.transaction()
        await nested.__aenter__()
        state.nested.append(nested)
        return conn

    async def _leave_block(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        state = self._state()
        if self._successor is not None and self._current() not in (None, state.lent):
            return await self._successor._leave_block(exc_type, exc, tb)
        if state.nested:
            return await state.nested.pop().__aexit__(exc_type, exc, tb)
        conn = state.lent
        if conn is None:
            return None  # a block that the parent process opened: nothing here is ours
        try:
            await self._end_transaction(conn, exc_type is not None)
        finally:
            try:
                await self._put_back(state, conn)
            finally:
                self._end_turn(state)
        return None

    async def _end_transaction(self, conn: AsyncServerConnection, failed: bool) -> None:
        if not failed:
            if conn.broken or not conn.closed:
                await conn.commit()
            return
        try:
            if not conn.closed:
                await conn.rollback()
        except psycopg.Error as error:
            logger.warning("Closing the connection to %s: %s", self.config.target, error)
            await conn.close()

    async def _put_back(self, state: _ProcessState, conn: AsyncServerConnection) -> None:
        is_kept = conn is state.conn and self._successor is None and not conn.pgconn.pipeline_status
        if is_kept and conn.pgconn.transaction_status == TransactionStatus.IDLE:
            if get_attributes(conn) != conn.ledger.attributes:
                await conn.put_back_attributes()
            conn.ledger.released_at = monotonic()
            return
        await conn.close()
        if conn is state.conn:
            state.conn = None

    def transaction(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """A transaction on the current block's connection, nested a savepoint; outside a block it
        is a block. Gives the psycopg connection."""
        return self._transaction(self._current())

    def cursor(
        self, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[psycopg.AsyncCursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``async with
        connection.cursor() as cur:`` is a block. Takes what
        :meth:`psycopg.AsyncConnection.cursor` takes."""
        conn = self._current()
        return conn.cursor(*args, **kwargs) if conn is not None else self._cursor(args, kwargs)

    @asynccontextmanager
    async def _transaction(
        self, current: AsyncServerConnection | None
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with nullcontext(current) if current is not None else self as conn:
            async with conn.transaction():
                yield conn

    @asynccontextmanager
    async def _cursor(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[psycopg.AsyncCursor[Any]]:
        async with self as conn, conn.cursor(*args, **kwargs) as cursor:
            yield cursor

    async def commit(self) -> None:
        """Commit the current block's transaction; does nothing outside a block."""
        if (conn := self._current()) is not None:
            await conn.commit()

    async def rollback(self) -> None:
        """Roll back the current block's transaction; does nothing outside a block."""
        if (conn := self._current()) is not None:
            await conn.rollback()

    def _current(self) -> AsyncServerConnection | None:
        state = self._state()
        if state.holder is not None and state.holder is asyncio.current_task():
            return state.lent
        return self._successor._current() if self._successor is not None else None

    async def test_connection(self) -> None:
        """Query through the connection.

        :raises psycopg.Error: what went wrong.
        """
        async with self as conn:
            await conn.execute("SELECT 1", prepare=False)
