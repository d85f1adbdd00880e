"""Rows of a result of any size, through a server-side cursor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import Row, tuple_row

from .connections.server_connection import ServerConnection
from .mistakes import explain_parameters, require_row_factory
from .rows import instead_of, maker_into

if TYPE_CHECKING:
    from psycopg.abc import Params, Query
    from psycopg.rows import RowFactory
    from typing_extensions import Self

_numbers = count(1)


class RowStream(Iterator[Row]):
    """An iterator over rows that the server still holds.

    Gives its connection back at its end, when it is closed (also as a context manager), or when it
    is dropped.

    :param conn: the connection to read through.
    :param batch_size: rows to fetch in one round trip.
    :param row_factory: how to make the rows; the connection's own without it.
    :param into: the class of the rows instead.
    :param give_back: takes the connection at the end; without it the stream is a guest in a
        transaction that is open on *conn*, whose end is the stream's.
    :param is_welcome: whether the transaction that a guest reads in is open still.
    """

    def __init__(
        self,
        conn: ServerConnection,
        query: Query,
        params: Params | None,
        batch_size: int,
        row_factory: RowFactory[Any] | None,
        into: type[Any] | None = None,
        give_back: Callable[[ServerConnection], None] | None = None,
        is_welcome: Callable[[], bool] = lambda: True,
    ) -> None:
        self._conn: ServerConnection | None = conn
        self._give_back = give_back
        self._is_welcome = is_welcome
        self._cursor: psycopg.ServerCursor[Any] | None = None
        try:
            if batch_size < 1:
                raise ValueError(f"batch_size must be at least 1, not {batch_size}")
            if give_back is not None:
                conn.autocommit = False  # a cursor lives in a transaction
            if row_factory is not None:
                require_row_factory(row_factory)
            factory = row_factory if into is None else instead_of(row_factory, tuple_row)
            self._cursor = cursor = conn.cursor(
                f"flask_pgmonkey_{next(_numbers)}", row_factory=factory or conn.row_factory
            )
            cursor.itersize = batch_size
            try:
                cursor.execute(query, params)
            except TypeError:
                explain_parameters(params)
                raise
            self._rows: Iterator[Any] = iter(cursor)
            if into is not None:
                make = maker_into(into, cursor)
                self._rows = (make((row,))[0] for row in cursor)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Row:
        if self._conn is None:
            raise StopIteration
        if not self._is_welcome():
            self.close()
            raise RuntimeError("the transaction that this stream reads in is over")
        try:
            row: Row = next(self._rows)
            return row
        except StopIteration:
            self._end(commit=True)  # the query may have called functions that write
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back; does nothing the second time."""
        self._end(commit=False)

    def _end(self, commit: bool) -> None:
        conn, self._conn = self._conn, None
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            # Only on this side: on the server the cursor ends with its transaction, and a guest
            # that is dropped late must not speak on a connection that others use by then.
            psycopg.Cursor.close(cursor)
        if conn is None or self._give_back is None:
            return
        try:
            if commit:
                conn.commit()
        finally:
            self._give_back(conn)  # rolls back what is open

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_conn"):
            self.close()
