"""How long a query may run before it is cancelled: what the two kinds of server connections share.

The bound is for each time that psycopg waits for the server: for a query, for a batch of a stream,
for a block of a COPY.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import TypeVar

from psycopg import waiting
from psycopg.errors import QueryCanceled

from ..errors import QueryTimeoutError, ServerSilentError
from .connect_errors import seconds

T = TypeVar("T")

LONGEST_RELEASE = 2.0
"""Seconds a server has for each answer while a block is rolled back, and while a connection is made
ready for the next borrower."""

LONGEST_SILENCE = 1.0
"""Seconds a server has to answer when it is asked to cancel a query."""

WAKE_UP_EVERY = 0.1
"""Seconds after which whoever waits for the server looks at signals and deadlines, as psycopg's."""


class TimeLimit:
    """What a ``db.timeout()`` block allows, less where one around it allows less.

    :ivar timeout: seconds for each query.
    :ivar end: when that time is up for all that is in it, by ``time.monotonic``.
    :ivar is_over: whether the block has ended. It may have in another thread, which cannot take
        this out of the context that has it.
    """

    __slots__ = ("end", "is_over", "outer", "timeout")

    def __init__(self, timeout: float, end: float, outer: TimeLimit | None = None) -> None:
        self.timeout: float = timeout if outer is None else min(timeout, outer.timeout)
        self.end: float = end if outer is None else min(end, outer.end)
        self.is_over: bool = False
        self.outer: TimeLimit | None = outer


time_limit: ContextVar[TimeLimit | None] = ContextVar("time_limit", default=None)
"""That of the innermost block, which may be over. None is none, for sure."""


def _current_limit() -> TimeLimit | None:
    limit = time_limit.get()
    while limit is not None and limit.is_over:
        limit = limit.outer
    return limit


def timeout_of_block() -> float:
    """Seconds a query may run within ``db.timeout()``; 0 outside."""
    limit = _current_limit()
    return 0.0 if limit is None else limit.timeout


def end_of_block() -> float:
    """When the time of the innermost ``db.timeout()`` is up, by ``time.monotonic``."""
    limit = _current_limit()
    return inf if limit is None else limit.end


class DeadlineError(Exception):
    """A query has not ended in its time. Never leaves this package."""


@contextmanager
def block_with_timeout(timeout: float) -> Iterator[None]:
    """A block in which a query may run for *timeout* seconds, or less where less is set."""
    limit = TimeLimit(timeout, monotonic() + timeout, _current_limit())
    token = time_limit.set(limit)
    try:
        yield
    finally:
        limit.is_over = True
        with suppress(ValueError):  # the end of a generator that another thread closes
            time_limit.reset(token)


def until(deadline: float, gen: Generator[waiting.Wait, int, T]) -> Generator[waiting.Wait, int, T]:
    """What psycopg's *gen* gives, as long as *deadline* (by ``time.monotonic``) has not passed.

    :raises DeadlineError: when it has. *gen* may be waited for again.
    """
    ready: int | None = None
    try:
        while True:
            awaited = gen.send(ready)  # type: ignore[arg-type]
            if monotonic() >= deadline:
                raise DeadlineError
            ready = yield awaited
    except StopIteration as end:
        result: T = end.value
        return result


class QueryLimit:
    """The bound of one query, and its errors.

    :param of_connection: in seconds; 0 is none.
    :param of_block: the same of ``db.timeout()``.
    :ivar timeout: the smaller of the two; 0 where there is none.
    :param name: what sets that of the connection.
    """

    __slots__ = ("_name", "timeout")

    def __init__(self, of_connection: float, of_block: float, name: str) -> None:
        is_of_connection = not of_block or 0 < of_connection <= of_block
        self.timeout: float = of_connection if is_of_connection else of_block
        self._name = name if is_of_connection else "db.timeout()"

    def canceled(self, error: QueryCanceled | None) -> QueryTimeoutError:
        """The error for a query that the server has cancelled, as *error* says."""
        return QueryTimeoutError(
            f"{self._ran_for_too_long()}: it was cancelled",
            info=error.pgresult if error is not None else None,
        )

    def unanswered(self) -> ServerSilentError:
        """The error for a query whose server does not answer."""
        return ServerSilentError(
            f"{self._ran_for_too_long()}, and the server did not answer its cancellation within"
            f" {seconds(LONGEST_SILENCE)}: the connection is closed, and whether the query has"
            " taken effect is unknown"
        )

    def _ran_for_too_long(self) -> str:
        return f"the query ran for longer than {self._name} allows ({seconds(self.timeout)})"
