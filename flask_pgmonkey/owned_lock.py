"""Locks that know who holds them, so that nobody waits for itself, and for ever.

What runs under a lock calls others: a dumper, a row factory, a handler of notices, the body of a
``copy()``; and anywhere Python may collect garbage, whose ``__del__`` it calls, or handle a signal.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from weakref import ref

# Seconds. So long at most the end of an own hold, or the name of an owner, may take.
_LONGEST_END = 1.0


class OwnedLock:
    """A ``threading.Lock`` that refuses to wait for the thread that asks for it.

    As with the plain one, another thread may release it.

    :param refusal: what the error says.
    :ivar locked: tells whether somebody holds it.
    """

    __slots__ = ("_owner", "_refusal", "_release", "_try", "locked")

    def __init__(self, refusal: str) -> None:
        lock = threading.Lock()
        self._try = lock.acquire
        self._release = lock.release
        self.locked: Callable[[], bool] = lock.locked
        self._owner = 0
        self._refusal = refusal

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As that of ``threading.Lock``.

        :raises RuntimeError: where the thread would wait for itself without limit.
        """
        if self._try(False):
            self._owner = threading.get_ident()
            return True
        if blocking and timeout < 0:
            self._wait()
            return True
        if blocking and self._try(timeout=timeout):
            self._owner = threading.get_ident()
            return True
        return False

    def release(self) -> None:
        """As that of ``threading.Lock``."""
        self._owner = 0
        self._release()

    def __enter__(self) -> None:
        if self._try(False):
            self._owner = threading.get_ident()
        else:
            self._wait()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._owner = 0
        self._release()

    def _wait(self) -> None:
        thread = threading.get_ident()
        owner = self._owner
        while owner != thread:
            if self._try(timeout=_LONGEST_END):
                self._owner = thread
                return
            before, owner = owner, self._owner
            if not (before or owner):
                # Any other owner has said by now who it is. This thread is about to, or never will,
                # because a handler of signals came in between.
                break
        raise RuntimeError(self._refusal)


class AsyncOwnedLock(asyncio.Lock):
    """:class:`OwnedLock` for the tasks of a loop.

    An async generator that was left in its middle still holds it, until the loop has closed that;
    so the task's own hold may be over soon.
    """

    def __init__(self, refusal: str) -> None:
        super().__init__()
        self._refusal = refusal
        # Weak: the lock outlives the task, and what that has in its context.
        self._owner: Callable[[], object] = lambda: None

    async def acquire(self) -> bool:  # type: ignore[override]
        """As that of ``asyncio.Lock``.

        :raises RuntimeError: where the task would wait for itself, and not for a second only.
        """
        task = asyncio.current_task()
        if self.locked() and self._owner() is task:
            try:
                await asyncio.wait_for(super().acquire(), _LONGEST_END)
            except asyncio.TimeoutError:
                raise RuntimeError(self._refusal) from None
        else:
            await super().acquire()
        self._owner = ref(task)
        return True
