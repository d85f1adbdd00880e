"""The cursors of our connections: the one place that every statement of theirs passes.

A prepared statement that a migration made stale is dropped and run again, unseen, where that is
safe; and a statement that leaves state on the session marks it, so that the session is reset when
it comes back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sized
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg import errors
from psycopg._cursor_base import BaseCursor
from psycopg.abc import ConnectionType
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import Row

from ..signals import query_executed
from .copying import COPIES
from .marks import LONGEST_REMEMBERED, leaves_state, leaves_state_remembered
from .query_notes import NotedQuery, note_query
from .watching import Call, Watch

if TYPE_CHECKING:
    from psycopg._queries import PostgresQuery
    from psycopg.abc import Params, PQGen, Query
    from psycopg.copy import AsyncWriter, Writer
    from psycopg.pq.abc import PGresult
    from typing_extensions import Self

    from .record import ConnectionRecord

# PostgreSQL has no SQLSTATE of its own for a plan whose columns changed, and translates its words.
_STALE_PLAN = (errors.FeatureNotSupported, errors.InvalidSqlStatementName)
_UNSEEN: AbstractContextManager[None] = nullcontext()
_FINDS_STALE_PLANS = "RevalidateCachedQuery"


class MarkingCursor(BaseCursor[ConnectionType, Row]):
    """What our cursors share: a statement that leaves state on the session marks it, and so does
    one that a read-only server refuses."""

    __slots__ = ()

    @property
    def _record(self) -> ConnectionRecord[Any]:
        record: ConnectionRecord[Any] = self._conn.record  # type: ignore[attr-defined]
        return record

    def _convert_query(self, query: Query, params: Params | None = None) -> PostgresQuery:
        # Before a statement is sent, whichever method sends it and in a pipeline too.
        pgq = super()._convert_query(query, params)
        sql = pgq.query
        if leaves_state_remembered(sql) if len(sql) <= LONGEST_REMEMBERED else leaves_state(sql):
            self._record.mark(sql)
        return pgq

    def _raise_for_result(self, result: PGresult) -> NoReturn:
        # What the server refuses comes here, from execute(), executemany() and pipelines.
        if result.status in COPIES:
            self._record.is_copy_left = True
        try:
            super()._raise_for_result(result)
        except errors.InFailedSqlTransaction as error:
            raise error from self._record.failed_by  # which is noted already
        except psycopg.Error as error:
            if self._last_query is not None:
                # Another call of psycopg's may have waited for it: in a pipeline, or of a stream.
                note_query(error, self._last_query)
            if isinstance(error, errors.ReadOnlySqlTransaction):
                self._record.note_read_only()
            raise


class _OwnCursor(MarkingCursor[ConnectionType, Row]):
    """What the two that are not on the server share: what neither blocks nor awaits."""

    __slots__ = ()

    def _may_run_again(self, error: psycopg.Error) -> bool:
        """Whether the statement that the server refused can be run again, unseen by the caller."""
        # With a context it came from within a function or procedure, which may have committed.
        return (
            isinstance(error, _STALE_PLAN)
            and is_stale_plan(error)
            and self._pgconn.transaction_status == TransactionStatus.IDLE
            and self._conn._pipeline is None
            and not error.diag.context
        )

    def _raise_for_result(self, result: PGresult) -> NoReturn:
        try:
            super()._raise_for_result(result)
        except _STALE_PLAN as error:
            if is_stale_plan(error):
                # The pool's other connections drop theirs when they are borrowed next.
                self._record.opener.plans_changed += 1
                self._record.prepare_anew(self._conn)
            raise


class Cursor(_OwnCursor["psycopg.Connection[Any]", Row], psycopg.Cursor[Row]):
    """psycopg's Cursor over a stale plan, and with an eye on what stays on the session."""

    __slots__ = ()

    def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        if query_executed.receivers:
            with Watch(self._conn, query, params, cursor=self):
                return self._execute(query, params, prepare, binary)
        return self._execute(query, params, prepare, binary)

    def _execute(
        self, query: Query, params: Params | None, prepare: bool | None, binary: bool | None
    ) -> Self:
        run: Any = psycopg.Cursor.execute  # its signature wants template strings apart
        try:
            run(self, query, params, prepare=prepare, binary=binary)
        except psycopg.Error as error:
            if not self._may_run_again(error):
                NotedQuery(self._record, query).note(error)
                raise
        else:
            return self
        with NotedQuery(self._record, query):
            run(self, query, params, prepare=prepare, binary=binary)
        return self

    def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        with NotedQuery(self._record, query):
            if not query_executed.receivers:
                super().executemany(query, params_seq, returning=returning)
                return
            count = len(params_seq) if isinstance(params_seq, Sized) else 1
            with Watch(self._conn, query, kind="many", cursor=self, statements=count):
                super().executemany(query, params_seq, returning=returning)

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        size: int = 1,
    ) -> Iterator[Row]:
        rows = super().stream(query, params, binary=binary, size=size)
        return self._watched_rows(rows, query, params) if query_executed.receivers else rows

    def _watched_rows(
        self, rows: Iterator[Row], query: Query, params: Params | None
    ) -> Iterator[Row]:
        with Watch(self._conn, query, params, kind="stream"):
            yield from rows

    @contextmanager
    def copy(
        self,
        statement: Query,
        params: Params | None = None,
        *,
        writer: Writer | None = None,
    ) -> Iterator[psycopg.Copy]:
        run: Any = super().copy
        watch = (
            Watch(self._conn, statement, params, kind="copy", cursor=self)
            if query_executed.receivers
            else _UNSEEN
        )
        with NotedQuery(self._record, statement), watch:
            with run(statement, params, writer=writer) as copy:
                try:
                    yield copy
                finally:
                    if self.pgresult is not None and self.pgresult.status == ExecStatus.COPY_OUT:
                        conn: Any = self._conn
                        conn.end_copy()


class AsyncCursor(_OwnCursor["psycopg.AsyncConnection[Any]", Row], psycopg.AsyncCursor[Row]):
    """psycopg's AsyncCursor over a stale plan, and with an eye on what stays on the session."""

    __slots__ = ()

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        if query_executed.receivers:
            with Watch(self._conn, query, params, cursor=self):
                return await self._execute(query, params, prepare, binary)
        return await self._execute(query, params, prepare, binary)

    async def _execute(
        self, query: Query, params: Params | None, prepare: bool | None, binary: bool | None
    ) -> Self:
        run: Any = psycopg.AsyncCursor.execute  # its signature wants template strings apart
        try:
            await run(self, query, params, prepare=prepare, binary=binary)
        except psycopg.Error as error:
            if not self._may_run_again(error):
                NotedQuery(self._record, query).note(error)
                raise
        else:
            return self
        with NotedQuery(self._record, query):
            await run(self, query, params, prepare=prepare, binary=binary)
        return self

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        with NotedQuery(self._record, query):
            if not query_executed.receivers:
                await super().executemany(query, params_seq, returning=returning)
                return
            count = len(params_seq) if isinstance(params_seq, Sized) else 1
            with Watch(self._conn, query, kind="many", cursor=self, statements=count):
                await super().executemany(query, params_seq, returning=returning)

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        size: int = 1,
    ) -> AsyncIterator[Row]:
        rows = super().stream(query, params, binary=binary, size=size)
        return self._watched_rows(rows, query, params) if query_executed.receivers else rows

    async def _watched_rows(
        self, rows: Any, query: Query, params: Params | None
    ) -> AsyncIterator[Row]:
        with Watch(self._conn, query, params, kind="stream"):
            async with aclosing(rows):
                async for row in rows:
                    yield row

    @asynccontextmanager
    async def copy(
        self,
        statement: Query,
        params: Params | None = None,
        *,
        writer: AsyncWriter | None = None,
    ) -> AsyncIterator[psycopg.AsyncCopy]:
        run: Any = super().copy
        watch = (
            Watch(self._conn, statement, params, kind="copy", cursor=self)
            if query_executed.receivers
            else _UNSEEN
        )
        with NotedQuery(self._record, statement), watch:
            async with run(statement, params, writer=writer) as copy:
                try:
                    yield copy
                finally:
                    if self.pgresult is not None and self.pgresult.status == ExecStatus.COPY_OUT:
                        conn: Any = self._conn
                        await conn.end_copy()


class _OwnServerCursor(MarkingCursor[ConnectionType, Row]):
    """What the two on the server share: what neither blocks nor awaits."""

    __slots__ = ()

    def _fetch_gen(self, num: int | None) -> PQGen[list[Row]]:
        try:
            fetched: list[Row] = yield from super()._fetch_gen(num)  # type: ignore[misc]
        except psycopg.Error as error:
            if self._query is not None:  # what it was declared with
                note_query(error, self._query.query)
            raise
        return fetched


class ServerCursor(_OwnServerCursor["psycopg.Connection[Any]", Row], psycopg.ServerCursor[Row]):
    """psycopg's ServerCursor, with an eye on what stays on the session."""

    __slots__ = ()

    def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        with NotedQuery(self._record, query):
            if not query_executed.receivers:
                return super().execute(query, params, binary=binary, **kwargs)
            with Watch(self._conn, query, params):
                return super().execute(query, params, binary=binary, **kwargs)

    def close(self) -> None:
        with Call(self._record):
            super().close()

    def fetchone(self) -> Row | None:
        with Call(self._record):
            return super().fetchone()

    def fetchmany(self, size: int = 0) -> list[Row]:
        with Call(self._record):
            return super().fetchmany(size)

    def fetchall(self) -> list[Row]:
        with Call(self._record):
            return super().fetchall()

    def scroll(self, value: int, mode: str = "relative") -> None:
        with Call(self._record):
            super().scroll(value, mode)

    def __iter__(self) -> Any:
        return self._told_rows() if query_executed.receivers else super().__iter__()

    def _told_rows(self) -> Iterator[Row]:
        while True:
            try:
                with Call(self._record):
                    row = self.__next__()
            except StopIteration:
                return
            yield row


class AsyncServerCursor(
    _OwnServerCursor["psycopg.AsyncConnection[Any]", Row], psycopg.AsyncServerCursor[Row]
):
    """psycopg's AsyncServerCursor, with an eye on what stays on the session."""

    __slots__ = ()

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        with NotedQuery(self._record, query):
            if not query_executed.receivers:
                return await super().execute(query, params, binary=binary, **kwargs)
            with Watch(self._conn, query, params):
                return await super().execute(query, params, binary=binary, **kwargs)

    async def close(self) -> None:
        with Call(self._record):
            await super().close()

    async def fetchone(self) -> Row | None:
        with Call(self._record):
            return await super().fetchone()

    async def fetchmany(self, size: int = 0) -> list[Row]:
        with Call(self._record):
            return await super().fetchmany(size)

    async def fetchall(self) -> list[Row]:
        with Call(self._record):
            return await super().fetchall()

    async def scroll(self, value: int, mode: str = "relative") -> None:
        with Call(self._record):
            await super().scroll(value, mode)

    def __aiter__(self) -> Any:
        return self._told_rows() if query_executed.receivers else super().__aiter__()

    async def _told_rows(self) -> AsyncIterator[Row]:
        while True:
            try:
                with Call(self._record):
                    row = await self.__anext__()
            except StopAsyncIteration:
                return
            yield row


def is_stale_plan(error: psycopg.Error) -> bool:
    """Whether the server refused a prepared statement that does not fit its tables any more, or
    that it does not have. The statement did not run."""
    return (
        isinstance(error, errors.InvalidSqlStatementName)
        or error.diag.source_function == _FINDS_STALE_PLANS
    )
