"""When ``run_transaction()`` begins again: what its sync and async forms share."""

from __future__ import annotations

import logging
from inspect import isawaitable, iscoroutine
from random import uniform
from time import monotonic

import psycopg
from psycopg import errors

from .after_commit import name_of
from .connections.query_timeout import end_of_block

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

MAY_PASS: tuple[type[psycopg.Error], ...] = (errors.SerializationFailure, errors.DeadlockDetected)
"""Errors of a transaction that took no effect, and may go well when it is run again: SQLSTATEs
40001 and 40P01. COMMIT may bring them too."""

SHORTEST = 0.01
LONGEST = 1.0
"""Seconds: how far apart the first attempts may be, and any at most."""


class Retries:
    """How often a transaction is run again, and when.

    :param fn: what runs in it, for the log.
    :param most: how many times after the first.
    """

    def __init__(self, fn: object, most: int) -> None:
        if most < 0:
            raise ValueError(f"run_transaction() takes a number of retries from 0, not {most}")
        self._fn = fn
        self._most = most
        self._count = 0

    def pause_after(self, error: psycopg.Error) -> float | None:
        """Seconds to wait before the next attempt: by chance, so that those that failed each other
        do not meet again.

        None after the last attempt, and where the time of the ``db.timeout()`` around it would be
        up.
        """
        pause = uniform(0, min(LONGEST, SHORTEST * 2**self._count))  # noqa: S311 (no secret)
        if self._count >= self._most or monotonic() + pause >= end_of_block():
            return None
        self._count += 1
        logger.info(
            "The transaction of %s ended with %s (SQLSTATE %s): attempt %d of %d in %.0f ms.",
            name_of(self._fn),
            type(error).__name__,
            error.sqlstate,
            self._count + 1,
            self._most + 1,
            pause * 1000,
        )
        return pause


def within_transaction() -> RuntimeError:
    """The error where a transaction is open already."""
    return RuntimeError(
        "run_transaction() within a transaction, of which it could run only a part again: call it"
        " outside of all 'transaction()' blocks, or call the function itself with the transaction"
        " that is open"
    )


def refuse_awaitable(value: object, fn: object) -> None:
    """Refuse what a coroutine function gives: it would run after the transaction.

    :raises TypeError: then.
    """
    if iscoroutine(value):
        value.close()
        raise TypeError(
            f"run_transaction() takes a plain function here, and {name_of(fn)} is a coroutine"
            " function: await db.aio.run_transaction(…)"
        )


def require_awaitable(value: object, fn: object) -> None:
    """Refuse what an async transaction cannot await.

    :raises TypeError: then.
    """
    if not isawaitable(value):
        raise TypeError(
            f"run_transaction() takes a coroutine function here, and {name_of(fn)} is none"
        )
