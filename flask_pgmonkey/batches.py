"""Batches: queries that are collected in a block and go to the server together at its end."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload

import psycopg
from psycopg.rows import Row, scalar_row, tuple_row

from .connections.connect_errors import copy_for_waiter
from .connections.pipelining import Statement, run_together
from .connections.query_notes import note_query
from .connections.watching import call_site
from .mistakes import explain_missing_names, require_row_factory
from .rows import instead_of, require_one_row, rows_into, value_into

if TYPE_CHECKING:
    from psycopg.abc import Params, Query
    from psycopg.rows import RowMaker
    from typing_extensions import Self

    from .connections.server_connection import ServerConnection
    from .connections.server_connection_async import AsyncServerConnection

T = TypeVar("T")
AnyRowFactory: TypeAlias = "Callable[[Any], RowMaker[T]]"
"""One of psycopg's, for cursors of sync or of async code: rows are made where neither waits."""

_NOT_IN_BATCHES = re.compile(
    rb"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*"
    rb"(COPY|BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|PREPARE\s+TRANSACTION"
    rb"|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)


class BatchResult(Generic[T]):
    """What a query of a batch will have given, for :meth:`result` after the batch's block."""

    __slots__ = ("_batch", "_made", "_make", "_statement")

    def __init__(
        self, batch: CollectedQueries[Any], statement: Statement, make: Callable[[Any], T]
    ) -> None:
        self._batch = batch
        self._statement = statement
        self._make = make
        self._made: list[T] = []

    def __repr__(self) -> str:
        return f"<BatchResult, {self._batch.state}>"

    def result(self) -> T:
        """What the same query would have returned outside a batch; the same object each time.

        :raises RuntimeError: before the block has ended, and where it was left by an exception.
        :raises psycopg.Error: where the batch has failed, whichever of its queries it was.
        :raises NoRowError: and what else the query's rows would raise outside a batch.
        """
        self._batch.require_success()
        if not self._made:
            self._made.append(self._make(self._statement.cursor()))
        return self._made[0]


class CollectedQueries(ABC, Generic[Row]):
    """What the batches of sync and of async code share: what neither blocks nor awaits.

    Each method takes what the one of the same name takes outside a batch. Its parameters are
    adapted at once.

    :ivar state: how far it is, for messages and ``repr``.
    """

    state: str = "not begun"

    def __init__(self) -> None:
        self._statements: list[Statement] = []
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._statements)} queries, {self.state}>"

    def require_success(self) -> None:
        """Refuse to go on where the server has not answered well.

        :raises RuntimeError: where it was not asked.
        :raises psycopg.Error: the error of the batch.
        """
        if self.state == "done":
            return
        if self._error is not None:
            raise copy_for_waiter(self._error)
        if self.state == "interrupted":
            raise RuntimeError("the batch was interrupted, and whether it took effect is unknown")
        if self.state == "dropped":
            raise RuntimeError(
                "the batch was not sent, because an exception left its block: there is no result"
            )
        raise RuntimeError(
            f"the batch is {self.state}: its queries go to the server when its block ends, so"
            " call result() after that"
        )

    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AnyRowFactory[T],
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
        row_factory: AnyRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have the first row fetched, or None if there is none."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        return self._add(_maker_of_first(into), query, params, factory)

    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AnyRowFactory[T],
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
        row_factory: AnyRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have the row of a result fetched that has one row."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        return self._add(_maker_of_only(into), query, params, factory)

    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AnyRowFactory[T],
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
        row_factory: AnyRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have all rows fetched."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        return self._add(_maker_of_all(into), query, params, factory)

    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AnyRowFactory[T],
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
        row_factory: AnyRowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> BatchResult[Any]:
        """Have the first column of the first row fetched, or None if there is no row."""
        factory: AnyRowFactory[Any] = (
            row_factory or scalar_row if into is None else instead_of(row_factory, scalar_row)
        )
        return self._add(_maker_of_value(into), query, params, factory)

    def execute(self, query: Query, params: Params | None = None) -> BatchResult[int]:
        """Have a query run whose rows nobody wants; its result is the number of rows affected."""
        return self._add(_affected_rows, query, params, None)

    @abstractmethod
    def _known(self) -> ServerConnection | AsyncServerConnection:
        """One whose adapters and encoding are those of the one that will be used."""

    def _begin(self) -> None:
        if self.state != "not begun":
            raise RuntimeError("a batch is for one block: make another one for the next")
        self.state = "not sent yet"

    def _has_to_send(self, exc: BaseException | None) -> bool:
        """Whether there is something to send at the end of the block, which *exc* has left."""
        if exc is not None:
            self.state = "dropped"
        elif not self._statements:
            self.state = "done"
        return self.state == "not sent yet"

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """The block in which the queries run."""
        self.state = "interrupted"
        try:
            yield
        except Exception as error:
            self.state = "failed"
            self._error = copy_for_waiter(error)  # without the frames, which refer to this object
            raise
        self.state = "done"

    def _add(
        self,
        make: Callable[[Any], Any],
        query: Query,
        params: Params | None,
        row_factory: Any,
    ) -> BatchResult[Any]:
        self._require_open()
        if row_factory is not None:
            require_row_factory(row_factory)
        statement = Statement(self._known(), query, params, row_factory, call_site(3))
        if found := _NOT_IN_BATCHES.match(statement.text):
            error = _refusal(b" ".join(found[1].upper().split()).decode())
            note_query(error, query)
            raise error
        self._statements.append(statement)
        return BatchResult(self, statement, make)

    def _require_open(self) -> None:
        if self.state != "not sent yet":
            raise RuntimeError(
                f"the batch is {self.state}: give it its queries within its block,"
                " 'with db.batch() as b:'"
            )


explain_missing_names(CollectedQueries)


class Batch(CollectedQueries[Row]):
    """What ``with db.batch() as b:`` gives: takes queries, and sends all of them, all or nothing,
    in one round trip when the block ends. An exception in the block sends nothing.

    :param begin_use: gives a connection to run on, and *end_use* takes it.
    """

    def __init__(
        self,
        begin_use: Callable[[], ServerConnection],
        end_use: Callable[[ServerConnection], None],
    ) -> None:
        super().__init__()
        self._begin_use = begin_use
        self._end_use = end_use
        self._seen: ServerConnection | None = None

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not self._has_to_send(exc):
            return
        with self._sending():
            conn = self._begin_use()
            try:
                run_together(conn, self._statements)
            finally:
                self._end_use(conn)

    def _known(self) -> ServerConnection:
        if self._seen is None or self._seen.closed:
            self._seen = self._begin_use()
            self._end_use(self._seen)
        return self._seen


def _maker_of_all(into: type[Any] | None) -> Callable[[Any], list[Any]]:
    """What makes the result of ``fetch_all()`` of a cursor, sync or async."""

    def make(cursor: Any) -> list[Any]:
        rows = _rows(cursor)
        return rows if into is None else rows_into(into, cursor, rows)

    return make


def _maker_of_first(into: type[Any] | None) -> Callable[[Any], Any]:
    """What makes the result of ``fetch_one()`` of a cursor."""

    def make(cursor: Any) -> Any:
        rows = _rows(cursor, 1)
        made = rows if into is None else rows_into(into, cursor, rows)
        return made[0] if made else None

    return make


def _maker_of_only(into: type[Any] | None) -> Callable[[Any], Any]:
    """What makes the result of ``fetch_exactly_one()`` of a cursor."""
    make_first = _maker_of_first(into)

    def make(cursor: Any) -> Any:
        _rows(cursor, 0)  # refuses what gives none at all
        require_one_row(cursor)
        return make_first(cursor)

    return make


def _maker_of_value(into: type[Any] | None) -> Callable[[Any], Any]:
    """What makes the result of ``fetch_value()`` of a cursor."""

    def make(cursor: Any) -> Any:
        rows = _rows(cursor, 1)
        value = rows[0] if rows else None
        return value if into is None else value_into(into, value)

    return make


def _affected_rows(cursor: Any) -> int:
    """The result of ``execute()``."""
    count: int = cursor.rowcount
    return max(0, count)


def _rows(cursor: Any, most: int | None = None) -> list[Any]:
    """The rows of a cursor, without the await of an async one: they are there."""
    count = cursor._check_result_for_fetch().ntuples
    rows: list[Any] = cursor._tx.load_rows(
        0, count if most is None else min(count, most), cursor._make_row
    )
    return rows


def _refusal(command: str) -> psycopg.ProgrammingError:
    if command == "COPY":
        return psycopg.ProgrammingError(
            "COPY cannot be in a batch: use copy() of a cursor, before or after the batch"
        )
    return psycopg.ProgrammingError(
        f"{command} cannot be in a batch, which is a transaction of its own or part of the one that"
        " is open: group several with 'with db.transaction():'"
    )
