"""Who has borrowed what from one pool, and what is said when that goes wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet, ref

from psycopg_pool import PoolTimeout, TooManyRequests

from ..config import PoolSettings
from .connect_errors import Failures, copy_for_waiter, seconds
from .liveness import Pulse

if TYPE_CHECKING:
    from psycopg_pool.base import BasePool

    from .record import ConnectionRecord
    from .server_connection import ServerConnection
    from .server_connection_async import AsyncServerConnection

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_MASS_DEATH_WITHIN = 1.0
_FILES_OF_NO_INTEREST = (os.path.dirname(os.path.dirname(__file__)), contextlib.__file__)

_all: WeakSet[BorrowedConnections] = WeakSet()


class PoolMeasures(NamedTuple):
    """How a pool stands in one process.

    :ivar idle: connections that wait to be borrowed.
    :ivar used: those that are borrowed.
    :ivar pending: borrowers that wait for one.
    :ivar timeouts: how many borrowers have waited in vain so far.
    :ivar min_size: how many connections it keeps open.
    :ivar max_size: how many it opens at most.
    """

    idle: int
    used: int
    pending: int
    timeouts: int
    min_size: int
    max_size: int


def borrowed_connections() -> list[str]:
    """A line for each pooled connection of this process that is borrowed right now."""
    return [line for borrowed in list(_all) for line in borrowed.describe()]


class BorrowedConnections:
    """The borrowed connections of one pool in one process.

    :param describe_borrower: names who is borrowing, for example the endpoint of a request; called
        only where ``leak_threshold`` is on.
    """

    def __init__(
        self, target: str, settings: PoolSettings, describe_borrower: Callable[[], str] | None
    ) -> None:
        self._target = target
        self._usual_timeout = settings.timeout
        self._sizes = settings.min_size, settings.max_size
        self._leak_threshold = settings.leak_threshold
        self._describe_borrower = describe_borrower
        # Weak: what an interrupted borrower has lost is out no more.
        self._borrowed: dict[int, ref[ServerConnection | AsyncServerConnection]] = {}
        self._timeouts = 0
        self._died_at = 0.0
        self._idle_discarded_at = 0.0
        _all.add(self)

    def __len__(self) -> int:
        return len(self.all_borrowed())

    def lend(self, conn: ServerConnection | AsyncServerConnection, now: float) -> None:
        """Note that *conn* leaves the pool."""
        record = conn.record
        if self._leak_threshold:
            record.leak_logged = False
            record.borrower = self._describe_borrower() if self._describe_borrower else ""
            record.stack = _stack_of_borrower()
        record.borrowed_at = now
        record.bind = None
        self._borrowed[id(conn)] = ref(conn)

    def take_back(self, conn: ServerConnection | AsyncServerConnection) -> bool:
        """Note that *conn* comes back; False if it is not out."""
        lent = self._borrowed.pop(id(conn), None)
        if lent is None or lent() is not conn:
            return False
        record = conn.record
        if record.leak_logged:
            held = seconds(monotonic() - record.borrowed_at)
            logger.warning(
                "A connection to %s came back after %s%s.",
                self._target, held, _by(record),
            )  # fmt: skip
        record.stack = None
        return True

    def expire(self, opened_before: float) -> None:
        """Have those that were opened before (by ``time.monotonic``) closed when they come back."""
        for conn in self.all_borrowed():
            if conn.record.opened_at < opened_before:
                conn._expire_at = 0.0

    def log_leaks(self) -> None:
        """Log each connection that has been out for longer than ``leak_threshold``, once."""
        now = monotonic()
        for conn in self.all_borrowed():
            record = conn.record
            held = now - record.borrowed_at
            if held < self._leak_threshold or record.leak_logged or record.stack is None:
                continue
            record.leak_logged = True
            logger.warning(
                "A connection to %s has been borrowed for %s%s, longer than leak_threshold (%s)."
                " It was borrowed at:\n%s",
                self._target, seconds(held), _by(record), seconds(self._leak_threshold),
                "".join(traceback.format_list(record.stack)),
            )  # fmt: skip

    def older_ones_are_dead(self, record: ConnectionRecord[Any]) -> bool:
        """Whether a connection found dead means that the server shut down the older ones too.

        So it is for the second within a second, and for one that says so (SQLSTATE 57P02). Once
        for each shutdown: those opened since the last time do not count.
        """
        now = monotonic()
        several, self._died_at = now - self._died_at < _MASS_DEATH_WITHIN, now
        if record.opened_at <= self._idle_discarded_at:
            return False
        if several or record.shutdown_sqlstate == "57P02":
            self._idle_discarded_at = now
            return True
        return False

    def explain_refusal(
        self,
        refusal: PoolTimeout | TooManyRequests,
        pool: BasePool,
        failures: Failures,
        pulse: Pulse,
        start: float,
        timeout: float,
    ) -> tuple[Exception, bool]:
        """The error for a borrower whom *pool* refused a connection; and whether it is an outage.

        :param failures: of the attempts to open one.
        :param pulse: of the last connection that the borrower was given.
        :param start: when the borrower began, by ``time.monotonic``.
        """
        if isinstance(refusal, PoolTimeout):
            self._timeouts += 1
        stats = pool.get_stats()
        lent = [conn.record for conn in self.all_borrowed() if conn._pool is pool]
        is_full = len(lent) >= stats["pool_max"]
        if isinstance(refusal, TooManyRequests):
            failure = None if is_full else failures.error
            return (copy_for_waiter(failure) if failure is not None else refusal), False
        if is_full:
            return self._exhausted(lent, stats, timeout), False
        failure = failures.since(start)
        if failure is not None:
            error = copy_for_waiter(failure)
        else:
            error = self._not_opened(len(lent), stats, pulse, timeout)
            error.__cause__ = failures.error
        return error, timeout >= self._usual_timeout

    def _exhausted(
        self, lent: list[ConnectionRecord[Any]], stats: dict[str, int], timeout: float
    ) -> PoolTimeout:
        longest = min(lent, key=_borrowed_at)
        held = seconds(monotonic() - longest.borrowed_at)
        return PoolTimeout(
            f"no connection to {self._target} came free within {seconds(timeout)}:"
            f" {len(lent)} of at most {stats['pool_max']} are borrowed,"
            f" {stats['requests_waiting']} others wait;"
            f" the longest has been out for {held}{_by(longest)}."
            " Hold connections for a shorter time, or raise max_size or timeout"
        )

    def _not_opened(
        self, lent: int, stats: dict[str, int], pulse: Pulse, timeout: float
    ) -> PoolTimeout:
        if pulse is Pulse.DEAD:
            reason = "those that could be had were closed by the server again"
        elif pulse is not Pulse.ALIVE:
            reason = "the server has not answered a ping"
        else:
            reason = (
                "the attempt to open one has not ended. It may take as long as connect_timeout"
                " says, and then what sync_settings and 'configure' take; only a timeout above"
                " that shows its error"
            )
        return PoolTimeout(
            f"no connection to {self._target} could be had within {seconds(timeout)}"
            f" ({lent} of at most {stats['pool_max']} are borrowed): {reason}"
        )

    def measure(self, pool: BasePool | None) -> PoolMeasures:
        """How *pool* stands; None is one that is closed."""
        stats = pool.get_stats() if pool is not None else {}
        return PoolMeasures(
            stats.get("pool_available", 0),
            len(self),
            stats.get("requests_waiting", 0),
            self._timeouts,
            *self._sizes,
        )

    def all_borrowed(self) -> list[ServerConnection | AsyncServerConnection]:
        """The connections that are out."""
        lent = [each() for each in list(self._borrowed.values())]
        return [conn for conn in lent if conn is not None]

    def describe(self) -> list[str]:
        """A line for each borrowed connection."""
        now = monotonic()
        return [
            f"{self._target}, for {seconds(now - c.record.borrowed_at)}{_by(c.record)}"
            for c in self.all_borrowed()
            if not c.is_inherited
        ]


def _borrowed_at(record: ConnectionRecord[Any]) -> float:
    return record.borrowed_at


def _stack_of_borrower() -> traceback.StackSummary:
    stack = traceback.extract_stack()
    while stack and stack[-1].filename.startswith(_FILES_OF_NO_INTEREST):
        stack.pop()
    return stack


def _by(record: ConnectionRecord[Any]) -> str:
    return f" by {record.borrower}" if record.borrower else ""
