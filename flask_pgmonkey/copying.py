"""The rows of a query in blocks of bytes, as PostgreSQL's COPY makes them: JSON or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, sql
from psycopg.generators import copy_from, fetch_many
from psycopg.pq import ExecStatus, TransactionStatus

from .connections.enclosing import Enclosure, enclosing_cursor
from .connections.query_notes import NotedQuery, note_query
from .connections.server_connection import ServerConnection
from .connections.watching import Watch, call_site
from .mistakes import explain_parameters
from .signals import query_executed

if TYPE_CHECKING:
    from psycopg.abc import Params, Query
    from psycopg.pq.abc import PGresult

BLOCK_SIZE = 1 << 16
"""Bytes that a block has at least, but for the last: each becomes a chunk of a response."""

_TAKES = (
    "It was sent as COPY (…) TO STDOUT: it can be one SELECT, VALUES or TABLE, also after WITH, or"
    " one INSERT, UPDATE, DELETE or MERGE with RETURNING."
)
_AS_CSV = b") TO STDOUT (FORMAT csv, HEADER true, ENCODING 'UTF8')"
CSV = Enclosure(b"COPY (\n", b"\n" + _AS_CSV, _TAKES)
_DESCRIBED = Enclosure(b"WITH q AS (\n", b"\n) SELECT * FROM q", _TAKES)
# FORMAT text would double backslashes. No JSON has these quotes and delimiters in it, and line
# breaks only between its tokens, where a column of type json has them.
JSON_LINES = Enclosure(
    b"COPY (WITH q AS (\n",
    b"\n) SELECT pg_catalog.replace(pg_catalog.replace(pg_catalog.row_to_json(q.*)::text,"
    b" e'\\n', ' '), e'\\r', ' ') FROM q)"
    b" TO STDOUT (FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\x02', ENCODING 'UTF8')",
    _TAKES,
)


class CopyStream(Iterator[bytes]):
    """An iterator over what a COPY gives, in blocks of whole rows, in UTF-8.

    The first block is there when it is made, so that an error of the query is raised by then. Gives
    its connection back at its end, when it is closed, or when it is dropped.

    :param conn: the connection to read through, in autocommit. Where its borrower has settings for
        each transaction, they begin one, which ends with the rows.
    :param enclosure: what makes the COPY of the query.
    :param give_back: takes the connection at the end.
    :param safe_formulas: of CSV, which nothing in it is to be for a spreadsheet. It takes a round
        trip more.
    """

    def __init__(
        self,
        conn: ServerConnection,
        query: Query,
        params: Params | None,
        enclosure: Enclosure,
        give_back: Callable[[ServerConnection], None],
        safe_formulas: bool = False,
    ) -> None:
        self._conn: ServerConnection | None = conn
        self._give_back = give_back
        self._query = query
        self._call_site = call_site()
        self._is_over = False
        self._first: bytes | None = None
        try:
            find_settings = conn.record.find_settings
            settings = find_settings() if find_settings is not None else None
            # psycopg would do so for a COPY, which takes no parameters.
            holds_values = bool(params) or not isinstance(query, (str, bytes, sql.Composable))
            is_heard = bool(query_executed.receivers)
            watch = Watch(conn, query, params) if is_heard else nullcontext()
            with NotedQuery(conn.record, query), watch, conn.lock:
                if settings is not None:
                    conn.wait(conn._begin_gen(b"BEGIN", settings))
                text = _merged(conn, query, params) if holds_values else query
                if safe_formulas:
                    enclosure = _without_formulas(conn, text, holds_values)
                cursor: Any = enclosing_cursor(conn, enclosure, holds_values)
                conn.wait(cursor._start_copy_gen(text))
                self._first = self._read(conn)
            if self._is_over:
                self.close()
        except TypeError:
            self.close()
            explain_parameters(params)
            raise
        except BaseException:
            self.close()
            raise

    def __next__(self) -> bytes:
        block, self._first = self._first, None
        if block is None and self._conn is not None:
            try:
                block = self._read(self._conn)
                if self._is_over:
                    self.close()
            except BaseException as error:
                self.close()
                if isinstance(error, psycopg.Error):
                    note_query(error, self._query, self._call_site)
                raise
        if not block:
            raise StopIteration
        return block

    def close(self) -> None:
        """Give the connection back, without the rest of the rows; does nothing the second time."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        try:
            if conn.is_at_work():
                with conn.lock:
                    conn.end_copy()
        finally:
            self._give_back(conn)

    def _read(self, conn: ServerConnection) -> bytes:
        """The next block; nothing if the last one was the last."""
        rows: list[Any] = []
        size = 0
        while size < BLOCK_SIZE and not self._is_over:
            row: Any = conn.wait(copy_from(conn.pgconn))
            if not isinstance(row, memoryview):
                self._is_over = True
                break
            # To wait for each of those that are here already would take most of the time.
            length = len(row)
            while length > 0:
                rows.append(row)
                size += length
                if size >= BLOCK_SIZE:
                    break
                length, row = conn.pgconn.get_copy_data(1)
            if length < 0:
                _raise_for_end(conn.wait(fetch_many(conn.pgconn)), conn.info.encoding)
                self._is_over = True
        if self._is_over and conn.pgconn.transaction_status == TransactionStatus.INTRANS:
            conn.wait(conn._commit_gen())  # what the query wrote
        return b"".join(rows)

    def __del__(self) -> None:
        if hasattr(self, "_conn"):
            self.close()


def _merged(conn: ServerConnection, query: Any, params: Params | None) -> bytes:
    """The text of *query* with the values of its parameters in it."""
    text = psycopg.ClientCursor(conn).mogrify(query, params)
    return text.encode(conn.info.encoding)


def _without_formulas(conn: ServerConnection, query: Query, holds_values: bool) -> Enclosure:
    """What makes CSV of *query*, in which a spreadsheet finds no formula."""
    from .csv_transfer.exporting import guarded_columns  # what few apps use

    cursor: Any = enclosing_cursor(conn, _DESCRIBED, holds_values)
    columns = conn.wait(cursor.describe_gen(query))
    if not columns:
        return CSV
    names, shown = (each.as_bytes(conn) for each in guarded_columns(conn, columns))
    return Enclosure(
        b"COPY (WITH q (" + names + b") AS (\n",
        b"\n) SELECT " + shown + b" FROM q" + _AS_CSV,
        _TAKES,
    )


def _raise_for_end(results: list[PGresult], encoding: str) -> None:
    """Raise the error with which a COPY has ended, if it has."""
    for result in results:
        if result.status != ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result, encoding)


def json_array(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The JSON objects on the lines of *blocks* as one array, which ends when all were there."""
    before = b"["
    for block in blocks:
        yield before + block[:-1].replace(b"\n", b",\n")
        before = b",\n"
    yield b"[]\n" if before == b"[" else b"]\n"


def json_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The JSON objects on the lines of *blocks*, of which the last ends when all were there."""
    held_back = b""
    for block in blocks:
        yield held_back + block[:-2]
        held_back = block[-2:]
    if held_back:
        yield held_back


def csv_file(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The CSV in *blocks*, which ends with an open quote where not all were there."""
    try:
        yield from blocks
    except Exception:
        yield b'"'
        raise
