"""Notes on psycopg's errors (PEP 678): which query it was, and where the app called it.

Logs, Flask's debugger and tools that collect errors show them; the error's own text stays as it
is. Python 3.10 shows no notes, so there are none.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg

from ..printable import printable
from .connect_errors import notes_of
from .watching import call_site, text_of

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from ..signals import CallSite
    from .record import ConnectionRecord

QUERY = "Query: "
CALLED_AT = "Called at "
_LONGEST_QUOTED = 2000


def note_query(error: Exception, query: object, site: CallSite | None = None) -> None:
    """Note on *error* which query it was, and where that was called: at *site*, if that is given.
    The first call counts."""
    if not _has_note(error, QUERY):
        _add(error, QUERY + _quoted(text_of(query)))
        note_call_site(error, site)


def note_call_site(error: Exception, site: CallSite | None = None) -> None:
    """Note on *error* where the app's own code is, or *site*, unless it says so."""
    if not _has_note(error, CALLED_AT):
        site = site or call_site()
        if site is not None:
            _add(error, f"{CALLED_AT}{printable(str(site))}")


class NotedQuery:
    """The block of a query, whose error gets the note; and so does the copy of it that the end of
    a failed transaction names."""

    __slots__ = ("_query", "_record")

    def __init__(self, record: ConnectionRecord[Any], query: object) -> None:
        self._record = record
        self._query = query

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(exc, psycopg.Error):
            self.note(exc)

    def note(self, error: psycopg.Error) -> None:
        """Note the query on *error*."""
        note_query(error, self._query)
        if self._record.failed_by is not None:
            note_query(self._record.failed_by, self._query)


def noted_command(command: object, gen: PQGen[PGresult | None]) -> PQGen[PGresult | None]:
    """What psycopg's *gen* does, which sends a *command*."""
    try:
        return (yield from gen)
    except psycopg.Error as error:
        note_query(error, command)
        raise


def _has_note(error: Exception, beginning: str) -> bool:
    return any(note.startswith(beginning) for note in notes_of(error))


def _add(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)


def _quoted(text: str) -> str:
    """The text of a query, without what drives a terminal or forges a line of a log."""
    if len(text) > _LONGEST_QUOTED:
        text = f"{text[:_LONGEST_QUOTED]}… ({len(text)} characters in all)"
    lines = text.strip().splitlines()
    if len(lines) > 1:
        return "".join(f"\n    {printable(line.rstrip())}" for line in lines)
    return printable(text.strip())
