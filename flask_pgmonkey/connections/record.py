"""What this package remembers of one server connection."""

from __future__ import annotations

import select
import sys
import traceback
from collections.abc import Callable
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import psycopg
    from psycopg._connection_base import BaseConnection

    from .protocols import AnyConnection, Opener

SourceT = TypeVar("SourceT")

_SHUTDOWN = ("57P01", "57P02", "57P03")

# What a borrower may change on a psycopg connection, in one step: each release looks at it.
attributes_of: Callable[[Any], tuple[Any, ...]] = attrgetter(
    "isolation_level", "read_only", "deferrable",
    "_prepared.prepare_threshold", "_prepared.prepared_max",  # faster than the properties
    "row_factory", "cursor_factory", "server_cursor_factory",
    "_tpc",
)  # fmt: skip


class ConnectionRecord(Generic[SourceT]):
    """What this package remembers of one server connection.

    :ivar opener: what opened it.
    :ivar source: what it is given back to, where it is borrowed from a pool.
    :ivar attributes: what :data:`attributes_of` gave when it was opened.
    :ivar poll_socket: tells, without a wait when called with 0, whether there is something to read.
    :ivar uses: where the queries that run on it are counted, if anybody counts them: an entry for
        each, because appending and popping take no lock.
    :ivar is_handed_out: whether whoever borrowed it for queries of ours gave it to others, who may
        have cursors on it.
    :ivar is_marked: whether a statement left state on the session that outlives its transaction.
    :ivar plans_changed: its opener's count when its prepared statements were last dropped.
    :ivar borrower: who has borrowed it, and *stack* from where, if ``leak_threshold`` is on.
    :ivar shutdown_sqlstate: why the server ends the connection, once it has said so.
    """

    __slots__ = (
        "attributes",
        "borrowed_at",
        "borrower",
        "is_handed_out",
        "is_marked",
        "leak_logged",
        "notice_handlers",
        "notify_handlers",
        "opened_at",
        "opener",
        "plans_changed",
        "poll_socket",
        "released_at",
        "shutdown_sqlstate",
        "source",
        "stack",
        "uses",
    )

    source: SourceT

    def __init__(self, conn: AnyConnection, opener: Opener) -> None:
        self.opener: Opener = opener
        self.poll_socket: Callable[[int], object] = socket_poll(conn.pgconn.socket)
        self.borrowed_at: float = 0.0
        self.uses: list[None] = []
        self.is_handed_out: bool = False
        self.plans_changed: int = opener.plans_changed
        self.borrower: str = ""
        self.stack: traceback.StackSummary | None = None
        self.leak_logged: bool = False
        self.shutdown_sqlstate: str | None = None
        conn.add_notice_handler(self.hear_notice)
        self.note_opened(conn)

    def note_opened(self, conn: AnyConnection) -> None:
        """Remember *conn* as it is now: so a release puts it back, and so a reset its session."""
        self.opened_at: float = monotonic()
        self.released_at: float = self.opened_at
        self.is_marked: bool = False
        self.attributes: tuple[Any, ...] = attributes_of(conn)
        self.notice_handlers: tuple[Callable[[psycopg.errors.Diagnostic], None], ...] = tuple(
            conn._notice_handlers
        )
        self.notify_handlers: tuple[Callable[[psycopg.Notify], None], ...] = tuple(
            conn._notify_handlers
        )

    def prepare_anew(self, conn: BaseConnection[Any]) -> None:
        """Forget what is prepared on *conn*; psycopg tells the server after the next query."""
        self.plans_changed = self.opener.plans_changed
        conn._prepared.clear()

    def hear_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Note why the server ends the connection."""
        if diagnostic.sqlstate in _SHUTDOWN:
            self.shutdown_sqlstate = diagnostic.sqlstate


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
