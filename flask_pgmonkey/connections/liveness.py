"""Whether a connection that lay idle still has a server at its other end.

The first check looks at the socket and costs no round trip: it finds connections that the server
closed. The second, the ping, asks the server and finds those whose server, or the network to it,
went silent.
"""

from __future__ import annotations

import asyncio
import enum
import selectors
from time import monotonic, time
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

if TYPE_CHECKING:
    from typing import Any, Protocol

    from psycopg.pq.abc import PGconn

    from .record import ConnectionRecord

    class Recorded(Protocol):
        """A psycopg connection with its record."""

        pgconn: PGconn

        @property
        def record(self) -> ConnectionRecord[Any]:
            """What is remembered of it."""
            ...


_OK = ConnStatus.OK

PING_TIMEOUT = 0.5
"""Seconds a server has to answer a ping."""

IDLE_BEFORE_PING = 1.0
"""Seconds of idleness after which a connection is pinged before it is lent."""


class Pulse(enum.Enum):
    """What a ping found; TOO_SHORT is silence for less than :data:`PING_TIMEOUT`."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    SILENT = enum.auto()
    TOO_SHORT = enum.auto()


def is_connected(conn: Recorded) -> bool:
    """Whether there is no sign that the server closed the connection, and its login is still good.
    Costs no round trip.

    Reads whatever the server sent, until quiet: the FATAL notice of a closed connection stands
    before the end of file. The caller is the only one who uses the connection.
    """
    pgconn = conn.pgconn
    if pgconn.status != _OK:
        return False
    record = conn.record
    if record.login_expiry is not None and time() >= record.login_expiry:
        return False
    give_up_at = 0.0
    try:
        while record.poll_socket(0):
            pgconn.consume_input()
            pgconn.is_busy()  # parses what came, so that the notice handlers hear of it
            give_up_at = give_up_at or monotonic() + PING_TIMEOUT
            if monotonic() > give_up_at:  # a server that never stops
                return False
    except psycopg.OperationalError:
        return False
    return record.shutdown_sqlstate is None


def ping(pgconn: PGconn, timeout: float = PING_TIMEOUT) -> Pulse:
    """Ask the server for a sign of life: one round trip, at most *timeout* seconds."""
    deadline = monotonic() + timeout
    try:
        if not _send_ping(pgconn):
            return Pulse.DEAD
        with selectors.DefaultSelector() as selector:
            selector.register(pgconn.socket, selectors.EVENT_READ)
            while not _has_answered(pgconn):
                left = deadline - monotonic()
                if left < 0 or not selector.select(left):
                    return Pulse.SILENT
                pgconn.consume_input()
    except psycopg.OperationalError:
        return Pulse.DEAD
    return Pulse.ALIVE


async def ping_async(pgconn: PGconn, timeout: float = PING_TIMEOUT) -> Pulse:
    """:func:`ping`, waiting on the running loop."""
    deadline = monotonic() + timeout
    try:
        if not _send_ping(pgconn):
            return Pulse.DEAD
        while not _has_answered(pgconn):
            left = deadline - monotonic()
            if left < 0 or not await _wait_readable(pgconn.socket, left):
                return Pulse.SILENT
            pgconn.consume_input()
    except psycopg.OperationalError:
        return Pulse.DEAD
    return Pulse.ALIVE


def _send_ping(pgconn: PGconn) -> bool:
    """Send the empty query, the cheapest that the server answers."""
    if pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    pgconn.send_query(b"")
    return pgconn.flush() == 0


def _has_answered(pgconn: PGconn) -> bool:
    while not pgconn.is_busy():
        if pgconn.get_result() is None:
            return True
    return False


async def _wait_readable(fd: int, timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), timeout)
    except (asyncio.TimeoutError, TimeoutError):
        return False
    finally:
        loop.remove_reader(fd)
    return True
