"""The blocks of the async connection types. The twin of ``base.py``."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

import psycopg

from .base import Block, ConnectionObject, StateOfBlocks, not_a_block
from .blocks import Blocks, calling_frame, entering_frame, is_of_contextlib
from .loops import require_own_loop
from .server_connection_async import AsyncServerConnection
from .transaction import AsyncTransaction, ends_quietly

AsyncBlockT = TypeVar("AsyncBlockT", bound=Block[AsyncServerConnection])
StateOnLoopT = TypeVar("StateOnLoopT", bound="StateOnLoop[Any]")


class StateOnLoop(StateOfBlocks[AsyncBlockT]):
    """What has blocks in one process, on one event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None


class AsyncConnectionObject(ConnectionObject[StateOnLoopT], Generic[StateOnLoopT, AsyncBlockT]):
    """The blocks of the types ``async`` and ``async_pool``, on the loop that opened them."""

    @abstractmethod
    async def _open_block(self, timeout: float | None) -> AsyncBlockT:
        """Begin a block; *timeout* in seconds, the config's without it."""

    @abstractmethod
    async def _close_block(
        self,
        block: AsyncBlockT,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        """Commit, or roll back on an exception; True if the exception goes no further."""

    @abstractmethod
    async def close_on_loop(self, deadline: float) -> None:
        """Close, on the loop, by *deadline* (``time.monotonic``)."""

    @abstractmethod
    def finish(self) -> None:
        """Close where no loop runs any more that could do it."""

    def tasks_of_its_own(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that run until it is closed."""
        return ()

    def _state_on_own_loop(self) -> StateOnLoopT:
        state = self._states.here()
        state.loop = require_own_loop(state.loop, self)
        return state

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
        if is_of_contextlib(frame):
            raise not_a_block(self)
        block = await self._open_block(None)
        block.frame = frame
        self._states.here().blocks.enter(frame, block)
        return block.conn

    async def _exit_block(
        self,
        frame: FrameType,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        block = self._states.here().blocks.leave(frame)
        if block is None:
            if any(frame in state.blocks for state in self._states.elsewhere()):
                return None  # a block that the parent process opened: nothing here is ours
            raise not_a_block(self)
        return await self._close_block(block, exc_type, exc, tb) or ends_quietly(exc)

    def connection(
        self, timeout: float | None = None
    ) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """A block that may be entered and left anywhere: for AsyncExitStack, decorators,
        generators.

        The psycopg connection is the caller's until then: no ``commit()`` of this object is on it.

        :param timeout: seconds to wait for it at most; the config's without it.
        """
        return self._connection(timeout)

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
        block = self._current(calling_frame())
        if block is not None:
            cursor: psycopg.AsyncCursor[Any] = block.conn.cursor(*args, **kwargs)
            return cursor
        return self._cursor(args, kwargs)

    @asynccontextmanager
    async def _connection(
        self, timeout: float | None
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with _EnteredBlock(self, timeout=timeout) as conn:
            yield conn

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        frame = entering_frame()
        current = self._current(frame)
        if current is not None:
            async with current.conn.transaction():
                yield current.conn
        else:
            async with _EnteredBlock(self, frame) as conn, AsyncTransaction(conn):
                yield conn

    @asynccontextmanager
    async def _cursor(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[psycopg.AsyncCursor[Any]]:
        async with (
            _EnteredBlock(self, entering_frame()) as conn,
            conn.cursor(*args, **kwargs) as cursor,
        ):
            yield cursor

    async def commit(self) -> None:
        """Commit the current block's transaction; does nothing outside a block."""
        if (block := self._current(calling_frame())) is not None:
            await block.conn.commit()

    async def rollback(self) -> None:
        """Roll back the current block's transaction; does nothing outside a block."""
        if (block := self._current(calling_frame())) is not None:
            await block.conn.rollback()

    def _current(self, frame: FrameType) -> Block[AsyncServerConnection] | None:
        return self._states.here().blocks.current(frame)


class _EnteredBlock:
    """A block that a generator enters and leaves, current in *frame* if that is given."""

    def __init__(
        self,
        owner: AsyncConnectionObject[Any, Any],
        frame: FrameType | None = None,
        timeout: float | None = None,
    ) -> None:
        self._owner = owner
        self._frame = frame
        self._timeout = timeout

    async def __aenter__(self) -> AsyncServerConnection:
        block: Block[AsyncServerConnection] = await self._owner._open_block(self._timeout)
        self._block = block
        self._blocks: Blocks[Block[AsyncServerConnection]] = self._owner._states.here().blocks
        if self._frame is not None:
            self._blocks.enter(self._frame, block)
        return block.conn

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        if self._frame is not None:
            self._blocks.leave(self._frame, self._block)
        is_over = await self._owner._close_block(self._block, exc_type, exc, tb)
        return is_over or ends_quietly(exc)
