"""The process's event-loop thread, for coroutines that outlive a view.

Flask runs each async view on an event loop of its own that ends with the view, and a pool opened
there ends with it. So one daemon thread of each process runs a loop that stays: it owns the async
pools of the apps, and runs what is submitted to it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from math import inf
from time import monotonic, sleep
from typing import Any, TypeVar

import psycopg

from .connections.at_exit import before_closing, close_at_exit
from .connections.query_notes import note_call_site
from .connections.query_timeout import TimeLimit, time_limit, timeout_of_block
from .connections.watching import Hop, hop
from .per_process import PerProcess

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

T = TypeVar("T")

_SECONDS_KEPT_FOR_CLOSING = 1.5


class Job(concurrent.futures.Future[T]):
    """The future of a submitted coroutine; ``cancel()`` cancels the coroutine.

    If the coroutine fails and nobody asks for the result, the exception is logged.
    """

    def __init__(
        self,
        coro: Coroutine[Any, Any, T],
        context: Callable[[], AbstractContextManager[Any]],
        loop: asyncio.AbstractEventLoop,
        note_end: Callable[[Job[T]], None],
    ) -> None:
        super().__init__()
        self._coro = coro
        self.name: str = getattr(coro, "__qualname__", "coroutine")
        self._context = context
        self._loop = loop
        self._note_end = note_end
        self._task: asyncio.Task[T] | None = None
        self._failure: BaseException | None = None

    def result(self, timeout: float | None = None) -> T:
        try:
            return super().result(timeout)
        finally:
            self._note_that_somebody_asked()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            return super().exception(timeout)
        finally:
            self._note_that_somebody_asked()

    def _note_that_somebody_asked(self) -> None:
        if self.done():
            self._failure = None

    def cancel(self) -> bool:
        if self.done():
            return False
        self._loop.call_soon_threadsafe(self._cancel_task)
        return super().cancel()

    def start(self) -> None:
        """Run the coroutine; called on the loop."""
        self._task = self._loop.create_task(self._run(), name=self.name)
        self._task.add_done_callback(self._finish)

    async def _run(self) -> T:
        if self.cancelled():
            raise asyncio.CancelledError
        context, coro = self._context, self._coro
        del self  # else the traceback of a failure keeps the job, and its log line waits
        with context():
            return await coro

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        self._task = None
        self._note_end(self)
        self._coro.close()  # it may never have begun
        if task.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = task.exception()
        if not self.set_running_or_notify_cancel():
            return  # cancelled, and the coroutine ended all the same
        if error is None:
            self.set_result(task.result())
        else:
            self._failure = error
            self.set_exception(error)

    def __del__(self) -> None:
        if getattr(self, "_failure", None) is not None:
            logger.error("The background job %s failed", self.name, exc_info=self._failure)


class _Loop(asyncio.SelectorEventLoop):
    """The selector loop, which is the default but on Windows, where psycopg cannot use that."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        try:
            return await super().getaddrinfo(host, port, **options)
        except RuntimeError:
            # At exit no thread can be started any more, and a job may still have to connect.
            return socket.getaddrinfo(host, port, **options)


class _LoopThread:
    """A daemon thread that runs an event loop until the process exits."""

    def __init__(self) -> None:
        # It outlives the request that happens to need it first.
        self.loop = contextvars.Context().run(_Loop)
        self._is_ending = False
        self._jobs: set[Job[Any]] = set()
        self._thread = threading.Thread(
            target=self._run, name="flask_pgmonkey-background", daemon=True
        )
        self._thread.start()

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def start(
        self,
        coro: Coroutine[Any, Any, T],
        context: Callable[[], AbstractContextManager[Any]],
        query_timeout: float,
        hopping: Hop | None,
    ) -> Job[T]:
        # Until the coroutine has ended: that is after a cancelled future is done.
        job = Job(coro, context, self.loop, note_end=self._jobs.discard)
        self._jobs.add(job)
        # In a context of its own: a request of the submitter must not be seen.
        own = contextvars.Context()
        if query_timeout:
            own.run(time_limit.set, TimeLimit(query_timeout, inf))
        if hopping is not None:
            own.run(hop.set, hopping)
        own.run(self.loop.call_soon_threadsafe, job.start)
        return job

    def running(self) -> set[Job[Any]]:
        return self._jobs.copy()

    def drain(self, timeout: float, spared: Set[Job[Any]]) -> list[str]:
        """Wait for the jobs, then cancel what still runs; gives the names of those."""
        concurrent.futures.wait(self.running() - spared, timeout=timeout)
        left = self.running() - spared
        for job in left:
            job.cancel()
        deadline = monotonic() + _SECONDS_KEPT_FOR_CLOSING
        while self.running() - spared and monotonic() < deadline:
            sleep(0.005)  # its future is done before its coroutine has given its connection back
        return [job.name for job in left]

    def end(self, deadline: float) -> None:
        """Let running jobs finish, cancel those that do not, close what the loop owns."""
        patience = max(0.0, deadline - _SECONDS_KEPT_FOR_CLOSING - monotonic())
        concurrent.futures.wait(list(self._jobs), timeout=patience)
        self._is_ending = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(max(0.0, deadline - monotonic()))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_ending:
            # sys.exit() in a job stops the loop; it is that job's failure and nobody else's.
            with suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_forever()
        # As asyncio.run ends a loop; the pools close as their tasks are cancelled.
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class _BackgroundState:
    """What a process has; a forked child has no background thread, and begins with none."""

    def __init__(self) -> None:
        # Reentrant: a job that is collected meanwhile logs its failure, and logging may submit.
        self.starting = threading.RLock()
        self.thread: _LoopThread | None = None
        self.is_exiting = False


_states: PerProcess[_BackgroundState] = PerProcess(_BackgroundState)


def _end_at_exit(deadline: float) -> None:
    state = _states.here()
    with state.starting:
        state.is_exiting = True
    if state.thread is not None:
        state.thread.end(deadline)


before_closing.append(_end_at_exit)


def drain(timeout: float, spared: Set[Job[Any]] = frozenset()) -> list[str]:
    """Wait *timeout* seconds for all that runs on the process's background loop, then cancel it.

    :param spared: jobs that are not waited for, and go on.
    :return: the names of the jobs that were cancelled.
    """
    thread = _states.here().thread
    return thread.drain(timeout, spared) if thread is not None else []


def running_jobs() -> set[Job[Any]]:
    """The jobs that were submitted to the process's background loop and have not ended."""
    thread = _states.here().thread
    return thread.running() if thread is not None else set()


class Background:
    """Runs coroutines on the process's background loop, each in an app context of its own and
    without a request.

    :param app_context: makes the app context.
    """

    def __init__(self, app_context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._app_context = app_context

    def submit(self, coro: Coroutine[Any, Any, T]) -> Job[T]:
        """Start *coro* and return at once.

        :return: a :class:`concurrent.futures.Future`. An exception that nobody asks for is logged.
        :raises RuntimeError: in a process that gevent has patched, or that is exiting.
        """
        _require_coroutine(coro)
        return submit_to_background(coro, self._app_context)

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run *coro* and wait for its result; blocks the calling thread.

        :raises RuntimeError: on the background loop itself, which would wait for itself; and as
            for :meth:`submit`.
        """
        _require_coroutine(coro)
        if is_in_background():
            coro.close()
            raise RuntimeError(
                "background.run() was called on the background loop and would wait for itself:"
                " await the coroutine instead"
            )
        job = self.submit(coro)
        try:
            return job.result()
        except BaseException:
            job.cancel()
            raise


def _require_coroutine(coro: object) -> None:
    if not asyncio.iscoroutine(coro):
        raise TypeError(
            f"expected a coroutine, which is what calling an async function gives, not {coro!r}"
        )


def submit_to_background(
    coro: Coroutine[Any, Any, T],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    query_timeout: float = 0.0,
    hopping: Hop | None = None,
) -> Job[T]:
    """Start *coro*, within a *context* of its own, on the background loop.

    :param query_timeout: the bound of its queries, in seconds, that ``db.timeout()`` has set.
    :param hopping: what its events need to know of its caller.
    """
    try:
        _refuse_gevent()
        state = _states.here()
        with state.starting:
            if state.is_exiting:
                raise RuntimeError("the process is exiting: nothing can be submitted any more")
            if state.thread is None:
                state.thread = _LoopThread()
            close_at_exit()
            return state.thread.start(coro, context, query_timeout, hopping)
    except BaseException:
        coro.close()
        raise


async def await_in_background(
    coro: Coroutine[Any, Any, T], prepare_hop: Callable[[], Hop | None]
) -> T:
    """Await *coro* on the background loop, from any loop. Cancellation is carried through.

    :param prepare_hop: gives what its events need to know of its caller.
    """
    if is_in_background():
        return await coro
    try:
        hopping = prepare_hop()
    except BaseException:
        coro.close()
        raise
    job = submit_to_background(coro, query_timeout=timeout_of_block(), hopping=hopping)
    try:
        return await asyncio.wrap_future(job)
    except psycopg.Error as error:
        note_call_site(error)  # which nothing over there could tell
        raise


def is_in_background() -> bool:
    thread = _states.here().thread
    return thread is not None and thread.is_current()


def _refuse_gevent() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise RuntimeError(
            "db.background and db.aio need a thread of their own, which gevent has patched away:"
            " use the sync calls, db.fetch_all(…) and the others, in this process"
        )
