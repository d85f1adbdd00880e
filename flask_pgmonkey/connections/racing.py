"""One attempt for all who ask for the same thing at the same time.

Those who waited get that attempt's result or that attempt's error; none tries again in turn. An
attempt that was interrupted or cancelled hands over to one of those who waited.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar, cast

from .failures import copy_for_waiter

T = TypeVar("T")


class _Attempt:
    def __init__(self, done: Any) -> None:
        self.done = done
        self.handed_over = False
        self.result: Any = None
        self.error: Exception | None = None

    def outcome(self) -> Any:
        if self.error is not None:
            raise copy_for_waiter(self.error)
        return self.result


class Racers(Generic[T]):
    """Threads that race for the same attempt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, _Attempt] = {}

    def run(self, key: Hashable, attempt: Callable[[], T]) -> T:
        """The outcome of *attempt*, or of the one with the same *key* that is under way."""
        mine = _Attempt(threading.Event())
        while (running := self._join(key, mine)) is not mine:
            running.done.wait()
            if not running.handed_over:
                return cast("T", running.outcome())
        try:
            mine.result = attempt()
        except Exception as error:
            mine.error = error
            raise
        except BaseException:
            mine.handed_over = True
            raise
        finally:
            with self._lock:
                del self._running[key]
            mine.done.set()
        return cast("T", mine.result)

    def _join(self, key: Hashable, mine: _Attempt) -> _Attempt:
        with self._lock:
            return self._running.setdefault(key, mine)


class AsyncRacers(Generic[T]):
    """Tasks of one loop that race for the same attempt; put the loop into the key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Attempt] = {}

    async def run(self, key: Hashable, attempt: Callable[[], Awaitable[T]]) -> T:
        """:meth:`Racers.run`, on the running loop."""
        while (running := self._running.get(key)) is not None:
            await running.done.wait()
            if not running.handed_over:
                return cast("T", running.outcome())
        mine = self._running[key] = _Attempt(asyncio.Event())
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
