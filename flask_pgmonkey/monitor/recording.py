"""What an app's databases did of late in this process, kept for whoever looks.

Receivers of signals put it into rings, so it takes no more memory than these have places. What can
be computed from it is, when somebody looks.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from itertools import count, dropwhile
from types import CodeType, FrameType
from typing import Any, NamedTuple
from uuid import UUID
from weakref import ReferenceType, WeakKeyDictionary, ref

from flask import Flask, Response, got_request_exception, request_finished, request_started

from ..connections.borrowed import PoolMeasures
from ..connections.watching import is_of_no_interest, pool_name
from ..contexts import current_tally
from ..events import ConnectionEvent, PoolEvent, QueryEvent
from ..per_process import PerProcess
from ..signals import (
    CallSite,
    Tally,
    connection_borrowed,
    pool_exhausted,
    query_executed,
)

QUERIES = 5_000
REQUESTS = 1_000
REMARKABLE = 200
"""Places for errors, for slow queries, and for borrowers who waited in vain."""
SAMPLES = 300
SECONDS_BETWEEN_SAMPLES = 1.0
SLOW = 0.1
"""Seconds from which on a query is slow, unless ``PGMONKEY_SLOW_QUERY`` says otherwise."""

LONGEST_TEXT = 20_000
_LONGEST_VALUE = 1_000
_MOST_VALUES = 100
_DEEPEST_STACK = 50
# What a stream or a COPY takes is for the app to say.
_AS_FAST_AS_THE_APP = ("stream", "copy")

_SMALL = frozenset(
    {bool, int, float, type(None), Decimal, UUID, date, datetime, time_of_day, timedelta}
)


class Entry(NamedTuple):
    """A recorded query."""

    number: int
    query: QueryEvent


class Finished(NamedTuple):
    """How a request ended.

    :ivar at: when, in seconds since 1970.
    :ivar duration: seconds since its beginning.
    :ivar status: of its response; None where an exception left the app.
    :ivar error: the class of the exception that its view raised.
    """

    tally: Tally
    at: float
    duration: float
    status: int | None
    error: str | None


class Borrower(NamedTuple):
    """Who has borrowed a connection, and since when: the last one, who may have given it back.

    That is seen from the pool, because to be told would cost each request some microseconds.
    """

    at: float
    event: ConnectionEvent
    frames: tuple[tuple[CodeType, int], ...]

    @property
    def stack(self) -> list[CallSite]:
        """The calls of the app that led there, and of what called it; the outermost last."""
        calls = dropwhile(lambda call: is_of_no_interest(call[0].co_filename), self.frames)
        return [
            CallSite(code.co_filename, _line(code, instruction), code.co_name)
            for code, instruction in calls
        ]


class Sample(NamedTuple):
    """How the pools stood, by their names, at a time in seconds since 1970."""

    at: float
    pools: Mapping[str, PoolMeasures]


class Omitted(str):
    """Stands for the value of a parameter that is too large, or of a type that may be, to keep."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(eq=False)
class RequestRecord:
    """A request, or an app context, with its queries.

    :ivar number: by which it can be found again.
    """

    number: int
    tally: Tally
    entries: list[Entry]
    finished: Finished | None

    @property
    def began(self) -> float:
        """When it, or the first query that is known, began; in seconds since 1970."""
        first = min(entry.query.started_at for entry in self.entries)
        return first if self.finished is None else min(first, self.ended - self.finished.duration)

    @property
    def ended(self) -> float:
        """When it, or the last query that is known, ended."""
        last = max(entry.query.started_at + entry.query.duration for entry in self.entries)
        return last if self.finished is None else self.finished.at

    @property
    def queries(self) -> list[Entry]:
        """Without BEGIN, COMMIT and the like."""
        return [entry for entry in self.entries if entry.query.kind != "command"]

    @property
    def seconds(self) -> float:
        """How long its queries took."""
        return sum(entry.query.duration for entry in self.entries)

    @property
    def errors(self) -> int:
        """How many of its queries failed."""
        return sum(entry.query.error is not None for entry in self.entries)

    @property
    def repeats(self) -> dict[tuple[str, CallSite | None], int]:
        """How often it ran the same query from the same line, where more than once."""
        counts: dict[tuple[str, CallSite | None], int] = {}
        for _, query in self.queries:
            key = query.sql, query.call_site
            counts[key] = counts.get(key, 0) + 1
        return {key: times for key, times in counts.items() if times > 1}

    @property
    def most_alike(self) -> int:
        """How often it ran the query that it repeated most."""
        return max(self.repeats.values(), default=1)


class Rings:
    """What is recorded in one process."""

    def __init__(self) -> None:
        self.since: float = time.time()
        self.numbers: Iterator[int] = count(1)
        self.queries: deque[Entry] = deque(maxlen=QUERIES)
        self.errors: deque[Entry] = deque(maxlen=REMARKABLE)
        self.slow: deque[Entry] = deque(maxlen=REMARKABLE)
        self.requests: deque[Finished] = deque(maxlen=REQUESTS)
        self.exhausted: deque[tuple[float, PoolEvent]] = deque(maxlen=REMARKABLE)
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.borrowers: dict[tuple[str, int], Borrower] = {}
        self.request_numbers: WeakKeyDictionary[Tally, int] = WeakKeyDictionary()
        self.numbering: threading.Lock = threading.Lock()
        self.sampler: threading.Thread | None = None

    def find_query(self, number: int) -> QueryEvent | None:
        """The query that has a number, unless newer ones have taken its place."""
        for ring in (self.queries, self.slow, self.errors):
            for entry in list(ring):
                if entry.number == number:
                    return entry.query
        return None

    def find_request(self, number: int) -> RequestRecord | None:
        """The request that has a number, unless newer ones have taken its place."""
        return next((each for each in self.list_requests() if each.number == number), None)

    def list_requests(self) -> list[RequestRecord]:
        """The requests that are known, the newest first."""
        ends: dict[Tally, Finished] = {}
        for end in list(self.requests):
            before = ends.get(end.tally)
            error = end.error or (before.error if before is not None else None)
            ends[end.tally] = end._replace(error=error)
        entries: dict[Tally, list[Entry]] = {}
        for entry in list(self.queries):
            if entry.query.tally is not None:
                entries.setdefault(entry.query.tally, []).append(entry)
        with self.numbering:
            found = [
                RequestRecord(self._number_of(tally), tally, its, ends.get(tally))
                for tally, its in entries.items()
            ]
        return sorted(found, key=lambda each: each.number, reverse=True)

    def _number_of(self, tally: Tally) -> int:
        number = self.request_numbers.get(tally)
        if number is None:
            number = self.request_numbers[tally] = next(self.numbers)
        return number

    def forget_former_borrowers(self, still_borrowed: set[int]) -> None:
        """Forget those who have given their connection back, or lost it.

        :param still_borrowed: the server processes of the connections that are out.
        """
        long_ago = time.time() - 2 * SECONDS_BETWEEN_SAMPLES
        for key, borrower in list(self.borrowers.items()):
            if key[1] not in still_borrowed and borrower.at < long_ago:
                self.borrowers.pop(key, None)


class Recording:
    """Records what the databases of an app do, in each of its processes.

    :param app: which is recorded from :meth:`start` on. It is not kept alive.
    """

    def __init__(self, app: Flask) -> None:
        self._app: ReferenceType[Flask] = ref(app)
        self._here: PerProcess[Rings] = PerProcess(Rings)
        self._is_started = False
        self.slow: float = SLOW

    def start(self) -> None:
        """Listen to the signals of the app, once."""
        app = self._app()
        if app is None or self._is_started:
            return
        self._is_started = True
        self.slow = float(app.config.get("PGMONKEY_SLOW_QUERY") or SLOW)
        query_executed.connect(self._hear_query, app)
        connection_borrowed.connect(self._hear_borrowed, app)
        pool_exhausted.connect(self._hear_exhausted, app)
        request_started.connect(self._hear_started, app)
        request_finished.connect(self._hear_finished, app)
        got_request_exception.connect(self._hear_exception, app)

    @property
    def rings(self) -> Rings:
        """What is recorded in this process."""
        return self._here[os.getpid()]

    # Receivers: an app's requests wait for them

    def _hear_query(self, app: Flask, event: QueryEvent) -> None:
        rings = self._here[os.getpid()]
        if event.parameters or len(event.sql) > LONGEST_TEXT:
            event = _bounded(event)
        entry = Entry(next(rings.numbers), event)
        rings.queries.append(entry)
        if event.error is not None:
            rings.errors.append(entry)
        elif event.duration >= self.slow and event.kind not in _AS_FAST_AS_THE_APP:
            rings.slow.append(entry)

    def _hear_borrowed(self, app: Flask, event: ConnectionEvent) -> None:
        rings = self._here[os.getpid()]
        if rings.sampler is None:
            self._start_sampler(rings)
        rings.borrowers[event.pool, event.backend_pid] = Borrower(
            time.time(), event, _frames(sys._getframe(1))
        )

    def _hear_exhausted(self, app: Flask, event: PoolEvent) -> None:
        self._here[os.getpid()].exhausted.append((time.time(), event))

    def _hear_started(self, app: Flask, **extra: object) -> None:
        current_tally()  # which notes when it began

    def _hear_finished(self, app: Flask, response: Response, **extra: object) -> None:
        self._note_end(response.status_code, None)

    def _hear_exception(self, app: Flask, exception: BaseException, **extra: object) -> None:
        self._note_end(None, type(exception).__name__)

    def _note_end(self, status: int | None, error: str | None) -> None:
        tally = current_tally()
        if tally is not None and tally.queries:
            duration = time.perf_counter() - tally.began
            self._here[os.getpid()].requests.append(
                Finished(tally, time.time(), duration, status, error)
            )

    # The pools

    def measure(self) -> dict[str, PoolMeasures]:
        """How the app's pools stand in this process, by their names."""
        return {pool_name(pool): pool.measure() for pool in self._pools()}

    def borrowed(self) -> list[tuple[str, Any]]:
        """The connections of the app that are out in this process, with their pools' names."""
        return [(pool_name(pool), conn) for pool in self._pools() for conn in pool.borrowed()]

    def _pools(self) -> list[Any]:
        app = self._app()
        db = app.extensions.get("pgmonkey") if app is not None else None
        return db._state(app).manager.pools() if db is not None else []

    def sample(self, rings: Rings) -> None:
        """Note how the pools stand."""
        rings.samples.append(Sample(time.time(), self.measure()))
        if rings.borrowers:
            rings.forget_former_borrowers({conn.record.backend_pid for _, conn in self.borrowed()})

    def _start_sampler(self, rings: Rings) -> None:
        with rings.numbering:
            if rings.sampler is not None:
                return
            rings.sampler = threading.Thread(
                target=_keep_sampling,
                args=(ref(self), rings),
                name="flask_pgmonkey-monitor",
                daemon=True,
            )
        rings.sampler.start()


def _keep_sampling(recording: ReferenceType[Recording], rings: Rings) -> None:
    """What the sampler's thread does, as long as there is a recording."""
    while (found := recording()) is not None:
        found.sample(rings)
        del found
        time.sleep(SECONDS_BETWEEN_SAMPLES)


def _frames(frame: FrameType | None) -> tuple[tuple[CodeType, int], ...]:
    """The code that led here and where in it; the lines are looked up when somebody looks."""
    calls = []
    for _ in range(_DEEPEST_STACK):
        if frame is None:
            break
        calls.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(calls)


def _line(code: CodeType, instruction: int) -> int:
    for begin, end, line in code.co_lines():
        if begin <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def _bounded(event: QueryEvent) -> QueryEvent:
    """*event* as it may be kept: a text or a parameter may hold megabytes."""
    given = event.parameters
    parameters = given
    if isinstance(given, Mapping):
        parameters = {name: _kept(value) for name, value in given.items()}
        is_kept_whole = all(parameters[name] is value for name, value in given.items())
    else:
        parameters = tuple(map(_kept, given or ()))
        pairs = zip(parameters, given or (), strict=True)
        is_kept_whole = all(kept is value for kept, value in pairs)
    if is_kept_whole and len(event.sql) <= LONGEST_TEXT:
        return event
    return replace(event, sql=_cut(event.sql, LONGEST_TEXT), parameters=given and parameters)


def _kept(value: Any) -> Any:
    """A parameter as it may be kept."""
    kind = type(value)
    if kind in _SMALL:
        return value
    if kind is str:
        return value if len(value) <= _LONGEST_VALUE else Omitted(_cut(value, 100))
    if kind in (list, tuple) and len(value) <= _MOST_VALUES:
        return kind(map(_kept, value))
    if isinstance(value, (bytes, bytearray, memoryview, list, tuple, dict)):
        return Omitted(f"{kind.__name__} of length {len(value)}")
    return Omitted(f"{kind.__name__}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters in all)"
