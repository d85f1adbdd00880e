"""Batches for async code. The twin of ``batches.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from psycopg.rows import Row, scalar_row, tuple_row

from .batches import (
    BatchResult,
    CollectedQueries,
    affected_rows,
    maker_of_all,
    maker_of_first,
    maker_of_only,
    maker_of_value,
)
from .connections.pipelining import run_together_async
from .rows import instead_of

if TYPE_CHECKING:
    from psycopg.abc import Params, Query
    from psycopg.rows import AsyncRowFactory
    from typing_extensions import Self

    from .connections.server_connection_async import AsyncServerConnection

T = TypeVar("T")


class _Run(Protocol):
    def __call__(self, work: Callable[[AsyncServerConnection], Awaitable[T]], /) -> Awaitable[T]:
        """The outcome of *work*, given a connection."""
        ...


class AsyncBatch(CollectedQueries, Generic[Row]):
    """:class:`Batch` for async code: ``async with`` awaits, and its methods do not.

    :param run: awaits something that takes a connection to run on.
    """

    _seen: AsyncServerConnection  # from the beginning of the block on

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    async def __aenter__(self) -> Self:
        self._begin()
        self._seen = await self._run(_itself)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not self._has_to_send(exc):
            return

        async def send(conn: AsyncServerConnection) -> None:
            await run_together_async(conn, self._statements)

        with self._sending():
            await self._run(send)

    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> BatchResult[T | None]: ...
    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> BatchResult[T | None]: ...
    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> BatchResult[Row | None]: ...
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have the first row fetched, or None if there is none."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        return self._add(self._known(), maker_of_first(into), query, params, factory)

    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> BatchResult[T]: ...
    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> BatchResult[T]: ...
    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> BatchResult[Row]: ...
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have the row of a result fetched that has one row."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        return self._add(self._known(), maker_of_only(into), query, params, factory)

    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> BatchResult[list[T]]: ...
    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> BatchResult[list[T]]: ...
    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> BatchResult[list[Row]]: ...
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have all rows fetched."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        return self._add(self._known(), maker_of_all(into), query, params, factory)

    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[T],
        into: None = None,
    ) -> BatchResult[T | None]: ...
    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> BatchResult[T | None]: ...
    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> BatchResult[Any]: ...
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have the first column of the first row fetched, or None if there is no row."""
        factory: AsyncRowFactory[Any] = (
            row_factory or scalar_row if into is None else instead_of(row_factory, scalar_row)
        )
        return self._add(self._known(), maker_of_value(into), query, params, factory)

    def execute(self, query: Query, params: Params | None = None) -> BatchResult[int]:
        """Have a query run whose rows nobody wants; its result is the number of rows affected."""
        return self._add(self._known(), affected_rows, query, params, None)

    def _known(self) -> AsyncServerConnection:
        """One whose adapters and encoding are those of the one that will be used."""
        self._require_open()
        return self._seen


async def _itself(conn: AsyncServerConnection) -> AsyncServerConnection:
    return conn
