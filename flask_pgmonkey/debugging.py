"""What an app in debug gets: warnings of N+1 queries, ``Server-Timing`` for the browser, and why it
gets no connection."""

from __future__ import annotations

import logging

import psycopg
from flask import Flask, Response, got_request_exception

from .connections.connect_errors import can_pass, with_notes
from .contexts import current_tally, describe_context
from .events import QueryEvent
from .query_log import log_at, place, short_text
from .signals import query_executed

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

REPEATS = 5
"""The same query from the same place, so often in one request, is a warning."""


def watch_requests(app: Flask) -> None:
    """Have the requests of *app* counted and timed from now on, that which is handled too."""
    watch = _Watch()
    query_executed.connect(watch.count_repeats, app)
    got_request_exception.connect(watch.say_why_there_is_no_connection, app)
    # Not after_request(), which Flask refuses by now: that an app is in debug may show late. It
    # keeps the object, so that nobody listens any more when the app is gone.
    app.after_request_funcs.setdefault(None, []).append(watch.add_server_timing)


class _Watch:
    """What watches the requests of one app."""

    def count_repeats(self, app: object, event: QueryEvent) -> None:
        """Warn of a query that repeats."""
        tally, site = event.tally, event.call_site
        if tally is None or tally.method is None or site is None:
            return
        if event.kind != "query" or event.may_repeat:
            return
        key = event.sql, site
        count = tally.repeats[key] = tally.repeats.get(key, 0) + 1
        if count == REPEATS:
            log_at(
                logging.WARNING,
                site,
                "%s ran the same query %d times in one request: %s. Ask once for all, with"
                " '= ANY(%%s)' and a list, or with a join; if it is meant, say so with"
                " 'with db.allow_repeats():'.",
                place(site),
                count,
                short_text(event.sql),
            )

    def say_why_there_is_no_connection(
        self, app: object, exception: BaseException, **extra: object
    ) -> None:
        """Log what the server refuses, before Flask prints a long traceback with that at its end.

        What may pass, the pool has logged.
        """
        is_of_connecting = isinstance(exception, psycopg.OperationalError) and (
            exception.sqlstate is None and not can_pass(exception)
        )
        if is_of_connecting:
            logger.error("No connection for %s: %s", describe_context(), with_notes(exception))

    def add_server_timing(self, response: Response) -> Response:
        """Flask's ``after_request``. See the specification *Server Timing* of the W3C."""
        tally = current_tally()
        if tally is not None and tally.queries:
            count = "1 query" if tally.queries == 1 else f"{tally.queries} queries"
            timing = f'db;dur={tally.seconds * 1000:.1f};desc="{count}"'
            response.headers.add("Server-Timing", timing)
        return response
