"""psycopg's AsyncConnection as this package opens it. The twin of ``server_connection.py``."""

from __future__ import annotations

import asyncio
import os
import threading
from asyncio import sleep
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import capabilities, waiting
from psycopg.errors import QueryCanceled
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ..config import Config
from ..config.login import Login
from ..errors import QueryTimeoutError, ServerSilentError
from ..owned_lock import AsyncOwnedLock
from ..signals import query_executed
from . import configuring
from .blocks import calling_frame
from .connect_errors import copy_for_waiter
from .copying import read_out
from .cursor import AsyncCursor, AsyncServerCursor
from .login_attempts import PAUSE, LoginAttempt
from .query_timeout import (
    LONGEST_SILENCE,
    WAKE_UP_EVERY,
    DeadlineError,
    QueryLimit,
    time_limit,
    timeout_of_block,
    until,
)
from .record import ConnectionRecord
from .server_connection_base import (
    QUERY_WITHIN_QUERY,
    REFUSES_WRITES,
    BaseServerConnection,
    Configure,
    clearing_statements,
    forget_what_was_heard,
    is_refusal,
    parent_process_has_it,
    put_back_plain_attributes,
    refuse,
    set_all,
    unanswered,
    wants_writable,
    warn_of_pooler,
)
from .transaction import AsyncTransaction, has_failed
from .watching import Call, PipelineWatch

if TYPE_CHECKING:
    from contextlib import _AsyncGeneratorContextManager
    from types import TracebackType

    from psycopg import AsyncPipeline
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn
    from psycopg.rows import AsyncRowFactory
    from typing_extensions import Self

    from .known_types import KnownTypes
    from .protocols import AsyncSource, Opener

T = TypeVar("T")

INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)


class AsyncServerConnection(BaseServerConnection, psycopg.AsyncConnection[Any]):
    """psycopg's AsyncConnection with our record, of no use to a forked child."""

    record: ConnectionRecord[AsyncSource[AsyncServerConnection]]

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.lock: Any = AsyncOwnedLock(QUERY_WITHIN_QUERY.format(caller="task"))

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        if self.owner_pid != os.getpid():
            raise parent_process_has_it()
        if args or kwargs:  # notifies(), which waits as long as its caller wants
            return await psycopg.AsyncConnection.wait(self, gen, *args, **kwargs)
        try:
            if self.query_timeout or time_limit.get() is not None:
                limit = QueryLimit(self.query_timeout, timeout_of_block(), self.bounded_by)
                if limit.timeout:
                    return await self._wait_within(limit, gen)
            return await waiting.wait_async(gen, self.pgconn.socket, WAKE_UP_EVERY)
        except INTERRUPTS:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                with suppress(psycopg.Error, DeadlineError):
                    await self._cancel_query(gen)
            raise
        except psycopg.Error as error:
            self.record.note_failure(self, error)
            if self.record.is_copy_left:
                self.record.is_copy_left = False
                await self.end_copy(error)
            raise

    async def end_copy(self, because: psycopg.Error | None = None) -> None:
        """:meth:`ServerConnection.end_copy`, on the running loop."""
        if self.is_inherited:
            return
        if self.pgconn.pipeline_status:
            self.pgconn.finish()  # libpq gets out of it by nothing else
        if not self.is_at_work():
            return
        try:
            await self._cancel_query(read_out(self.pgconn))
        except psycopg.Error as error:
            self.record.note_failure(self, error)
            if because is not None and has_failed(self.pgconn):
                self.record.failed_by = copy_for_waiter(because)
        except DeadlineError:
            pass  # the connection is closed, which the next statement says

    async def _wait_within(self, limit: QueryLimit, gen: PQGen[T]) -> T:
        deadline = monotonic() + limit.timeout
        fileno = self.pgconn.socket
        wake_up_every = min(WAKE_UP_EVERY, limit.timeout)
        was_cancelled = self.record.is_copy_cancelled
        self.record.is_copy_cancelled = False
        try:
            result = await waiting.wait_async(until(deadline, gen), fileno, wake_up_every)
        except QueryCanceled as error:
            if was_cancelled:
                raise limit.canceled(error) from error
            raise
        except DeadlineError:
            pass
        else:
            if was_cancelled and self.is_at_work():
                raise limit.canceled(None)
            return result
        try:
            result = await self._cancel_query(gen)
        except QueryCanceled as error:
            raise limit.canceled(error) from error
        except DeadlineError as error:
            raise limit.unanswered() from error.__cause__
        # It ended before it could be cancelled. But the end of a COPY is waited for apart.
        self.record.is_copy_cancelled = self.is_at_work()
        return result

    async def _cancel_query(self, gen: PQGen[T]) -> T:
        """:meth:`ServerConnection._cancel_query`, on the running loop."""
        give_up_at = monotonic() + LONGEST_SILENCE
        is_asked = False
        try:
            await self._ask_to_cancel()
            is_asked = True
            fileno = self.pgconn.socket
            return await waiting.wait_async(until(give_up_at, gen), fileno, WAKE_UP_EVERY)
        except BaseException as error:
            if is_asked and isinstance(error, psycopg.Error):
                raise
            self.shut_down()
            self.pgconn.finish()
            if isinstance(error, psycopg.Error):  # the request did not get through
                raise DeadlineError from error
            raise

    async def _ask_to_cancel(self) -> None:
        if capabilities.has_cancel_safe():
            await self.cancel_safe(timeout=LONGEST_SILENCE)
            return
        # Before libpq 17 nothing bounds it.
        asking = threading.Thread(target=self.cancel_quietly, daemon=True)
        asking.start()
        give_up_at = monotonic() + LONGEST_SILENCE
        while asking.is_alive():
            if monotonic() >= give_up_at:
                raise DeadlineError
            await asyncio.sleep(0.01)

    async def commit(self) -> None:
        with Call(self.record):
            await super().commit()

    async def rollback(self) -> None:
        with Call(self.record):
            await super().rollback()

    def pipeline(self) -> _AsyncGeneratorContextManager[AsyncPipeline]:
        block = super().pipeline()
        if query_executed.receivers and self.record.pipelined is None:
            return self._watched(block)
        return block

    @asynccontextmanager
    async def _watched(
        self, block: _AsyncGeneratorContextManager[AsyncPipeline]
    ) -> AsyncIterator[AsyncPipeline]:
        with PipelineWatch(self):
            async with block as pipeline:
                yield pipeline

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncTransaction]:
        """psycopg's own, which ends with an error where nothing was committed."""
        transaction = AsyncTransaction(self, savepoint_name, force_rollback)
        with Call(self.record):
            if self._pipeline is None:
                async with transaction:
                    yield transaction
            else:
                async with self.pipeline(), transaction, self.pipeline():
                    yield transaction

    async def __aenter__(self) -> Self:
        block = self.transaction()
        await block.__aenter__()
        self.record.blocks.append((calling_frame(), block))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> Any:
        # A transaction, and no end of the connection: that is whoever's it was borrowed from.
        return await self.record.leave_block(calling_frame()).__aexit__(exc_type, exc_val, exc_tb)

    async def close(self) -> None:
        self.note_close()
        await super().close()

    @classmethod
    async def open(
        cls,
        opener: Opener,
        configure: Configure | None,
        row_factory: AsyncRowFactory[Any] | None,
    ) -> Self:
        """:meth:`ServerConnection.open`, on the running loop."""
        config = opener.config
        conn, login = await cls._log_in(config, row_factory)
        try:
            conn.server_cursor_factory = AsyncServerCursor
            if opener.find_tag is not None:
                from . import tagged_cursor  # what few apps use

                conn.cursor_factory = tagged_cursor.AsyncTaggedCursor
                conn.server_cursor_factory = tagged_cursor.AsyncTaggedServerCursor
            if config.prepared_max is not None:
                conn.prepared_max = config.prepared_max
            conn.record = ConnectionRecord(conn, opener, configure)
            conn.record.login_expiry = login.expiry if login is not None else None
            if settings := config.async_settings:
                with conn.bounded_as_opening():
                    await conn._apply(config, settings)
            if opener.types is not None:
                if opener.types.claim_look():
                    with conn.bounded_as_opening():
                        await conn.ask_for_types(opener.types)
                conn.take_types(opener.types)
            conn.query_timeout = config.async_pool.query_timeout
            await conn._make_ready()
        except BaseException:
            conn.pgconn.finish()
            raise
        return conn

    async def _make_ready(self) -> None:
        configure = self.record.configure
        if configure:
            with self.bounded_as_opening():
                await configuring.run_async(configure, self)
        self.record.note_ready(self)

    @classmethod
    async def _log_in(
        cls, config: Config, row_factory: AsyncRowFactory[Any] | None
    ) -> tuple[Self, Login | None]:
        attempt = LoginAttempt(config)
        try:
            while not attempt.may_begin():
                await sleep(PAUSE)
            login = await config.ask_login_on_loop()
            conn = None
            while conn is None:
                try:
                    conn = await cls.connect(
                        **await config.connect_kwargs_on_loop(login),
                        autocommit=True,
                        row_factory=row_factory,
                        cursor_factory=AsyncCursor,
                    )
                except psycopg.OperationalError as error:
                    if not attempt.may_ask_again(error):
                        raise
                    another = await config.ask_another_login_on_loop(login)
                    if another is None:
                        raise
                    login = another
        except BaseException as error:
            attempt.end(error)
            raise
        attempt.end()
        return conn, login

    async def _apply(self, config: Config, settings: Mapping[str, str]) -> None:
        try:
            cursor = await self.execute(*set_all(settings), prepare=False)
            warn_of_pooler(config, "async_settings", self, cursor.pgresult)
        except (QueryTimeoutError, ServerSilentError) as error:
            raise unanswered(config, "async_settings", self.query_timeout) from error
        except psycopg.DatabaseError as error:
            if not is_refusal(self, error):
                raise
            for name, value in settings.items():
                try:
                    await self.execute(*set_all({name: value}), prepare=False)
                except psycopg.DatabaseError as refusal:
                    if not is_refusal(self, refusal):
                        raise
                    refuse(config, "async_settings", name, refusal)
            raise

    async def ask_for_types(self, types: KnownTypes) -> None:
        """Ask the catalogue for *types*."""
        try:
            cursor = self.cursor(row_factory=tuple_row)
            await cursor.execute(*types.question, prepare=False)
            ((answer,),) = await cursor.fetchall()
            types.learn(self, answer)
        except (QueryTimeoutError, ServerSilentError) as error:
            config = self.record.opener.config
            raise unanswered(config, "types", self.query_timeout) from error
        except psycopg.DatabaseError as error:
            if not is_refusal(self, error):
                raise
            types.note_refusal(error)

    async def put_back_attributes(self) -> None:
        """Undo what the borrower changed on this object. Costs no round trip.

        Autocommit is left to the next borrow, which sets it as it needs it.
        """
        isolation_level, read_only, deferrable, *plain = self.record.attributes
        await self.set_isolation_level(isolation_level)
        await self.set_read_only(read_only)
        await self.set_deferrable(deferrable)
        put_back_plain_attributes(self, plain)

    async def reset_session(self) -> None:
        """:meth:`ServerConnection.reset_session`, on the running loop."""
        record = self.record
        settings = record.opener.config.async_settings
        record.is_seen = False  # until it is ready again
        await self.set_autocommit(True)
        if record.has_prepared:
            record.forget_prepared(self)
        with self.bounded_as_release():
            async with self.pipeline():
                for statement in clearing_statements(record):
                    await self.execute(statement, prepare=False)
                if settings:
                    await self.execute(*set_all(settings), prepare=False)
        forget_what_was_heard(self)
        record.has_prepared = False
        if record.configure:
            record.forget_configure(self)
        try:
            await self._make_ready()
        except psycopg.Error:
            raise
        except Exception as error:
            # Whoever gives the connection back has nothing to do with it.
            raise psycopg.ProgrammingError(f"configure, after a reset: {error!r}") from error

    async def was_demoted(self) -> bool:
        """:meth:`ServerConnection.was_demoted`, on the running loop."""
        if not wants_writable(self):
            return False
        await self.set_autocommit(True)
        cursor = self.cursor(row_factory=tuple_row)
        with self.bounded_as_release():
            row = await (await cursor.execute(REFUSES_WRITES, prepare=False)).fetchone()
        return bool(row and row[0])
