"""The ``async_pool`` connection type: the tasks of a loop share a pool. The twin of ``pool.py``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection
from contextlib import AsyncExitStack
from contextvars import Context
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from ..config import Config
from ..signals import (
    connection_borrowed,
    connection_opened,
    connection_returned,
    pool_exhausted,
)
from .base import Block, DescribeBorrower
from .base_async import AsyncConnectionObject, StateOnLoop
from .borrowed import BorrowedConnections, PoolMeasures
from .connect_errors import can_pass, copy_for_waiter
from .liveness import IDLE_BEFORE_PING, PING_TIMEOUT, Pulse, is_connected, ping_async
from .loops import end_with_running_loop, release_from_loop
from .psycopg_pool_async import AsyncConnector, AsyncPool
from .record import attributes_of
from .server_connection_async import AsyncServerConnection
from .single_flight import AsyncSingleFlight
from .watching import (
    note_borrowed,
    note_exhausted,
    note_opened,
    note_time,
    take_unsent,
    tell_all,
    telling_later,
)

if TYPE_CHECKING:
    from typing_extensions import Self

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_CLOSING_TIMEOUT = 1.0
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class _PoolState(StateOnLoop[Block[AsyncServerConnection]]):
    """What an async pool has in one process: after a fork the child starts anew."""

    def __init__(self, borrowed: BorrowedConnections) -> None:
        super().__init__()
        self.pool: AsyncPool | None = None
        self.borrowed = borrowed
        self.openings: AsyncSingleFlight[AsyncPool] = AsyncSingleFlight()
        self.leak_watch: asyncio.TimerHandle | None = None


class AsyncPoolConnection(AsyncConnectionObject[_PoolState, Block[AsyncServerConnection]]):
    """A pool of server connections on one event loop; each ``async with`` block borrows one.

    The block gets a :class:`psycopg.AsyncConnection`; its end commits, or rolls back on an
    exception. Belongs to the loop that opened it, and closes when that loop ends.
    """

    connection_type = "async_pool"

    def __init__(self, config: Config, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self._settings = config.async_pool
        self._idle_before_ping = -1.0 if config.async_pool.check_on_checkout else IDLE_BEFORE_PING

    @staticmethod
    def _new_state(config: Config, describe_borrower: DescribeBorrower | None) -> _PoolState:
        return _PoolState(BorrowedConnections(config.target, config.async_pool, describe_borrower))

    def _describe_state(self) -> str:
        state = self._states.here()
        if state.pool is None:
            return "closed"
        return f"open, {len(state.borrowed)} of at most {self._settings.max_size} borrowed"

    # Opening and closing

    async def connect(self) -> None:
        """Open the pool, with one real connection first; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        :raises RuntimeError: on another loop than the object's own.
        """
        newest = self._newest()
        state = newest._state_on_own_loop()
        if state.pool is None and newest._is_replaced():
            await newest.connect()
            return
        pool = await newest._open_pool(state)
        failure = pool.connector.failures.error
        if failure is not None and pool.is_empty() and not state.borrowed:
            raise copy_for_waiter(failure)

    async def disconnect(self) -> None:
        """Close the pool. Borrowed connections close when they come back; the next block opens
        the pool again."""
        await self.close_on_loop(monotonic() + _CLOSING_TIMEOUT)

    async def retire(self, successor: Self) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        await self.disconnect()

    async def close_on_loop(self, deadline: float) -> None:
        """Close; tasks of the pool have until *deadline* (by ``time.monotonic``) to end."""
        state = self._state_on_own_loop()
        pool, state.pool = state.pool, None
        if pool is None or state.loop is None:
            return
        if state.leak_watch is not None:
            state.leak_watch.cancel()
        await pool.close_by(deadline)
        self._leave_loop(state)

    def _leave_loop(self, state: _PoolState) -> None:
        """Let the loop's end no more care for this object, unless something of it is open."""
        if state.pool is None and not state.borrowed and state.loop is not None:
            release_from_loop(self, state.loop)

    def finish(self) -> None:
        """Close where no loop runs any more that could do it."""
        state = self._states.here()
        pool, state.pool = state.pool, None
        if pool is not None:
            pool.finish()
        for conn in state.borrowed.all_borrowed():
            conn.pgconn.finish()

    def tasks_of_its_own(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that keep the pool."""
        pool = self._states.here().pool
        return pool.tasks_of_its_own() if pool is not None else ()

    async def _open_pool(self, state: _PoolState, deadline: float = 0.0) -> AsyncPool:
        """The pool, opened if need be.

        With a *deadline* (by ``time.monotonic``) the pool also opens where there is a failure that
        can pass; its workers try again then.
        """
        while True:
            try:
                if state.pool is not None:
                    return state.pool
                with telling_later():  # when others need not wait any more
                    return await state.openings.run(
                        "pool", lambda: self._open_new_pool(state, deadline)
                    )
            except psycopg.OperationalError as error:
                # The attempt of somebody who does not wait.
                if monotonic() >= deadline or not can_pass(error):
                    raise

    async def _open_new_pool(self, state: _PoolState, deadline: float) -> AsyncPool:
        if state.pool is not None:
            return state.pool
        first: AsyncServerConnection | None
        failure: Exception | None = None
        try:
            first = await self._open_connection()
        except psycopg.OperationalError as error:
            if not deadline or not can_pass(error):
                raise
            first, failure = None, error
        connector = AsyncConnector(self._open_connection, self._settings.reconnect_timeout)
        pool = AsyncPool(connector, self._settings, self.config.target)
        if failure is not None:
            pool.connector.failures.note(failure)
        await pool.open_with(first)
        state.pool = pool
        end_with_running_loop(self)
        if self._settings.leak_threshold:
            self._watch_leaks(state)
        if self._successor is not None:  # since we began
            await self.disconnect()
        return pool

    def _watch_leaks(self, state: _PoolState) -> None:
        """Look for leaks now and every half ``leak_threshold`` from now on."""
        state.borrowed.log_leaks()
        loop = asyncio.get_running_loop()
        state.leak_watch = loop.call_later(
            self._settings.leak_threshold / 2, self._watch_leaks, state, context=Context()
        )

    async def _open_connection(self) -> AsyncServerConnection:
        began_at = monotonic()
        conn = await AsyncServerConnection.open(self, self._configure, self._row_factory)
        conn.record.source = self
        if connection_opened.receivers:
            note_opened(conn.record, monotonic() - began_at)
        if self.timers:
            note_time(self, "create_time", monotonic() - began_at)
        return conn

    # Borrowing and releasing

    async def borrow(
        self, timeout: float | None = None, autocommit: bool | None = None
    ) -> AsyncServerConnection:
        """A live psycopg connection that is the caller's until :meth:`release`.

        Prefer a block, or :meth:`connection`: what is borrowed here must be released. If it is
        dropped instead, it closes.

        :param timeout: seconds to wait at most; the config's ``timeout`` without it. Who opens
            the pool waits for its first attempt as long as ``connect_timeout`` says.
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
        pulse = Pulse.ALIVE
        while True:
            pool = state.pool
            if pool is None:
                if self._is_replaced():
                    return await self._newest().borrow(deadline - monotonic(), autocommit)
                pool = await self._open_pool(state, deadline)
            try:
                conn = await pool.take(deadline, now)
            except PoolClosed:
                if self._successor is not None:
                    return await self._newest().borrow(deadline - monotonic(), autocommit)
                if monotonic() >= deadline:
                    raise
                continue  # somebody closed it meanwhile
            except (PoolTimeout, TooManyRequests) as refusal:
                error, is_outage = state.borrowed.explain_refusal(
                    refusal, pool, pool.connector.failures, pulse, start, timeout
                )
                if is_outage:
                    await pool.make_outage_known(error)
                if pool_exhausted.receivers and len(state.borrowed) >= self._settings.max_size:
                    note_exhausted(self, error, pool.get_stats(), monotonic() - start)
                try:
                    raise error from error.__cause__
                finally:
                    del error  # with it this frame would keep itself alive, and all around it
            record = conn.record
            try:
                now = monotonic()
                pulse = Pulse.ALIVE if is_connected(conn) else Pulse.DEAD
                if pulse is Pulse.ALIVE and now - record.released_at > self._idle_before_ping:
                    pulse = await self._ping(conn, deadline - now)
                if pulse is Pulse.ALIVE:
                    if record.plans_changed != self.plans_changed and not conn.renew():
                        await pool.discard(conn)
                        continue
                    if conn._autocommit != autocommit:  # faster than the property
                        await conn.set_autocommit(autocommit)
                    state.borrowed.lend(conn, now)
                    if connection_borrowed.receivers:
                        note_borrowed(record, now - start)
                    if self.timers:
                        note_time(self, "wait_time", now - start)
                    return conn
            except BaseException:
                await pool.discard(conn)
                raise
            await pool.discard(conn)
            if pulse is Pulse.SILENT:
                await pool.discard_idle()
            elif pulse is Pulse.TOO_SHORT:
                pool.suspect_idle()
            elif pulse is Pulse.DEAD and state.borrowed.older_ones_are_dead(record):
                await pool.discard_idle(opened_before=record.released_at)

    async def release(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Give back what :meth:`borrow` gave. What is still in a transaction is rolled back; what
        is busy or dead is closed.

        :raises ValueError: for a connection that is not borrowed.
        """
        if not isinstance(conn, AsyncServerConnection):
            raise ValueError(f"{conn!r} was not borrowed from a pool of flask_pgmonkey")
        pid = os.getpid()
        if conn.owner_pid != pid:
            return
        record = conn.record
        if record.source is not self:
            await record.source.release(conn)  # lent by a successor of this one
            return
        state = self._states[pid]
        if not state.borrowed.take_back(conn):
            raise ValueError(f"{conn!r} is not borrowed, or was given back already")
        pool: AsyncPool = conn._pool
        is_reusable = False
        try:
            is_reusable = await self._make_reusable(conn)
        except psycopg.Error as error:
            logger.warning("Closing a connection to %s: %s", self.config.target, error)
        finally:
            record.released_at = now = monotonic()
            unsent = None
            if record.unsent or connection_returned.receivers:
                unsent = take_unsent(record, now - record.borrowed_at)
            if self.timers:
                note_time(self, "use_time", now - record.borrowed_at)
            if is_reusable:
                await pool.give_back(conn, now)
            else:
                if conn.broken or conn.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    pool.suspect_idle()
                await pool.discard(conn)
            if unsent:
                tell_all(unsent)
            if state.pool is not pool:
                self._leave_loop(state)

    async def refresh_types(self) -> None:
        """Ask the catalogue again for the types that its connections are to know, if any."""
        if self.types is not None:
            conn = await self.borrow(autocommit=True)
            try:
                await conn.ask_for_types(self.types)
            finally:
                await self.release(conn)

    async def _make_reusable(self, conn: AsyncServerConnection) -> bool:
        """Undo what the borrower left; False if the connection is of no use any more."""
        record, pgconn = conn.record, conn.pgconn
        if conn.lock.locked():  # by a notifies() that goes on, or was interrupted
            return False
        if pgconn.transaction_status in _IN_TRANSACTION:
            with conn.bounded_as_release():
                await conn.rollback()
        if pgconn.transaction_status != TransactionStatus.IDLE or pgconn.pipeline_status:
            return False
        if attributes_of(conn) != record.attributes:
            if conn._tpc:  # a transaction left prepared: psycopg would refuse every commit here
                return False
            await conn.put_back_attributes()
        resets = self._settings.reset_on_return
        if resets is True or record.is_marked:
            if resets:
                await conn.reset_session()
            if record.met_read_only_at and await conn.was_demoted():
                await self._drain(conn)
                return False
            record.met_read_only_at = 0.0
        return True

    async def _drain(self, demoted: AsyncServerConnection) -> None:
        """Discard the connections that are older than the refusal which *demoted* met."""
        if demoted._expire_at:  # else another one, of the same server, has done so already
            before = demoted.record.met_read_only_at
            self._states[os.getpid()].borrowed.expire(before)
            await demoted._pool.discard_idle(opened_before=before)

    async def _ping(self, conn: AsyncServerConnection, patience: float) -> Pulse:
        pulse = await ping_async(conn.pgconn, min(PING_TIMEOUT, patience))
        # A borrower in a hurry has learned nothing about the other connections.
        return Pulse.TOO_SHORT if pulse is Pulse.SILENT and patience < PING_TIMEOUT else pulse

    # Blocks

    async def _open_block(self, timeout: float | None) -> Block[AsyncServerConnection]:
        return Block(await self.borrow(timeout))

    async def _close_block(
        self,
        block: Block[AsyncServerConnection],
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        conn = block.conn
        try:
            if exc_type is None and conn.wants_commit:
                await conn.commit()
        finally:
            await self.release(conn)

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
        pool = self._states.here().pool
        return pool.get_stats() if pool is not None else {}

    def borrowed(self) -> list[AsyncServerConnection]:
        """The connections that are out in this process. They are their borrowers'."""
        return [
            conn
            for conn in self._states.here().borrowed.all_borrowed()
            if isinstance(conn, AsyncServerConnection)
        ]

    def measure(self) -> PoolMeasures:
        """How the pool stands in this process. Opens nothing, and may be asked by any thread."""
        state = self._states.here()
        return state.borrowed.measure(state.pool)
