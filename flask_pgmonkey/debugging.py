"""What an app in debug gets: a warning of N+1 queries, and ``Server-Timing`` for the browser."""

from __future__ import annotations

import logging

from flask import Flask, Response

from .contexts import current_tally
from .events import QueryEvent
from .query_log import log_at, place, short_text
from .signals import query_executed

REPEATS = 5
"""The same query from the same place, so often in one request, is a warning."""


def watch_requests(app: Flask) -> None:
    """Have the requests of *app* counted and timed from now on, that which is handled too."""
    watch = _Watch()
    query_executed.connect(watch.count_repeats, app)
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

    def add_server_timing(self, response: Response) -> Response:
        """Flask's ``after_request``. See the specification *Server Timing* of the W3C."""
        tally = current_tally()
        if tally is not None and tally.queries:
            count = "1 query" if tally.queries == 1 else f"{tally.queries} queries"
            timing = f'db;dur={tally.seconds * 1000:.1f};desc="{count}"'
            response.headers.add("Server-Timing", timing)
        return response
