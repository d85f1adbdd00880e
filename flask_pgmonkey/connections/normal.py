"""The ``normal`` connection type: one server connection, one block at a time."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.transaction import OutOfOrderTransactionNesting
from psycopg_pool import PoolTimeout

from ..config import Config
from .base import Block, DescribeBorrower, StateOfBlocks, SyncConnectionObject
from .connect_errors import Failures, can_pass, copy_for_waiter, seconds
from .liveness import IDLE_BEFORE_PING, Pulse, is_connected, ping
from .record import attributes_of
from .server_connection import ServerConnection
from .single_flight import SingleFlight

if TYPE_CHECKING:
    from typing_extensions import Self

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

PAUSE_BETWEEN_ATTEMPTS = 0.1


class _Turn:
    """One thread's time with the connection: a block and those nested in it."""

    def __init__(self, owner: NormalConnection, state: _NormalState) -> None:
        self.owner = owner
        self.state = state
        # Not its ident, which the next thread may get.
        self.thread = threading.current_thread()
        self.began_at = monotonic()
        self.conn: ServerConnection | None = None
        self.blocks: list[_TurnBlock] = []
        self.is_ending = False
        self.is_refused = False  # a block ended before one that was nested in it

    @property
    def who(self) -> str:
        """Who has or wants the connection, for messages."""
        return f"thread {self.thread.name!r}"

    def note_end_of(self, block: _TurnBlock) -> None:
        """To be called before *block* ends."""
        nested = self.blocks[self.blocks.index(block) + 1 :]
        if any(one.savepoint is not None for one in nested):
            self.is_refused = True
        self.is_ending = len(self.blocks) == 1


class _TurnBlock(Block[ServerConnection]):
    """An open block: the turn that it belongs to, and its savepoint if it is nested."""

    __slots__ = ("savepoint", "turn")

    def __init__(self, turn: _Turn, conn: ServerConnection) -> None:
        super().__init__(conn)
        self.turn = turn
        self.savepoint: AbstractContextManager[Any] | None = None


class _NormalState(StateOfBlocks[_TurnBlock]):
    """What a normal connection has in one process: after a fork the child starts anew."""

    def __init__(self) -> None:
        super().__init__()
        self.conn: ServerConnection | None = None
        self.openings: SingleFlight[ServerConnection] = SingleFlight()
        self.free = threading.Condition()
        self.line: list[_Turn] = []  # the first has the connection, the others wait
        self.failures: Failures = Failures()


class NormalConnection(SyncConnectionObject[_NormalState, _TurnBlock]):
    """One server connection, kept open between blocks and opened again when it died.

    The block gets a :class:`psycopg.Connection`; its end commits, or rolls back on an exception.
    One block at a time: other threads wait, at most ``pool_settings.timeout``. A block nested in
    the same thread is a savepoint.
    """

    connection_type = "normal"

    @staticmethod
    def _new_state(config: Config, describe_borrower: DescribeBorrower | None) -> _NormalState:
        return _NormalState()

    def _describe_state(self) -> str:
        state = self._states.here()
        if state.line:
            return "in use"
        return "idle" if state.conn is not None and not state.conn.closed else "closed"

    # Opening and closing

    def connect(self) -> None:
        """Open the connection; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        """
        newest = self._newest()
        state = newest._states.here()
        if state.conn is None and newest._is_replaced():
            newest.connect()
            return
        newest._open(state)

    def disconnect(self) -> None:
        """Close the connection; one that is in use closes at the end of its block. The next block
        opens it again."""
        state = self._states.here()
        with state.free:
            conn, state.conn = state.conn, None
            if conn is not None and not state.line:
                conn.close()

    def retire(self, successor: Self) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        state = self._states.here()
        with state.free:
            self._successor = successor
            state.free.notify_all()
        self.disconnect()

    def close_at_exit(self, deadline: float) -> None:
        """Close what this process has open."""
        self.disconnect()

    def _is_in_use(self) -> bool:
        return bool(self._states.here().line)

    def _open(self, state: _NormalState) -> ServerConnection:
        try:
            return state.conn or state.openings.run("connection", lambda: self._open_new(state))
        except Exception as error:
            state.failures.note(error)
            raise

    def _open_new(self, state: _NormalState) -> ServerConnection:
        if state.conn is None:
            state.conn = ServerConnection.open(self, self._configure, self._row_factory)
            state.failures.end()
        return state.conn

    def _open_in_time(
        self, state: _NormalState, deadline: float, timeout: float
    ) -> ServerConnection:
        """Open the connection, trying again until *deadline*; while an outage is known, once."""
        usual = self.config.pool.timeout
        while True:
            try:
                return self._open(state)
            except psycopg.OperationalError as error:
                is_known = state.failures.is_of_interest()
                if not can_pass(error) or (is_known and timeout <= usual):
                    raise
                if monotonic() + PAUSE_BETWEEN_ATTEMPTS >= deadline:
                    if timeout >= usual:
                        state.failures.make_known(error)
                    raise
            sleep(PAUSE_BETWEEN_ATTEMPTS)

    # Blocks

    def _open_block(self, timeout: float | None) -> _TurnBlock:
        turn = self._current_turn()
        return self._outermost_block(timeout) if turn is None else self._nested_block(turn)

    def _outermost_block(self, timeout: float | None) -> _TurnBlock:
        timeout = self.config.pool.timeout if timeout is None else timeout
        deadline = monotonic() + timeout
        while True:
            owner = self._newest()
            state = owner._states.here()
            turn = _Turn(owner, state)
            try:
                if owner._has_turn(turn, deadline, timeout):
                    return owner._begin_block(turn, deadline, timeout)
            except BaseException:
                owner._end_turn(turn)
                raise

    def _has_turn(self, turn: _Turn, deadline: float, timeout: float) -> bool:
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
                raise self._timed_out(line[0], turn, timeout)
            if turn.state.conn is None and self._is_replaced():
                line.remove(turn)
                free.notify_all()
                return False
            turn.began_at = monotonic()
            return True

    def _timed_out(self, holder: _Turn, turn: _Turn, timeout: float) -> Exception:
        """The error of *turn*, which waited in vain for *holder* to end."""
        if holder.conn is None and (error := turn.state.failures.since(turn.began_at)):
            return copy_for_waiter(error)
        doing = "held it" if holder.conn is not None else "been opening it"
        return PoolTimeout(
            f"the normal connection to {self.config.target} did not come free within"
            f" {seconds(timeout)}: {holder.who} has {doing} for"
            f" {seconds(monotonic() - holder.began_at)}. Use the pool type where threads work at"
            " the same time"
        )

    def _end_turn(self, turn: _Turn) -> None:
        with turn.state.free:
            if turn in turn.state.line:
                turn.state.line.remove(turn)
            turn.state.free.notify_all()

    def _begin_block(self, turn: _Turn, deadline: float, timeout: float) -> _TurnBlock:
        conn = self._live_connection(turn.state, deadline, timeout)
        if conn.autocommit != self.config.autocommit:
            conn.autocommit = self.config.autocommit
        block = _TurnBlock(turn, conn)
        turn.blocks.append(block)
        turn.conn = conn
        return block

    def _live_connection(
        self, state: _NormalState, deadline: float, timeout: float
    ) -> ServerConnection:
        conn = state.conn
        if conn is not None:
            if self._is_alive(conn):
                return conn
            conn.close()
            state.conn = None
        return self._open_in_time(state, deadline, timeout)

    def _is_alive(self, conn: ServerConnection) -> bool:
        if not is_connected(conn) or not conn.has_types_of(self.types):
            return False
        if monotonic() - conn.record.released_at > IDLE_BEFORE_PING:
            return ping(conn.pgconn) is Pulse.ALIVE
        return True

    def _nested_block(self, turn: _Turn) -> _TurnBlock:
        conn = turn.blocks[0].conn
        block = _TurnBlock(turn, conn)
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

    def _close_block(
        self,
        block: _TurnBlock,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        # A successor may have served it.
        return block.turn.owner._end_block(block, exc_type, exc, tb)

    def _end_block(
        self,
        block: _TurnBlock,
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

    def _drop_block(self, block: _TurnBlock) -> None:
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
            if conn.wants_commit:
                conn.commit()
            return
        try:
            if not conn.closed:
                with conn.bounded_as_release():
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
            try:
                if self._make_reusable(conn):
                    conn.record.released_at = monotonic()
                    return
            except psycopg.Error as error:
                logger.warning("Closing the connection to %s: %s", self.config.target, error)
        conn.close()
        if conn is state.conn:
            state.conn = None

    def _make_reusable(self, conn: ServerConnection) -> bool:
        """Undo what the blocks left; False if the connection is of no use any more."""
        record = conn.record
        if attributes_of(conn) != record.attributes:
            conn.put_back_attributes()
        resets = self.config.pool.reset_on_return
        if resets is True or record.is_marked:
            if resets:
                conn.reset_session()
            if record.met_read_only_at and conn.was_demoted():
                return False
            record.met_read_only_at = 0.0
        return True

    def _current_turn(self) -> _Turn | None:
        """The turn of this thread, unless it is just ending in another one."""
        thread = threading.current_thread()
        for each in self._with_successors():
            for turn in each._states.here().line[:1]:
                if turn.thread is thread and turn.conn and not turn.is_ending:
                    return turn
        return None

    def test_connection(self) -> None:
        """Query through the connection.

        :raises psycopg.Error: what went wrong.
        """
        with self as conn:
            conn.execute("SELECT 1", prepare=False)
