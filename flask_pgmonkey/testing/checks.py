"""What tests check beside rows: which queries ran, and that no connection stayed out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from psycopg.rows import Row

from ..connections import borrowed_connections
from ..contexts import pushed_context, start_over_in_context
from ..database import Database
from ..events import QueryEvent
from ..printable import one_line
from ..signals import query_executed

_SECONDS_TO_COME_BACK = 1.0

_uncounted: list[None] = []
"""An entry for each block of :func:`uncounted` that is open."""


class Look(Database[Row]):
    """A test's own look into a database, whose queries are not the app's."""


class SeenQueries(list[QueryEvent]):
    """The queries of a block, in the order in which they ended."""

    def __str__(self) -> str:
        if not self:
            return "none"
        times = Counter(event.sql for event in self)
        return "\n".join(
            _line(number, event, times[event.sql]) for number, event in enumerate(self, 1)
        )


def _line(number: int, event: QueryEvent, times: int) -> str:
    place = f"   at {event.call_site}" if event.call_site is not None else ""
    repeats = f"   ({times} times)" if times > 1 else ""
    return f"{number:4}. {one_line(event.sql)}{repeats}{place}"


class count_queries:  # noqa: N801
    """A block that keeps the queries which end in this process meanwhile, in any thread.

    An ``executemany``, a stream, a COPY and a pipeline are one each; BEGIN, COMMIT and what the
    test itself asks through ``pgdb`` are none. In debug the events have the parameters; the list
    that an error shows has none.

    :raises AssertionError: at its end, with the queries, where they are more than *at_most*, or
        not *exactly* as many.
    """

    def __init__(self, exactly: int | None = None, *, at_most: int | None = None) -> None:
        self._exactly = exactly
        self._at_most = at_most
        self._seen = SeenQueries()

    def __enter__(self) -> SeenQueries:
        query_executed.connect(self._note)
        return self._seen

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True  # pytest shows the block
        query_executed.disconnect(self._note)
        if exc_type is not None:
            return
        seen = self._seen
        if self._exactly is not None and len(seen) != self._exactly:
            raise AssertionError(f"{len(seen)} queries, not {self._exactly}:\n{seen}")
        if self._at_most is not None and len(seen) > self._at_most:
            raise AssertionError(f"{len(seen)} queries, more than {self._at_most}:\n{seen}")

    def _note(self, sender: object, event: QueryEvent) -> None:
        if event.kind != "command" and not _uncounted and not isinstance(sender, Look):
            self._seen.append(event)


@contextmanager
def uncounted() -> Iterator[None]:
    """A block whose queries count nowhere: a template that an earlier run made has none either."""
    _uncounted.append(None)
    try:
        yield
    finally:
        _uncounted.pop()


@contextmanager
def assert_no_connection_leaks() -> Iterator[None]:
    """A block that must give back what it borrows from pools, and pop the contexts it pushes.

    What goes back from another thread, or from the background loop, has a second for it.

    :raises AssertionError: with who has borrowed what.
    """
    outer = pushed_context()
    yield
    if pushed_context() not in (outer, None):
        raise AssertionError("The test left an app context pushed")
    # Requests within a context that is pushed around the test leave theirs to that.
    start_over_in_context()
    deadline = time.monotonic() + _SECONDS_TO_COME_BACK
    while left := borrowed_connections():
        if time.monotonic() > deadline:
            raise AssertionError(f"The test left connections borrowed: {'; '.join(left)}")
        time.sleep(0.01)
