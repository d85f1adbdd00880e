"""Cursors that send a query within a statement of ours, which makes JSON or CSV of its rows.

To events, notes and errors it stays the query that the app wrote.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import psycopg
from psycopg import errors
from psycopg.abc import ConnectionType
from psycopg.generators import fetch_many, send
from psycopg.pq import ExecStatus
from psycopg.rows import Row

from .cursor import AsyncCursor, Cursor, MarkingCursor
from .marks import without_semicolon

if TYPE_CHECKING:
    from psycopg._queries import PostgresQuery
    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult

    from .server_connection import ServerConnection
    from .server_connection_async import AsyncServerConnection

# What libpq adds to an error: the line of the statement, its text, and a caret below it.
_PLACE = re.compile(r"\nLINE (?P<line>\d+)(?P<rest>: .*\n *\^)(?=\n|\Z)")
_REFUSALS = (errors.SyntaxError, errors.FeatureNotSupported)


class Enclosure(NamedTuple):
    """What stands before and after a query. Each begins or ends a line of its own, because a query
    may end with a comment.

    :ivar takes: which statements can stand there.
    """

    before: bytes
    after: bytes
    takes: str


class EnclosingCursor(MarkingCursor[ConnectionType, Row]):
    """Encloses the text of a query as it is sent, where a ``%`` means nothing any more.

    :ivar enclosure: what is put around it.
    :ivar holds_values: whether values of parameters are in that text, which no error must show.
    """

    enclosure: Enclosure
    holds_values = False

    def _convert_query(self, query: Query, params: Params | None = None) -> PostgresQuery:
        pgq = super()._convert_query(query, params)
        before, after, _ = self.enclosure
        pgq.query = before + without_semicolon(pgq.query) + after
        return pgq

    def describe_gen(self, query: Query) -> PQGen[list[tuple[str, int]]]:
        """The name and the type's OID of each column of a *query*, which does not run."""
        yield from self._start_query()
        self._query = self._convert_query(query)
        pgconn = self._pgconn
        # In one round trip, because a pooler of transactions forgets the statement with each.
        pgconn.enter_pipeline_mode()
        pgconn.send_prepare(b"", self._query.query)
        pgconn.send_describe_prepared(b"")
        pgconn.pipeline_sync()
        yield from send(pgconn)
        answers: list[PGresult] = []
        while (results := (yield from fetch_many(pgconn)))[0].status != ExecStatus.PIPELINE_SYNC:
            answers += results
        pgconn.exit_pipeline_mode()
        for answer in answers:
            if answer.status != ExecStatus.COMMAND_OK:
                self._raise_for_result(answer)
        result = answers[-1]
        encoding = self._conn.info.encoding
        return [
            ((result.fname(number) or b"").decode(encoding), result.ftype(number))
            for number in range(result.nfields)
        ]

    def _raise_for_result(self, result: PGresult) -> NoReturn:
        try:
            super()._raise_for_result(result)
        except psycopg.Error as error:
            self._explain(error)
            raise

    def _check_copy_result(self, result: PGresult) -> None:
        try:
            super()._check_copy_result(result)
        except psycopg.Error as error:
            self._explain(error)
            raise

    def _explain(self, error: psycopg.Error) -> None:
        """Have *error* name the place in the query, not that in the statement around it."""
        text = str(error)
        place = _PLACE.search(text)
        if place is not None and self._query is not None:
            shown = self._place_in_query(place, self._query.query)
            if shown is not None:
                text = text[: place.start()] + shown + text[place.end() :]
            elif type(error) is errors.SyntaxError:
                text = "syntax error at the end of the query"
            else:
                text = text[: place.start()] + text[place.end() :]
            error.args = (text, *error.args[1:])
        if isinstance(error, _REFUSALS) and sys.version_info >= (3, 11):
            error.add_note(self.enclosure.takes)

    def _place_in_query(self, place: re.Match[str], sent: bytes) -> str | None:
        """What is shown of a *place*; None if it lies behind the query."""
        before, after, _ = self.enclosure
        line = int(place["line"]) - before.count(b"\n")
        if line > sent[len(before) : sent.rfind(after)].count(b"\n") + 1:
            return None
        return "" if self.holds_values else f"\nLINE {line}{place['rest']}"


@lru_cache(maxsize=64)
def _enclosing(cursor_class: type[Any]) -> type[Any]:
    # Beneath what the class itself does with a text, such as to end it with a comment.
    return type(f"Enclosing{cursor_class.__name__}", (cursor_class, EnclosingCursor), {})


def enclosing_cursor(
    conn: ServerConnection, enclosure: Enclosure, holds_values: bool = False
) -> psycopg.Cursor[Any]:
    """A cursor of *conn* that puts each query into *enclosure*.

    :param holds_values: whether values of parameters are in its queries.
    """
    factory: object = conn.cursor_factory
    cursor_class = _enclosing(factory if isinstance(factory, type) else Cursor)
    cursor: Any = cursor_class(conn)
    cursor.enclosure = enclosure
    cursor.holds_values = holds_values
    return cast("psycopg.Cursor[Any]", cursor)


def enclosing_async_cursor(
    conn: AsyncServerConnection, enclosure: Enclosure
) -> psycopg.AsyncCursor[Any]:
    """A cursor of *conn* that puts each query into *enclosure*."""
    factory: object = conn.cursor_factory
    cursor_class = _enclosing(factory if isinstance(factory, type) else AsyncCursor)
    cursor: Any = cursor_class(conn)
    cursor.enclosure = enclosure
    return cast("psycopg.AsyncCursor[Any]", cursor)
