"""Objects that end with their event loop.

A pool that is left open makes ``asyncio.run`` hang: its tasks swallow the cancellation while they
connect. So each loop that has objects of ours gets one task that waits for its own cancellation,
which is how ``asyncio.run`` ends a loop, and then closes them. A loop that somebody closed without
cancelling, or left with the thread that ran it, is found at the next call or at exit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from contextvars import Context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from typing import Protocol

    class EndsWithLoop(Protocol):
        """An object that belongs to one event loop."""

        async def close_on_loop(self, deadline: float) -> None:
            """Close, on the loop, by *deadline* (``time.monotonic``)."""

        def finish(self) -> None:
            """Close without a loop: drop the sockets."""

        def tasks_of_its_own(self) -> Collection[asyncio.Task[Any]]:
            """The tasks that run until it is closed."""
            ...


logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_CLOSING_TIMEOUT = 2.0


class _Keeper:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.kept: list[EndsWithLoop] = []
        # It outlives whoever opens something, and what that has in its context.
        self.task = Context().run(
            partial(loop.create_task, self._wait_for_the_end(), name="flask_pgmonkey-loop-keeper")
        )
        self._thread = threading.current_thread()

    async def _wait_for_the_end(self) -> None:
        try:
            await self.loop.create_future()
        except asyncio.CancelledError:
            deadline = monotonic() + _CLOSING_TIMEOUT
            if self.kept:
                await self._let_others_end(deadline - _CLOSING_TIMEOUT / 2)
            while self.kept:
                kept = self.kept.pop()
                try:
                    await kept.close_on_loop(deadline)
                except Exception:
                    logger.exception("Could not close %r as its event loop ended", kept)
                    kept.finish()
            key = os.getpid(), self.loop
            if _keepers.get(key) is self:
                del _keepers[key]
            raise

    async def _let_others_end(self, deadline: float) -> None:
        """Wait for the tasks that are cancelled too: at their end they may query once more."""
        own = {asyncio.current_task()}.union(*(kept.tasks_of_its_own() for kept in self.kept))
        ending = [
            task
            for task in asyncio.all_tasks()
            if task not in own and (sys.version_info < (3, 11) or task.cancelling())
        ]
        if ending:
            await asyncio.wait(ending, timeout=deadline - monotonic())

    def is_over(self) -> bool:
        """Whether the loop was closed, or its thread ended without closing it."""
        return self.loop.is_closed() or not (self.loop.is_running() or self._thread.is_alive())


def with_inner_tasks(tasks: Iterable[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """*tasks*, which are suspended, each followed by the task in which it waits: before Python
    3.12 ``asyncio.wait_for`` makes one."""
    return [one for task in tasks for one in (task, _inner_task(task)) if one is not None]


def _inner_task(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    step: Any = task.get_coro()
    while step is not None:
        frame = getattr(step, "cr_frame", None)
        if frame is not None and frame.f_code is asyncio.wait_for.__code__:
            waited_for = frame.f_locals["fut"]
            return waited_for if isinstance(waited_for, asyncio.Task) else None
        step = getattr(step, "cr_await", None)
    return None


def drop_task(task: asyncio.Task[Any]) -> None:
    """End a task whose loop runs no more, without asyncio's complaint when it is collected."""
    coro = task.get_coro()
    if task.done() or coro is None or task.get_loop().is_running():
        return
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with suppress(RuntimeError):  # what the task does at its end may need the loop
        coro.close()
    if not task.get_loop().is_closed():
        # If the loop should run again, the task would fail for want of its coroutine.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())


def require_own_loop(
    own: asyncio.AbstractEventLoop | None, owner: object
) -> asyncio.AbstractEventLoop:
    """The running loop, which becomes the object's own where it has none yet.

    :raises RuntimeError: on another loop than the object's own, or on one that psycopg cannot use.
    """
    running = asyncio.get_running_loop()
    if own is running:
        return running
    if own is not None:
        raise RuntimeError(
            f"{owner!r} belongs to another event loop. Ask the manager for one on this loop:"
            " await manager.get_database_connection(...)"
        )
    if type(running).__name__ == "ProactorEventLoop":
        raise RuntimeError(
            "psycopg cannot use Windows' ProactorEventLoop: run your program with"
            " asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop), or before Python 3.12"
            " call asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy()) first"
        )
    return running


_keepers: dict[tuple[int, asyncio.AbstractEventLoop], _Keeper] = {}
_left_behind: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def end_with_running_loop(kept: EndsWithLoop) -> None:
    """Have *kept* closed when the running loop ends."""
    finish_closed_loops()
    loop = asyncio.get_running_loop()
    key = os.getpid(), loop
    if key not in _keepers:
        _keepers[key] = _Keeper(loop)
        _left_behind.discard(loop)
    if kept not in _keepers[key].kept:
        _keepers[key].kept.append(kept)


def release_from_loop(kept: EndsWithLoop, loop: asyncio.AbstractEventLoop) -> None:
    """*kept* is closed: its loop has nothing more to do for it."""
    keeper = _keepers.get((os.getpid(), loop))
    if keeper is None or kept not in keeper.kept:
        return
    keeper.kept.remove(kept)
    if not keeper.kept and not keeper.task.done() and keeper.task is not _current_task():
        del _keepers[os.getpid(), loop]
        keeper.task.cancel()


def finish_closed_loops() -> None:
    """Close what belongs to loops that ended without being cancelled."""
    pid = os.getpid()
    for key, keeper in list(_keepers.items()):
        if key[0] == pid and keeper.is_over():
            _keepers.pop(key, None)
            _left_behind.add(keeper.loop)
            drop_task(keeper.task)
            for kept in list(keeper.kept):
                kept.finish()


def is_over(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether *loop* was closed, or was found left behind by :func:`finish_closed_loops`."""
    return loop.is_closed() or loop in _left_behind


def close_from_outside(
    kept: EndsWithLoop, loop: asyncio.AbstractEventLoop, deadline: float
) -> None:
    """Close an object of another loop: there where it still runs, else without it."""
    if loop.is_running():
        closing = asyncio.run_coroutine_threadsafe(kept.close_on_loop(deadline), loop)
        try:
            closing.result(max(0.0, deadline - monotonic()))
        except concurrent.futures.TimeoutError:
            if not loop.is_running():  # else it is busy, and closes when it comes to it
                kept.finish()
    else:
        kept.finish()


def close_at_exit(deadline: float) -> None:
    """Close what belongs to any loop of this process."""
    pid = os.getpid()
    for key, keeper in list(_keepers.items()):
        if key[0] != pid:
            continue
        for kept in list(keeper.kept):
            close_from_outside(kept, keeper.loop, deadline)
        if not keeper.loop.is_running():
            drop_task(keeper.task)
            _keepers.pop(key, None)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
