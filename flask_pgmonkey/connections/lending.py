"""Who has borrowed what from one pool, and what is said when that goes wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakSet

from psycopg_pool import PoolTimeout

from ..config import PoolSettings
from .failures import seconds
from .opening import AsyncServerConnection, Ledger, ServerConnection

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_MASS_DEATH_WITHIN = 1.0
_FILES_OF_NO_INTEREST = (os.path.dirname(os.path.dirname(__file__)), contextlib.__file__)

_lendings: WeakSet[Lending] = WeakSet()


def borrowed_connections() -> list[str]:
    """A line for each pooled connection of this process that is borrowed right now."""
    return [line for lending in list(_lendings) for line in lending.describe()]


class Lending:
    """The borrowed connections of one pool in one process.

    :param describe_borrower: names who is borrowing, for example the endpoint of a request; called
        only where ``leak_threshold`` is on.
    """

    def __init__(
        self, target: str, settings: PoolSettings, describe_borrower: Callable[[], str] | None
    ) -> None:
        self._target = target
        self._leak_threshold = settings.leak_threshold
        self._describe_borrower = describe_borrower
        self._borrowed: dict[int, ServerConnection | AsyncServerConnection] = {}
        self._died_at = 0.0
        self._idle_discarded_at = 0.0
        _lendings.add(self)

    def __len__(self) -> int:
        return len(self._borrowed)

    def lend(
        self, conn: ServerConnection | AsyncServerConnection, owner: Any, pool: Any, now: float
    ) -> None:
        """Note that *conn* leaves *pool*."""
        ledger = conn.ledger
        if self._leak_threshold:
            ledger.leak_logged = False
            ledger.borrower = self._describe_borrower() if self._describe_borrower else ""
            ledger.stack = _stack_of_borrower()
        if ledger.pool is not pool:
            ledger.owner, ledger.pool, ledger.lending = owner, pool, self
        ledger.borrowed_at = now
        self._borrowed[id(conn)] = conn

    def take_back(self, conn: ServerConnection | AsyncServerConnection) -> bool:
        """Note that *conn* comes back; False if it is not out."""
        if self._borrowed.pop(id(conn), None) is None:
            return False
        ledger = conn.ledger
        if ledger.leak_logged:
            held = seconds(monotonic() - ledger.borrowed_at)
            logger.warning(
                "A connection to %s came back after %s%s.",
                self._target, held, _by(ledger),
            )  # fmt: skip
        ledger.stack = None
        return True

    def log_leaks(self) -> None:
        """Log each connection that has been out for longer than ``leak_threshold``, once."""
        now = monotonic()
        for conn in list(self._borrowed.values()):
            ledger = conn.ledger
            held = now - ledger.borrowed_at
            if held < self._leak_threshold or ledger.leak_logged or ledger.stack is None:
                continue
            ledger.leak_logged = True
            logger.warning(
                "A connection to %s has been borrowed for %s%s, longer than leak_threshold (%s)."
                " It was borrowed at:\n%s",
                self._target, seconds(held), _by(ledger), seconds(self._leak_threshold),
                "".join(traceback.format_list(ledger.stack)),
            )  # fmt: skip

    def idle_rest_must_go(self, ledger: Ledger) -> bool:
        """Whether a connection found dead means that the server shut down the older rest too.

        So it is for the second within a second, and for one that says so (SQLSTATE 57P02). Once
        for each shutdown: those opened since the last time do not count.
        """
        now = monotonic()
        several, self._died_at = now - self._died_at < _MASS_DEATH_WITHIN, now
        if ledger.opened_at <= self._idle_discarded_at:
            return False
        if several or ledger.shutdown_sqlstate == "57P02":
            self._idle_discarded_at = now
            return True
        return False

    def exhausted(self, timeout: float, stats: dict[str, int]) -> PoolTimeout:
        """The error for a borrower whose time ran out while connections exist."""
        borrowed = [conn.ledger for conn in self.all_borrowed()]
        message = (
            f"no connection to {self._target} came free within {seconds(timeout)}:"
            f" {len(borrowed)} of at most {stats['pool_max']} are borrowed,"
            f" {stats['requests_waiting']} others wait"
        )
        if borrowed:
            longest = min(borrowed, key=_borrowed_at)
            held = seconds(monotonic() - longest.borrowed_at)
            message += f"; the longest has been out for {held}{_by(longest)}"
        return PoolTimeout(
            f"{message}. Hold connections for a shorter time, or raise max_size or timeout"
        )

    def unanswered(self, timeout: float) -> PoolTimeout:
        """The error for a borrower whose time ran out before the server answered anybody."""
        return PoolTimeout(
            f"no connection to {self._target} could be opened within {seconds(timeout)}: the"
            " server has not answered. An attempt may take as long as connect_timeout says; only"
            " a timeout above that shows its error"
        )

    def all_borrowed(self) -> list[ServerConnection | AsyncServerConnection]:
        """The connections that are out."""
        return list(self._borrowed.values())

    def describe(self) -> list[str]:
        """A line for each borrowed connection."""
        now = monotonic()
        return [
            f"{self._target}, for {seconds(now - c.ledger.borrowed_at)}{_by(c.ledger)}"
            for c in list(self._borrowed.values())
            if not c.is_inherited
        ]


def _borrowed_at(ledger: Ledger) -> float:
    return ledger.borrowed_at


def _stack_of_borrower() -> traceback.StackSummary:
    stack = traceback.extract_stack()
    while stack and stack[-1].filename.startswith(_FILES_OF_NO_INTEREST):
        stack.pop()
    return stack


def _by(ledger: Ledger) -> str:
    return f" by {ledger.borrower}" if ledger.borrower else ""
