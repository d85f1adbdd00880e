"""The connections of one app context: kept on ``g``, given back by its teardown."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import flask.globals
import psycopg
from flask import (
    Flask,
    Request,
    appcontext_popped,
    has_request_context,
    request,
    request_tearing_down,
)
from flask.ctx import AppContext
from psycopg.pq import TransactionStatus

from .connections.liveness import is_connected
from .connections.server_connection import ServerConnection
from .connections.watching import telling_later
from .queries import Transaction
from .signals import Tally, connection_borrowed, connection_opened, pool_exhausted

if TYPE_CHECKING:
    from .connections import PoolConnection
    from .connections.local_settings import FindSettings

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_ON_G = "_pgmonkey"
_ON_G_AFTER_END = "_pgmonkey_after_end"
_TALLY = "_pgmonkey_tally"
_IDLE = TransactionStatus.IDLE
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
_ACTIVE = TransactionStatus.ACTIVE
_AT_WORK = (*_IN_TRANSACTION, _ACTIVE)

# Flask's own variables: its proxies cost a microsecond at each access. Since Flask 3.2 a request is
# an app context, so that none shares one that it did not begin.
_app_context: ContextVar[AppContext] = flask.globals._cv_app
_after_end: ContextVar[Any] = ContextVar("_after_end", default=None)
_repeats_allowed: ContextVar[bool] = ContextVar("_repeats_allowed", default=False)
_request_context: ContextVar[Any] = getattr(flask.globals, "_cv_request", ContextVar("no request"))


class HasSettings(Protocol):
    """Whose the binds are, and what gives the settings with which each transaction begins."""

    _find_settings: FindSettings | None


class Context(dict[object, "HeldConnection"]):
    """What ``g`` holds for us: a connection for each bind.

    :ivar ended_push: the push that our teardown was called for.
    """

    ended_push: object = None

    def __del__(self) -> None:
        # A teardown function that raises keeps Flask from calling those registered before it.
        if self.ended_push is None:
            for held in self.values():
                held.end_context()


class OpenTransaction:
    """A ``db.transaction()`` block that is open."""

    def __init__(self, block: AbstractContextManager[Transaction[Any]], request: object) -> None:
        self.block: AbstractContextManager[Transaction[Any]] = block
        self.request: object = request
        self.thread: int = threading.get_ident()


class HeldConnection:
    """The connection of one bind in one app context.

    Threads that run in a copy of the context share it, and may still run when the context ends.
    """

    __slots__ = (
        "_app", "_bind", "_db", "_found_open", "_get_pool", "_is_changing", "_lock", "_request",
        "conn", "open_transactions", "pid", "uses",
    )  # fmt: skip

    def __init__(
        self, app: Flask, get_pool: Callable[[Flask], PoolConnection], bind: tuple[HasSettings, str]
    ) -> None:
        self.pid: int = os.getpid()
        self.conn: ServerConnection | None = None
        self.open_transactions: list[OpenTransaction] = []
        # An entry for each query that runs: appending and popping take no lock.
        self.uses: list[None] = []
        self._app: Flask | None = app  # None when the context has ended
        self._get_pool = get_pool
        self._db, self._bind = bind
        # Reentrant, for what is called in the middle of it: __del__ and handlers of signals.
        self._lock = threading.RLock()
        self._is_changing = False  # self.conn, by the thread that has the lock
        self._request: Any = None
        # For each request that shares an outer app context: whether it found a transaction open.
        self._found_open: dict[Any, bool] = {}

    def begin_use(self) -> ServerConnection:
        """The context's connection; outside a transaction another one in place of a dead one.

        To be followed by ``uses.pop()``.
        """
        # First this, then a look at whether the context has ended; end_context() does it the other
        # way round, so that one of the two sees the other.
        self.uses.append(None)
        try:
            if self._app is None:
                raise error_of_ended_context()
            request_context = _request_context.get(None)
            if request_context is not self._request:
                self._notice_request(request_context)
            conn = self.conn
            if conn is not None and (self.open_transactions or _can_take_a_query(conn)):
                return conn
            if (
                connection_borrowed.receivers
                or connection_opened.receivers
                or pool_exhausted.receivers
            ):
                with telling_later(self._bind):  # when the lock is free
                    return self._borrow()
            return self._borrow()
        except BaseException:
            self.uses.pop()
            raise

    def _borrow(self) -> ServerConnection:
        with self._lock:
            if self._is_changing:
                raise _query_within_change()
            self._is_changing = True
            try:
                conn = self.conn
                if conn is not None:
                    if _can_take_a_query(conn):
                        return conn  # another thread of this context has borrowed it
                    self.conn = None
                    if len(self.uses) > 1:  # another thread is about to find it dead too
                        conn.record.source.abandon(conn)
                    else:
                        conn.record.source.release(conn)
                if self._app is None:
                    raise error_of_ended_context()
                conn = self._get_pool(self._app).borrow(autocommit=True)
                conn.record.uses = self.uses
                conn.record.bind = self._bind
                conn.record.is_handed_out = False
                if self._db._find_settings is not None:
                    _lend_with_settings(conn, self._db._find_settings)
                self.conn = conn  # last this: who finds it may use it at once
                return conn
            finally:
                self._is_changing = False

    def is_in_transaction(self) -> bool:
        """Whether one is open on the context's connection, by a block or by hand."""
        conn = self.conn
        return bool(self.open_transactions) or (
            conn is not None and conn.pgconn.transaction_status in _IN_TRANSACTION
        )

    def take_over(self) -> tuple[ServerConnection, bool]:
        """The connection for a stream, and whether it is the stream's own from now on.

        Within a transaction the stream is a guest.
        """
        conn = self.begin_use()
        try:
            if self.open_transactions or conn.pgconn.transaction_status in _IN_TRANSACTION:
                return conn, False
            with self._lock:
                app = self._app
                if app is None:
                    raise error_of_ended_context()
                if self.conn is conn and self._take_out(conn, 1, may_be_handed_out=False):
                    return conn, True
            # Another thread of this context is using it, or somebody has a cursor or a COPY on it.
            own = self._get_pool(app).borrow(autocommit=True)
            own.record.uses = self.uses
            own.record.bind = self._bind
            if self._db._find_settings is not None:
                _lend_with_settings(own, self._db._find_settings)
            return own, True
        finally:
            self.uses.pop()

    def release(self) -> None:
        """Give the connection back before the context ends; the next query borrows again.

        :raises psycopg.ProgrammingError: where something still goes on on it.
        """
        with self._lock:
            conn = self.conn
            if conn is None:
                return
            if self.open_transactions or conn.pgconn.transaction_status in _IN_TRANSACTION:
                raise psycopg.ProgrammingError(
                    "release() within a transaction: the connection can go back at its end, so"
                    " make the slow call before the transaction or after it"
                )
            if not self._take_out(conn, 0, may_be_handed_out=True):
                raise psycopg.ProgrammingError(
                    "release() while a query, a COPY or a pipeline is under way on the connection,"
                    " around this call or in another thread of this context"
                )
        conn.record.source.release(conn)

    def _take_out(
        self, conn: ServerConnection, uses_of_caller: int, may_be_handed_out: bool
    ) -> bool:
        """Keep *conn* no longer, unless somebody else uses it. Needs the lock."""
        if self._is_changing:
            raise _query_within_change()
        self._is_changing = True
        try:
            self.conn = None  # first this: who comes now waits for the lock
            if (
                len(self.uses) > uses_of_caller
                or _is_busy(conn)
                or (conn.record.is_handed_out and not may_be_handed_out)
            ):
                self.conn = conn
                return False
            return True
        finally:
            self._is_changing = False

    def _notice_request(self, request_context: Any) -> None:
        """Note that the queries are those of another request now."""
        self._request = request_context
        for other in tuple(self._found_open):
            if not other._cv_tokens:  # a teardown function that raised kept its end from us
                self.end_request(other, uses_of_caller=1)
        pushes = request_context._cv_tokens if request_context is not None else None
        if pushes and pushes[0][1] is None:  # it shares an outer app context, and is not over
            self._notice_guest(request_context)

    def _notice_guest(self, request_context: Any) -> None:
        """Note what a request finds that it did not begin itself, and have its end told.

        Nothing else tells it. For all the others it is not worth the microseconds that Flask takes
        at the end of each request for each function that it calls.
        """
        request_tearing_down.connect(_roll_back_what_the_request_left, request_context.app)
        if request_context not in self._found_open:
            self._found_open[request_context] = self.conn is not None and (
                self.conn.pgconn.transaction_status in _IN_TRANSACTION
            )

    def start_over(self) -> None:
        """Roll back what is open and give the connection back; the context goes on."""
        with self._lock:  # another thread may be borrowing
            conn, self.conn = self.conn, None
        if conn is not None and self.pid == os.getpid():
            self._end_what_is_open(conn)

    def end_request(self, ending: object, uses_of_caller: int = 0) -> None:
        """Roll back what a request that ends left open, and leave the rest as it is.

        In Flask 3.1 a request inside an outer app context shares its ``g``.
        """
        found_open = self._found_open.pop(ending, True)
        if self._request is ending:
            self._request = None
        conn = self.conn
        if conn is None or self.pid != os.getpid() or not self._is_at_work(conn):
            return
        own = [opened for opened in self.open_transactions if opened.request is ending]
        begun_by_hand = not found_open and len(own) == len(self.open_transactions)
        if not own and not begun_by_hand:
            return
        if self._is_used_elsewhere(conn, uses_of_caller):
            self.conn = None
            self._abandon(conn)
        else:
            self._roll_back(conn, own, begun_by_hand)

    def end_context(self) -> None:
        """Roll back what is open and give the connection back."""
        self._app = None
        if self.uses:
            with self._lock:  # another thread may be borrowing
                conn, self.conn = self.conn, None
        else:
            conn, self.conn = self.conn, None
        if conn is not None and self.pid == os.getpid():
            if (
                self.uses
                or self.open_transactions
                or conn.lock.locked()
                or conn.pgconn.transaction_status != _IDLE
            ):
                self._end_what_is_open(conn)
            else:
                conn.record.source.release(conn)
        # A suspended generator may go on referring to this object.
        self._request = None
        if self._found_open:
            self._found_open.clear()

    def _end_what_is_open(self, conn: ServerConnection) -> None:
        if self._is_used_elsewhere(conn):
            self._abandon(conn)
            return
        if self._is_at_work(conn):
            self._roll_back(conn, self.open_transactions, by_hand=True)
        conn.record.source.release(conn)

    def _is_at_work(self, conn: ServerConnection) -> bool:
        return bool(self.open_transactions) or conn.pgconn.transaction_status in _AT_WORK

    def _is_used_elsewhere(self, conn: ServerConnection, uses_of_caller: int = 0) -> bool:
        """Whether another thread of this context, or a suspended generator, is using it."""
        if len(self.uses) > uses_of_caller or conn.lock.locked():
            return True
        if not self.open_transactions:
            return False
        here = threading.get_ident()
        return any(opened.thread != here for opened in self.open_transactions)

    def _abandon(self, conn: ServerConnection) -> None:
        logger.warning(
            "%s left a query or a transaction running on its connection to %s: it is closed.",
            self._describe(),
            conn.record.source.config.target,
        )
        self.open_transactions.clear()
        conn.record.source.abandon(conn)

    def _describe(self) -> str:
        # At the end of an app context the request is gone.
        context = self._request
        return describe_context() if context is None else _describe_request(context.request)

    def _roll_back(
        self, conn: ServerConnection, leftover: list[OpenTransaction], by_hand: bool
    ) -> None:
        is_busy = conn.pgconn.transaction_status == _ACTIVE
        target = conn.record.source.config.target
        logger.warning(
            "%s left %s on its connection to %s: it is rolled back. Use 'with db.transaction():'.",
            self._describe(),
            "a query running" if is_busy else "a transaction open",
            target,
        )
        try:
            if is_busy:
                conn.close()
            for opened in reversed(leftover.copy()):
                self.open_transactions.remove(opened)
                opened.block.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
            if by_hand and not conn.closed:
                with conn.bounded_as_release():
                    conn.rollback()
        except psycopg.Error as error:
            logger.warning("Closing a connection to %s: %s", target, error)
            conn.close()


def _lend_with_settings(conn: ServerConnection, find_settings: FindSettings) -> None:
    from .connections.settings_cursor import lend_with_settings  # what many apps never use

    lend_with_settings(conn, find_settings)


def current_app() -> Flask:
    """The app of this code.

    :raises RuntimeError: outside an app context.
    """
    app_context = _app_context.get(None)
    if app_context is None:
        raise no_app_context()
    return app_context.app


def pushed_context() -> object:
    """What stands for the app context of this code; None outside of any."""
    return _app_context.get(None)


def no_app_context() -> RuntimeError:
    """The error of code that runs outside of any app context."""
    return RuntimeError(
        "there is no app context here: query within a request or a command, or push one with:"
        " with app.app_context(): …"
    )


def held_connection(
    bind: tuple[HasSettings, str], get_pool: Callable[[Flask], PoolConnection]
) -> HeldConnection:
    """What the current app context holds for a bind.

    :param bind: what stands for it: whose it is, and its name.
    :param get_pool: gives an app's pool to borrow from.
    :raises RuntimeError: outside an app context, or in one that has ended.
    """
    app_context = _app_context.get(None)
    if app_context is None:
        raise no_app_context()
    on_g = vars(app_context.g)  # faster than its methods
    context: Context | None = on_g.get(_ON_G)
    if context is not None and context.ended_push is None:
        held = context.get(bind)
        if held is not None and held.pid == os.getpid():
            return held
    elif context is not None:
        push = _current_push(app_context)
        if push is None:
            raise error_of_ended_context()
        if push is context.ended_push:
            return _context_after_end(app_context).setdefault(
                bind, HeldConnection(app_context.app, get_pool, bind)
            )
        on_g.pop(_ON_G)  # pushed again, as stream_with_context does: it will be torn down again
    # Threads of one context may come here at the same time; all get the same one.
    shared: Context = on_g.setdefault(_ON_G, Context())
    held = shared.setdefault(bind, HeldConnection(app_context.app, get_pool, bind))
    if held.pid != os.getpid():
        held = shared[bind] = HeldConnection(app_context.app, get_pool, bind)
    return held


def start_over_in_context() -> None:
    """Give back what the current app context holds, if there is one; it may query again."""
    app_context = _app_context.get(None)
    if app_context is not None:
        context: Context = app_context.g.get(_ON_G) or Context()
        for held in list(context.values()):
            held.start_over()


def release_what_the_context_holds(exc: BaseException | None) -> None:
    """Flask's ``teardown_appcontext``; may run any number of times."""
    # Whoever still runs in this context must not borrow what nobody would give back.
    app_context = _app_context.get()
    on_g = vars(app_context.g)
    context: Context = on_g.get(_ON_G) or on_g.setdefault(_ON_G, Context())
    context.ended_push = _current_push(app_context) or context
    _end_all(context)


def _end_all(context: Context) -> None:
    for held in list(context.values()):
        try:
            held.end_context()
        except Exception:
            logger.exception("Could not release the connection of %s", describe_context())


def _context_after_end(app_context: AppContext) -> Context:
    """What is held between our teardown and the end of the push, by receivers of the signal
    ``appcontext_tearing_down``, which Flask sends last."""
    # That push's end is not told to apps that have no such receivers.
    appcontext_popped.connect(_end_what_came_after_the_end, app_context.app)
    after_end: Context = app_context.g.setdefault(_ON_G_AFTER_END, Context())
    _after_end.set(app_context.g)
    return after_end


def _end_what_came_after_the_end(sender: Flask, **extra: object) -> None:
    """Flask's signal ``appcontext_popped``."""
    g = _after_end.get(None)
    if g is not None:
        _after_end.set(None)
        _end_all(g.pop(_ON_G_AFTER_END, Context()))


def _roll_back_what_the_request_left(sender: Flask, **extra: object) -> None:
    """Flask's signal ``request_tearing_down``."""
    context: Context | None = _app_context.get().g.get(_ON_G)
    if context is None:
        return
    for held in list(context.values()):
        try:
            held.end_request(current_request())
        except Exception:
            logger.exception("Could not roll back what %s left open", describe_context())


def error_of_ended_context() -> RuntimeError:
    """The error of code that runs on after its context."""
    return RuntimeError(
        "the request or app context that this code belongs to has ended. Wrap a streaming"
        " generator in stream_with_context(), or push an app context of its own with:"
        " with app.app_context(): …"
    )


def _query_within_change() -> RuntimeError:
    return RuntimeError(
        "a query while this very thread borrows the connection for another one, or gives it back:"
        " __del__ and handlers of signals must not query"
    )


def current_request() -> object:
    """What stands for the request that is being handled; None outside of any."""
    return _request_context.get(None)


def current_tally() -> Tally | None:
    """That of the request that is being handled, or of the app context; None outside of both."""
    app_context = _app_context.get(None)
    if app_context is None:
        return None
    # A request may share an outer app context. Since Flask 3.2 it is one.
    context: Any = _request_context.get(None) or _ended_request(app_context) or app_context
    tally: Tally | None = vars(context).get(_TALLY)
    if tally is None:
        tally = vars(context).setdefault(_TALLY, _new_tally(context))
    return tally


def _ended_request(app_context: AppContext) -> Any:
    """The request whose connections go back at the end of its app context, which it has left.

    Any query outside of a request has the context's connection forget the one before.
    """
    context: Context = vars(app_context.g).get(_ON_G) or Context()
    return next((held._request for held in list(context.values()) if held._request), None)


def _new_tally(context: Any) -> Tally:
    has_request = getattr(context, "has_request", None)  # since Flask 3.2
    if not (hasattr(context, "request") if has_request is None else has_request):
        return Tally()
    current: Request = context.request
    return Tally(current.endpoint, current.method, current.path)


@contextmanager
def block_with_repeats() -> Iterator[None]:
    """A block in which the same query may run any number of times."""
    token = _repeats_allowed.set(True)
    try:
        yield
    finally:
        with suppress(ValueError):  # the end of a generator that another thread closes
            _repeats_allowed.reset(token)


def are_repeats_allowed() -> bool:
    """Whether this code runs in such a block."""
    return _repeats_allowed.get()


def describe_context() -> str:
    """Who is running, for log lines."""
    return _describe_request(request) if has_request_context() else "an app context"


def _describe_request(current: Request) -> str:
    return f"request {current.method} {current.path} (endpoint {current.endpoint})"


def _current_push(app_context: Any) -> object:
    """What stands for the current push of an app context; None where it is not pushed.

    The signal ``appcontext_pushed`` would tell it at several microseconds for each request. The
    names are those of Flask 3.0 and 3.1, and of 3.2.
    """
    pushes = getattr(app_context, "_cv_tokens", None)
    if pushes is None:
        return getattr(app_context, "_cv_token", None)
    return pushes[-1] if pushes else None


def _is_busy(conn: ServerConnection) -> bool:
    """Whether a query, a COPY or a pipeline is under way on *conn*."""
    pgconn = conn.pgconn
    return (
        conn.lock.locked() or pgconn.transaction_status == _ACTIVE or bool(pgconn.pipeline_status)
    )


def _can_take_a_query(conn: ServerConnection) -> bool:
    """Whether *conn* is alive, or at work, where psycopg knows best what to say."""
    if conn.pgconn.transaction_status in _AT_WORK:
        return True
    # While another thread of this context queries, what stands on the socket is its answer.
    if not conn.lock.acquire(blocking=False):
        return True
    try:
        return is_connected(conn)
    finally:
        conn.lock.release()
