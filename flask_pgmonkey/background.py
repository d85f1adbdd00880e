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
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from .database import AsyncQueries, AsyncTransaction, IsolationLevel, PooledAsyncQueries
from .manager import before_closing_at_exit, close_all_at_exit

if TYPE_CHECKING:
    from psycopg.abc import Params, Query
    from psycopg.rows import AsyncRowFactory

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
        self._name = getattr(coro, "__qualname__", "coroutine")
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
        self._task = self._loop.create_task(self._run(), name=self._name)
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
            logger.error("The background job %s failed", self._name, exc_info=self._failure)


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
        self.loop = _Loop()
        self._is_ending = False
        self._jobs: set[Job[Any]] = set()
        self._thread = threading.Thread(
            target=self._run, name="flask_pgmonkey-background", daemon=True
        )
        self._thread.start()

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def start(
        self, coro: Coroutine[Any, Any, T], context: Callable[[], AbstractContextManager[Any]]
    ) -> Job[T]:
        # Until the coroutine has ended: that is after a cancelled future is done.
        job = Job(coro, context, self.loop, note_end=self._jobs.discard)
        self._jobs.add(job)
        # In a context of its own: a request of the submitter must not be seen.
        contextvars.Context().run(self.loop.call_soon_threadsafe, job.start)
        return job

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


class _ProcessState:
    def __init__(self) -> None:
        # Reentrant: a job that is collected meanwhile logs its failure, and logging may submit.
        self.starting = threading.RLock()
        self.thread: _LoopThread | None = None
        self.is_exiting = False


_states: dict[int, _ProcessState] = {}


def _process_state() -> _ProcessState:
    # A forked child has no background thread, and begins with none.
    return _states.get(os.getpid()) or _states.setdefault(os.getpid(), _ProcessState())


def _end_at_exit(deadline: float) -> None:
    state = _process_state()
    with state.starting:
        state.is_exiting = True
    if state.thread is not None:
        state.thread.end(deadline)


before_closing_at_exit.append(_end_at_exit)


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
        return _submit(coro, self._app_context)

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run *coro* and wait for its result; blocks the calling thread.

        :raises RuntimeError: on the background loop itself, which would wait for itself; and as
            for :meth:`submit`.
        """
        _require_coroutine(coro)
        if _runs_here():
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


def _submit(
    coro: Coroutine[Any, Any, T], context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Job[T]:
    """Start *coro*, within a *context* of its own, on the background loop."""
    try:
        _refuse_gevent()
        state = _process_state()
        with state.starting:
            if state.is_exiting:
                raise RuntimeError("the process is exiting: nothing can be submitted any more")
            if state.thread is None:
                state.thread = _LoopThread()
            close_all_at_exit()
            return state.thread.start(coro, context)
    except BaseException:
        coro.close()
        raise


async def hop(coro: Coroutine[Any, Any, T]) -> T:
    """Await *coro* on the background loop, from any loop. Cancellation is carried through."""
    if _runs_here():
        return await coro
    return await asyncio.wrap_future(_submit(coro))


def _runs_here() -> bool:
    thread = _process_state().thread
    return thread is not None and thread.is_current()


class _QueriesFromAnyLoop:
    """The methods of :class:`AsyncQueries`, each run on the background loop."""

    def __init__(self, there: AsyncQueries) -> None:
        self._there = there

    async def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> Any:
        """The first row of the result, or None if there is none. See :class:`AsyncDatabase`."""
        return await hop(self._there.fetch_one(query, params, row_factory=row_factory))

    async def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> list[Any]:
        """All rows of the result."""
        return await hop(self._there.fetch_all(query, params, row_factory=row_factory))

    async def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> Any:
        """The first column of the first row, or None if there is no row."""
        return await hop(self._there.fetch_value(query, params, row_factory=row_factory))

    async def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a query whose rows nobody wants; gives the number of rows affected."""
        return await hop(self._there.execute(query, params))

    async def execute_many(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a query with each set of parameters, all of them or none."""
        return await hop(self._there.execute_many(query, params_seq))


class BackgroundTransaction(_QueriesFromAnyLoop):
    """What ``db.aio.transaction()`` gives: the same queries, within the transaction."""

    _there: AsyncTransaction

    def __repr__(self) -> str:
        return repr(self._there).replace("Async", "Background")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[BackgroundTransaction]:
        """A savepoint: an exception in its block undoes what the block did."""
        async with _pinned(self._there.transaction()) as nested:
            yield nested


class BackgroundDatabase(_QueriesFromAnyLoop):
    """An async database on the background loop, whose methods can be awaited from any loop."""

    _there: PooledAsyncQueries

    def __repr__(self) -> str:
        return f"<BackgroundDatabase {self._there.config.target}>"

    async def connect(self) -> None:
        """Open the pool, so that a server that cannot be reached shows at the start.

        :raises psycopg.OperationalError: at once, with the server's words.
        """
        await hop(self._there.connect())

    async def disconnect(self) -> None:
        """Close the pool; the next query opens it again."""
        await hop(self._there.disconnect())

    @asynccontextmanager
    async def transaction(
        self, isolation_level: IsolationLevel | None = None, read_only: bool | None = None
    ) -> AsyncIterator[BackgroundTransaction]:
        """A block whose queries, those of the object it gives, are committed together.

        An exception rolls all of them back. One connection is pinned for the block.
        """
        async with _pinned(self._there.transaction(isolation_level, read_only)) as transaction:
            yield transaction


@asynccontextmanager
async def _pinned(
    block: AbstractAsyncContextManager[AsyncTransaction],
) -> AsyncIterator[BackgroundTransaction]:
    """A block that is entered and left on the background loop, from any loop."""
    if _runs_here():
        async with block as transaction:
            yield BackgroundTransaction(transaction)
        return
    pinned = _PinnedBlock(block)
    transaction = await pinned.begin()
    try:
        yield BackgroundTransaction(transaction)
    except BaseException:
        await pinned.end(commit=False)
        raise
    await pinned.end(commit=True)


class _PinnedBlock:
    """A block that one job on the background loop holds open from begin to end.

    Whenever that job is cancelled, it rolls back and gives its connection back.
    """

    def __init__(self, block: AbstractAsyncContextManager[AsyncTransaction]) -> None:
        self._block = block
        self._begun: concurrent.futures.Future[AsyncTransaction] = concurrent.futures.Future()
        self._over: asyncio.Future[bool] | None = None

    async def begin(self) -> AsyncTransaction:
        self._job = _submit(self._hold())
        self._job.add_done_callback(self._pass_failure_on)
        try:
            return await asyncio.wrap_future(self._begun)
        except BaseException:
            self._job.cancel()
            raise

    async def end(self, commit: bool) -> None:
        self._job._loop.call_soon_threadsafe(self._set_over, commit)
        await asyncio.wrap_future(self._job)

    async def _hold(self) -> None:
        self._over = asyncio.get_running_loop().create_future()
        with suppress(psycopg.Rollback):  # psycopg lets it through where the connection is dead
            async with self._block as transaction:
                if self._begun.set_running_or_notify_cancel():
                    self._begun.set_result(transaction)
                if not await self._over:
                    raise psycopg.Rollback

    def _set_over(self, commit: bool) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(commit)

    def _pass_failure_on(self, job: concurrent.futures.Future[None]) -> None:
        if self._begun.done():
            return
        if job.cancelled():
            self._begun.cancel()
        elif (error := job.exception()) is not None:
            self._begun.set_exception(error)


def _refuse_gevent() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise RuntimeError(
            "db.background and db.aio need a thread of their own, which gevent has patched away:"
            " use the sync calls, db.fetch_all(…) and the others, in this process"
        )
