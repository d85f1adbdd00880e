"""The ``async`` connection type: one server connection on one loop. The twin of ``normal.py``."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.transaction import OutOfOrderTransactionNesting
from psycopg_pool import PoolTimeout

from ..config import Config
from .base import Block, DescribeBorrower
from .base_async import AsyncConnectionObject, StateOnLoop
from .blocks import let_dropped_generators_end, may_be_dropped
from .connect_errors import Failures, can_pass, copy_for_waiter, seconds
from .liveness import IDLE_BEFORE_PING, Pulse, is_connected, ping_async
from .loops import end_with_running_loop, release_from_loop
from .normal import PAUSE_BETWEEN_ATTEMPTS
from .record import attributes_of
from .server_connection_async import AsyncServerConnection
from .single_flight import AsyncSingleFlight

if TYPE_CHECKING:
    from typing_extensions import Self

logger: logging.Logger = logging.getLogger("flask_pgmonkey")


class _Turn:
    """One task's time with the connection: a block and those nested in it."""

    def __init__(self, owner: AsyncNormalConnection, state: _NormalState) -> None:
        self.owner = owner
        self.state = state
        self.task = asyncio.current_task()
        self.call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began_at = monotonic()
        self.conn: AsyncServerConnection | None = None
        self.blocks: list[_TurnBlock] = []
        self.is_ending = False
        self.is_refused = False  # a block ended before one that was nested in it

    @property
    def who(self) -> str:
        """Who has or wants the connection, for messages."""
        return f"task {self.task.get_name()!r}" if self.task is not None else "a callback"

    def come_and_see(self) -> None:
        """Have it look whether its wait is over."""
        if not self.call.done():
            self.call.set_result(None)

    def note_end_of(self, block: _TurnBlock) -> None:
        """To be called before *block* ends."""
        nested = self.blocks[self.blocks.index(block) + 1 :]
        if any(one.savepoint is not None for one in nested):
            self.is_refused = True
        self.is_ending = len(self.blocks) == 1


class _TurnBlock(Block[AsyncServerConnection]):
    """An open block: the turn that it belongs to, and its savepoint if it is nested."""

    __slots__ = ("savepoint", "turn")

    def __init__(self, turn: _Turn, conn: AsyncServerConnection) -> None:
        super().__init__(conn)
        self.turn = turn
        self.savepoint: AbstractAsyncContextManager[Any] | None = None


class _NormalState(StateOnLoop[_TurnBlock]):
    """What an async connection has in one process: after a fork the child starts anew."""

    def __init__(self) -> None:
        super().__init__()
        self.conn: AsyncServerConnection | None = None
        self.openings: AsyncSingleFlight[AsyncServerConnection] = AsyncSingleFlight()
        self.line: list[_Turn] = []  # the first has the connection, the others wait
        self.failures: Failures = Failures()


class AsyncNormalConnection(AsyncConnectionObject[_NormalState, _TurnBlock]):
    """One server connection on one event loop, opened again when it died.

    The block gets a :class:`psycopg.AsyncConnection`; its end commits, or rolls back on an
    exception. One block at a time: other tasks wait, at most ``async_pool_settings.timeout``. A
    block nested in the same task is a savepoint. Belongs to the loop that opened it, and closes
    when that loop ends.
    """

    connection_type = "async"

    @staticmethod
    def _new_state(config: Config, describe_borrower: DescribeBorrower | None) -> _NormalState:
        return _NormalState()

    def _describe_state(self) -> str:
        state = self._states.here()
        if state.line:
            return "in use"
        return "idle" if state.conn is not None and not state.conn.closed else "closed"

    # Opening and closing

    async def connect(self) -> None:
        """Open the connection; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        :raises RuntimeError: on another loop than the object's own.
        """
        newest = self._newest()
        state = newest._state_on_own_loop()
        if state.conn is None and newest._is_replaced():
            await newest.connect()
            return
        await newest._open(state)

    async def disconnect(self) -> None:
        """Close the connection; one that is in use closes at the end of its block. The next block
        opens it again."""
        state = self._state_on_own_loop()
        conn, state.conn = state.conn, None
        if conn is not None and not state.line:
            await conn.close()
        self._leave_loop(state)

    def _leave_loop(self, state: _NormalState) -> None:
        """Let the loop's end no more care for this object, unless something of it is open."""
        if state.conn is None and not state.line and state.loop is not None:
            release_from_loop(self, state.loop)

    async def retire(self, successor: Self) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        for turn in self._states.here().line:
            turn.come_and_see()
        await self.disconnect()

    async def close_on_loop(self, deadline: float) -> None:
        """:meth:`disconnect`, which waits for nobody."""
        await self.disconnect()

    def finish(self) -> None:
        """Close where no loop runs any more that could do it."""
        state = self._states.here()
        for conn in (state.conn, *(turn.conn for turn in state.line)):
            if conn is not None:
                conn.pgconn.finish()
        state.conn = None

    def _is_in_use(self) -> bool:
        return bool(self._states.here().line)

    async def _open(self, state: _NormalState) -> AsyncServerConnection:
        try:
            return state.conn or await state.openings.run(
                "connection", lambda: self._open_new(state)
            )
        except Exception as error:
            state.failures.note(error)
            raise

    async def _open_new(self, state: _NormalState) -> AsyncServerConnection:
        conn = state.conn
        if conn is None:
            conn = await AsyncServerConnection.open(self, self._configure, self._row_factory)
            state.conn = conn
            state.failures.end()
            end_with_running_loop(self)
        return conn

    async def _open_in_time(
        self, state: _NormalState, deadline: float, timeout: float
    ) -> AsyncServerConnection:
        """Open the connection, trying again until *deadline*; while an outage is known, once."""
        usual = self.config.async_pool.timeout
        while True:
            try:
                return await self._open(state)
            except psycopg.OperationalError as error:
                is_known = state.failures.is_of_interest()
                if not can_pass(error) or (is_known and timeout <= usual):
                    raise
                if monotonic() + PAUSE_BETWEEN_ATTEMPTS >= deadline:
                    if timeout >= usual:
                        state.failures.make_known(error)
                    raise
            await asyncio.sleep(PAUSE_BETWEEN_ATTEMPTS)

    # Blocks

    async def _open_block(self, timeout: float | None) -> _TurnBlock:
        await self._let_dropped_generator_end()
        turn = self._current_turn()
        if turn is None:
            return await self._outermost_block(timeout)
        return await self._nested_block(turn)

    async def _let_dropped_generator_end(self) -> None:
        """Give way if the innermost block may be that of an async generator: if that was dropped,
        its block is about to end."""
        turn = self._current_turn()
        if turn is None or not turn.blocks:
            return
        frame = turn.blocks[-1].frame
        if frame is None or may_be_dropped(frame):  # of connection(), transaction(), cursor()
            await let_dropped_generators_end()
            if turn.blocks:
                async with turn.blocks[0].conn.lock:
                    pass  # until a rollback of it is over

    async def _outermost_block(self, timeout: float | None) -> _TurnBlock:
        timeout = self.config.async_pool.timeout if timeout is None else timeout
        deadline = monotonic() + timeout
        while True:
            owner = self._newest()
            state = owner._state_on_own_loop()
            turn = _Turn(owner, state)
            try:
                if await owner._has_turn(turn, deadline, timeout):
                    return await owner._begin_block(turn, deadline, timeout)
            except BaseException:
                owner._end_turn(turn)
                raise

    async def _has_turn(self, turn: _Turn, deadline: float, timeout: float) -> bool:
        """Wait in line for the turn; False if a successor serves it instead.

        :raises psycopg_pool.PoolTimeout: at the deadline, naming the holder.
        """
        line = turn.state.line
        line.append(turn)
        if self._successor is None and line[0] is not turn:
            await asyncio.wait([turn.call], timeout=max(0.0, deadline - monotonic()))
        if self._successor is not None:
            line.remove(turn)
            return False
        if line[0] is not turn:
            raise self._timed_out(line[0], turn, timeout)
        if turn.state.conn is None and self._is_replaced():
            line.remove(turn)
            for waiting in line:
                waiting.come_and_see()
            return False
        turn.began_at = monotonic()
        return True

    def _timed_out(self, holder: _Turn, turn: _Turn, timeout: float) -> Exception:
        """The error of *turn*, which waited in vain for *holder* to end."""
        if holder.conn is None and (error := turn.state.failures.since(turn.began_at)):
            return copy_for_waiter(error)
        doing = "held it" if holder.conn is not None else "been opening it"
        return PoolTimeout(
            f"the async connection to {self.config.target} did not come free within"
            f" {seconds(timeout)}: {holder.who} has {doing} for"
            f" {seconds(monotonic() - holder.began_at)}. Use the async_pool type where tasks work"
            " at the same time"
        )

    def _end_turn(self, turn: _Turn) -> None:
        line = turn.state.line
        if turn in line:
            line.remove(turn)
        if line:
            line[0].come_and_see()
        else:
            self._leave_loop(turn.state)

    async def _begin_block(self, turn: _Turn, deadline: float, timeout: float) -> _TurnBlock:
        conn = await self._live_connection(turn.state, deadline, timeout)
        if conn.autocommit != self.config.autocommit:
            await conn.set_autocommit(self.config.autocommit)
        block = _TurnBlock(turn, conn)
        turn.blocks.append(block)
        turn.conn = conn
        return block

    async def _live_connection(
        self, state: _NormalState, deadline: float, timeout: float
    ) -> AsyncServerConnection:
        conn = state.conn
        if conn is not None:
            if await self._is_alive(conn):
                return conn
            await conn.close()
            state.conn = None
        return await self._open_in_time(state, deadline, timeout)

    async def _is_alive(self, conn: AsyncServerConnection) -> bool:
        if not is_connected(conn) or not conn.has_types_of(self.types):
            return False
        if monotonic() - conn.record.released_at > IDLE_BEFORE_PING:
            return await ping_async(conn.pgconn) is Pulse.ALIVE
        return True

    async def _nested_block(self, turn: _Turn) -> _TurnBlock:
        conn = turn.blocks[0].conn
        block = _TurnBlock(turn, conn)
        if not conn.autocommit:
            block.savepoint = conn.transaction()
        turn.blocks.append(block)
        try:
            if block.savepoint is not None:
                if conn.pgconn.transaction_status == TransactionStatus.IDLE:
                    # Otherwise the savepoint would be the outermost transaction, and commit.
                    await conn.execute("", prepare=False)
                await block.savepoint.__aenter__()
        except BaseException:
            await turn.owner._drop_block(block)
            raise
        return block

    async def _close_block(
        self,
        block: _TurnBlock,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        # A successor may have served it.
        return await block.turn.owner._end_block(block, exc_type, exc, tb)

    async def _end_block(
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
                is_handled = await block.savepoint.__aexit__(exc_type, exc, tb)
            if turn.is_refused:
                if exc_type is None:
                    raise OutOfOrderTransactionNesting(
                        "a block ended before one that was nested in it: both are rolled back, and"
                        " all blocks around them"
                    )
            elif turn.is_ending:
                await self._end_transaction(block.conn, exc_type is not None)
            return is_handled
        finally:
            await self._drop_block(block)

    async def _drop_block(self, block: _TurnBlock) -> None:
        turn = block.turn
        turn.blocks.remove(block)
        if not turn.blocks:
            try:
                await self._put_back(turn, block.conn)
            finally:
                self._end_turn(turn)

    async def _end_transaction(self, conn: AsyncServerConnection, failed: bool) -> None:
        if not failed:
            if conn.wants_commit:
                await conn.commit()
            return
        try:
            if not conn.closed:
                with conn.bounded_as_release():
                    await conn.rollback()
        except psycopg.Error as error:
            logger.warning("Closing the connection to %s: %s", self.config.target, error)
            await conn.close()

    async def _put_back(self, turn: _Turn, conn: AsyncServerConnection) -> None:
        state, pgconn = turn.state, conn.pgconn
        is_wanted = conn is state.conn and self._successor is None and not turn.is_refused
        is_idle = pgconn.transaction_status == TransactionStatus.IDLE
        # After tpc_prepare() psycopg would let nobody commit on this connection.
        if is_wanted and is_idle and not pgconn.pipeline_status and conn._tpc is None:
            try:
                if await self._make_reusable(conn):
                    conn.record.released_at = monotonic()
                    return
            except psycopg.Error as error:
                logger.warning("Closing the connection to %s: %s", self.config.target, error)
        await conn.close()
        if conn is state.conn:
            state.conn = None

    async def _make_reusable(self, conn: AsyncServerConnection) -> bool:
        """Undo what the blocks left; False if the connection is of no use any more."""
        record = conn.record
        if attributes_of(conn) != record.attributes:
            await conn.put_back_attributes()
        resets = self.config.async_pool.reset_on_return
        if resets is True or record.is_marked:
            if resets:
                await conn.reset_session()
            if record.met_read_only_at and await conn.was_demoted():
                return False
            record.met_read_only_at = 0.0
        return True

    def _current_turn(self) -> _Turn | None:
        """The turn of this task, unless it is just ending in another one."""
        for each in self._with_successors():
            for turn in each._states.here().line[:1]:
                if turn.task is asyncio.current_task() and turn.conn and not turn.is_ending:
                    return turn
        return None

    async def test_connection(self) -> None:
        """Query through the connection.

        :raises psycopg.Error: what went wrong.
        """
        async with self as conn:
            await conn.execute("SELECT 1", prepare=False)
