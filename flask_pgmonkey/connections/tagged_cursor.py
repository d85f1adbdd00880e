"""Cursors that end each statement with a comment, for apps that ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.abc import ConnectionType
from psycopg.rows import Row

from .cursor import AsyncCursor, AsyncServerCursor, Cursor, MarkingCursor, ServerCursor
from .watching import hop

if TYPE_CHECKING:
    from psycopg._queries import PostgresQuery
    from psycopg.abc import Params, Query


class _TaggedCursor(MarkingCursor[ConnectionType, Row]):
    """Ends each statement with the comment that the opener of the connection makes.

    On the text as it is sent, where a ``%`` means nothing any more. The same comment makes the same
    text, which psycopg prepares.
    """

    __slots__ = ()

    def _convert_query(self, query: Query, params: Params | None = None) -> PostgresQuery:
        pgq = super()._convert_query(query, params)
        text = pgq.query
        # One that is commented already has its comment, or would hide ours.
        if b"/*" not in text and b"--" not in text:
            tag = self._tag()
            if tag:
                pgq.query = b"%s %s" % (text, tag)
        return pgq

    def _tag(self) -> bytes:
        hopped = hop.get()
        if hopped is not None:
            return hopped.tag
        find_tag = self._record.opener.find_tag
        return find_tag() if find_tag is not None else b""


class TaggedCursor(_TaggedCursor[psycopg.Connection[Any], Row], Cursor[Row]):
    """A :class:`Cursor` with a comment."""

    __slots__ = ()


class AsyncTaggedCursor(_TaggedCursor[psycopg.AsyncConnection[Any], Row], AsyncCursor[Row]):
    """An :class:`AsyncCursor` with a comment."""

    __slots__ = ()


class TaggedServerCursor(_TaggedCursor[psycopg.Connection[Any], Row], ServerCursor[Row]):
    """A :class:`ServerCursor` with a comment."""

    __slots__ = ()


class AsyncTaggedServerCursor(
    _TaggedCursor[psycopg.AsyncConnection[Any], Row], AsyncServerCursor[Row]
):
    """An :class:`AsyncServerCursor` with a comment."""

    __slots__ = ()
