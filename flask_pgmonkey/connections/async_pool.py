"""The ``async_pool`` connection type: tasks of one loop share a pool. The twin of ``pool.py``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout

from ..config import Config
from .blocks import Blocks, calling_frame, frame_of_block
from .failures import copy_for_waiter
from .lending import Lending
from .liveness import IDLE_BEFORE_PING, PING_TIMEOUT, Pulse, is_connected, ping_async
from .loops import end_with_running_loop, release_from_loop, require_own_loop
from .opening import AsyncServerConnection, Configure, get_attributes
from .psycopg_pools import AsyncConnector, AsyncPool
from .racing import AsyncRacers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg.rows import AsyncRowFactory

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_CLOSING_TIMEOUT = 1.0
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class _ProcessState:
    """What an async pool object has in one process: after a fork the child starts anew."""

    def __init__(self, lending: Lending) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.pool: AsyncPool | None = None
        self.lending = lending
        self.blocks: Blocks[AsyncServerConnection] = Blocks()
        self.openings: AsyncRacers[AsyncPool] = AsyncRacers()
        self.leak_watch: asyncio.TimerHandle | None = None


class AsyncPoolConnection:
    """A pool of server connections on one event loop; each ``async with`` block borrows one.

    The block gets a :class:`psycopg.AsyncConnection`; its end commits, or rolls back on an
    exception. Belongs to the loop that opened it, and closes when that loop ends.

    :param config: which server, which settings.
    :param configure: called with every new psycopg connection; awaited if it returns an awaitable.
    :param row_factory: how the connections make rows; tuples without it.
    :param describe_borrower: names who is borrowing in the log lines of ``leak_threshold``.
    """

    connection_type = "async_pool"

    def __init__(
        self,
        config: Config,
        *,
        configure: Configure | None = None,
        row_factory: AsyncRowFactory[Any] | None = None,
        describe_borrower: Callable[[], str] | None = None,
    ) -> None:
        self.config = config
        self._settings = config.async_pool
        self._idle_before_ping = -1.0 if config.async_pool.check_on_checkout else IDLE_BEFORE_PING
        self._configure = configure
        self._row_factory = row_factory
        self._describe_borrower = describe_borrower
        self._successor: AsyncPoolConnection | None = None
        self._states: dict[int, _ProcessState] = {}

    def __repr__(self) -> str:
        state = self._state()
        if state.pool is None:
            return f"<AsyncPoolConnection {self.config.target} closed>"
        return (
            f"<AsyncPoolConnection {self.config.target} open,"
            f" {len(state.lending)} of at most {self._settings.max_size} borrowed>"
        )

    # Opening and closing

    async def connect(self) -> None:
        """Open the pool, with one real connection first; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        :raises RuntimeError: on another loop than the object's own.
        """
        if self._successor is not None:
            await self._newest().connect()
        else:
            await self._open_pool(self._state_on_own_loop())

    async def disconnect(self) -> None:
        """Close the pool. Borrowed connections close when they come back; the next block opens
        the pool again."""
        await self.close_on_loop(monotonic() + _CLOSING_TIMEOUT)

    async def retire(self, successor: AsyncPoolConnection) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        await self.disconnect()

    def _newest(self) -> AsyncPoolConnection:
        """The last of the successors. Keeps that one only, so that no chain of them grows."""
        newest = self
        while newest._successor is not None:
            newest = newest._successor
        self._successor = newest
        return newest

    async def close_on_loop(self, deadline: float) -> None:
        """Close; tasks of the pool have until *deadline* (by ``time.monotonic``) to end."""
        state = self._state_on_own_loop()
        pool, state.pool = state.pool, None
        if pool is None or state.loop is None:
            return
        if state.leak_watch is not None:
            state.leak_watch.cancel()
        await pool.close_by(deadline)
        release_from_loop(self, state.loop)

    def finish(self) -> None:
        """Close where no loop runs any more that could do it."""
        state = self._state()
        pool, state.pool = state.pool, None
        if pool is not None:
            pool.finish()
        for conn in state.lending.all_borrowed():
            conn.pgconn.finish()

    def tasks_of_its_own(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that keep the pool."""
        pool = self._state().pool
        return pool.tasks_of_its_own() if pool is not None else ()

    def _state(self) -> _ProcessState:
        try:
            return self._states[os.getpid()]
        except KeyError:
            lending = Lending(self.config.target, self._settings, self._describe_borrower)
            return self._states.setdefault(os.getpid(), _ProcessState(lending))

    def _state_on_own_loop(self) -> _ProcessState:
        state = self._state()
        state.loop = require_own_loop(state.loop, self)
        return state

    async def _open_pool(self, state: _ProcessState) -> AsyncPool:
        return state.pool or await state.openings.run("pool", lambda: self._open_new_pool(state))

    async def _open_new_pool(self, state: _ProcessState) -> AsyncPool:
        if state.pool is not None:
            return state.pool
        first = await self._open_connection()
        connector = AsyncConnector(self._open_connection, self._settings.reconnect_timeout)
        pool = AsyncPool(connector, self._settings, self.config.target)
        await pool.open_with(first)
        state.pool = pool
        end_with_running_loop(self)
        if self._settings.leak_threshold:
            self._watch_leaks(state)
        if self._successor is not None:  # since we began
            await self.disconnect()
        return pool

    def _open_connection(self) -> Awaitable[AsyncServerConnection]:
        return AsyncServerConnection.open(
            self.config, self.config.async_settings, self._configure, self._row_factory
        )

    def _watch_leaks(self, state: _ProcessState) -> None:
        """Look for leaks now and every half ``leak_threshold`` from now on."""
        state.lending.log_leaks()
        loop = asyncio.get_running_loop()
        state.leak_watch = loop.call_later(
            self._settings.leak_threshold / 2, self._watch_leaks, state
        )

    # Borrowing and releasing

    async def borrow(
        self, timeout: float | None = None, autocommit: bool | None = None
    ) -> AsyncServerConnection:
        """A live psycopg connection that is the caller's until :meth:`release`.

        Prefer a block, or :meth:`connection`: what is borrowed here must be released.

        :param timeout: seconds to wait at most; the config's ``timeout`` without it. Who opens
            the pool waits for its first connection as long as ``connect_timeout`` says.
        :param autocommit: whether each statement is committed by itself; the config's without it.
        :raises psycopg_pool.PoolTimeout: when all connections stayed borrowed for that long.
        :raises psycopg.OperationalError: the server's error where none can be opened.
        :raises RuntimeError: on another loop than the object's own.
        """
        if self._successor is not None:
            return await self._newest().borrow(timeout, autocommit)
        if timeout is None:
            timeout = self._settings.timeout
        if autocommit is None:
            autocommit = self.config.autocommit
        start = now = monotonic()
        deadline = start + timeout
        state = self._state_on_own_loop()
        while True:
            pool = state.pool or await self._open_pool(state)
            try:
                conn = await pool.take(deadline, now)
            except PoolClosed:
                if self._successor is not None:
                    return await self._newest().borrow(deadline - monotonic(), autocommit)
                if monotonic() >= deadline:
                    raise
                continue  # somebody closed it meanwhile
            except PoolTimeout:
                explained, cause = self._explain_timeout(state, pool, start, timeout)
                raise explained from cause
            try:
                now = monotonic()
                pulse = Pulse.ALIVE if is_connected(conn) else Pulse.DEAD
                if pulse is Pulse.ALIVE and now - conn.ledger.released_at > self._idle_before_ping:
                    pulse = await self._ping(conn, deadline - now)
                if pulse is Pulse.ALIVE:
                    if conn.autocommit != autocommit:
                        await conn.set_autocommit(autocommit)
                    state.lending.lend(conn, self, pool, now)
                    return conn
            except BaseException:
                await pool.discard(conn)
                raise
            await pool.discard(conn)
            if pulse is Pulse.SILENT:
                await pool.discard_idle()
            elif pulse is Pulse.DEAD and state.lending.idle_rest_must_go(conn.ledger):
                await pool.discard_idle(opened_before=conn.ledger.released_at)

    async def release(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Give back what :meth:`borrow` gave. What is still in a transaction is rolled back; what
        is busy or dead is closed.

        :raises ValueError: for a connection that is not borrowed.
        """
        if not isinstance(conn, AsyncServerConnection):
            raise ValueError(f"{conn!r} was not borrowed from a pool of flask_pgmonkey")
        if conn.is_inherited:
            return
        ledger = conn.ledger
        if ledger.lending is None or not ledger.lending.take_back(conn):
            raise ValueError(f"{conn!r} is not borrowed, or was given back already")
        pool: AsyncPool = ledger.pool
        is_clean = False
        try:
            is_clean = await ledger.owner._tidy(conn)
        except psycopg.Error as error:
            logger.warning("Closing a connection to %s: %s", self.config.target, error)
        finally:
            ledger.released_at = now = monotonic()
            if is_clean:
                await pool.give_back(conn, now)
            else:
                await pool.discard(conn)

    async def _tidy(self, conn: AsyncServerConnection) -> bool:
        """Undo what the borrower left; False if the connection is of no use any more."""
        if conn.pgconn.transaction_status in _IN_TRANSACTION:
            await conn.rollback()
        if conn.pgconn.transaction_status != TransactionStatus.IDLE or conn.pgconn.pipeline_status:
            return False
        if get_attributes(conn) != conn.ledger.attributes:
            if conn._tpc:  # a transaction left prepared: psycopg would refuse every commit here
                return False
            await conn.put_back_attributes()
        if self._settings.reset_on_return:
            await conn.reset_session(self.config.async_settings)
        return True

    async def _ping(self, conn: AsyncServerConnection, patience: float) -> Pulse:
        pulse = await ping_async(conn.pgconn, min(PING_TIMEOUT, patience))
        # A borrower in a hurry has learned nothing about the other connections.
        return Pulse.UNHEARD if pulse is Pulse.SILENT and patience < PING_TIMEOUT else pulse

    def _explain_timeout(
        self, state: _ProcessState, pool: AsyncPool, start: float, timeout: float
    ) -> tuple[Exception, BaseException | None]:
        failure = pool.connector.failure
        if len(state.lending):
            return state.lending.exhausted(timeout, pool.get_stats()), failure.since(start)
        if failure.error is not None:
            return copy_for_waiter(failure.error), failure.error.__cause__
        return state.lending.unanswered(timeout), None

    # Blocks

    def __aenter__(self) -> Awaitable[psycopg.AsyncConnection[Any]]:
        # Not a coroutine function: here the frame of the `async with` is still the caller.
        return self._enter_block(calling_frame())

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> Awaitable[None]:
        return self._leave_block(calling_frame(), exc_type is not None)

    async def _enter_block(self, frame: FrameType) -> psycopg.AsyncConnection[Any]:
        conn = await self.borrow()
        self._state().blocks.enter(frame, conn)
        return conn

    async def _leave_block(self, frame: FrameType, failed: bool) -> None:
        conn = self._state().blocks.leave(frame)
        if conn is not None:
            await self._end_block(conn, failed)
        elif not self._is_block_of_parent_process(frame):
            raise RuntimeError(
                "this block of the pool was not opened here: use pool.connection(), which"
                " can be entered and left anywhere"
            )

    def _is_block_of_parent_process(self, frame: FrameType) -> bool:
        return any(frame in state.blocks for state in list(self._states.values()))

    async def _end_block(self, conn: AsyncServerConnection, failed: bool) -> None:
        try:
            if not failed and (conn.broken or not conn.closed):
                await conn.commit()
        finally:
            await self.release(conn)

    def connection(
        self, timeout: float | None = None
    ) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """A block of its own as a context manager, for AsyncExitStack and generators.

        :param timeout: as for :meth:`borrow`.
        """
        return self._connection(calling_frame(), timeout)

    def transaction(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """A transaction on the current block's connection, nested a savepoint; outside a block it
        is a block. Gives the psycopg connection."""
        return self._transaction(calling_frame())

    def cursor(
        self, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[psycopg.AsyncCursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``async with
        pool.cursor() as cur:`` is a block. Takes what :meth:`psycopg.AsyncConnection.cursor`
        takes."""
        frame = calling_frame()
        conn = self._current(frame)
        if conn is not None:
            return cast("psycopg.AsyncCursor[Any]", conn.cursor(*args, **kwargs))
        return self._cursor_block(frame, args, kwargs)

    # A generator's body begins when it is entered, for each call of a function that it decorates,
    # and ends with the generator, if that is dropped. Each is one generator only: of several that
    # are garbage together, any could be the first to end.

    @asynccontextmanager
    async def _connection(
        self, maker: FrameType, timeout: float | None
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with _Block(self, frame_of_block(maker), timeout) as conn:
            yield conn

    @asynccontextmanager
    async def _transaction(self, maker: FrameType) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        frame = frame_of_block(maker)
        current = self._current(frame)
        if current is not None:
            async with current.transaction():
                yield current
        else:
            async with _Block(self, frame) as conn, psycopg.AsyncTransaction(conn):
                yield conn

    @asynccontextmanager
    async def _cursor_block(
        self, maker: FrameType, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[psycopg.AsyncCursor[Any]]:
        async with (
            _Block(self, frame_of_block(maker)) as conn,
            conn.cursor(*args, **kwargs) as cursor,
        ):
            yield cursor

    async def commit(self) -> None:
        """Commit the current block's transaction; does nothing outside a block."""
        if (conn := self._current(calling_frame())) is not None:
            await conn.commit()

    async def rollback(self) -> None:
        """Roll back the current block's transaction; does nothing outside a block."""
        if (conn := self._current(calling_frame())) is not None:
            await conn.rollback()

    def _current(self, frame: FrameType) -> AsyncServerConnection | None:
        return self._state().blocks.current(frame)

    # Looking at it

    async def test_connection(self) -> None:
        """Query through one connection, then borrow the smaller of ``min_size + 1`` and
        ``max_size`` at once.

        :raises psycopg.Error: what went wrong.
        """
        async with self.connection() as conn:
            await conn.execute("SELECT 1", prepare=False)
        async with AsyncExitStack() as stack:
            for _ in range(min(self._settings.min_size + 1, self._settings.max_size)):
                await stack.enter_async_context(self.connection())

    def get_stats(self) -> dict[str, int]:
        """psycopg_pool's counters (see its documentation); empty while the pool is closed."""
        pool = self._state().pool
        return pool.get_stats() if pool is not None else {}


class _Block:
    """A block of its own on a pool, current in *frame* and in what that calls."""

    def __init__(self, pool: AsyncPoolConnection, frame: FrameType, timeout: float | None = None):
        self._pool = pool
        self._frame = frame
        self._timeout = timeout

    async def __aenter__(self) -> AsyncServerConnection:
        self._conn = await self._pool.borrow(self._timeout)
        self._blocks = self._pool._state().blocks
        self._blocks.enter(self._frame, self._conn, knows_its_end=True)
        return self._conn

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self._blocks.drop(self._frame, self._conn)
        await self._pool._end_block(self._conn, exc_type is not None)
