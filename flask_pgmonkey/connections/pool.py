"""The ``pool`` connection type: threads share a pool, each block borrows a connection."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

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
from .base import Block, DescribeBorrower, StateOfBlocks, SyncConnectionObject
from .borrowed import BorrowedConnections, PoolMeasures
from .connect_errors import can_pass, copy_for_waiter
from .liveness import IDLE_BEFORE_PING, PING_TIMEOUT, Pulse, is_connected, ping
from .psycopg_pool import Connector, Pool
from .record import attributes_of, warn_of_late_patching
from .server_connection import ServerConnection
from .single_flight import SingleFlight
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


class _PoolState(StateOfBlocks[Block[ServerConnection]]):
    """What a pool has in one process: after a fork the child starts anew."""

    def __init__(self, borrowed: BorrowedConnections) -> None:
        super().__init__()
        self.pool: Pool | None = None
        self.borrowed = borrowed
        self.openings: SingleFlight[Pool] = SingleFlight()


class PoolConnection(SyncConnectionObject[_PoolState, Block[ServerConnection]]):
    """A pool of server connections; each ``with`` block borrows one and gives it back.

    The block gets a :class:`psycopg.Connection`; its end commits, or rolls back on an exception.
    Safe to share between threads and to hold across a fork.
    """

    connection_type = "pool"

    def __init__(self, config: Config, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self._settings = config.pool
        self._idle_before_ping = -1.0 if config.pool.check_on_checkout else IDLE_BEFORE_PING
        self._is_exiting = False

    @staticmethod
    def _new_state(config: Config, describe_borrower: DescribeBorrower | None) -> _PoolState:
        return _PoolState(BorrowedConnections(config.target, config.pool, describe_borrower))

    def _describe_state(self) -> str:
        state = self._states.here()
        if state.pool is None:
            return "closed"
        return f"open, {len(state.borrowed)} of at most {self._settings.max_size} borrowed"

    # Opening and closing

    def connect(self) -> None:
        """Open the pool, with one real connection first; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        """
        newest = self._newest()
        state = newest._states.here()
        if state.pool is None and newest._is_replaced():
            newest.connect()
            return
        pool = newest._open_pool(state)
        failure = pool.connector.failures.error
        if failure is not None and pool.is_empty() and not state.borrowed:
            raise copy_for_waiter(failure)

    def disconnect(self) -> None:
        """Close the pool. Borrowed connections close when they come back; the next block opens
        the pool again."""
        self._close_by(monotonic() + _CLOSING_TIMEOUT)

    def retire(self, successor: Self) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        self.disconnect()

    def close_at_exit(self, deadline: float) -> None:
        """Close what this process has open; its threads have until *deadline* to end."""
        self._is_exiting = True
        self._close_by(deadline)

    def _close_by(self, deadline: float) -> None:
        state = self._states.here()
        pool, state.pool = state.pool, None
        if pool is not None:
            pool.close_by(deadline)

    def _open_pool(self, state: _PoolState, deadline: float = 0.0) -> Pool:
        """The pool, opened if need be.

        With a *deadline* (by ``time.monotonic``) the pool also opens where there is a failure that
        can pass; its workers try again then.
        """
        while True:
            try:
                if state.pool is not None:
                    return state.pool
                with telling_later():  # when others need not wait any more
                    return state.openings.run("pool", lambda: self._open_new_pool(state, deadline))
            except psycopg.OperationalError as error:
                # The attempt of somebody who does not wait.
                if monotonic() >= deadline or not can_pass(error):
                    raise

    def _open_new_pool(self, state: _PoolState, deadline: float) -> Pool:
        if state.pool is not None:
            return state.pool
        warn_of_late_patching()
        first: ServerConnection | None
        failure: Exception | None = None
        try:
            first = self._open_connection()
        except psycopg.OperationalError as error:
            if not deadline or not can_pass(error):
                raise
            first, failure = None, error
        connector = Connector(self._open_connection, self._settings.reconnect_timeout)
        pool = Pool(connector, self._settings, self.config.target)
        if failure is not None:
            pool.connector.failures.note(failure)
        pool.open_with(first)
        if self._settings.leak_threshold:
            _LeakWatch(pool, state.borrowed, self._settings.leak_threshold).schedule(pool)
        state.pool = pool
        if self._successor is not None or self._is_exiting:  # since we began
            self._close_by(0.0)
        return pool

    def _open_connection(self) -> ServerConnection:
        began_at = monotonic()
        conn = ServerConnection.open(self, self._configure, self._row_factory)
        conn.record.source = self
        if connection_opened.receivers:
            note_opened(conn.record, monotonic() - began_at)
        if self.timers:
            note_time(self, "create_time", monotonic() - began_at)
        return conn

    # Borrowing and releasing

    def borrow(
        self, timeout: float | None = None, autocommit: bool | None = None
    ) -> ServerConnection:
        """A live psycopg connection that is the caller's until :meth:`release`.

        Prefer a block, or :meth:`connection`: what is borrowed here must be released. If it is
        dropped instead, it closes.

        :param timeout: seconds to wait at most; the config's ``timeout`` without it. Who opens
            the pool waits for its first attempt as long as ``connect_timeout`` says.
        :param autocommit: whether each statement is committed by itself; the config's without it.
        :raises psycopg_pool.PoolTimeout: when all connections stayed borrowed for that long.
        :raises psycopg.OperationalError: the server's error where none can be opened.
        """
        if self._successor is not None:
            return self._newest().borrow(timeout, autocommit)
        if timeout is None:
            timeout = self._settings.timeout
        if autocommit is None:
            autocommit = self.config.autocommit
        start = now = monotonic()
        deadline = start + timeout
        state = self._states[os.getpid()]
        pulse = Pulse.ALIVE
        while True:
            pool = state.pool
            if pool is None:
                if self._is_replaced():
                    return self._newest().borrow(deadline - monotonic(), autocommit)
                pool = self._open_pool(state, deadline)
            try:
                conn = pool.take(deadline, now)
            except PoolClosed:
                if self._successor is not None:
                    return self._newest().borrow(deadline - monotonic(), autocommit)
                if self._is_exiting or monotonic() >= deadline:
                    raise
                continue  # somebody closed it meanwhile
            except (PoolTimeout, TooManyRequests) as refusal:
                error, is_outage = state.borrowed.explain_refusal(
                    refusal, pool, pool.connector.failures, pulse, start, timeout
                )
                if is_outage:
                    pool.make_outage_known(error)
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
                    pulse = self._ping(conn, deadline - now)
                if pulse is Pulse.ALIVE:
                    if record.plans_changed != self.plans_changed and not conn.renew():
                        pool.discard(conn)
                        continue
                    if conn._autocommit != autocommit:  # faster than the property
                        conn.autocommit = autocommit
                    state.borrowed.lend(conn, now)
                    if connection_borrowed.receivers:
                        note_borrowed(record, now - start)
                    if self.timers:
                        note_time(self, "wait_time", now - start)
                    return conn
            except BaseException:
                pool.discard(conn)
                raise
            pool.discard(conn)
            if pulse is Pulse.SILENT:
                pool.discard_idle()
            elif pulse is Pulse.TOO_SHORT:
                pool.suspect_idle()
            elif pulse is Pulse.DEAD and state.borrowed.older_ones_are_dead(record):
                pool.discard_idle(opened_before=record.released_at)

    def release(self, conn: psycopg.Connection[Any]) -> None:
        """Give back what :meth:`borrow` gave. What is still in a transaction is rolled back; what
        is busy or dead is closed.

        :raises ValueError: for a connection that is not borrowed.
        """
        if not isinstance(conn, ServerConnection):
            raise ValueError(f"{conn!r} was not borrowed from a pool of flask_pgmonkey")
        pid = os.getpid()
        if conn.owner_pid != pid:
            return
        record = conn.record
        if record.source is not self:
            record.source.release(conn)  # lent by a successor of this one
            return
        if not self._states[pid].borrowed.take_back(conn):
            raise ValueError(f"{conn!r} is not borrowed, or was given back already")
        pool: Pool = conn._pool
        is_reusable = False
        try:
            is_reusable = self._make_reusable(conn)
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
                pool.give_back(conn, now)
            else:
                if conn.broken or conn.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    pool.suspect_idle()
                pool.discard(conn)
            if unsent:
                tell_all(unsent)

    def refresh_types(self) -> None:
        """Ask the catalogue again for the types that its connections are to know, if any."""
        if self.types is not None:
            conn = self.borrow(autocommit=True)
            try:
                conn.ask_for_types(self.types)
            finally:
                self.release(conn)

    def abandon(self, conn: ServerConnection) -> None:
        """Give up a borrowed connection that another thread still uses.

        The other's query fails, because the socket is shut down; the last one to let go of the
        connection closes it. libpq must not be asked to, while another thread is in it.
        """
        if self._states.here().borrowed.take_back(conn):
            conn.shut_down()
            conn._pool.forget(conn)

    def _make_reusable(self, conn: ServerConnection) -> bool:
        """Undo what the borrower left; False if the connection is of no use any more."""
        record, pgconn = conn.record, conn.pgconn
        if conn.lock.locked():  # by a notifies() that goes on, or was interrupted
            return False
        if pgconn.transaction_status in _IN_TRANSACTION:
            with conn.bounded_as_release():
                conn.rollback()
        if pgconn.transaction_status != TransactionStatus.IDLE or pgconn.pipeline_status:
            return False
        if attributes_of(conn) != record.attributes:
            if conn._tpc:  # a transaction left prepared: psycopg would refuse every commit here
                return False
            conn.put_back_attributes()
        resets = self._settings.reset_on_return
        if resets is True or record.is_marked:
            if resets:
                conn.reset_session()
            if record.met_read_only_at and conn.was_demoted():
                self._drain(conn)
                return False
            record.met_read_only_at = 0.0
        return True

    def _drain(self, demoted: ServerConnection) -> None:
        """Discard the connections that are older than the refusal which *demoted* met."""
        if demoted._expire_at:  # else another one, of the same server, has done so already
            before = demoted.record.met_read_only_at
            self._states[os.getpid()].borrowed.expire(before)
            demoted._pool.discard_idle(opened_before=before)

    def _ping(self, conn: ServerConnection, patience: float) -> Pulse:
        pulse = ping(conn.pgconn, min(PING_TIMEOUT, patience))
        # A borrower in a hurry has learned nothing about the other connections.
        return Pulse.TOO_SHORT if pulse is Pulse.SILENT and patience < PING_TIMEOUT else pulse

    # Blocks

    def _open_block(self, timeout: float | None) -> Block[ServerConnection]:
        return Block(self.borrow(timeout))

    def _close_block(
        self,
        block: Block[ServerConnection],
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        conn = block.conn
        try:
            if exc_type is None and conn.wants_commit:
                conn.commit()
        finally:
            self.release(conn)

    # Looking at it

    def test_connection(self) -> None:
        """Query through one connection, then borrow the smaller of ``min_size + 1`` and
        ``max_size`` at once.

        :raises psycopg.Error: what went wrong.
        """
        with self.connection() as conn:
            conn.execute("SELECT 1", prepare=False)
        with ExitStack() as stack:
            for _ in range(min(self._settings.min_size + 1, self._settings.max_size)):
                stack.enter_context(self.connection())

    def get_stats(self) -> dict[str, int]:
        """psycopg_pool's counters (see its documentation); empty while the pool is closed."""
        pool = self._states.here().pool
        return pool.get_stats() if pool is not None else {}

    def borrowed(self) -> list[ServerConnection]:
        """The connections that are out in this process. They are their borrowers'."""
        return [
            conn
            for conn in self._states.here().borrowed.all_borrowed()
            if isinstance(conn, ServerConnection)
        ]

    def measure(self) -> PoolMeasures:
        """How the pool stands in this process. Opens nothing, and may be asked by any thread."""
        state = self._states.here()
        return state.borrowed.measure(state.pool)


class _LeakWatch:
    """Looks for leaks every half ``leak_threshold``, on the pool's own scheduler."""

    def __init__(self, pool: Pool, borrowed: BorrowedConnections, threshold: float) -> None:
        self._pool = ref(pool)  # the scheduler's thread would keep it alive
        self._borrowed = borrowed
        self._interval = threshold / 2

    def schedule(self, pool: Pool) -> None:
        pool.schedule_task(self, self._interval)  # type: ignore[arg-type]

    def tick(self) -> None:
        pool = self._pool()
        if pool is not None and not pool.closed:
            self._borrowed.log_leaks()
            self.schedule(pool)
