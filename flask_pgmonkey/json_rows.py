"""``fetch_json()``: the rows of a query as JSON that PostgreSQL makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import Escaping

from .connections.enclosing import Enclosure

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_TAKES = (
    "It was sent as WITH q AS (…) SELECT …, which makes JSON of its rows: it can be one SELECT,"
    " VALUES or TABLE, also after WITH, or one INSERT, UPDATE, DELETE or MERGE with RETURNING."
)
# q.*, because a column may be called q.
_ARRAY = b"coalesce(pg_catalog.json_agg(q.*), '[]')"
_AS_TEXT = Enclosure(b"WITH q AS (\n", b"\n) SELECT %b FROM q" % _ARRAY, _TAKES)
# Another client_encoding may lack characters.
_AS_BYTES = Enclosure(
    _AS_TEXT.before,
    b"\n) SELECT pg_catalog.convert_to(%b::text, 'UTF8') FROM q" % _ARRAY,
    _TAKES,
)


def enclosure_for_json(pgconn: PGconn) -> Enclosure:
    """What makes one JSON array of the rows of a query, for the session's encoding."""
    return _AS_TEXT if _is_utf8(pgconn) else _AS_BYTES


def read_json(pgconn: PGconn, result: PGresult | None) -> bytes:
    """The array in the *result* of such a query, in UTF-8.

    Not by the app's own way to load JSON.
    """
    json = result.get_value(0, 0) if result is not None else None
    if json is None:
        raise psycopg.InterfaceError("PostgreSQL answered without JSON")
    return json if _is_utf8(pgconn) else Escaping(pgconn).unescape_bytea(json)


def _is_utf8(pgconn: PGconn) -> bool:
    return pgconn.parameter_status(b"client_encoding") == b"UTF8"
