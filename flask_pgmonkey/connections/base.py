"""What the connection types share: their making, their successors, and the blocks of the sync ones.

A block is a ``with`` statement on the object; ``commit()``, ``cursor()`` and the others act on the
innermost one around the caller. What ``connection()`` gives, the caller holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from ..config import Config
from ..per_process import PerProcess
from ..signals import FindOrigin
from .blocks import Blocks, calling_frame, entering_frame, is_of_contextlib
from .server_connection import ServerConnection
from .server_connection_base import Configure
from .transaction import Transaction, ends_quietly

if TYPE_CHECKING:
    from typing_extensions import Self

    from .known_types import KnownTypes
    from .protocols import Timer

DescribeBorrower = Callable[[], str]
AnyConnT = TypeVar("AnyConnT")
StateT = TypeVar("StateT")
StateOfBlocksT = TypeVar("StateOfBlocksT", bound="StateOfBlocks[Any]")


class ConnectionObject(ABC, Generic[StateT]):
    """What the manager returns for a connection type.

    :param config: which server, which settings.
    :param configure: called with every new psycopg connection, and again after each reset of its
        session, in an empty context (:mod:`contextvars`), so without an app; the async types await
        what it returns, if that is awaitable.
    :param row_factory: how the connections make rows; tuples without it.
    :param describe_borrower: names who is borrowing from a pool in the log lines of
        ``leak_threshold``.
    :param find_origin: says whose the events of its connections are; its own without it.
    :param find_tag: gives a comment for each statement, if there is to be one.
    :param types: what its connections know of the database's types, beside PostgreSQL's own.
    :param timers: hear how long a pool's connections took to open and to borrow, and were used.
    """

    connection_type: str

    def __init__(
        self,
        config: Config,
        *,
        configure: Configure | None = None,
        row_factory: Any = None,
        describe_borrower: DescribeBorrower | None = None,
        find_origin: FindOrigin | None = None,
        find_tag: Callable[[], bytes] | None = None,
        types: KnownTypes | None = None,
        timers: Sequence[Timer] = (),
    ) -> None:
        self.timers: Sequence[Timer] = timers
        self.known_as: str | None = None
        self.find_tag: Callable[[], bytes] | None = find_tag
        self.find_origin: FindOrigin | None = find_origin
        self.config: Config = config
        self.plans_changed: int = 0
        self.types: KnownTypes | None = types
        if types is not None:
            types.serve(self)
        self._configure = configure
        self._row_factory = row_factory
        self._successor: Self | None = None
        self._take_in: Callable[[Any], Any] | None = None
        # Nothing in there refers to this object, so that it needs no garbage collector to go.
        self._states: PerProcess[StateT] = PerProcess(
            partial(self._new_state, config, describe_borrower)
        )

    @staticmethod
    @abstractmethod
    def _new_state(config: Config, describe_borrower: DescribeBorrower | None) -> StateT:
        """What the object has in one process."""

    @abstractmethod
    def _describe_state(self) -> str:
        """How it stands, for ``repr``."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.target} {self._describe_state()}>"

    def let_go(self, take_in: Callable[[Any], Any]) -> None:
        """Its keeper forgets it.

        If it is to open again, for somebody who has waited or has kept it, *take_in* is called with
        it first, and gives what serves in its place: itself or another.
        """
        self._take_in = take_in

    def _is_replaced(self) -> bool:
        """Whether a successor has to open in its place. To be asked before it opens again."""
        take_in, self._take_in = self._take_in, None
        if take_in is not None and self._successor is None:
            serving = take_in(self)
            if serving is not self:
                self._successor = serving
        return self._successor is not None

    # Successors: once there is one, this object lends no more

    def _is_in_use(self) -> bool:
        """Whether something goes on in it that :meth:`_with_successors` has to find."""
        return False

    def _with_successors(self) -> Iterator[Self]:
        """This object, then those that took its place, the newest last."""
        each: Self | None = self
        while each is not None:
            yield each
            successor = each._successor
            while successor and successor._successor and not successor._is_in_use():
                # Done with: a chain of reloads must keep no object alive.
                successor = each._successor = successor._successor
            each = successor

    def _newest(self) -> Self:
        *_, newest = self._with_successors()
        return newest


class Block(Generic[AnyConnT]):
    """An open block and the connection that it has.

    :ivar frame: what runs the ``with`` statement.
    """

    __slots__ = ("conn", "frame")

    def __init__(self, conn: AnyConnT) -> None:
        self.conn: AnyConnT = conn
        self.frame: FrameType | None = None


BlockT = TypeVar("BlockT", bound=Block[Any])
SyncBlockT = TypeVar("SyncBlockT", bound=Block[ServerConnection])


class StateOfBlocks(Generic[BlockT]):
    """What has blocks in one process."""

    def __init__(self) -> None:
        self.blocks: Blocks[BlockT] = Blocks()


class SyncConnectionObject(ConnectionObject[StateOfBlocksT], Generic[StateOfBlocksT, SyncBlockT]):
    """The blocks of the types ``normal`` and ``pool``."""

    @abstractmethod
    def _open_block(self, timeout: float | None) -> SyncBlockT:
        """Begin a block; *timeout* in seconds, the config's without it."""

    @abstractmethod
    def _close_block(
        self,
        block: SyncBlockT,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        """Commit, or roll back on an exception; True if the exception goes no further."""

    def __enter__(self) -> psycopg.Connection[Any]:
        frame = calling_frame()
        if is_of_contextlib(frame):
            raise not_a_block(self)
        block = self._open_block(None)
        block.frame = frame
        self._states.here().blocks.enter(frame, block)
        return block.conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        frame = calling_frame()
        block = self._states.here().blocks.leave(frame)
        if block is None:
            if any(frame in state.blocks for state in self._states.elsewhere()):
                return None  # a block that the parent process opened: nothing here is ours
            raise not_a_block(self)
        return self._close_block(block, exc_type, exc, tb) or ends_quietly(exc)

    def connection(
        self, timeout: float | None = None
    ) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A block that may be entered and left anywhere: for ExitStack, decorators, generators.

        The psycopg connection is the caller's until then: no ``commit()`` of this object is on it.

        :param timeout: seconds to wait for it at most; the config's without it.
        """
        return self._connection(timeout)

    def transaction(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A transaction on the current block's connection, nested a savepoint; outside a block it
        is a block. Gives the psycopg connection."""
        return self._transaction()

    def cursor(self, *args: Any, **kwargs: Any) -> AbstractContextManager[psycopg.Cursor[Any]]:
        """A cursor on the current block's connection; outside a block, ``with connection.cursor()
        as cur:`` is a block. Takes what :meth:`psycopg.Connection.cursor` takes."""
        block = self._current(calling_frame())
        if block is not None:
            cursor: psycopg.Cursor[Any] = block.conn.cursor(*args, **kwargs)
            return cursor
        return self._cursor(args, kwargs)

    # A generator's body begins when it is entered, for each call of a function that it decorates,
    # and ends with the generator, if that is dropped. Each is one generator only: of several that
    # are garbage together, any could be the first to end.

    @contextmanager
    def _connection(self, timeout: float | None) -> Iterator[psycopg.Connection[Any]]:
        with _EnteredBlock(self, timeout=timeout) as conn:
            yield conn

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        frame = entering_frame()
        current = self._current(frame)
        if current is not None:
            with current.conn.transaction():
                yield current.conn
        else:
            with _EnteredBlock(self, frame) as conn, Transaction(conn):
                yield conn

    @contextmanager
    def _cursor(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[psycopg.Cursor[Any]]:
        with _EnteredBlock(self, entering_frame()) as conn, conn.cursor(*args, **kwargs) as cursor:
            yield cursor

    def commit(self) -> None:
        """Commit the current block's transaction; does nothing outside a block."""
        if (block := self._current(calling_frame())) is not None:
            block.conn.commit()

    def rollback(self) -> None:
        """Roll back the current block's transaction; does nothing outside a block."""
        if (block := self._current(calling_frame())) is not None:
            block.conn.rollback()

    def _current(self, frame: FrameType) -> Block[ServerConnection] | None:
        return self._states.here().blocks.current(frame)


class _EnteredBlock:
    """A block that a generator enters and leaves, current in *frame* if that is given."""

    def __init__(
        self,
        owner: SyncConnectionObject[Any, Any],
        frame: FrameType | None = None,
        timeout: float | None = None,
    ) -> None:
        self._owner = owner
        self._frame = frame
        self._timeout = timeout

    def __enter__(self) -> ServerConnection:
        block: Block[ServerConnection] = self._owner._open_block(self._timeout)
        self._block = block
        self._blocks: Blocks[Block[ServerConnection]] = self._owner._states.here().blocks
        if self._frame is not None:
            self._blocks.enter(self._frame, block)
        return block.conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        if self._frame is not None:
            self._blocks.leave(self._frame, self._block)
        is_over = self._owner._close_block(self._block, exc_type, exc, tb)
        return is_over or ends_quietly(exc)


def not_a_block(owner: object) -> RuntimeError:
    """The error of who enters or leaves an object otherwise than by a ``with`` statement."""
    return RuntimeError(
        f"a block of {owner!r} is a 'with' statement on it. Where something else enters or leaves"
        " it, as ExitStack does, use its connection(), which can be entered and left anywhere"
    )
