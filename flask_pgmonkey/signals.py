"""What is told of databases at work: signals, and the events that their receivers get.

A receiver is called as ``receiver(sender, event=…)``. The sender is the Flask app; outside Flask it
is the :class:`Database`, or the connection object of a manager. What nobody listens to is not even
timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

from blinker import NamedSignal, Namespace

_signals = Namespace()

query_executed: NamedSignal = _signals.signal("pgmonkey-query-executed")
"""A query has ended, well or not: :class:`~flask_pgmonkey.events.QueryEvent`."""

transaction_ended: NamedSignal = _signals.signal("pgmonkey-transaction-ended")
"""A transaction was committed or rolled back: :class:`~flask_pgmonkey.events.TransactionEvent`."""

connection_opened: NamedSignal = _signals.signal("pgmonkey-connection-opened")
"""A pool has a new connection: :class:`~flask_pgmonkey.events.ConnectionEvent`."""

connection_borrowed: NamedSignal = _signals.signal("pgmonkey-connection-borrowed")
"""A connection has left its pool: :class:`~flask_pgmonkey.events.ConnectionEvent`."""

connection_returned: NamedSignal = _signals.signal("pgmonkey-connection-returned")
"""A connection has come back to its pool: :class:`~flask_pgmonkey.events.ConnectionEvent`."""

pool_exhausted: NamedSignal = _signals.signal("pgmonkey-pool-exhausted")
"""Somebody has waited in vain for a free connection: :class:`~flask_pgmonkey.events.PoolEvent`."""


class CallSite(NamedTuple):
    """Where the app's own code called this package."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{_shortened(self.file)}:{self.line} in {self.function}"


@lru_cache(maxsize=1024)
def _shortened(file: str) -> str:
    """The path relative to the working directory where it lies below that."""
    try:
        below = os.path.join(os.getcwd(), "")
    except OSError:  # it was deleted
        return file
    return file.removeprefix(below) if below != os.sep else file


class Tally:
    """What one request has asked its databases for: the same object for all events of a request.

    Outside of a request it is that of the app context. It may be kept: it refers to nothing.

    :ivar endpoint: the request's endpoint; None outside of one.
    :ivar method: its HTTP method; None outside of one.
    :ivar path: its path; None outside of one.
    :ivar began: when it was first asked for, by ``time.perf_counter``.
    :ivar queries: how many queries have ended, without BEGIN, COMMIT and the like.
    :ivar seconds: how long they took, and BEGIN, COMMIT and the like with them.
    :ivar repeats: how often a query ran from a call site, where that is counted.
    """

    __slots__ = (
        "__weakref__",
        "began",
        "endpoint",
        "method",
        "path",
        "queries",
        "repeats",
        "seconds",
    )

    def __init__(
        self, endpoint: str | None = None, method: str | None = None, path: str | None = None
    ) -> None:
        self.endpoint: str | None = endpoint
        self.method: str | None = method
        self.path: str | None = path
        self.began: float = perf_counter()
        self.queries: int = 0
        self.seconds: float = 0.0
        self.repeats: dict[tuple[str, CallSite | None], int] = {}


class Origin(NamedTuple):
    """Whose an event is.

    :ivar sender: the sender of the signals.
    :ivar bind: the name of the database in the app; None outside Flask.
    :ivar tally: that of the request or app context; None outside of any.
    :ivar keeps_parameters: whether events may hold the parameters of queries.
    :ivar may_repeat: whether the same query may run any number of times, as ``db.allow_repeats()``
        says.
    """

    sender: Any
    bind: str | None = None
    tally: Tally | None = None
    keeps_parameters: bool = False
    may_repeat: bool = False


FindOrigin: TypeAlias = "Callable[[Any], Origin | None]"
"""Gives the origin of what happens in the running thread or task to connections of a config."""
