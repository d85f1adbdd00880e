"""What this package remembers of one server connection."""

from __future__ import annotations

import logging
import select
import sys
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg.waiting
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus, TransactionStatus

from .connect_errors import copy_for_waiter
from .marks import prepares

if TYPE_CHECKING:
    from types import FrameType

    from blinker import NamedSignal
    from psycopg._connection_base import BaseConnection

    from ..after_commit import Callbacks
    from ..events import Event
    from .local_settings import FindSettings
    from .protocols import NotedConnection, Opener

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

SourceT = TypeVar("SourceT")

_IN_FAILED_TRANSACTION = "25P02"
_SYNTAX_ERROR = "42601"
_SHUTDOWN = ("57P01", "57P02", "57P03")

# What a borrower may change on a psycopg connection, in one step: each release looks whether it is
# as it was. Lists are the connection's own.
attributes_of: Callable[[Any], tuple[Any, ...]] = attrgetter(
    # Faster than the properties.
    "_isolation_level", "_read_only", "_deferrable",
    "_prepared.prepare_threshold", "_prepared.prepared_max",
    "row_factory", "cursor_factory", "server_cursor_factory",
    "_notice_handlers", "_notify_handlers", "registered",
    "_tpc",
)  # fmt: skip


class Refusal:
    """Why the transaction blocks that are open on a connection will not be committed.

    :ivar begun_by_block: whether one of those that have ended began the transaction.
    """

    __slots__ = ("begun_by_block", "reason")

    def __init__(self, reason: str) -> None:
        self.reason: str = reason
        self.begun_by_block: bool = False


class ConnectionRecord(Generic[SourceT]):
    """What this package remembers of one server connection.

    :ivar opener: what opened it.
    :ivar source: what it is given back to, where it is borrowed from a pool.
    :ivar backend_pid: the server process at its other end.
    :ivar configure: what made it ready, after the config's settings.
    :ivar attributes: what :data:`attributes_of` gave when it was ready.
    :ivar adapters: its adapters then; None if nobody had asked for them.
    :ivar poll_socket: tells, without a wait when called with 0, whether there is something to read.
    :ivar uses: where the queries that run on it are counted, if anybody counts them: an entry for
        each, because appending and popping take no lock.
    :ivar is_copy_cancelled: whether a COPY that is under way ran for longer than ``query_timeout``.
    :ivar is_copy_left: whether a statement failed because it began a COPY that nobody will end.
    :ivar is_handed_out: whether whoever borrowed it for queries of ours gave it to others, who may
        have cursors on it.
    :ivar is_marked: whether a statement left state on the session that outlives its transaction.
    :ivar has_prepared: whether PREPARE was among them, or in what made it ready.
    :ivar met_read_only_at: when the server last refused to write because all is read-only there (by
        ``time.monotonic``); 0 if it did not since it was borrowed.
    :ivar plans_changed: its opener's count when its prepared statements were last dropped.
    :ivar login_expiry: when the login ends with which it was opened, in seconds since 1970.
    :ivar borrower: who has borrowed it, and *stack* from where, if ``leak_threshold`` is on.
    :ivar blocks: the open ``with`` blocks of the psycopg connection itself, innermost last, each
        with the frame that entered it.
    :ivar failed_by: what made the transaction fail that is open, or the connection.
    :ivar after_commit: what is called when the transaction is committed that a block of ours began;
        None outside of those.
    :ivar refusal: why its open transaction blocks will not be committed, if something is wrong.
    :ivar find_settings: gives those with which each transaction of its borrower begins.
    :ivar closed_in_transaction: whether its borrower closed it with a transaction open.
    :ivar shutdown_sqlstate: why the server ends the connection, once it has said so.
    :ivar bind: the name of the database for which it is borrowed, where the borrower knows it.
    :ivar is_seen: whether what happens on it is told: not while it is made ready.
    :ivar unsent: what is to be told as soon as the connection is not locked.
    :ivar pipelined: the statements of the pipeline that is open, if somebody listens.
    :ivar transaction_began: when the open transaction did, by ``time.perf_counter``, if somebody
        listened.
    """

    __slots__ = (
        "adapters",
        "after_commit",
        "attributes",
        "backend_pid",
        "bind",
        "blocks",
        "borrowed_at",
        "borrower",
        "closed_in_transaction",
        "configure",
        "failed_by",
        "find_settings",
        "has_prepared",
        "is_copy_cancelled",
        "is_copy_left",
        "is_handed_out",
        "is_marked",
        "is_seen",
        "leak_logged",
        "login_expiry",
        "met_read_only_at",
        "opened_at",
        "opener",
        "pipelined",
        "plans_changed",
        "poll_socket",
        "refusal",
        "released_at",
        "shutdown_sqlstate",
        "source",
        "stack",
        "transaction_began",
        "unsent",
        "uses",
    )

    source: SourceT

    def __init__(
        self,
        conn: NotedConnection,
        opener: Opener,
        configure: Callable[[Any], Awaitable[None] | None] | None,
    ) -> None:
        self.opener: Opener = opener
        self.backend_pid: int = conn.pgconn.backend_pid
        self.configure: Callable[[Any], Awaitable[None] | None] | None = configure
        self.poll_socket: Callable[[int], object] = socket_poll(conn.pgconn.socket)
        self.borrowed_at: float = 0.0
        self.uses: list[None] = []
        self.is_copy_cancelled: bool = False
        self.is_copy_left: bool = False
        self.is_handed_out: bool = False
        self.plans_changed: int = opener.plans_changed
        self.borrower: str = ""
        self.stack: traceback.StackSummary | None = None
        self.leak_logged: bool = False
        self.shutdown_sqlstate: str | None = None
        self.login_expiry: float | None = None
        self.failed_by: Exception | None = None
        self.bind: str | None = None
        self.is_seen: bool = False
        self.unsent: deque[tuple[NamedSignal, Any, Event]] = deque()
        self.pipelined: list[str] | None = None
        self.transaction_began: float | None = None
        self.blocks: list[tuple[FrameType, Any]] = []
        self.after_commit: Callbacks | None = None
        self.find_settings: FindSettings | None = None
        self.refusal: Refusal | None = None
        self.closed_in_transaction: bool = False
        self.has_prepared: bool = False
        self.met_read_only_at: float = 0.0
        self.forget_configure(conn)
        self.note_ready(conn)
        self.is_seen = False  # not before it is ready with its settings
        self.opened_at: float = monotonic()

    def forget_configure(self, conn: NotedConnection) -> None:
        """Have *conn* without what was registered on it, as it is before ``configure``."""
        conn._notice_handlers[:] = [self.hear_notice]
        conn._notify_handlers.clear()
        conn.registered = []
        conn._adapters = None

    def note_ready(self, conn: NotedConnection) -> None:
        """Remember *conn* as it is now: so a release puts it back."""
        self.released_at: float = monotonic()
        self.is_marked: bool = False
        self.is_seen = True
        adapters = conn._adapters
        self.adapters: AdaptersMap | None = adapters and AdaptersMap(adapters)
        conn.registered.clear()
        self.attributes: tuple[Any, ...] = tuple(
            [*value] if isinstance(value, list) else value for value in attributes_of(conn)
        )

    def mark(self, query: bytes) -> None:
        """Note that *query* leaves state on the session."""
        self.is_marked = True
        self.has_prepared = self.has_prepared or prepares(query)

    def note_read_only(self) -> None:
        """Note that the server refused to write: whoever takes it back has a look at it."""
        self.is_marked = True
        self.met_read_only_at = monotonic()

    def prepare_anew(self, conn: BaseConnection[Any]) -> None:
        """Forget what is prepared on *conn*; psycopg tells the server after the next query."""
        self.plans_changed = self.opener.plans_changed
        conn._prepared.clear()

    def forget_prepared(self, conn: BaseConnection[Any]) -> None:
        """Forget what is prepared on *conn*; the caller tells the server."""
        self.prepare_anew(conn)
        conn._prepared._to_flush.clear()

    def note_failure(self, conn: BaseConnection[Any], error: psycopg.Error) -> None:
        """Remember *error* if it is what made the transaction or the connection fail."""
        pgconn = conn.pgconn
        if pgconn.status != ConnStatus.OK:
            if self.failed_by is None:
                self.failed_by = copy_for_waiter(error)
        elif (
            pgconn.transaction_status == TransactionStatus.INERROR
            and error.pgresult is not None  # else it comes from this side
            and error.sqlstate != _IN_FAILED_TRANSACTION
            # What is no SQL is refused before it is seen that the transaction has failed already.
            and not (self.failed_by is not None and error.sqlstate == _SYNTAX_ERROR)
        ):
            self.failed_by = copy_for_waiter(error)  # without its traceback

    def leave_block(self, frame: FrameType) -> Any:
        """What the ``with`` block of the psycopg connection in *frame* entered, taken out.

        What is entered and left by other means, as by ExitStack, ends the innermost.
        """
        blocks = self.blocks
        for place in reversed(range(len(blocks))):
            if blocks[place][0] is frame:
                return blocks.pop(place)[1]
        return blocks.pop()[1]

    def hear_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Note why the server ends the connection."""
        if diagnostic.sqlstate in _SHUTDOWN:
            self.shutdown_sqlstate = diagnostic.sqlstate


def warn_of_late_patching() -> None:
    """Log that psycopg has chosen how it waits before gevent came, and lets no greenlet run."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("select"):
        return
    if getattr(psycopg.waiting.wait, "__name__", "") == "wait_c":
        logger.warning(
            "gevent has patched this process after the app was imported, so each query holds up all"
            " greenlets: have gevent.monkey.patch_all() run first, which with gunicorn --preload is"
            " in its configuration file"
        )


def socket_poll(fd: int) -> Callable[[int], object]:
    """A function that tells whether there is something to read from a socket.

    Called with 0, so that it never waits. Not by two threads at once.
    """
    # gevent's own in its place would let other greenlets run.
    monkey = sys.modules.get("gevent.monkey")
    poll: Any = monkey.get_original("select", "poll") if monkey else getattr(select, "poll", None)
    if poll is None:  # Windows
        return lambda timeout: select.select([fd], [], [], timeout)[0]
    poller = poll()
    poller.register(fd, select.POLLIN)
    polled: Callable[[int], object] = poller.poll
    return polled
