"""The ``async`` connection type: one server connection on one loop. The twin of ``normal.py``."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.transaction import OutOfOrderTransactionNesting
from psycopg_pool import PoolTimeout

from ..config import Config
from .blocks import Blocks, calling_frame
from .failures import can_pass, seconds
from .liveness import IDLE_BEFORE_PING, Pulse, is_connected, ping_async
from .loops import end_with_running_loop, release_from_loop, require_own_loop
from .opening import AsyncServerConnection, Configure, get_attributes
from .racing import AsyncRacers

if TYPE_CHECKING:
    from psycopg.rows import AsyncRowFactory

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_PAUSE_BETWEEN_ATTEMPTS = 0.1


class _Turn:
    """One task's time with the connection: a block and those nested in it."""

    def __init__(self, owner: AsyncNormalConnection, state: _ProcessState) -> None:
        self.owner = owner
        self.state = state
        self.task = asyncio.current_task()
        self.call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began_at = monotonic()
        self.conn: AsyncServerConnection | None = None
        self.blocks: list[_Block] = []
        self.is_ending = False
        self.is_refused = False  # a block ended before one that was nested in it

    @property
    def holder(self) -> str:
        """Who has or wants the connection, for messages."""
        return f"task {self.task.get_name()!r}" if self.task is not None else "a callback"

    def come_and_see(self) -> None:
        """Have it look whether its wait is over."""
        if not self.call.done():
            self.call.set_result(None)

    def note_end_of(self, block: _Block) -> None:
        """To be called before *block* ends."""
        nested = self.blocks[self.blocks.index(block) + 1 :]
        if any(one.savepoint is not None for one in nested):
            self.is_refused = True
        self.is_ending = len(self.blocks) == 1


class _Block:
    """What ends an open block: the turn that it belongs to, and its savepoint if it is nested."""

    def __init__(self, frame: FrameType, turn: _Turn, conn: AsyncServerConnection) -> None:
        self.is_of_generator = bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)
        self.turn = turn
        self.conn = conn
        self.savepoint: AbstractAsyncContextManager[Any] | None = None


class _ProcessState:
    """What an async connection object has in one process: after a fork the child starts anew."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.conn: AsyncServerConnection | None = None
        self.openings: AsyncRacers[AsyncServerConnection] = AsyncRacers()
        self.line: list[_Turn] = []  # the first has the connection, the others wait
        self.blocks: Blocks[_Block] = Blocks()


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
        if state.line:
            return f"<AsyncNormalConnection {self.config.target} in use>"
        is_open = state.conn is not None and not state.conn.closed
        return f"<AsyncNormalConnection {self.config.target} {'idle' if is_open else 'closed'}>"

    # Opening and closing

    async def connect(self) -> None:
        """Open the connection; does nothing where it is open.

        :raises psycopg.OperationalError: at once, with the server's words, where that fails.
        :raises RuntimeError: on another loop than the object's own.
        """
        newest = self._newest()
        await newest._open(newest._state_on_own_loop())

    async def disconnect(self) -> None:
        """Close the connection; one that is in use closes at the end of its block. The next block
        opens it again."""
        state = self._state_on_own_loop()
        conn, state.conn = state.conn, None
        if conn is not None and not state.line:
            await conn.close()
        if state.loop is not None:
            release_from_loop(self, state.loop)

    async def retire(self, successor: AsyncNormalConnection) -> None:
        """Lend no more: *successor* serves who waits here now and who comes later."""
        self._successor = successor
        for turn in self._state().line:
            turn.come_and_see()
        await self.disconnect()

    async def close_on_loop(self, deadline: float) -> None:
        """:meth:`disconnect`, which waits for nobody."""
        await self.disconnect()

    def finish(self) -> None:
        """Close where no loop runs any more that could do it."""
        state = self._state()
        for conn in (state.conn, *(turn.conn for turn in state.line)):
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

    def _with_successors(self) -> Iterator[AsyncNormalConnection]:
        """This object, then those that took its place, the newest last."""
        each: AsyncNormalConnection | None = self
        while each is not None:
            yield each
            successor = each._successor
            while successor and successor._successor and not successor._state().line:
                # Done with: a chain of reloads must keep no object alive.
                successor = each._successor = successor._successor
            each = successor

    def _newest(self) -> AsyncNormalConnection:
        *_, newest = self._with_successors()
        return newest

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

    def __aenter__(self) -> Awaitable[psycopg.AsyncConnection[Any]]:
        # Not a coroutine function: here the frame of the `async with` is still the caller.
        return self._enter_block(calling_frame())

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> Awaitable[bool | None]:
        return self._exit_block(calling_frame(), exc_type, exc, tb)

    async def _enter_block(self, frame: FrameType) -> psycopg.AsyncConnection[Any]:
        await self._let_dropped_generator_end()
        turn = self._current_turn()
        if turn is None:
            block = await self._outermost_block(frame)
        else:
            block = await self._nested_block(frame, turn)
        self._state().blocks.enter(frame, block)
        return block.conn

    async def _exit_block(
        self,
        frame: FrameType,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        block = self._leave_block(frame)
        if block is None:
            return None  # a block that the parent process opened: nothing here is ours
        # A successor may have served it.
        return await block.turn.owner._end_block(block, exc_type, exc, tb)

    async def _let_dropped_generator_end(self) -> None:
        """Give way if the innermost block is an async generator's: if that was dropped, asyncio is
        about to end its block in a task of its own, which needs two passes of the loop to begin."""
        turn = self._current_turn()
        if turn is not None and turn.blocks[-1].is_of_generator:
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _outermost_block(self, frame: FrameType) -> _Block:
        deadline = monotonic() + self._timeout
        while True:
            owner = self._newest()
            turn = _Turn(owner, owner._state_on_own_loop())
            try:
                if await owner._has_turn(turn, deadline):
                    return await owner._begin_block(frame, turn, deadline)
            except BaseException:
                owner._end_turn(turn)
                raise

    async def _has_turn(self, turn: _Turn, deadline: float) -> bool:
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
            raise PoolTimeout(
                f"the async connection to {self.config.target} did not come free within"
                f" {seconds(self._timeout)}: {line[0].holder} has held it for"
                f" {seconds(monotonic() - line[0].began_at)}. Use the async_pool type where"
                " tasks work at the same time"
            )
        turn.began_at = monotonic()
        return True

    def _end_turn(self, turn: _Turn) -> None:
        line = turn.state.line
        if turn in line:
            line.remove(turn)
        if line:
            line[0].come_and_see()

    async def _begin_block(self, frame: FrameType, turn: _Turn, deadline: float) -> _Block:
        conn = await self._live_connection(turn.state, deadline)
        if conn.autocommit != self.config.autocommit:
            await conn.set_autocommit(self.config.autocommit)
        block = _Block(frame, turn, conn)
        turn.blocks.append(block)
        turn.conn = conn
        return block

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

    async def _nested_block(self, frame: FrameType, turn: _Turn) -> _Block:
        conn = turn.blocks[0].conn
        block = _Block(frame, turn, conn)
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

    async def _end_block(
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

    async def _drop_block(self, block: _Block) -> None:
        turn = block.turn
        turn.blocks.remove(block)
        if not turn.blocks:
            try:
                await self._put_back(turn, block.conn)
            finally:
                self._end_turn(turn)

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

    async def _put_back(self, turn: _Turn, conn: AsyncServerConnection) -> None:
        state, pgconn = turn.state, conn.pgconn
        is_wanted = conn is state.conn and self._successor is None and not turn.is_refused
        is_idle = pgconn.transaction_status == TransactionStatus.IDLE
        # After tpc_prepare() psycopg would let nobody commit on this connection.
        if is_wanted and is_idle and not pgconn.pipeline_status and conn._tpc is None:
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
        return self._transaction()

    def cursor(
        self, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[psycopg.AsyncCursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``async with
        connection.cursor() as cur:`` is a block. Takes what
        :meth:`psycopg.AsyncConnection.cursor` takes."""
        conn = self._current()
        return conn.cursor(*args, **kwargs) if conn is not None else self._cursor(args, kwargs)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        await self._let_dropped_generator_end()
        current = self._current()  # at each call of a function that this decorates
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
        turn = self._current_turn()
        return turn.conn if turn is not None else None

    def _current_turn(self) -> _Turn | None:
        """The turn of this task, unless it is just ending in another one."""
        for each in self._with_successors():
            for turn in each._state().line[:1]:
                if turn.task is asyncio.current_task() and turn.conn and not turn.is_ending:
                    return turn
        return None

    async def test_connection(self) -> None:
        """Query through the connection.

        :raises psycopg.Error: what went wrong.
        """
        async with self as conn:
            await conn.execute("SELECT 1", prepare=False)
