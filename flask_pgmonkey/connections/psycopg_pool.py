"""psycopg_pool's ConnectionPool, with what web apps need beyond it.

Five things differ: how long and how often a failing connection is tried again, who hears of the
failure, that no exception raised by a signal handler costs anything for good, that all unused
connections close after ``max_idle``, and that closing waits for nobody.
Only this file and its twin touch psycopg_pool's underscored names, and a test pins them.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
from collections.abc import Callable
from contextvars import Context
from time import monotonic, time
from typing import Any, cast
from weakref import WeakSet, ref

from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout
from psycopg_pool.pool import MaintenanceTask, Schedule, ShrinkPool, WaitingClient

from ..config import PoolSettings
from .connect_errors import Failures, can_pass, copy_for_waiter, exit_in_configure, with_notes
from .server_connection import ServerConnection
from .watching import telling_later

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 0.2

# How often those who wait look whether something was left undone.
WAKE_UP_EVERY = 0.5


class Connector:
    """Stands where psycopg_pool expects a connection class: opens the pool's connections.

    Tries again after a failure that can pass, one attempt after the other for all: until one
    succeeds, or nobody waits, no outage is known, and *reconnect_timeout* seconds are over. A
    failure that cannot pass fails all who wait, at once.
    """

    def __init__(self, open_connection: Callable[[], ServerConnection], reconnect_timeout: float):
        self._open_connection = open_connection
        self._reconnect_timeout = reconnect_timeout
        self.failures: Failures = Failures()
        self._trying_again = threading.Lock()  # held by the one that does
        self.stopping: threading.Event = threading.Event()
        self.pool: Callable[[], Pool | None] = lambda: None

    @property
    def is_trying_again(self) -> bool:
        """Whether one attempt after the other goes on, because the last has failed."""
        return self._trying_again.locked()

    def connect(self, conninfo: str = "", **kwargs: Any) -> ServerConnection:
        give_up_at = monotonic() + self._reconnect_timeout
        pause = FIRST_PAUSE
        tries_for_all = False
        try:
            while True:
                began_at = monotonic()
                try:
                    conn = self._open()
                except Exception as error:
                    self.failures.note(error)
                    if not self._may_pass(error, began_at):
                        raise
                    tries_for_all = tries_for_all or self._trying_again.acquire(blocking=False)
                    if not (tries_for_all and self._is_wanted(give_up_at)):
                        raise
                    if self.stopping.wait(pause):
                        raise
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    self.failures.end()
                    return conn
        finally:
            if tries_for_all:
                self._trying_again.release()

    def _may_pass(self, error: Exception, began_at: float) -> bool:
        """Whether to try again; otherwise those who waited when the attempt began hear of *error*.

        For the others there may be another password by now.
        """
        pool = self.pool()
        if pool is None or not can_pass(error):
            if pool is not None:
                pool.fail_waiting(error, lambda waiter: waiter.joined_at <= began_at)
            return False
        return True

    def _is_wanted(self, give_up_at: float) -> bool:
        pool = self.pool()
        return (
            monotonic() < give_up_at
            or self.failures.is_of_interest()
            or (pool is not None and pool.has_waiting())
        )

    def _open(self) -> ServerConnection:
        try:
            return self._open_connection()
        except SystemExit as error:
            raise exit_in_configure(error) from error


class _Waiter(WaitingClient[ServerConnection]):
    """A place in the line of a :class:`Pool`.

    psycopg_pool's own stands on a Condition. An exception that a signal handler raises while that
    is entered leaves it locked for good, and with it whoever serves the line. Here nothing takes
    more than one call into C.
    """

    __slots__ = ("_outcome", "_waited_for", "deadline", "joined_at")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.joined_at: float = monotonic()
        # The first to say something has said it: a connection, an error, or None who gives up.
        self._outcome: dict[str, ServerConnection | Exception | None] = {}
        self._waited_for = threading.Lock()
        self._waited_for.acquire()

    def is_served(self, timeout: float) -> bool:
        """Whether there is an outcome, waiting for it *timeout* seconds at most."""
        self._waited_for.acquire(timeout=max(0.0, timeout))
        return bool(self._outcome)

    def result(self) -> ServerConnection:
        """What was set; raises what it failed with."""
        outcome = self._outcome[""]
        if not isinstance(outcome, Exception):
            return cast("ServerConnection", outcome)
        self._outcome[""] = None
        try:
            raise outcome
        finally:
            del outcome

    def set(self, conn: ServerConnection) -> bool:
        return self._settle(conn)

    def fail(self, error: Exception) -> bool:
        return self._settle(error)

    def _settle(self, outcome: ServerConnection | Exception) -> bool:
        if self._outcome.setdefault("", outcome) is not outcome:
            return False
        self._waited_for.release()
        return True

    def withdraw(self) -> ServerConnection | None:
        """Leave the line; gives the connection that came at the same moment."""
        outcome = self._outcome.setdefault("", None)
        return outcome if isinstance(outcome, ServerConnection) else None


class _Attempt(MaintenanceTask):
    """Opens a connection in a worker, and counts as one as long as it is under way."""

    def _run(self, pool: ConnectionPool[Any]) -> None:
        cast("Pool", pool).open_another(self)


class Pool(ConnectionPool[ServerConnection]):
    """psycopg_pool's ConnectionPool; see the top of this file."""

    _pid = 0  # until it is made, which may be interrupted

    def __init__(self, connector: Connector, settings: PoolSettings, name: str):
        self._pid = os.getpid()
        self.connector = connector
        self._given_back_at = 0.0
        # Both weak: who counts is there. No interruption can lose count of one that is not.
        self._counted: WeakSet[ServerConnection] = WeakSet()
        self._attempts: WeakSet[_Attempt] = WeakSet()
        # The attempt that is for who waits: one at a time.
        self._grows: Callable[[], _Attempt | None] = lambda: None
        super().__init__(
            connection_class=cast("type[ServerConnection]", connector),
            open=False,
            name=name,
            **settings.of_psycopg_pool(),
        )
        # A query of a __del__ or a handler of signals may come in the middle of what locks it.
        self._lock: Any = threading.RLock()
        connector.pool = ref(self)

    def __del__(self) -> None:
        # An inherited pool has no threads here, and its locks may be held for ever.
        if self._pid == os.getpid() and not getattr(self, "_closed", True):
            self.close_by(0.0)

    def open_with(self, first: ServerConnection | None) -> None:
        """Open the pool with a connection in it, if there is one; the workers open those that
        ``min_size`` lacks."""
        if first is not None:
            self._set_connection_expiry_date(first)
            self._counted.add(first)
            self._pool.append(first)
        self.open()

    @property
    def _nconns(self) -> int:
        """How many connections there are: idle, out or about to be opened."""
        return len(self._counted) + len(self._attempts)

    @_nconns.setter
    def _nconns(self, count: int) -> None:
        """What psycopg_pool counts by hand at its start."""

    def _start_workers(self) -> None:
        # They outlive whoever opens the pool, and what that has in its context.
        # A Queue has Conditions, as psycopg_pool's waiters have. Looked up here, since gevent may
        # have replaced it after this module was imported.
        self._tasks = cast("Any", queue.SimpleQueue())
        Context().run(super()._start_workers)

    def _start_initial_tasks(self) -> None:
        while self._nconns < self._min_size:
            self._start_attempt()
        self.run_task(Schedule(self, ShrinkPool(self), self.max_idle))

    def take(self, deadline: float, now: float) -> ServerConnection:
        """An idle connection, or the next that comes free or is opened. Not checked.

        :param now: by ``time.monotonic``, as the deadline.
        :raises PoolTimeout: when the deadline has passed.
        """
        self._stats[self._REQUESTS_NUM] += 1
        with self._lock:
            if self._closed:
                self._check_open_getconn()
            if self._pool and deadline > now:  # as _get_ready_connection(), which it spares
                conn = self._pool.popleft()
                self._nconns_min = min(self._nconns_min, len(self._pool))
                conn._pool = self
                return conn
            self._get_ready_connection(deadline - now)  # refuses, where it has to
            self._refuse_in_outage(deadline)
            waiter = _Waiter(deadline)
            self._waiting.append(waiter)
            if self._pool:  # garbage collected here, in this thread, may have given one back
                self._add_to_pool(self._pool.popleft())
            if not self.connector.is_trying_again:
                self._maybe_grow_pool()
        conn = self._wait(waiter)
        conn._pool = self
        return conn

    def _refuse_in_outage(self, deadline: float) -> None:
        """Raise what is to be heard at once while an outage is known.

        Not to those who have more than the usual time, nor where borrowers still give back.
        """
        failures = self.connector.failures
        if self._given_back_at < failures.known_at and deadline - monotonic() <= self.timeout:
            error = failures.at_once()
            if error is not None:
                if not self.connector.is_trying_again:
                    self._maybe_grow_pool()
                try:
                    raise error
                finally:
                    del error

    def make_outage_known(self, error: Exception) -> None:
        """Let others hear at once what somebody heard who waited in vain for the usual time."""
        if self.connector.failures.make_known(error):
            logger.warning("%s cannot be reached: %s", self.name, error)
        latest = monotonic() + self.timeout
        self.fail_waiting(error, lambda waiter: waiter.deadline <= latest)

    def _wait(self, waiter: _Waiter) -> ServerConnection:
        start = monotonic()
        self._stats[self._REQUESTS_QUEUED] += 1
        # While this very thread has the lock, nobody else can serve the line.
        longest = 0.0 if self._lock._is_owned() else WAKE_UP_EVERY
        try:
            while not waiter.is_served(min(longest, waiter.deadline - monotonic())):
                if not longest:
                    raise RuntimeError(
                        "a query while this very thread borrows a connection for another one, or"
                        " gives one back: __del__ and handlers of signals must not query"
                    )
                if monotonic() >= waiter.deadline:
                    raise PoolTimeout("the deadline has passed")
                self._look_after(waiter)
            return waiter.result()
        except BaseException:
            # SystemExit, KeyboardInterrupt and gevent's Timeout too: a waiter that stayed in the
            # line would swallow the next connection, and count for max_waiting until then.
            self._stats[self._REQUESTS_ERRORS] += 1
            with self._lock:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
            if (conn := waiter.withdraw()) is not None:
                self._add_to_pool(conn)
            raise
        finally:
            self._stats[self._REQUESTS_WAIT_MS] += int(1000.0 * (monotonic() - start))

    def _look_after(self, waiter: _Waiter) -> None:
        """Do for *waiter* what whoever was to do it may have left undone, or not known of."""
        with self._lock:
            if self._closed:
                waiter.fail(PoolClosed(f"the pool {self.name!r} is closed"))
                return
            if waiter not in self._waiting:
                self._waiting.appendleft(waiter)
            if self._pool:
                self._add_to_pool(self._pool.popleft())
            if not self.connector.is_trying_again:
                self._maybe_grow_pool()

    def give_back(self, conn: ServerConnection, now: float) -> None:
        """Take back an idle connection: psycopg_pool's putconn without what is checked already."""
        self._given_back_at = now
        if conn._expire_at <= now:
            self._replace(conn)
            return
        with self._lock:
            if not self._waiting and not self._closed:  # as _add_to_pool(), which it spares
                conn._pool = None
                self._pool.append(conn)
                return
        self._add_to_pool(conn)

    def _replace(self, conn: ServerConnection) -> None:
        with self._lock:
            self._counted.discard(conn)
            if not self._closed:
                self._start_attempt()
        self._close_connection(conn)

    def discard(self, conn: ServerConnection) -> None:
        """Close a connection that was taken; opens another only where one is needed."""
        conn._pool = None
        conn.close()
        self._stats[self._CONNECTIONS_LOST] += 1
        with self._lock:
            self._forget(conn)

    def forget(self, conn: ServerConnection) -> None:
        """Count no more with a connection that was taken and will not come back."""
        conn._pool = None
        with self._lock:
            self._forget(conn)

    def discard_idle(self, opened_before: float = math.inf) -> None:
        """Close idle connections; opens others only where they are needed.

        :param opened_before: only those that were opened before (by ``time.monotonic``).
        """
        with self._lock:
            idle = [conn for conn in self._pool if conn.record.opened_at < opened_before]
            for conn in idle:
                self._pool.remove(conn)
            self._nconns_min = 0
            self._forget(*idle)
        for conn in idle:
            self._close_connection(conn)

    def suspect_idle(self) -> None:
        """Have the idle connections pinged before they are lent: one like them fell silent."""
        with self._lock:
            for conn in self._pool:
                conn.record.released_at = -math.inf

    def _forget(self, *conns: ServerConnection) -> None:
        for conn in conns:
            self._counted.discard(conn)
        if self._closed:
            return
        while self._nconns < self._min_size:
            self._start_attempt()
        if self._waiting:
            self._maybe_grow_pool()

    def _maybe_grow_pool(self) -> None:
        growing = self._grows()
        if self._nconns < self._max_size and (growing is None or growing not in self._attempts):
            self._grows = ref(self._start_attempt())

    def _start_attempt(self) -> _Attempt:
        attempt = _Attempt(self)
        self._attempts.add(attempt)
        self.run_task(attempt)
        return attempt

    def is_empty(self) -> bool:
        """Whether no connection lies idle."""
        return not self._pool

    def has_waiting(self) -> bool:
        """Whether somebody waits for a connection."""
        return bool(self._waiting)

    def fail_waiting(self, error: Exception, is_meant: Callable[[_Waiter], bool]) -> None:
        """Let those who wait and are meant have *error* now."""
        with self._lock:
            waiting = [one for one in self._waiting if is_meant(cast("_Waiter", one))]
            for waiter in waiting:
                self._waiting.remove(waiter)
        for waiter in waiting:
            waiter.fail(copy_for_waiter(error))

    def close_by(self, deadline: float) -> None:
        """Close the idle connections and fail all who wait with PoolClosed.

        Waits for no borrower: what is lent closes when it comes back. The pool's threads have until
        *deadline* (by ``time.monotonic``) to end; one that is connecting ends later by itself.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            idle, waiting = list(self._pool), list(self._waiting)
            self._pool.clear()
            self._waiting.clear()
            threads = self._signal_stop_worker()
        self.connector.stopping.set()
        for conn in idle:
            self._close_connection(conn)
        for waiter in waiting:
            waiter.fail(PoolClosed(f"the pool {self.name!r} is closed"))
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    def _shrink_pool(self) -> None:
        # Runs in a worker, every max_idle seconds.
        with self._lock:
            unused, self._nconns_min = self._nconns_min, len(self._pool)
            count = max(0, min(unused, len(self._pool), self._nconns - self._min_size))
            idle = [self._pool.popleft() for _ in range(count)]
            for conn in idle:
                self._counted.discard(conn)
            self._nconns_min -= count
        for conn in idle:
            self._close_connection(conn)

    def _set_connection_expiry_date(self, conn: Any) -> None:
        super()._set_connection_expiry_date(conn)
        expiry = conn.record.login_expiry
        if expiry is not None:
            # Not all at the same moment, and before the login ends rather than after.
            left = self._jitter(expiry - time(), -0.1, -0.05)
            conn._expire_at = min(conn._expire_at, monotonic() + left)

    def open_another(self, attempt: _Attempt) -> None:
        """Open a connection; runs in a worker. The connector has done all the trying again."""
        with telling_later():  # when others can borrow it
            self._open_another(attempt)

    def _open_another(self, attempt: _Attempt) -> None:
        try:
            conn = self._connect()
        except Exception as error:
            logger.warning("Could not connect to %s: %s", self.name, with_notes(error))
            with self._lock:
                self._attempts.discard(attempt)
                if self._waiting and not self.connector.is_trying_again:  # since the last attempt
                    self._maybe_grow_pool()
            return
        with self._lock:
            self._counted.add(conn)
            self._attempts.discard(attempt)
        self._add_to_pool(conn)
        with self._lock:
            if self._nconns < self._min_size or self._waiting:
                self._maybe_grow_pool()
