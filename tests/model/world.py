"""What the actors act on, and what must be found there afterwards.

Each row that is written has a number of its own. The world keeps which must be in the table: those
of work that ended normally. Those of work that ended with an error must not be there, but where
the connection died, or the task was cancelled, at the commit itself: nobody can know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import count
from random import Random
from threading import Event, Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

INSERT = "INSERT INTO written VALUES (%s)"
STATE_OF_SESSION = """
    SELECT current_setting('work_mem') <> '7MB',
        NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        NOT EXISTS (SELECT FROM pg_listening_channels()),
        to_regclass('pg_temp.left_behind') IS NULL
"""
LEAVE_STATE = (
    "SET work_mem TO '7MB'",
    "SELECT pg_advisory_lock_shared(1)",
    "LISTEN something",
    "CREATE TEMPORARY TABLE left_behind (n int)",
)

WORKING = 4
MAX_SIZE = 2 * WORKING  # no actor holds more than two, so that none has to wait for another
OBSERVER = "model-observer"
_SESSIONS = f"""
    FROM pg_stat_activity WHERE datname = current_database()
    AND backend_type = 'client backend' AND application_name <> '{OBSERVER}'
"""


class RefusedError(Exception):
    """What an actor raises to have its block rolled back."""


class World:
    """An app on a database, with the ledger of what was written.

    :param settings: connection_settings of an empty database.
    :param seed: decides what happens.
    :param kills_in_flight: end sessions at any time, and not only as a step of its own.
    """

    def __init__(self, settings: dict[str, Any], seed: int, kills_in_flight: bool) -> None:
        self.random = Random(seed)
        self.kills_in_flight = kills_in_flight
        self.kills = 0
        self.steps: list[str] = []
        # In a thread: one that does not run all the time counts as left behind.
        self._loop = asyncio.SelectorEventLoop()
        self._loop_thread = Thread(target=self._loop.run_forever)
        self._loop_thread.start()
        self._numbers = count(1)
        self.durable: set[int] = set()
        self.unknown: set[int] = set()
        self._observe = psycopg.connect(
            **{**settings, "application_name": OBSERVER}, autocommit=True
        )
        self._observe.execute("CREATE TABLE written (n bigint PRIMARY KEY)")
        pool_settings = {"max_size": MAX_SIZE, "timeout": 20}
        self.app = Flask("model")
        self.app.config["PGMONKEY_CONFIG"] = {
            "connection_settings": settings,
            "pool_settings": pool_settings,
            "async_pool_settings": pool_settings,
        }
        self.db = PGMonkey(self.app)

    def note(self, step: str) -> None:
        """Remember a step, for who reads of a failure."""
        self.steps.append(step)

    def happens(self, probability: float) -> bool:
        """Whether something happens this time."""
        return self.random.random() < probability

    def number(self) -> int:
        """A number that nobody has written yet."""
        return next(self._numbers)

    def await_on_loop(self, coro: Coroutine[Any, Any, T]) -> T:
        """What *coro* gives, run on the world's event loop."""
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result()

    # The server's sessions

    def sessions(self, *conditions: str) -> list[int]:
        """The processes of the app's sessions, the oldest first."""
        where = " ".join(f"AND {condition}" for condition in conditions)
        found = self._observe.execute(f"SELECT pid {_SESSIONS} {where} ORDER BY backend_start, pid")
        return [pid for (pid,) in found]

    def kill_some(self, most: int) -> None:
        """Have the server end some of the app's sessions, and wait until they are gone."""
        sessions = self.sessions()
        self.kills += 1  # first this: somebody may meet it before it is done
        for pid in self.random.sample(sessions, min(self.random.randint(1, most), len(sessions))):
            self._observe.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    # What must be found

    def check(self) -> None:
        """Compare the table, the pools and the server with what must be there when nobody works.

        :raises AssertionError: if it differs.
        """
        # One whose client went away may still be at work.
        _wait_until_empty("at work", lambda: self.sessions("state <> 'idle'"))
        _wait_until_empty("borrowed", borrowed_connections)
        found = {n for (n,) in self._observe.execute("SELECT n FROM written")}
        missing = self.durable - found - self.unknown
        surplus = found - self.durable - self.unknown
        assert not missing, f"reported as done, and not there: {sorted(missing)}"
        assert not surplus, f"reported as failed, and there: {sorted(surplus)}"
        with self.app.app_context():
            self._check_capacity()
            self.await_on_loop(self._check_capacity_of_async_pools())

    def _check_capacity(self) -> None:
        pool = self.db.pool
        lent = [pool.borrow() for _ in range(MAX_SIZE)]
        try:
            for conn in lent:
                require_clean(conn.execute(STATE_OF_SESSION).fetchone())
                conn.rollback()
            _require_different([conn.info.backend_pid for conn in lent])
        finally:
            for conn in lent:
                pool.release(conn)

    async def _check_capacity_of_async_pools(self) -> None:
        pool = await self.db.get_connection("async_pool")
        pids = []
        async with AsyncExitStack() as stack:
            for _ in range(MAX_SIZE):
                conn = await stack.enter_async_context(pool.connection())
                require_clean(await (await conn.execute(STATE_OF_SESSION)).fetchone())
                pids.append(conn.info.backend_pid)
            for _ in range(MAX_SIZE):
                transaction = await stack.enter_async_context(self.db.aio.transaction())
                require_clean(await transaction.fetch_one(STATE_OF_SESSION))
                pids.append(await transaction.fetch_value("SELECT pg_backend_pid()"))
        _require_different(pids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close the app's pools, and look whether any session stayed."""
        with self._observe:
            with self.app.app_context():
                self.await_on_loop(self.db.clear_cache_async())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop.close()
            if exc is None:
                _wait_until_empty("left open", self.sessions)


class Work:
    """Rows that are committed together: must they be there?

    Used around the block that commits them. Its normal end says yes. After an error they must not
    be there, but see :attr:`is_ending`. A RefusedError ends here, and so does an error of psycopg's
    that a killed session explains.

    :ivar is_ending: set as the last step of the block, when the commit may have been sent.
    """

    def __init__(self, world: World, is_ending: bool = False) -> None:
        self.numbers: list[int] = []
        self.is_ending = is_ending
        self._world = world
        self._kills_before = world.kills

    def number(self) -> int:
        """Another number, for a row that is to be written."""
        number = self._world.number()
        self.numbers.append(number)
        return number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        world = self._world
        if exc is None:
            world.durable.update(self.numbers)
            return False
        world.note(f"  {self.numbers}: {type(exc).__name__}: {exc}")
        was_killed = world.kills != self._kills_before or world.kills_in_flight
        if self.is_ending and (world.kills_in_flight or isinstance(exc, asyncio.CancelledError)):
            world.unknown.update(self.numbers)
        return isinstance(exc, RefusedError) or (was_killed and isinstance(exc, psycopg.Error))


@contextmanager
def killing(world: World, settings: dict[str, Any]) -> Iterator[Lock]:
    """End a session every few milliseconds, but while somebody holds the lock that this gives."""
    pause, ended = Lock(), Event()
    random = Random(world.random.random())

    def kill() -> None:
        with psycopg.connect(
            **{**settings, "application_name": OBSERVER}, autocommit=True
        ) as killer:
            while not ended.wait(random.uniform(0.001, 0.03)):
                with pause:
                    killer.execute(
                        f"SELECT pg_terminate_backend(pid, 5000) {_SESSIONS}"
                        " ORDER BY random() LIMIT 1"
                    )

    thread = Thread(target=kill)
    thread.start()
    try:
        yield pause
    finally:
        ended.set()
        thread.join()


def require_clean(state: tuple[bool, ...] | None) -> None:
    assert state is not None
    assert all(state), f"a session has the state of who had it before: {state}"


def _require_different(pids: list[int]) -> None:
    assert len({*pids}) == len(pids), f"lent to two at once: {pids}"


def _wait_until_empty(state: str, look: Callable[[], list[Any]]) -> None:
    deadline = time.monotonic() + 10
    while found := look():
        assert time.monotonic() < deadline, f"{state}: {found}"
        time.sleep(0.01)
