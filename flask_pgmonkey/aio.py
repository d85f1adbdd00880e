"""Async queries that can be awaited from any event loop: they run on the background loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import Row

from . import after_commit
from .background import await_in_background, is_in_background, submit_to_background
from .connections.local_settings import FindSettings, LocalSettings
from .connections.query_timeout import timeout_of_block
from .connections.server_connection_async import AsyncServerConnection
from .connections.watching import Hop, hop
from .database_async import PooledAsyncQueries
from .queries import IsolationLevel
from .queries_async import AsyncQueries, AsyncTransaction, AsyncTransactionalQueries

T = TypeVar("T")


class BackgroundTransaction(AsyncQueries[Row]):
    """What ``db.aio.transaction()`` gives: the same queries, within the transaction."""

    def __init__(self, there: AsyncTransaction[Row], prepare_hop: Callable[[], Hop | None]) -> None:
        self._there = there
        self._prepare_hop = prepare_hop

    def __repr__(self) -> str:
        return repr(self._there).replace("Async", "Background")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[BackgroundTransaction[Row]]:
        """A savepoint: an exception in its block undoes what the block did."""
        async with _pinned(self._there.transaction(), self._prepare_hop) as nested:
            yield nested

    def on_commit(self, fn: Callable[[], object]) -> None:
        """Have *fn* called when all is committed: after the COMMIT of the outermost block.

        As :meth:`AsyncTransaction.on_commit`; on the loop of the block.
        """
        self._there.on_commit(fn)

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        return await await_in_background(self._there._run(work), self._prepare_hop)


class BackgroundDatabase(AsyncTransactionalQueries[BackgroundTransaction[Row], Row]):
    """An async database on the background loop, whose methods can be awaited from any loop.

    :param prepare_hop: gives what events there need to know of a caller.
    :param find_settings: gives those with which its transactions begin.
    """

    def __init__(
        self,
        there: PooledAsyncQueries[Row],
        prepare_hop: Callable[[], Hop | None],
        find_settings: FindSettings | None = None,
    ) -> None:
        self._there = there
        self._prepare_hop = prepare_hop
        self._find_settings = find_settings

    def __repr__(self) -> str:
        return f"<BackgroundDatabase {self._there.config.target}>"

    async def connect(self) -> None:
        """Open the pool, so that a server that cannot be reached shows at the start.

        :raises psycopg.OperationalError: at once, with the server's words.
        """
        await await_in_background(self._there.connect(), self._prepare_hop)

    async def disconnect(self) -> None:
        """Close the pool; the next query opens it again."""
        await await_in_background(self._there.disconnect(), self._prepare_hop)

    @asynccontextmanager
    async def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> AsyncIterator[BackgroundTransaction[Row]]:
        """A block whose queries, those of the object it gives, are committed together.

        An exception rolls all of them back. One connection is pinned for the block.
        """
        block = self._there._without_callbacks(isolation_level, read_only)
        opened = _opened_by_this_task()
        async with _pinned(block, self._prepare_hop, self._prepare_to_begin) as transaction:
            opened.append(self._there.config.key)
            try:
                yield transaction
            finally:
                opened.remove(self._there.config.key)
        await after_commit.call_and_await_all(transaction._there._after_commit)

    def _prepare_to_begin(self) -> Hop | None:
        """What a transaction over there needs to know of the caller."""
        hopping = self._prepare_hop()
        if self._find_settings is None:
            return hopping
        return (hopping or Hop(None, None, b""))._replace(settings=self._find_settings())

    async def _is_in_transaction(self) -> bool:
        return self._there.config.key in _opened_by_this_task()

    async def _run(self, work: Callable[[AsyncServerConnection], Awaitable[T]]) -> T:
        return await await_in_background(self._there._run(work), self._prepare_to_begin)


def hopped_or_asked(find_settings: FindSettings) -> LocalSettings | None:
    """The settings that came along with a call, or those that *find_settings* gives here."""
    hopped = hop.get()
    return hopped.settings if hopped is not None else find_settings()


# The keys of the configs whose transactions a task has open.
_opened: WeakKeyDictionary[asyncio.Task[Any], list[str]] = WeakKeyDictionary()


def _opened_by_this_task() -> list[str]:
    task = asyncio.current_task()
    return _opened.setdefault(task, []) if task is not None else []


@asynccontextmanager
async def _pinned(
    block: AbstractAsyncContextManager[AsyncTransaction[Row]],
    prepare_hop: Callable[[], Hop | None],
    prepare_to_begin: Callable[[], Hop | None] | None = None,
) -> AsyncIterator[BackgroundTransaction[Row]]:
    """A block that is entered and left on the background loop, from any loop.

    :param prepare_hop: gives what those in it need to know of their caller.
    :param prepare_to_begin: and the block itself, if that is more.
    """
    if is_in_background():
        async with block as transaction:
            here = BackgroundTransaction(transaction, prepare_hop)
            try:
                yield here
            except psycopg.Rollback as rollback:
                if cast("object", rollback.transaction) is here:
                    rollback.transaction = cast("Any", transaction)
                raise
        return
    pinned = _PinnedBlock(block, prepare_to_begin or prepare_hop)
    transaction = await pinned.begin()
    here = BackgroundTransaction(transaction, prepare_hop)
    try:
        yield here
    except psycopg.Rollback as rollback:
        await pinned.end(commit=False)
        if cast("object", rollback.transaction) not in (None, here):
            raise
        return
    except BaseException:
        await pinned.end(commit=False)
        raise
    await pinned.end(commit=True)


class _PinnedBlock:
    """A block that one job on the background loop holds open from begin to end.

    Whenever that job is cancelled, it rolls back and gives its connection back.
    """

    def __init__(
        self,
        block: AbstractAsyncContextManager[AsyncTransaction[Any]],
        prepare_hop: Callable[[], Hop | None],
    ) -> None:
        self._block = block
        self._prepare_hop = prepare_hop
        self._begun: concurrent.futures.Future[AsyncTransaction[Any]] = concurrent.futures.Future()
        self._over: asyncio.Future[bool] | None = None

    async def begin(self) -> AsyncTransaction[Any]:
        hopping = self._prepare_hop()
        self._job = submit_to_background(
            self._hold(), query_timeout=timeout_of_block(), hopping=hopping
        )
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
                if not self._begun.set_running_or_notify_cancel():
                    # Who asked was cancelled. This job was too, but before Python 3.12 wait_for(),
                    # in which psycopg may have awaited BEGIN, swallows that at times.
                    raise psycopg.Rollback
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
