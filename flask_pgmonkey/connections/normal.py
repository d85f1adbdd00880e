"""The ``normal`` connection type: one server connection, one block at a time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic, sleep
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.transaction import OutOfOrderTransactionNesting
from psycopg_pool import PoolTimeout

from ..config import Config
from .blocks import Blocks, calling_frame
from .failures import can_pass, seconds
from .liveness import IDLE_BEFORE_PING, Pulse, is_connected, ping
from .opening import Configure, ServerConnection, get_attributes
from .racing import Racers

if TYPE_CHECKING:
    from psycopg.rows import RowFactory

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_PAUSE_BETWEEN_ATTEMPTS = 0.1


class _Turn:
    """One thread's time with the connection: a block and those nested in it."""

    def __init__(self, owner: NormalConnection, state: _ProcessState) -> None:
        self.owner = owner
        self.state = state
        # Not its ident, which the next thread may get.
        self.thread = threading.current_thread()
        self.began_at = monotonic()
        self.conn: ServerConnection | None = None
        self.blocks: list[_Block] = []
        self.is_ending = False
        self.is_refused = False  # a block ended before one that was nested in it

    def note_end_of(self, block: _Block) -> None:
        """To be called before *block* ends."""
        nested = self.blocks[self.blocks.index(block) + 1 :]
        if any(one.savepoint is not None for one in nested):
            self.is_refused = True
        self.is_ending = len(self.blocks) == 1


class _Block:
    """What ends an open block: the turn that it belongs to, and its savepoint if it is nested."""

    def __init__(self, turn: _Turn, conn: ServerConnection) -> None:
        self.turn = turn
        self.conn = conn
        self.savepoint: AbstractContextManager[Any] | None = None


class _ProcessState:
    """What a normal connection object has in one process: after a fork the child starts anew."""

    def __init__(self) -> None:
        self.conn: ServerConnection | None = None
        self.openings: Racers[ServerConnection] = Racers()
        self.free = threading.Condition()
        self.line: list[_Turn] = []  # the first has the connection, the others wait
        self.blocks: Blocks[_Block] = Blocks()


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
        if state.line:
            return f"<NormalConnection {self.config.target} in use>"
        is_open = state.conn is not None and not state.conn.closed
        return f"<NormalConnection {self.config.target} {'idle' if is_open else 'closed'}>"

    # Opening and closing

    def connect(self) -> None:
        """Open the connection; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        """
        newest = self._newest()
        newest._open(newest._state())

    def disconnect(self) -> None:
        """Close the connection; one that is in use closes at the end of its block. The next block
        opens it again."""
        state = self._state()
        with state.free:
            conn, state.conn = state.conn, None
            if conn is not None and not state.line:
                conn.close()

    def retire(self, successor: NormalConnection) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        state = self._state()
        with state.free:
            self._successor = successor
            state.free.notify_all()
        self.disconnect()

    def close_at_exit(self, deadline: float) -> None:
        """Close what this process has open."""
        self.disconnect()

    def _state(self) -> _ProcessState:
        try:
            return self._states[os.getpid()]
        except KeyError:
            # What another process opened stays referenced: it must not be closed here.
            return self._states.setdefault(os.getpid(), _ProcessState())

    def _with_successors(self) -> Iterator[NormalConnection]:
        """This object, then those that took its place, the newest last."""
        each: NormalConnection | None = self
        while each is not None:
            yield each
            successor = each._successor
            while successor and successor._successor and not successor._state().line:
                # Done with: a chain of reloads must keep no object alive.
                successor = each._successor = successor._successor
            each = successor

    def _newest(self) -> NormalConnection:
        *_, newest = self._with_successors()
        return newest

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
        frame = calling_frame()
        turn = self._current_turn()
        block = self._outermost_block() if turn is None else self._nested_block(turn)
        self._state().blocks.enter(frame, block)
        return block.conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        block = self._leave_block(calling_frame())
        if block is None:
            return None  # a block that the parent process opened: nothing here is ours
        # A successor may have served it.
        return block.turn.owner._end_block(block, exc_type, exc, tb)

    def _outermost_block(self) -> _Block:
        deadline = monotonic() + self._timeout
        while True:
            owner = self._newest()
            turn = _Turn(owner, owner._state())
            try:
                if owner._has_turn(turn, deadline):
                    return owner._begin_block(turn, deadline)
            except BaseException:
                owner._end_turn(turn)
                raise

    def _has_turn(self, turn: _Turn, deadline: float) -> bool:
        """Wait in line for the turn; False if a successor serves it instead.

        :raises psycopg_pool.PoolTimeout: at the deadline, naming the holder.
        """
        line, free = turn.state.line, turn.state.free
        with free:
            line.append(turn)
            free.wait_for(
                lambda: self._successor is not None or line[0] is turn,
                max(0.0, deadline - monotonic()),
            )
            if self._successor is not None:
                line.remove(turn)
                return False
            if line[0] is not turn:
                raise PoolTimeout(
                    f"the normal connection to {self.config.target} did not come free within"
                    f" {seconds(self._timeout)}: thread {line[0].thread.name!r} has held it for"
                    f" {seconds(monotonic() - line[0].began_at)}. Use the pool type where"
                    " threads work at the same time"
                )
            turn.began_at = monotonic()
            return True

    def _end_turn(self, turn: _Turn) -> None:
        with turn.state.free:
            if turn in turn.state.line:
                turn.state.line.remove(turn)
            turn.state.free.notify_all()

    def _begin_block(self, turn: _Turn, deadline: float) -> _Block:
        conn = self._live_connection(turn.state, deadline)
        if conn.autocommit != self.config.autocommit:
            conn.autocommit = self.config.autocommit
        block = _Block(turn, conn)
        turn.blocks.append(block)
        turn.conn = conn
        return block

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

    def _nested_block(self, turn: _Turn) -> _Block:
        conn = turn.blocks[0].conn
        block = _Block(turn, conn)
        if not conn.autocommit:
            block.savepoint = conn.transaction()
        turn.blocks.append(block)
        try:
            if block.savepoint is not None:
                if conn.pgconn.transaction_status == TransactionStatus.IDLE:
                    # Otherwise the savepoint would be the outermost transaction, and commit.
                    conn.execute("", prepare=False)
                block.savepoint.__enter__()
        except BaseException:
            turn.owner._drop_block(block)
            raise
        return block

    def _leave_block(self, frame: FrameType) -> _Block | None:
        """The block that *frame* ends, taken out; None for one of the parent process."""
        own = self._state()
        block = own.blocks.leave(frame) or own.blocks.leave_newest()
        others = [state for state in list(self._states.values()) if state is not own]
        if block is None and not any(len(state.blocks) for state in others):
            raise RuntimeError(
                "this block of the connection was not opened here: use connection.transaction(),"
                " which can be entered and left anywhere"
            )
        return block

    def _end_block(
        self,
        block: _Block,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        turn = block.turn
        turn.note_end_of(block)
        is_handled = None
        try:
            if block.savepoint is not None:
                is_handled = block.savepoint.__exit__(exc_type, exc, tb)
            if turn.is_refused:
                if exc_type is None:
                    raise OutOfOrderTransactionNesting(
                        "a block ended before one that was nested in it: both are rolled back, and"
                        " all blocks around them"
                    )
            elif turn.is_ending:
                self._end_transaction(block.conn, exc_type is not None)
            return is_handled
        finally:
            self._drop_block(block)

    def _drop_block(self, block: _Block) -> None:
        turn = block.turn
        with turn.state.free:
            turn.blocks.remove(block)
            is_last = not turn.blocks
        if is_last:
            try:
                self._put_back(turn, block.conn)
            finally:
                self._end_turn(turn)

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

    def _put_back(self, turn: _Turn, conn: ServerConnection) -> None:
        state, pgconn = turn.state, conn.pgconn
        is_wanted = conn is state.conn and self._successor is None and not turn.is_refused
        is_idle = pgconn.transaction_status == TransactionStatus.IDLE
        # After tpc_prepare() psycopg would let nobody commit on this connection.
        if is_wanted and is_idle and not pgconn.pipeline_status and conn._tpc is None:
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
        return self._transaction()

    def cursor(self, *args: Any, **kwargs: Any) -> AbstractContextManager[psycopg.Cursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``with connection.cursor()
        as cur:`` is a block. Takes what :meth:`psycopg.Connection.cursor` takes."""
        conn = self._current()
        return conn.cursor(*args, **kwargs) if conn is not None else self._cursor(args, kwargs)

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        current = self._current()  # at each call of a function that this decorates
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
        turn = self._current_turn()
        return turn.conn if turn is not None else None

    def _current_turn(self) -> _Turn | None:
        """The turn of this thread, unless it is just ending in another one."""
        thread = threading.current_thread()
        for each in self._with_successors():
            for turn in each._state().line[:1]:
                if turn.thread is thread and turn.conn and not turn.is_ending:
                    return turn
        return None

    def test_connection(self) -> None:
        """Query through the connection.

        :raises psycopg.Error: what went wrong.
        """
        with self as conn:
            conn.execute("SELECT 1", prepare=False)
