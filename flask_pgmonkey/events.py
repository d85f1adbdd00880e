"""What the receivers of :mod:`flask_pgmonkey.signals` are told.

A module of its own, because it takes a tenth of the package's import, and few listen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .signals import CallSite, Tally


@dataclass(eq=False, slots=True)
class Event:
    """What all events have.

    :ivar call_site: where the app's own code called; None where none of it did.
    :ivar bind: the name of the database in the app; None outside Flask.
    :ivar tally: that of the request or app context; None outside of any.
    """

    call_site: CallSite | None
    bind: str | None
    tally: Tally | None

    @property
    def endpoint(self) -> str | None:
        """The endpoint of the request; None outside of one."""
        return self.tally.endpoint if self.tally is not None else None


@dataclass(eq=False, slots=True)
class QueryEvent(Event):
    """A query that has ended.

    :ivar sql: its text as the app gave it; the values of :class:`psycopg.sql.Literal` are ``%s``.
        Of a pipeline the texts of its statements, with ``;`` and a line break between them.
    :ivar parameters: its parameters in debug, otherwise None. Secrets are ``***REDACTED***``.
    :ivar kind: ``query``, ``many`` (of ``executemany``), ``copy``, ``stream``, ``pipeline``, or
        ``command``: BEGIN, COMMIT, a FETCH of a stream and what else psycopg sends by itself.
    :ivar statements: how many statements a pipeline had, or sets of parameters ``executemany``.
    :ivar started_at: when it began, in seconds since 1970.
    :ivar duration: how long it took, in seconds. A stream or a COPY takes as long as its rows are
        asked for.
    :ivar rows: how many rows it gave or affected, if that is known.
    :ivar error: the class of the error that it ended with; None if there was none.
    :ivar sqlstate: that error's SQLSTATE.
    :ivar in_transaction: whether it ran in a transaction, and not in one of its own.
    :ivar may_repeat: whether it ran in a block of ``db.allow_repeats()``.
    """

    sql: str
    parameters: Any
    kind: str
    statements: int
    started_at: float
    duration: float
    rows: int | None
    error: str | None
    sqlstate: str | None
    in_transaction: bool
    may_repeat: bool


@dataclass(eq=False, slots=True)
class TransactionEvent(Event):
    """A transaction that has ended.

    :ivar committed: whether it was committed, and not rolled back.
    :ivar duration: seconds since its BEGIN; None where nobody listened yet.
    """

    committed: bool
    duration: float | None


@dataclass(eq=False, slots=True)
class ConnectionEvent(Event):
    """A connection that a pool has opened, or that has left its pool, or has come back.

    :ivar pool: the name of the pool: that of its database, ``default (async)`` for the one of
        ``db.aio``. Of binds with the same config, which share a pool, that of the first; outside
        Flask, host, port and database.
    :ivar backend_pid: the server process that serves it, as ``pg_stat_activity`` has it.
    :ivar duration: seconds that it took to open, that the borrower waited for it, or had it.
    """

    pool: str
    backend_pid: int
    duration: float


@dataclass(eq=False, slots=True)
class PoolEvent(Event):
    """A pool that had no connection free in time.

    :ivar message: what the borrower's error says, with the pool's counters.
    :ivar counters: psycopg_pool's, by their names.
    :ivar duration: seconds that the borrower waited.
    """

    message: str
    counters: Mapping[str, int]
    duration: float
