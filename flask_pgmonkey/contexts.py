"""The connections of one app context: kept on ``g``, given back by its teardown."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from flask import g, has_request_context, request
from flask.globals import app_ctx
from psycopg.pq import TransactionStatus

from .connections import PoolConnection
from .connections.liveness import is_connected
from .connections.opening import ServerConnection
from .database import Transaction

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_ON_G = "_pgmonkey"
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
_AT_WORK = (*_IN_TRANSACTION, TransactionStatus.ACTIVE)


class Context:
    """What ``g`` holds for us."""

    __slots__ = ("ended_push", "held")

    def __init__(self) -> None:
        self.held: dict[object, HeldConnection] = {}
        self.ended_push: object = None


@dataclass(eq=False)
class OpenTransaction:
    """A ``db.transaction()`` block that is open."""

    block: AbstractContextManager[Transaction]
    request: object
    thread: int = field(default_factory=threading.get_ident)


class HeldConnection:
    """The connection of one bind in one app context.

    Threads that run in a copy of the context share it, and may still run when the context ends.
    """

    __slots__ = (
        "_get_pool", "_has_ended", "_lock", "_request", "_users", "_was_in_transaction",
        "conn", "open_transactions", "pid",
    )  # fmt: skip

    def __init__(self, get_pool: Callable[[], PoolConnection]) -> None:
        self.pid: int = os.getpid()
        self.conn: ServerConnection | None = None
        self.open_transactions: list[OpenTransaction] = []
        self._get_pool = get_pool
        self._lock = threading.Lock()
        self._users = 0
        self._has_ended = False
        self._request: object = None
        self._was_in_transaction = False

    def begin_use(self) -> ServerConnection:
        """The context's connection; outside a transaction another one in place of a dead one.

        To be followed by :meth:`end_use`.
        """
        with self._lock:
            if self._has_ended:
                raise has_ended()
            self._notice_request()
            conn = self.conn
            if conn is None or not (self.open_transactions or _can_take_a_query(conn)):
                self.conn = None
                if conn is not None:
                    conn.ledger.owner.release(conn)
                self.conn = conn = self._get_pool().borrow(autocommit=True)
                conn.ledger.holder = self
            self._users += 1
            return conn

    def end_use(self) -> None:
        """The query is over."""
        with self._lock:
            self._users -= 1

    def take_over(self) -> tuple[ServerConnection, bool]:
        """The connection for a stream, and whether it is the stream's own from now on.

        Within a transaction the stream is a guest.
        """
        conn = self.begin_use()
        self.end_use()
        if self.open_transactions or conn.pgconn.transaction_status in _IN_TRANSACTION:
            return conn, False
        self.conn = None
        return conn, True

    def _notice_request(self) -> None:
        """Note what a request finds that it did not begin itself."""
        current = current_request()
        if current is not self._request:
            self._request = current
            self._was_in_transaction = self.conn is not None and (
                self.conn.pgconn.transaction_status in _IN_TRANSACTION
            )

    def end_request(self) -> None:
        """Roll back what the request that ends left open, and leave the rest as it is.

        In Flask 3.1 a request inside an outer app context shares its ``g``.
        """
        conn = self.conn
        if conn is None or self.pid != os.getpid() or not self._is_at_work(conn):
            return
        ending = current_request()
        own = [opened for opened in self.open_transactions if opened.request is ending]
        begun_by_hand = not self.open_transactions and not self._was_in_transaction
        if not own and not (begun_by_hand and self._request is ending):
            return
        if self._is_used_elsewhere(conn):
            self.conn = None
            self._abandon(conn)
        else:
            self._roll_back(conn, own, begun_by_hand)

    def end_context(self) -> None:
        """Roll back what is open and give the connection back."""
        with self._lock:
            self._has_ended = True
            conn, self.conn = self.conn, None
            if conn is None or conn.is_inherited:
                return
            is_used_elsewhere = self._is_used_elsewhere(conn)
        if is_used_elsewhere:
            self._abandon(conn)
            return
        if self._is_at_work(conn):
            self._roll_back(conn, self.open_transactions, not self.open_transactions)
        conn.ledger.owner.release(conn)

    def _is_at_work(self, conn: ServerConnection) -> bool:
        return bool(self.open_transactions) or conn.pgconn.transaction_status in _AT_WORK

    def _is_used_elsewhere(self, conn: ServerConnection) -> bool:
        """Whether another thread of this context, or a suspended generator, is using it."""
        if self._users > 0 or conn.lock.locked():
            return True
        if not self.open_transactions:
            return False
        here = threading.get_ident()
        return any(opened.thread != here for opened in self.open_transactions)

    def _abandon(self, conn: ServerConnection) -> None:
        logger.warning(
            "%s left a query or a transaction running on its connection to %s: it is closed.",
            describe_context(),
            conn.ledger.owner.config.target,
        )
        self.open_transactions.clear()
        conn.ledger.owner.abandon(conn)

    def _roll_back(
        self, conn: ServerConnection, leftover: list[OpenTransaction], by_hand: bool
    ) -> None:
        is_busy = conn.pgconn.transaction_status == TransactionStatus.ACTIVE
        target = conn.ledger.owner.config.target
        logger.warning(
            "%s left %s on its connection to %s: it is rolled back. Use 'with db.transaction():'.",
            describe_context(),
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
                conn.rollback()
        except psycopg.Error as error:
            logger.warning("Closing a connection to %s: %s", target, error)
            conn.close()


def held_connection(bind: object, get_pool: Callable[[], PoolConnection]) -> HeldConnection:
    """What the current app context holds for a bind.

    :param bind: whatever stands for it.
    :param get_pool: gives the pool to borrow from.
    :raises RuntimeError: outside an app context, or in one that has ended.
    """
    # The object itself: each access through the proxy costs a microsecond.
    kept = g._get_current_object()
    context: Context | None = kept.get(_ON_G)
    if context is not None and context.ended_push is None:
        held = context.held.get(bind)
        if held is not None and held.pid == os.getpid():
            return held
    elif context is not None:
        push = _current_push()
        if push is None or push is context.ended_push:
            raise has_ended()
        kept.pop(_ON_G)  # pushed again, as stream_with_context does: it will be torn down again
    # Threads of one context may come here at the same time; all get the same one.
    shared: Context = kept.setdefault(_ON_G, Context())
    held = shared.held.setdefault(bind, HeldConnection(get_pool))
    if held.pid != os.getpid():
        held = shared.held[bind] = HeldConnection(get_pool)
    return held


def roll_back_what_the_request_left(exc: BaseException | None) -> None:
    """Flask's ``teardown_request``."""
    context: Context | None = g._get_current_object().get(_ON_G)
    if context is None:
        return
    for held in list(context.held.values()):
        try:
            held.end_request()
        except Exception:
            logger.exception("Could not roll back what %s left open", describe_context())


def release_what_the_context_holds(exc: BaseException | None) -> None:
    """Flask's ``teardown_appcontext``; may run any number of times."""
    # Whoever still runs in this context must not borrow what nobody would give back.
    kept = g._get_current_object()
    context: Context = kept.get(_ON_G) or kept.setdefault(_ON_G, Context())
    context.ended_push = _current_push() or context
    for held in list(context.held.values()):
        try:
            held.end_context()
        except Exception:
            logger.exception("Could not release the connection of %s", describe_context())


def has_ended() -> RuntimeError:
    """The error of code that runs on after its context."""
    return RuntimeError(
        "the request or app context that this code belongs to has ended. Wrap a streaming"
        " generator in stream_with_context(), or push an app context of its own with:"
        " with app.app_context(): …"
    )


def current_request() -> object:
    """The request that is being handled, or None."""
    try:
        current: object = request._get_current_object()  # type: ignore[attr-defined]
    except RuntimeError:
        return None
    return current


def describe_context() -> str:
    """Who is running, for log lines."""
    if has_request_context():
        return f"request {request.method} {request.path} (endpoint {request.endpoint})"
    return "an app context"


def _current_push() -> object:
    """What stands for the current push of the app context; None where it is not pushed.

    The signal ``appcontext_pushed`` would tell it at several microseconds for each request. The
    names are those of Flask 3.0 and 3.1, and of 3.2.
    """
    context: Any = app_ctx._get_current_object()  # type: ignore[attr-defined]
    pushes = getattr(context, "_cv_tokens", None)
    if pushes is None:
        return getattr(context, "_cv_token", None)
    return pushes[-1] if pushes else None


def _can_take_a_query(conn: ServerConnection) -> bool:
    """Whether *conn* is alive, or at work, where psycopg knows best what to say."""
    if conn.pgconn.transaction_status in _AT_WORK:
        return True
    # While another thread of this context queries, what stands on the socket is its answer.
    if not conn.lock.acquire(blocking=False):
        return True
    try:
        return is_connected(conn.pgconn)
    finally:
        conn.lock.release()
