"""How many round trips to the server something costs, by libpq's own trace."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.pq import Trace

_MESSAGE = re.compile(r"^([FB])\t\d+\t", re.MULTILINE)


class RoundTrips:
    """How often the client spoke and then heard the server.

    :ivar count: known at the end of the block.
    """

    count = 0


@contextmanager
def count_round_trips(
    conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> Iterator[RoundTrips]:
    """Count the round trips of *conn* during the block."""
    counted = RoundTrips()
    with tempfile.NamedTemporaryFile("r") as trace:
        conn.pgconn.trace(trace.fileno())
        conn.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        try:
            yield counted
        finally:
            conn.pgconn.untrace()
        with open(trace.name) as written:
            speakers = ["B", *_MESSAGE.findall(written.read())]
    counted.count = sum(pair == ("B", "F") for pair in pairwise(speakers))
