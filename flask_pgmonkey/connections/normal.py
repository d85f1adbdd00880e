"""The ``normal`` connection type: one server connection, one block at a time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from ..config import Config
from .failures import can_pass, seconds
from .liveness import IDLE_BEFORE_PING, Pulse, is_connected, ping
from .opening import Configure, ServerConnection, get_attributes
from .racing import Racers

if TYPE_CHECKING:
    from psycopg.rows import RowFactory

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_PAUSE_BETWEEN_ATTEMPTS = 0.1


class _ProcessState:
    """What a normal connection object has in one process: after a fork the child starts anew."""

    def __init__(self) -> None:
        self.conn: ServerConnection | None = None
        self.openings: Racers[ServerConnection] = Racers()
        self.free = threading.Condition()
        self.holder = 0  # the thread whose block it is
        self.held_by = ""
        self.held_since = 0.0
        self.lent: ServerConnection | None = None
        self.nested: list[AbstractContextManager[Any]] = []


class NormalConnection:
    """One server connection, kept open between blocks and opened again when it died.

    The block gets a :class:`psycopg.Connection`; its end commits, or rolls back on an exception.
    One block at a time: other threads wait, at most ``pool_settings.timeout``. A block nested in
    the same thread is a savepoint.

    :param config: which server, which settings.
    :param configure: called with every new psycopg connection.
    :param row_factory: how the connection makes rows; tuples without it.
    """

    connection_type = "normal"

    def __init__(
        self,
        config: Config,
        *,
        configure: Configure | None = None,
        row_factory: RowFactory[Any] | None = None,
    ) -> None:
        self.config = config
        self._timeout = config.pool.timeout
        self._configure = configure
        self._row_factory = row_factory
        self._successor: NormalConnection | None = None
        self._states: dict[int, _ProcessState] = {}

    def __repr__(self) -> str:
        state = self._state()
        if state.holder:
            return f"<NormalConnection {self.config.target} in use>"
        is_open = state.conn is not None and not state.conn.closed
        return f"<NormalConnection {self.config.target} {'idle' if is_open else 'closed'}>"

    # Opening and closing

    def connect(self) -> None:
        """Open the connection; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        """
        self._open(self._state())

    def disconnect(self) -> None:
        """Close the connection; one that is in use closes at the end of its block. The next block
        opens it again."""
        state = self._state()
        with state.free:
            conn, state.conn = state.conn, None
            if conn is not None and not state.holder:
                conn.close()

    def retire(self, successor: NormalConnection) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        self.disconnect()
        state = self._state()
        with state.free:
            state.free.notify_all()

    def close_at_exit(self, deadline: float) -> None:
        """Close what this process has open."""
        self.disconnect()

    def _state(self) -> _ProcessState:
        try:
            return self._states[os.getpid()]
        except KeyError:
            # What another process opened stays referenced: it must not be closed here.
            return self._states.setdefault(os.getpid(), _ProcessState())

    def _open(self, state: _ProcessState) -> ServerConnection:
        return state.conn or state.openings.run("connection", lambda: self._open_new(state))

    def _open_new(self, state: _ProcessState) -> ServerConnection:
        if state.conn is None:
            state.conn = ServerConnection.open(
                self.config, self.config.sync_settings, self._configure, self._row_factory
            )
        return state.conn

    def _reopen(self, state: _ProcessState, deadline: float) -> ServerConnection:
        while True:
            try:
                return self._open(state)
            except psycopg.OperationalError as error:
                if not can_pass(error) or monotonic() + _PAUSE_BETWEEN_ATTEMPTS >= deadline:
                    raise
            sleep(_PAUSE_BETWEEN_ATTEMPTS)

    # Blocks

    def __enter__(self) -> psycopg.Connection[Any]:
        return self._enter_block()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        return self._leave_block(exc_type, exc, tb)

    def _enter_block(self) -> psycopg.Connection[Any]:
        state = self._state()
        if state.holder == threading.get_ident() and state.lent is not None:
            return self._enter_nested_block(state, state.lent)
        deadline = monotonic() + self._timeout
        if not self._take_turn(state, deadline) and self._successor is not None:
            return self._successor._enter_block()
        try:
            conn = self._live_connection(state, deadline)
            if conn.autocommit != self.config.autocommit:
                conn.autocommit = self.config.autocommit
        except BaseException:
            self._end_turn(state)
            raise
        state.lent = conn
        return conn

    def _take_turn(self, state: _ProcessState, deadline: float) -> bool:
        """Wait for this thread's turn; False if a successor serves it instead.

        :raises psycopg_pool.PoolTimeout: at the deadline, naming the holder.
        """
        with state.free:
            while state.holder and self._successor is None:
                in_time = state.free.wait(max(0.0, deadline - monotonic()))
                if not in_time and state.holder and self._successor is None:
                    raise PoolTimeout(
                        f"the normal connection to {self.config.target} did not come free within"
                        f" {seconds(self._timeout)}: {state.held_by} has held it for"
                        f" {seconds(monotonic() - state.held_since)}. Use the pool type where"
                        " threads work at the same time"
                    )
            if self._successor is not None:
                return False
            state.holder = threading.get_ident()
            state.held_by = f"thread {threading.current_thread().name!r}"
            state.held_since = monotonic()
            return True

    def _end_turn(self, state: _ProcessState) -> None:
        with state.free:
            state.lent = None
            state.holder = 0
            state.free.notify_all()

    def _live_connection(self, state: _ProcessState, deadline: float) -> ServerConnection:
        conn = state.conn
        if conn is None:
            return self._open(state)
        if self._is_alive(conn):
            return conn
        conn.close()
        state.conn = None
        return self._reopen(state, deadline)

    def _is_alive(self, conn: ServerConnection) -> bool:
        if not is_connected(conn):
            return False
        if monotonic() - conn.ledger.released_at > IDLE_BEFORE_PING:
            return ping(conn.pgconn) is Pulse.ALIVE
        return True

    def _enter_nested_block(
        self, state: _ProcessState, conn: ServerConnection
    ) -> psycopg.Connection[Any]:
        nested: AbstractContextManager[Any] = nullcontext()
        if not conn.autocommit:
            if conn.pgconn.transaction_status == TransactionStatus.IDLE:
                # Otherwise the savepoint would be the outermost transaction, and commit.
                conn.execute("", prepare=False)
            nested = conn.transaction()
        nested.__enter__()
        state.nested.append(nested)
        return conn

    def _leave_block(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        state = self._state()
        if self._successor is not None and self._current() not in (None, state.lent):
            return self._successor._leave_block(exc_type, exc, tb)
        if state.nested:
            return state.nested.pop().__exit__(exc_type, exc, tb)
        conn = state.lent
        if conn is None:
            return None  # a block that the parent process opened: nothing here is ours
        try:
            self._end_transaction(conn, exc_type is not None)
        finally:
            try:
                self._put_back(state, conn)
            finally:
                self._end_turn(state)
        return None

    def _end_transaction(self, conn: ServerConnection, failed: bool) -> None:
        if not failed:
            if conn.broken or not conn.closed:
                conn.commit()
            return
        try:
            if not conn.closed:
                conn.rollback()
        except psycopg.Error as error:
            logger.warning("Closing the connection to %s: %s", self.config.target, error)
            conn.close()

    def _put_back(self, state: _ProcessState, conn: ServerConnection) -> None:
        is_kept = conn is state.conn and self._successor is None and not conn.pgconn.pipeline_status
        if is_kept and conn.pgconn.transaction_status == TransactionStatus.IDLE:
            if get_attributes(conn) != conn.ledger.attributes:
                conn.put_back_attributes()
            conn.ledger.released_at = monotonic()
            return
        conn.close()
        if conn is state.conn:
            state.conn = None

    def transaction(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A transaction on the current block's connection, nested a savepoint; outside a block it
        is a block. Gives the psycopg connection."""
        return self._transaction(self._current())

    def cursor(self, *args: Any, **kwargs: Any) -> AbstractContextManager[psycopg.Cursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``with connection.cursor()
        as cur:`` is a block. Takes what :meth:`psycopg.Connection.cursor` takes."""
        conn = self._current()
        return conn.cursor(*args, **kwargs) if conn is not None else self._cursor(args, kwargs)

    @contextmanager
    def _transaction(self, current: ServerConnection | None) -> Iterator[psycopg.Connection[Any]]:
        with nullcontext(current) if current is not None else self as conn:
            with conn.transaction():
                yield conn

    @contextmanager
    def _cursor(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[psycopg.Cursor[Any]]:
        with self as conn, conn.cursor(*args, **kwargs) as cursor:
            yield cursor

    def commit(self) -> None:
        """Commit the current block's transaction; does nothing outside a block."""
        if (conn := self._current()) is not None:
            conn.commit()

    def rollback(self) -> None:
        """Roll back the current block's transaction; does nothing outside a block."""
        if (conn := self._current()) is not None:
            conn.rollback()

    def _current(self) -> ServerConnection | None:
        state = self._state()
        if state.holder == threading.get_ident():
            return state.lent
        return self._successor._current() if self._successor is not None else None

    def test_connection(self) -> None:
        """Query through the connection.

        :raises psycopg.Error: what went wrong.
        """
        with self as conn:
            conn.execute("SELECT 1", prepare=False)
