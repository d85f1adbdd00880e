"""psycopg_pool's AsyncConnectionPool, bent alike. The twin of ``psycopg_pool.py``."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from contextvars import Context
from time import monotonic, time
from typing import Any, cast
from weakref import WeakSet, ref

from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from psycopg_pool.pool_async import MaintenanceTask, Schedule, ShrinkPool, WaitingClient

from ..config import PoolSettings
from .connect_errors import Failures, can_pass, copy_for_waiter, exit_in_configure, with_notes
from .loops import drop_task, with_inner_tasks
from .psycopg_pool import FIRST_PAUSE, LONGEST_PAUSE, WAKE_UP_EVERY
from .server_connection_async import AsyncServerConnection
from .watching import telling_later

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_GRACE_FOR_IDLE_WORKERS = 0.05


class AsyncConnector:
    """:class:`Connector` on a loop."""

    def __init__(
        self,
        open_connection: Callable[[], Awaitable[AsyncServerConnection]],
        reconnect_timeout: float,
    ):
        self._open_connection = open_connection
        self._reconnect_timeout = reconnect_timeout
        self.failures: Failures = Failures()
        self._trying_again = threading.Lock()  # held by the one that does
        self.pool: Callable[[], AsyncPool | None] = lambda: None

    @property
    def is_trying_again(self) -> bool:
        """Whether one attempt after the other goes on, because the last has failed."""
        return self._trying_again.locked()

    async def connect(self, conninfo: str = "", **kwargs: Any) -> AsyncServerConnection:
        give_up_at = monotonic() + self._reconnect_timeout
        pause = FIRST_PAUSE
        tries_for_all = False
        try:
            while True:
                began_at = monotonic()
                try:
                    conn = await self._open()
                except Exception as error:
                    self.failures.note(error)
                    if not await self._may_pass(error, began_at):
                        raise
                    tries_for_all = tries_for_all or self._trying_again.acquire(blocking=False)
                    if not (tries_for_all and self._is_wanted(give_up_at)):
                        raise
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    self.failures.end()
                    return conn
        finally:
            if tries_for_all:
                self._trying_again.release()

    async def _may_pass(self, error: Exception, began_at: float) -> bool:
        """Whether to try again; otherwise those who waited when the attempt began hear of *error*.

        For the others there may be another password by now.
        """
        pool = self.pool()
        if pool is None or pool.closed or not can_pass(error):
            if pool is not None:
                await pool.fail_waiting(error, lambda waiter: waiter.joined_at <= began_at)
            return False
        return True

    def _is_wanted(self, give_up_at: float) -> bool:
        pool = self.pool()
        return (
            monotonic() < give_up_at
            or self.failures.is_of_interest()
            or (pool is not None and pool.has_waiting())
        )

    async def _open(self) -> AsyncServerConnection:
        try:
            return await self._open_connection()
        except SystemExit as error:
            raise exit_in_configure(error) from error


class _FutureWaiter(WaitingClient[AsyncServerConnection]):
    """A place in the line of an :class:`AsyncPool`.

    psycopg_pool's own suspends while it is served, under the lock of the pool; a task cancelled
    there loses its connection. This one never does, so nothing that holds the lock is suspended.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.joined_at: float = monotonic()
        self._served: asyncio.Future[AsyncServerConnection] = (
            asyncio.get_running_loop().create_future()
        )

    async def is_served(self, timeout: float) -> bool:
        """Whether there is an outcome, waiting for it *timeout* seconds at most."""
        await asyncio.wait([self._served], timeout=max(0.0, timeout))
        return self._served.done()

    def result(self) -> AsyncServerConnection:
        """What was set; raises what it failed with."""
        return self._served.result()

    async def set(self, conn: AsyncServerConnection) -> bool:
        if self._served.done():
            return False
        self._served.set_result(conn)
        return True

    async def fail(self, error: Exception) -> bool:
        if self._served.done():
            return False
        self._served.set_exception(error)
        return True

    def withdraw(self) -> AsyncServerConnection | None:
        """Leave the line; gives the connection that came at the same moment."""
        if self._served.cancel() or self._served.cancelled() or self._served.exception():
            return None
        return self._served.result()


class _Attempt(MaintenanceTask):
    """Opens a connection in a worker; see the one of ``psycopg_pool.py``."""

    async def _run(self, pool: AsyncConnectionPool[Any]) -> None:
        await cast("AsyncPool", pool).open_another(self)


class AsyncPool(AsyncConnectionPool[AsyncServerConnection]):
    """psycopg_pool's AsyncConnectionPool; see the top of ``psycopg_pool.py``."""

    def __init__(self, connector: AsyncConnector, settings: PoolSettings, name: str):
        self.connector = connector
        self._given_back_at = 0.0
        # Both weak: who counts is there. No interruption can lose count of one that is not.
        self._counted: WeakSet[AsyncServerConnection] = WeakSet()
        self._attempts: WeakSet[_Attempt] = WeakSet()
        # The attempt that is for who waits: one at a time.
        self._grows: Callable[[], _Attempt | None] = lambda: None
        super().__init__(
            connection_class=cast("type[AsyncServerConnection]", connector),
            open=False,
            name=name,
            **settings.of_psycopg_pool(),
        )
        connector.pool = ref(self)

    async def open_with(self, first: AsyncServerConnection | None) -> None:
        """:meth:`Pool.open_with`, on the running loop."""
        if first is not None:
            self._set_connection_expiry_date(first)
            self._counted.add(first)
            self._pool.append(first)
        await self.open()

    @property
    def _nconns(self) -> int:
        """How many connections there are: idle, out or about to be opened."""
        return len(self._counted) + len(self._attempts)

    @_nconns.setter
    def _nconns(self, count: int) -> None:
        """What psycopg_pool counts by hand at its start."""

    def _start_workers(self) -> None:
        # They outlive whoever opens the pool, and what that has in its context.
        Context().run(super()._start_workers)

    def _start_initial_tasks(self) -> None:
        while self._nconns < self._min_size:
            self._start_attempt()
        self.run_task(Schedule(self, ShrinkPool(self), self.max_idle))

    async def take(self, deadline: float, now: float) -> AsyncServerConnection:
        """:meth:`Pool.take`, on the running loop."""
        self._stats[self._REQUESTS_NUM] += 1
        async with self._lock:
            if self._closed:
                self._check_open_getconn()
            conn = await self._get_ready_connection(deadline - now)
            if conn is not None:
                conn._pool = self
                return conn
            self._refuse_in_outage(deadline)
            waiter = _FutureWaiter(deadline)
            self._waiting.append(waiter)
            if not self.connector.is_trying_again:
                self._maybe_grow_pool()
        conn = await self._wait(waiter)
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

    async def make_outage_known(self, error: Exception) -> None:
        """Let others hear at once what somebody heard who waited in vain for the usual time."""
        if self.connector.failures.make_known(error):
            logger.warning("%s cannot be reached: %s", self.name, error)
        latest = monotonic() + self.timeout
        await self.fail_waiting(error, lambda waiter: waiter.deadline <= latest)

    async def _wait(self, waiter: _FutureWaiter) -> AsyncServerConnection:
        start = monotonic()
        self._stats[self._REQUESTS_QUEUED] += 1
        try:
            while not await waiter.is_served(min(WAKE_UP_EVERY, waiter.deadline - monotonic())):
                if monotonic() >= waiter.deadline:
                    raise PoolTimeout("the deadline has passed")
                await self._look_after(waiter)
            return waiter.result()
        except BaseException:
            self._stats[self._REQUESTS_ERRORS] += 1
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if (conn := waiter.withdraw()) is not None:
                await self._add_to_pool(conn)
            raise
        finally:
            self._stats[self._REQUESTS_WAIT_MS] += int(1000.0 * (monotonic() - start))

    async def _look_after(self, waiter: _FutureWaiter) -> None:
        """Do for *waiter* what whoever was to do it may have left undone, or not known of."""
        if self._closed:
            await waiter.fail(PoolClosed(f"the pool {self.name!r} is closed"))
            return
        if waiter not in self._waiting:
            self._waiting.appendleft(waiter)
        if self._pool:
            await self._add_to_pool(self._pool.popleft())
        if not self.connector.is_trying_again:
            self._maybe_grow_pool()

    async def give_back(self, conn: AsyncServerConnection, now: float) -> None:
        """:meth:`Pool.give_back`, on the running loop."""
        self._given_back_at = now
        if conn._expire_at > now:
            await self._add_to_pool(conn)
        else:
            await self._replace(conn)

    async def _replace(self, conn: AsyncServerConnection) -> None:
        self._counted.discard(conn)
        if not self._closed:
            self._start_attempt()
        await self._close_connection(conn)

    async def discard(self, conn: AsyncServerConnection) -> None:
        """:meth:`Pool.discard`, on the running loop."""
        conn._pool = None
        await conn.close()
        self._stats[self._CONNECTIONS_LOST] += 1
        self._forget(conn)

    async def discard_idle(self, opened_before: float = math.inf) -> None:
        """:meth:`Pool.discard_idle`, on the running loop."""
        idle = [conn for conn in self._pool if conn.record.opened_at < opened_before]
        for conn in idle:
            self._pool.remove(conn)
        self._nconns_min = 0
        self._forget(*idle)
        for conn in idle:
            await self._close_connection(conn)

    def suspect_idle(self) -> None:
        """:meth:`Pool.suspect_idle`."""
        for conn in self._pool:
            conn.record.released_at = -math.inf

    def _forget(self, *conns: AsyncServerConnection) -> None:
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

    async def fail_waiting(
        self, error: Exception, is_meant: Callable[[_FutureWaiter], bool]
    ) -> None:
        """:meth:`Pool.fail_waiting`, on the running loop."""
        waiting = [one for one in self._waiting if is_meant(cast("_FutureWaiter", one))]
        for waiter in waiting:
            self._waiting.remove(waiter)
        for waiter in waiting:
            await waiter.fail(copy_for_waiter(error))

    async def close_by(self, deadline: float) -> None:
        """:meth:`Pool.close_by`, on the running loop; a task that is connecting is cancelled."""
        if self._closed:
            return
        self._closed = True
        idle, waiting = list(self._pool), list(self._waiting)
        self._pool.clear()
        self._waiting.clear()
        for conn in idle:
            await self._close_connection(conn)
        for waiter in waiting:
            await waiter.fail(PoolClosed(f"the pool {self.name!r} is closed"))
        tasks = await self._signal_stop_worker()
        await asyncio.wait(tasks, timeout=_GRACE_FOR_IDLE_WORKERS)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=max(0.0, deadline - monotonic()))

    async def _shrink_pool(self) -> None:
        # Runs in a worker, every max_idle seconds.
        unused, self._nconns_min = self._nconns_min, len(self._pool)
        count = max(0, min(unused, len(self._pool), self._nconns - self._min_size))
        idle = [self._pool.popleft() for _ in range(count)]
        for conn in idle:
            self._counted.discard(conn)
        self._nconns_min -= count
        for conn in idle:
            await self._close_connection(conn)

    def _set_connection_expiry_date(self, conn: Any) -> None:
        super()._set_connection_expiry_date(conn)
        expiry = conn.record.login_expiry
        if expiry is not None:
            # Not all at the same moment, and before the login ends rather than after.
            left = self._jitter(expiry - time(), -0.1, -0.05)
            conn._expire_at = min(conn._expire_at, monotonic() + left)

    async def open_another(self, attempt: _Attempt) -> None:
        """As :meth:`Pool.open_another`; of the loop's tasks, none is suspended while it holds the
        lock."""
        with telling_later():  # when others can borrow it
            await self._open_another(attempt)

    async def _open_another(self, attempt: _Attempt) -> None:
        try:
            conn = await self._connect()
        except (Exception, asyncio.CancelledError) as error:
            self._attempts.discard(attempt)
            if isinstance(error, asyncio.CancelledError):
                # The worker would log it and go on.
                cast("asyncio.Task[Any]", asyncio.current_task()).cancel()
                return
            logger.warning("Could not connect to %s: %s", self.name, with_notes(error))
            if self._waiting and not self.connector.is_trying_again:  # since the last attempt
                self._maybe_grow_pool()
            return
        self._counted.add(conn)
        self._attempts.discard(attempt)
        await self._add_to_pool(conn)
        if self._nconns < self._min_size or self._waiting:
            self._maybe_grow_pool()

    def finish(self) -> None:
        """Close the idle connections where no loop runs any more that could do it."""
        self._closed = True
        for conn in self._pool:
            conn.pgconn.finish()
        self._pool.clear()
        for task in self.tasks_of_its_own():
            drop_task(task)

    def tasks_of_its_own(self) -> list[asyncio.Task[Any]]:
        """The workers and the scheduler, with the tasks in which they wait."""
        if self._sched_runner is None:
            return []
        return with_inner_tasks([*self._workers, self._sched_runner])
