"""How what happens on connections is told to those who listen to the signals.

What an event says is gathered where it happens, often under psycopg's lock of the connection. It is
told when that is free again, so that a receiver may query.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from inspect import iscoroutine
from time import perf_counter, time
from types import FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import finalize

import psycopg
from psycopg import sql
from psycopg.pq import ConnStatus, TransactionStatus

from ..config import Config
from ..signals import (
    CallSite,
    FindOrigin,
    Origin,
    connection_borrowed,
    connection_opened,
    connection_returned,
    pool_exhausted,
    query_executed,
    transaction_ended,
)
from .parameters import without_secrets

if TYPE_CHECKING:
    from blinker import NamedSignal
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult
    from typing_extensions import Self

    from ..events import ConnectionEvent, Event, QueryEvent
    from .local_settings import LocalSettings
    from .protocols import Opener
    from .record import ConnectionRecord

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

Unsent: TypeAlias = "tuple[NamedSignal, Any, Event]"

_IDLE = TransactionStatus.IDLE
_IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class Hop(NamedTuple):
    """What is known of a call before it hops onto another event loop, where nothing tells it.

    :ivar origin: of its events.
    :ivar call_site: where the app's own code is.
    :ivar tag: the comment for its statements.
    :ivar settings: those with which its transaction is to begin.
    """

    origin: Origin | None
    call_site: CallSite | None
    tag: bytes
    settings: LocalSettings | None = None


hop: ContextVar[Hop | None] = ContextVar("hop", default=None)

_SIGNALS = (
    query_executed, transaction_ended, connection_opened, connection_borrowed, connection_returned,
    pool_exhausted,
)  # fmt: skip

_is_telling: ContextVar[bool] = ContextVar("_is_telling", default=False)
_kept_back: ContextVar[list[Unsent] | None] = ContextVar("_kept_back", default=None)


# Whose it is, and where


def origin_of(opener: Opener, bind: str | None) -> Origin:
    """Whose an event on a connection of *opener* is.

    :param bind: the name of the database, where the borrower has said it.
    """
    hopped = hop.get()
    if hopped is not None and hopped.origin is not None:
        return hopped.origin
    return _found(opener.find_origin, opener.config, bind) or Origin(opener)


def hop_of(
    find_origin: FindOrigin | None,
    find_tag: Callable[[], bytes] | None,
    config: Config,
    bind: str,
) -> Hop | None:
    """What is to be known of a call that hops onto another event loop: None where nobody asks."""
    is_heard = any(signal.receivers for signal in _SIGNALS)
    if not is_heard and find_tag is None:
        return None
    return Hop(
        _found(find_origin, config, bind) if is_heard else None,
        call_site() if is_heard else None,
        find_tag() if find_tag is not None else b"",
    )


def _found(find_origin: FindOrigin | None, config: Config, bind: str | None) -> Origin | None:
    origin = find_origin(config) if find_origin is not None else None
    if origin is None or bind is None or bind == origin.bind:
        return origin
    return origin._replace(bind=bind)


def call_site(above: int = 1) -> CallSite | None:
    """Where the app's own code is that leads here; None if there is none.

    :param above: so many frames from here it may be. Python makes an object of each that is looked
        at.
    """
    frame: FrameType | None = sys._getframe(above)
    while frame is not None:
        code = frame.f_code
        if not is_of_no_interest(code.co_filename):
            return _call_site(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    hopped = hop.get()
    return hopped.call_site if hopped is not None else None


# One object for each place: to find it is quicker than to make another.
_call_site = lru_cache(maxsize=4096)(CallSite)

_FOLDERS_OF_NO_INTEREST = tuple(
    os.path.join(folder, "")
    for folder in (os.path.dirname(os.path.dirname(__file__)), os.path.dirname(psycopg.__file__))
)
_STANDARD_LIBRARY = os.path.join(os.path.dirname(contextlib.__file__), "")
_INSTALLED = tuple(
    os.path.join(_STANDARD_LIBRARY, f"{which}-packages") for which in ("site", "dist")
)


@lru_cache(maxsize=4096)
def is_of_no_interest(file: str) -> bool:
    """Whether a file is of this package, of psycopg or of the standard library."""
    if file.startswith(_FOLDERS_OF_NO_INTEREST) or file.startswith("<frozen "):
        return True
    return file.startswith(_STANDARD_LIBRARY) and not file.startswith(_INSTALLED)


# Queries

_patient: dict[int, float] = {}
"""Receivers that want to hear of slow queries alone, by their ids, and the seconds of these."""


def connect_to_slow(
    owner: object, receiver: Callable[[Any, QueryEvent], None], sender: object, seconds: float
) -> None:
    """Have *receiver*, a method of *owner*, hear of the queries of *sender* that take so long.

    It hears of others too where somebody else listens to all. As long as nobody does, nothing is
    gathered of a query that is quick.
    """
    query_executed.connect(receiver, sender)
    _patient[id(owner)] = seconds
    finalize(owner, _patient.pop, id(owner), None).atexit = False


def _is_slow(duration: float) -> bool:
    """Whether a query took so long that somebody is to hear of it."""
    if len(query_executed.receivers) > len(_patient):
        return True  # somebody hears of all
    return duration >= min(_patient.values(), default=0.0)


@cache
def _events() -> ModuleType:
    """The module of the events, loaded when somebody listens."""
    from .. import events

    return events


class Watch:
    """The block in which one query runs: times it, and has it told."""

    __slots__ = (
        "_before", "_began", "_conn", "_cursor", "_kind", "_params", "_query", "_started_at",
        "_statements",
    )  # fmt: skip

    def __init__(
        self,
        conn: Any,
        query: object,
        params: Any = None,
        kind: str = "query",
        cursor: Any = None,
        statements: int = 1,
    ) -> None:
        self._conn = conn
        self._query = query
        self._params = params
        self._kind = kind
        self._cursor = cursor
        self._statements = statements

    def __enter__(self) -> Self:
        self._before = self._conn.pgconn.transaction_status
        self._started_at = time()
        self._began = perf_counter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.end(exc, above=4)  # this method, and the one whose block it is, are not the app's
        record: ConnectionRecord[Any] = self._conn.record
        if record.unsent:
            tell_unsent(record)

    def end(
        self, exc: BaseException | None, result: PGresult | None = None, above: int = 3
    ) -> None:
        """Gather what is to be told, without telling it.

        :param result: that of a command.
        :param above: where the app's own code may be, as for :func:`call_site` in here.
        """
        duration = perf_counter() - self._began
        conn = self._conn
        record: ConnectionRecord[Any] = conn.record
        if not record.is_seen or _is_telling.get():
            return
        if conn._pipeline is not None and record.pipelined is not None:
            record.pipelined.append(text_of(self._query))
            return
        before, after = self._before, conn.pgconn.transaction_status
        is_heard = bool(query_executed.receivers) and (not _patient or _is_slow(duration))
        # Whose it is and where it was called costs more than all else: only where that is told.
        if not is_heard and (after == before or not transaction_ended.receivers):
            if before == _IDLE != after:
                record.transaction_began = self._began if after in _IN_TRANSACTION else None
            return
        origin = origin_of(record.opener, record.bind)
        site = call_site(above)
        query = self._query
        if is_heard and (text := query if type(query) is str else text_of(query)):
            # In one piece, because each function that is called costs as much as ten lines.
            sender, bind, tally, keeps_parameters, may_repeat = origin
            params = self._params
            if params is not None:
                params = without_secrets(text, params) if keeps_parameters else None
            if tally is not None:
                tally.seconds += duration
                if self._kind != "command":
                    tally.queries += 1
            event = _events().QueryEvent(
                site,
                bind,
                tally,
                text,
                params,
                self._kind,
                self._statements,
                self._started_at,
                duration,
                self._rows(result) if exc is None else None,
                None if exc is None else type(exc).__name__,
                exc.sqlstate if isinstance(exc, psycopg.Error) else None,
                before in _IN_TRANSACTION or after in _IN_TRANSACTION,
                may_repeat,
            )
            record.unsent.append((query_executed, sender, event))
        if after != before:
            self._note_transaction(record, result, origin, site, after)

    def _rows(self, result: PGresult | None) -> int | None:
        if self._cursor is not None:
            rows: int = self._cursor.rowcount
            return rows if rows >= 0 else None
        if result is None:
            return None
        return result.ntuples if result.nfields else result.command_tuples

    def _note_transaction(
        self,
        record: ConnectionRecord[Any],
        result: PGresult | None,
        origin: Origin,
        site: CallSite | None,
        after: int,
    ) -> None:
        if self._before == _IDLE:
            record.transaction_began = self._began if after in _IN_TRANSACTION else None
            return
        if self._before not in _IN_TRANSACTION or after in _IN_TRANSACTION:
            return
        began, record.transaction_began = record.transaction_began, None
        if not transaction_ended.receivers:
            return
        if result is None and self._cursor is not None:
            result = self._cursor.pgresult
        is_committed = (
            self._conn.pgconn.status == ConnStatus.OK
            and result is not None
            and result.command_status == b"COMMIT"
        )
        duration = None if began is None else perf_counter() - began
        event = _events().TransactionEvent(site, origin.bind, origin.tally, is_committed, duration)
        record.unsent.append((transaction_ended, origin.sender, event))


class PipelineWatch(Watch):
    """The block of a pipeline, whose statements are told as one."""

    __slots__ = ()

    def __init__(self, conn: Any) -> None:
        super().__init__(conn, "", kind="pipeline")

    def __enter__(self) -> Self:
        self._conn.record.pipelined = []
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        record: ConnectionRecord[Any] = self._conn.record
        statements, record.pipelined = record.pipelined or [], None
        self._query = ";\n".join(statements)
        self._statements = len(statements)
        super().__exit__(exc_type, exc, tb)


def note_own_transaction(conn: Any, is_committed: bool, began: float) -> None:
    """Gather that statements that went to the server together were a transaction."""
    record: ConnectionRecord[Any] = conn.record
    if not record.is_seen or _is_telling.get():
        return
    origin = origin_of(record.opener, record.bind)
    event = _events().TransactionEvent(
        call_site(), origin.bind, origin.tally, is_committed, perf_counter() - began
    )
    record.unsent.append((transaction_ended, origin.sender, event))


def watched_command(
    conn: Any, command: object, gen: PQGen[PGresult | None]
) -> PQGen[PGresult | None]:
    """What psycopg's *gen* does, which sends a *command* and runs under the connection's lock."""
    if isinstance(command, sql.Composable):
        command = command.as_string(conn)  # its literals are psycopg's own, such as a FETCH's
    watch = Watch(conn, command, kind="command")
    watch.__enter__()
    try:
        result = yield from gen
    except BaseException as error:
        watch.end(error)
        raise
    watch.end(None, result)
    return result


class Call:
    """The block of a call that sends commands such as COMMIT: they are told at its end."""

    __slots__ = ("_record",)

    def __init__(self, record: ConnectionRecord[Any]) -> None:
        self._record = record

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._record.unsent:
            tell_unsent(self._record)


def text_of(query: object) -> str:
    """The SQL text of a query, which is the same each time and holds no parameter."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, sql.Composable):
        return "".join(_parts(query))
    # A template string of Python 3.14.
    return "".join(
        part if isinstance(part, str) else f"{{{part.expression}}}"
        for part in query  # type: ignore[attr-defined]
    )


def _parts(query: sql.Composable) -> Iterator[str]:
    if isinstance(query, sql.Composed):
        for part in query:
            yield from _parts(part)
    else:
        yield "%s" if isinstance(query, sql.Literal) else query.as_string(None)


# Pools


def pool_name(opener: Opener) -> str:
    """What events and metrics call the pool *opener*."""
    if opener.known_as is None:
        origin = opener.find_origin(opener.config) if opener.find_origin is not None else None
        name = origin.bind if origin is not None else None
        suffix = " (async)" if opener.connection_type == "async_pool" else ""
        opener.known_as = f"{name or opener.config.target}{suffix}"
    return opener.known_as


def note_time(opener: Opener, name: str, seconds: float) -> None:
    """Tell the pool's timers of a time."""
    pool = opener.known_as or pool_name(opener)
    for timer in opener.timers:
        timer(pool, name, seconds)


def note_opened(record: ConnectionRecord[Any], duration: float) -> None:
    """Tell of a connection that took *duration* seconds to open."""
    _note_connection(connection_opened, record, duration)


def note_borrowed(record: ConnectionRecord[Any], duration: float) -> None:
    """Tell of a connection that was borrowed after *duration* seconds."""
    _note_connection(connection_borrowed, record, duration)


def _note_connection(signal: NamedSignal, record: ConnectionRecord[Any], duration: float) -> None:
    origin = origin_of(record.opener, None)
    event = _connection_event(record, origin, duration)
    _tell_or_keep_back(signal, origin.sender, event)


def _connection_event(
    record: ConnectionRecord[Any], origin: Origin, duration: float
) -> ConnectionEvent:
    pool = pool_name(record.opener)
    event: ConnectionEvent = _events().ConnectionEvent(
        call_site(), origin.bind, origin.tally, pool, record.backend_pid, duration
    )
    return event


def take_unsent(record: ConnectionRecord[Any], duration: float) -> list[Unsent]:
    """What is to be told of a connection that goes back after *duration* seconds. The caller tells
    it when the connection has gone, so that no receiver keeps it from others."""
    unsent = list(record.unsent)
    record.unsent.clear()
    if connection_returned.receivers:
        origin = origin_of(record.opener, record.bind)
        event = _connection_event(record, origin, duration)
        unsent.append((connection_returned, origin.sender, event))
    return unsent


def note_exhausted(
    opener: Opener, error: Exception, counters: Mapping[str, int], duration: float
) -> None:
    """Tell of a borrower who has waited in vain, and got *error*."""
    origin = origin_of(opener, None)
    event = _events().PoolEvent(
        call_site(), origin.bind, origin.tally, str(error), counters, duration
    )
    _tell_or_keep_back(pool_exhausted, origin.sender, event)


def _tell_or_keep_back(signal: NamedSignal, sender: Any, event: Event) -> None:
    kept_back = _kept_back.get()
    if kept_back is None:
        tell(signal, sender, event)
    else:
        kept_back.append((signal, sender, event))


@contextmanager
def telling_later(bind: str | None = None) -> Iterator[None]:
    """A block whose events of pools, which are those of *bind* if that is given, are told at its
    end, or at that of the block around it."""
    before = _kept_back.get()
    kept_back: list[Unsent] = []
    _kept_back.set(kept_back)
    try:
        yield
    finally:
        # Not by a token: the task of a loop that has ended is closed in whatever context.
        if _kept_back.get() is kept_back:
            _kept_back.set(before)
        for signal, sender, event in kept_back:
            if bind is not None:
                event.bind = bind
            _tell_or_keep_back(signal, sender, event)


# Telling


def tell_unsent(record: ConnectionRecord[Any]) -> None:
    """Tell what was gathered on a connection. No lock must be held."""
    if _is_telling.get():
        return  # a receiver has queried: who called that goes on telling
    unsent = record.unsent
    while unsent:
        try:
            signal, sender, event = unsent.popleft()
        except IndexError:
            return  # another thread of the same app context was quicker
        tell(signal, sender, event)


def tell_all(unsent: Iterable[Unsent]) -> None:
    """Tell what :func:`take_unsent` gave."""
    for signal, sender, event in unsent:
        tell(signal, sender, event)


def tell(signal: NamedSignal, sender: Any, event: Event) -> None:
    """Call the receivers of *signal*. What they do on connections is told to nobody."""
    if signal.is_muted or _is_telling.get():
        return
    token = _is_telling.set(True)
    try:
        for receiver in signal.receivers_for(sender):
            try:
                answer = receiver(sender, event=event)
                if answer is not None and iscoroutine(answer):
                    answer.close()
                    raise TypeError("it is a coroutine function, and receivers are plain ones")
            except Exception:
                logger.exception("A receiver of %s failed: %r", signal.name, receiver)
    finally:
        _is_telling.reset(token)
