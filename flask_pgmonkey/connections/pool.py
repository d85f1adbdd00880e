"""The ``pool`` connection type: threads share a pool, each block borrows a connection."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout

from ..config import Config
from .blocks import Blocks, calling_frame, frame_of_block
from .failures import copy_for_waiter
from .lending import Lending
from .liveness import IDLE_BEFORE_PING, PING_TIMEOUT, Pulse, is_connected, ping
from .opening import Configure, ServerConnection, get_attributes
from .psycopg_pools import Connector, Pool
from .racing import Racers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.rows import RowFactory

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_CLOSING_TIMEOUT = 1.0
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class _ProcessState:
    """What a pool connection object has in one process: after a fork the child starts anew."""

    def __init__(self, lending: Lending) -> None:
        self.pool: Pool | None = None
        self.lending = lending
        self.blocks: Blocks[ServerConnection] = Blocks()
        self.openings: Racers[Pool] = Racers()


class PoolConnection:
    """A pool of server connections; each ``with`` block borrows one and gives it back.

    The block gets a :class:`psycopg.Connection`; its end commits, or rolls back on an exception.
    Safe to share between threads and to hold across a fork.

    :param config: which server, which settings.
    :param configure: called with every new psycopg connection.
    :param row_factory: how the connections make rows; tuples without it.
    :param describe_borrower: names who is borrowing in the log lines of ``leak_threshold``.
    """

    connection_type = "pool"

    def __init__(
        self,
        config: Config,
        *,
        configure: Configure | None = None,
        row_factory: RowFactory[Any] | None = None,
        describe_borrower: Callable[[], str] | None = None,
    ) -> None:
        self.config = config
        self._settings = config.pool
        self._idle_before_ping = -1.0 if config.pool.check_on_checkout else IDLE_BEFORE_PING
        self._configure = configure
        self._row_factory = row_factory
        self._describe_borrower = describe_borrower
        self._successor: PoolConnection | None = None
        self._is_exiting = False
        self._states: dict[int, _ProcessState] = {}

    def __repr__(self) -> str:
        state = self._state()
        if state.pool is None:
            return f"<PoolConnection {self.config.target} closed>"
        return (
            f"<PoolConnection {self.config.target} open,"
            f" {len(state.lending)} of at most {self._settings.max_size} borrowed>"
        )

    # Opening and closing

    def connect(self) -> None:
        """Open the pool, with one real connection first; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        """
        if self._successor is not None:
            self._newest().connect()
        else:
            self._open_pool(self._state())

    def disconnect(self) -> None:
        """Close the pool. Borrowed connections close when they come back; the next block opens
        the pool again."""
        self._close_by(monotonic() + _CLOSING_TIMEOUT)

    def retire(self, successor: PoolConnection) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        self.disconnect()

    def _newest(self) -> PoolConnection:
        """The last of the successors. Keeps that one only, so that no chain of them grows."""
        newest = self
        while newest._successor is not None:
            newest = newest._successor
        self._successor = newest
        return newest

    def close_at_exit(self, deadline: float) -> None:
        """Close what this process has open; its threads have until *deadline* to end."""
        self._is_exiting = True
        self._close_by(deadline)

    def _close_by(self, deadline: float) -> None:
        state = self._state()
        pool, state.pool = state.pool, None
        if pool is not None:
            pool.close_by(deadline)

    def _state(self) -> _ProcessState:
        try:
            return self._states[os.getpid()]
        except KeyError:
            lending = Lending(self.config.target, self._settings, self._describe_borrower)
            # What another process opened stays referenced: finalizing it here could hang.
            return self._states.setdefault(os.getpid(), _ProcessState(lending))

    def _open_pool(self, state: _ProcessState) -> Pool:
        return state.pool or state.openings.run("pool", lambda: self._open_new_pool(state))

    def _open_new_pool(self, state: _ProcessState) -> Pool:
        if state.pool is not None:
            return state.pool
        first = self._open_connection()
        connector = Connector(self._open_connection, self._settings.reconnect_timeout)
        pool = Pool(connector, self._settings, self.config.target)
        pool.open_with(first)
        if self._settings.leak_threshold:
            _LeakWatch(pool, state.lending, self._settings.leak_threshold).schedule(pool)
        state.pool = pool
        if self._successor is not None or self._is_exiting:  # since we began
            self._close_by(0.0)
        return pool

    def _open_connection(self) -> ServerConnection:
        return ServerConnection.open(
            self.config, self.config.sync_settings, self._configure, self._row_factory
        )

    # Borrowing and releasing

    def borrow(
        self, timeout: float | None = None, autocommit: bool | None = None
    ) -> ServerConnection:
        """A live psycopg connection that is the caller's until :meth:`release`.

        Prefer a block, or :meth:`connection`: what is borrowed here must be released.

        :param timeout: seconds to wait at most; the config's ``timeout`` without it. Who opens
            the pool waits for its first connection as long as ``connect_timeout`` says.
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
        state = self._states.get(os.getpid()) or self._state()
        while True:
            pool = state.pool or self._open_pool(state)
            try:
                conn = pool.take(deadline, now)
            except PoolClosed:
                if self._successor is not None:
                    return self._newest().borrow(deadline - monotonic(), autocommit)
                if self._is_exiting or monotonic() >= deadline:
                    raise
                continue  # somebody closed it meanwhile
            except PoolTimeout:
                explained, cause = self._explain_timeout(state, pool, start, timeout)
                raise explained from cause
            try:
                now = monotonic()
                pulse = Pulse.ALIVE if is_connected(conn) else Pulse.DEAD
                if pulse is Pulse.ALIVE and now - conn.ledger.released_at > self._idle_before_ping:
                    pulse = self._ping(conn, deadline - now)
                if pulse is Pulse.ALIVE:
                    if conn.autocommit != autocommit:
                        conn.autocommit = autocommit
                    state.lending.lend(conn, self, pool, now)
                    return conn
            except BaseException:
                pool.discard(conn)
                raise
            pool.discard(conn)
            if pulse is Pulse.SILENT:
                pool.discard_idle()
            elif pulse is Pulse.DEAD and state.lending.idle_rest_must_go(conn.ledger):
                pool.discard_idle(opened_before=conn.ledger.released_at)

    def release(self, conn: psycopg.Connection[Any]) -> None:
        """Give back what :meth:`borrow` gave. What is still in a transaction is rolled back; what
        is busy or dead is closed.

        :raises ValueError: for a connection that is not borrowed.
        """
        if not isinstance(conn, ServerConnection):
            raise ValueError(f"{conn!r} was not borrowed from a pool of flask_pgmonkey")
        if conn.owner_pid != os.getpid():
            return
        ledger = conn.ledger
        if ledger.lending is None or not ledger.lending.take_back(conn):
            raise ValueError(f"{conn!r} is not borrowed, or was given back already")
        pool: Pool = ledger.pool
        is_clean = False
        try:
            is_clean = ledger.owner._tidy(conn)
        except psycopg.Error as error:
            logger.warning("Closing a connection to %s: %s", self.config.target, error)
        finally:
            ledger.released_at = now = monotonic()
            if is_clean:
                pool.give_back(conn, now)
            else:
                pool.discard(conn)

    def abandon(self, conn: ServerConnection) -> None:
        """Give up a borrowed connection that another thread still uses.

        The other's query fails, because the socket is shut down; the last one to let go of the
        connection closes it. libpq must not be asked to, while another thread is in it.
        """
        if conn.ledger.lending.take_back(conn):
            conn.shut_down()
            conn.ledger.pool.forget(conn)

    def _tidy(self, conn: ServerConnection) -> bool:
        """Undo what the borrower left; False if the connection is of no use any more."""
        if conn.pgconn.transaction_status in _IN_TRANSACTION:
            conn.rollback()
        if conn.pgconn.transaction_status != TransactionStatus.IDLE or conn.pgconn.pipeline_status:
            return False
        if get_attributes(conn) != conn.ledger.attributes:
            if conn._tpc:  # a transaction left prepared: psycopg would refuse every commit here
                return False
            conn.put_back_attributes()
        if self._settings.reset_on_return:
            conn.reset_session(self.config.sync_settings)
        return True

    def _ping(self, conn: ServerConnection, patience: float) -> Pulse:
        pulse = ping(conn.pgconn, min(PING_TIMEOUT, patience))
        # A borrower in a hurry has learned nothing about the other connections.
        return Pulse.UNHEARD if pulse is Pulse.SILENT and patience < PING_TIMEOUT else pulse

    def _explain_timeout(
        self, state: _ProcessState, pool: Pool, start: float, timeout: float
    ) -> tuple[Exception, BaseException | None]:
        failure = pool.connector.failure
        if len(state.lending):
            return state.lending.exhausted(timeout, pool.get_stats()), failure.since(start)
        if failure.error is not None:
            return copy_for_waiter(failure.error), failure.error.__cause__
        return state.lending.unanswered(timeout), None

    # Blocks

    def __enter__(self) -> psycopg.Connection[Any]:
        frame = calling_frame()
        conn = self.borrow()
        self._state().blocks.enter(frame, conn)
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        frame = calling_frame()
        conn = self._state().blocks.leave(frame)
        if conn is not None:
            self._end_block(conn, exc_type is not None)
        elif not self._is_block_of_parent_process(frame):
            raise RuntimeError(
                "this block of the pool was not opened here: use pool.connection(), which"
                " can be entered and left anywhere"
            )

    def _is_block_of_parent_process(self, frame: FrameType) -> bool:
        return any(frame in state.blocks for state in list(self._states.values()))

    def _end_block(self, conn: ServerConnection, failed: bool) -> None:
        try:
            if not failed and (conn.broken or not conn.closed):
                conn.commit()
        finally:
            self.release(conn)

    def connection(
        self, timeout: float | None = None
    ) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A block of its own as a context manager, for ExitStack and generators.

        :param timeout: as for :meth:`borrow`.
        """
        return self._connection(calling_frame(), timeout)

    def transaction(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A transaction on the current block's connection, nested a savepoint; outside a block it
        is a block. Gives the psycopg connection."""
        return self._transaction(calling_frame())

    def cursor(self, *args: Any, **kwargs: Any) -> AbstractContextManager[psycopg.Cursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``with pool.cursor() as
        cur:`` is a block. Takes what :meth:`psycopg.Connection.cursor` takes."""
        frame = calling_frame()
        conn = self._current(frame)
        if conn is not None:
            return cast("psycopg.Cursor[Any]", conn.cursor(*args, **kwargs))
        return self._cursor_block(frame, args, kwargs)

    # A generator's body begins when it is entered, for each call of a function that it decorates,
    # and ends with the generator, if that is dropped. Each is one generator only: of several that
    # are garbage together, any could be the first to end.

    @contextmanager
    def _connection(
        self, maker: FrameType, timeout: float | None
    ) -> Iterator[psycopg.Connection[Any]]:
        with _Block(self, frame_of_block(maker), timeout) as conn:
            yield conn

    @contextmanager
    def _transaction(self, maker: FrameType) -> Iterator[psycopg.Connection[Any]]:
        frame = frame_of_block(maker)
        current = self._current(frame)
        if current is not None:
            with current.transaction():
                yield current
        else:
            with _Block(self, frame) as conn, psycopg.Transaction(conn):
                yield conn

    @contextmanager
    def _cursor_block(
        self, maker: FrameType, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[psycopg.Cursor[Any]]:
        with _Block(self, frame_of_block(maker)) as conn, conn.cursor(*args, **kwargs) as cursor:
            yield cursor

    def commit(self) -> None:
        """Commit the current block's transaction; does nothing outside a block."""
        if (conn := self._current(calling_frame())) is not None:
            conn.commit()

    def rollback(self) -> None:
        """Roll back the current block's transaction; does nothing outside a block."""
        if (conn := self._current(calling_frame())) is not None:
            conn.rollback()

    def _current(self, frame: FrameType) -> ServerConnection | None:
        return self._state().blocks.current(frame)

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
        pool = self._state().pool
        return pool.get_stats() if pool is not None else {}


class _Block:
    """A block of its own on a pool, current in *frame* and in what that calls."""

    def __init__(self, pool: PoolConnection, frame: FrameType, timeout: float | None = None):
        self._pool = pool
        self._frame = frame
        self._timeout = timeout

    def __enter__(self) -> ServerConnection:
        self._conn = self._pool.borrow(self._timeout)
        self._blocks = self._pool._state().blocks
        self._blocks.enter(self._frame, self._conn, knows_its_end=True)
        return self._conn

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self._blocks.drop(self._frame, self._conn)
        self._pool._end_block(self._conn, exc_type is not None)


class _LeakWatch:
    """Looks for leaks every half ``leak_threshold``, on the pool's own scheduler."""

    def __init__(self, pool: Pool, lending: Lending, threshold: float) -> None:
        self._pool = ref(pool)  # the scheduler's thread would keep it alive
        self._lending = lending
        self._interval = threshold / 2

    def schedule(self, pool: Pool) -> None:
        pool.schedule_task(self, self._interval)  # type: ignore[arg-type]

    def tick(self) -> None:
        pool = self._pool()
        if pool is not None and not pool.closed:
            self._lending.log_leaks()
            self.schedule(pool)
