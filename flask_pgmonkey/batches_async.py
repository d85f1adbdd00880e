"""Batches for async code. The twin of ``batches.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from psycopg.rows import Row

from .batches import CollectedQueries
from .connections.pipelining import run_together_async

if TYPE_CHECKING:
    from typing_extensions import Self

    from .connections.server_connection_async import AsyncServerConnection

T = TypeVar("T")


class _Run(Protocol):
    def __call__(self, work: Callable[[AsyncServerConnection], Awaitable[T]], /) -> Awaitable[T]:
        """The outcome of *work*, given a connection."""
        ...


class AsyncBatch(CollectedQueries[Row]):
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

    def _known(self) -> AsyncServerConnection:
        return self._seen


async def _itself(conn: AsyncServerConnection) -> AsyncServerConnection:
    return conn
