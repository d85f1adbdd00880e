"""One attempt for all who ask for the same thing at the same time.

Those who waited get that attempt's result or that attempt's error; none tries again in turn. An
attempt that was interrupted or cancelled hands over to one of those who waited.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast
from weakref import ref

from .connect_errors import copy_for_waiter

T = TypeVar("T")

_LOOK_EVERY = 0.5

# Who waits for which attempt.
_waits: list[tuple[object, _Attempt]] = []


class _Attempt:
    def __init__(self, done: Any, caller: object, run: Callable[[], object] = object) -> None:
        self.done = done
        self.run = run  # gives None when that is over
        self.caller = caller
        self.handed_over = False
        self.result: Any = None
        self.error: Exception | None = None

    def outcome(self) -> Any:
        if self.error is not None:
            raise copy_for_waiter(self.error)
        return self.result

    @contextmanager
    def awaited_by(self, caller: object) -> Iterator[None]:
        """A block in which *caller* waits for it.

        :raises RuntimeError: if it would wait for itself, be it by way of others.
        """
        wait = caller, self
        try:
            _waits.append(wait)  # first this: of those who wait for each other one sees the other
            self._refuse_circle(caller)
            yield
        finally:
            if wait in _waits:
                _waits.remove(wait)

    def _refuse_circle(self, caller: object) -> None:
        reached = [self]
        for attempt in reached:
            if attempt.caller == caller and attempt.run() is not None:
                raise RuntimeError(
                    "a connection was asked for while it is being opened: 'configure' has to use"
                    " the connection that it is called with, and __del__ and handlers of signals"
                    " must not query"
                )
            reached += [
                other
                for waiting, other in _waits.copy()
                if waiting == attempt.caller and other not in reached
            ]


class _Run:
    """One call of :meth:`SingleFlight.run`, there as long as it goes on."""


class SingleFlight(Generic[T]):
    """Threads that ask for the same thing share one attempt.

    A signal handler may raise anywhere, also where an attempt takes itself off the list. So those
    who wait look from time to time whether it still goes on.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, _Attempt] = {}

    def run(self, key: Hashable, attempt: Callable[[], T]) -> T:
        """The outcome of *attempt*, or of the one with the same *key* that is under way.

        :raises RuntimeError: from within that attempt.
        """
        this_run = _Run()
        mine = _Attempt(threading.Lock(), threading.get_ident(), ref(this_run))
        mine.done.acquire()
        while True:
            try:
                # Atomic, like everything that is done to this dictionary.
                running = self._running.setdefault(key, mine)
                if running is mine:
                    mine.result = attempt()
                    return cast("T", mine.result)
            except Exception as error:
                mine.error = error
                raise
            except BaseException:
                mine.handed_over = True
                raise
            finally:
                if self._running.get(key) is mine:
                    del self._running[key]
                    mine.done.release()
            with running.awaited_by(mine.caller):
                is_over = self._is_over(key, running)
            if is_over and not running.handed_over:
                return cast("T", running.outcome())

    def _is_over(self, key: Hashable, running: _Attempt) -> bool:
        """Wait for the end of an attempt; False if it ended without saying so."""
        while not running.done.acquire(timeout=_LOOK_EVERY):
            if running.run() is None:
                if self._running.get(key) is running:
                    self._running.pop(key, None)
                return False
        running.done.release()  # for the next who waits
        return True


class AsyncSingleFlight(Generic[T]):
    """Tasks of one loop that ask for the same thing share one attempt. The loop is in the key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Attempt] = {}

    async def run(self, key: Hashable, attempt: Callable[[], Awaitable[T]]) -> T:
        """:meth:`SingleFlight.run`, on the running loop."""
        mine = _Attempt(asyncio.Event(), asyncio.current_task())
        while (running := self._running.setdefault(key, mine)) is not mine:
            with running.awaited_by(mine.caller):
                await running.done.wait()
            if not running.handed_over:
                return cast("T", running.outcome())
        try:
            mine.result = await attempt()
        except Exception as error:
            mine.error = error
            raise
        except BaseException:
            mine.handed_over = True
            raise
        finally:
            del self._running[key]
            mine.done.set()
        return cast("T", mine.result)
