"""The query log, ``flask_pgmonkey.sql``: every query, and warnings of those that are slow."""

from __future__ import annotations

import logging
import sys
from functools import lru_cache
from reprlib import Repr
from typing import TYPE_CHECKING, TextIO, cast

from .connections.watching import connect_to_slow
from .events import QueryEvent
from .printable import one_line, printable
from .signals import CallSite, query_executed

logger: logging.Logger = logging.getLogger("flask_pgmonkey.sql")

_LONGEST_TEXT = 2000
# Duration, outcome, text, parameters, place.
_LINE = "%s %s: %s%s%s"
_COLOURED_LINE = "\x1b[36m%s\x1b[0m %s: \x1b[1m%s\x1b[0m%s\x1b[2m%s\x1b[0m"
# What a stream or a COPY takes is for the app to say, which asks for the rows or gives them.
_AS_FAST_AS_THE_APP = ("stream", "copy")

_shortened = Repr()
_shortened.maxtuple = _shortened.maxlist = _shortened.maxdict = 20
_shortened.maxstring = _shortened.maxother = 80


class QueryLog:
    """Logs the queries of an app.

    :param echoes: whether each is a line.
    :param slow: seconds from which on a query is a warning; 0 is never.
    """

    def __init__(self, echoes: bool, slow: float) -> None:
        self._echoes = echoes
        self._slow = slow

    def start(self, app: object) -> None:
        """Log the queries of *app* from now on, as long as this object lives."""
        if self._echoes:
            show_somewhere()
            query_executed.connect(self._hear, app)
        else:
            connect_to_slow(self, self._hear, app, self._slow)

    def _hear(self, app: object, event: QueryEvent) -> None:
        if self._echoes and logger.isEnabledFor(logging.INFO):
            parameters = event.parameters
            log_at(
                logging.INFO,
                event.call_site,
                _LINE,
                f"{event.duration * 1000:.1f} ms",
                _outcome(event),
                short_text(event.sql),
                f" {printable(_shortened.repr(parameters))}" if parameters else "",
                f" ({place(event.call_site)})" if event.call_site is not None else "",
            )
        if self._slow and event.duration >= self._slow and event.kind not in _AS_FAST_AS_THE_APP:
            log_at(
                logging.WARNING,
                event.call_site,
                "A query took %.3f s, and PGMONKEY_SLOW_QUERY is %g s%s%s: %s",
                event.duration,
                self._slow,
                f"; endpoint {printable(event.endpoint)}" if event.endpoint else "",
                f"; called at {place(event.call_site)}" if event.call_site is not None else "",
                short_text(event.sql),
            )


def log_at(level: int, site: CallSite | None, message: str, *arguments: object) -> None:
    """Log as if the app's own code did: so its handlers can show that place, and nothing has to
    look for it."""
    file, line, function = site or (__file__, 0, None)
    logger.handle(
        logger.makeRecord(logger.name, level, file, line, message, arguments, None, function)
    )


def _outcome(event: QueryEvent) -> str:
    if event.error is not None:
        return f"{event.error} ({event.sqlstate})" if event.sqlstate else event.error
    if event.rows is None:
        return event.kind
    return "1 row" if event.rows == 1 else f"{event.rows} rows"


@lru_cache(maxsize=1024)
def place(site: CallSite) -> str:
    """A call site as it stands in a line of a log."""
    return printable(str(site))


@lru_cache(maxsize=1024)
def short_text(sql: str) -> str:
    """The text of a query in one printable line, shortened where it is long."""
    line = one_line(sql[:_LONGEST_TEXT])
    return line if len(sql) <= _LONGEST_TEXT else f"{line}… ({len(sql)} characters in all)"


def show_somewhere() -> None:
    """Have the log appear on stderr where the app has not said what it does with its logs."""
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # which takes no type before Python 3.11


class _ToStderr(_StreamHandler):
    """Writes to stderr as long as there is no other handler, coloured on a terminal."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """What stderr is now: some replace it."""
        return sys.stderr

    def handle(self, record: logging.LogRecord) -> bool:
        if len(logger.handlers) > 1 or (logger.parent and logger.parent.hasHandlers()):
            return False
        return bool(super().handle(record))

    def format(self, record: logging.LogRecord) -> str:
        if record.msg == _LINE and self.stream.isatty():
            return str(_COLOURED_LINE % cast("tuple[str, ...]", record.args))
        return super().format(record)
