"""What the sessions of a server do now, what they wait for, and who holds them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.rows import class_row, tuple_row

LONG_TRANSACTION = 60.0
"""Seconds after which a transaction is a long one: VACUUM can remove nothing that it might see."""

_HIDDEN = "<insufficient privilege>"  # PostgreSQL's own words, which it does not translate
_SESSIONS = """
    SELECT a.pid,
           a.usename::text AS "user",
           a.datname::text AS database,
           a.application_name AS application,
           host(a.client_addr) AS client,
           a.backend_type AS kind,
           a.state,
           CASE WHEN a.wait_event <> 'ClientRead'
                THEN a.wait_event_type || ': ' || a.wait_event END AS wait,
           extract(epoch FROM now.at - a.backend_start)::float8 AS session_seconds,
           extract(epoch FROM now.at - a.xact_start)::float8 AS transaction_seconds,
           extract(epoch FROM now.at - a.state_change)::float8 AS state_seconds,
           l.mode AS lock_mode,
           CASE WHEN l.locktype = 'relation' AND l.database IN (0, here.oid)
                THEN l.relation::regclass::text
                ELSE l.locktype END AS lock_on,
           CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}' END
               AS blocked_by,
           a.query
    FROM pg_stat_activity a
         CROSS JOIN (SELECT clock_timestamp() AS at) now
         JOIN pg_database here ON here.datname = current_database()
         LEFT JOIN LATERAL (
             SELECT * FROM pg_locks WHERE pid = a.pid AND NOT granted LIMIT 1
         ) l ON a.wait_event_type = 'Lock'
    WHERE a.pid <> pg_backend_pid() AND a.datid <> 0
          AND a.backend_type IS DISTINCT FROM 'parallel worker'
    ORDER BY a.pid
"""
_SERVER = """
    SELECT clock_timestamp(), current_database()::text, current_setting('max_connections')::int,
           current_user::text
"""


@dataclass(frozen=True)
class Session:
    """A session of the server. Texts of others: print them as :mod:`printable` makes them.

    What PostgreSQL shows to a role of ``pg_monitor`` alone is None for others.

    :ivar application: its ``application_name``.
    :ivar client: the address that it comes from; None for a Unix socket.
    :ivar kind: ``client backend``, ``autovacuum worker`` and so on.
    :ivar state: ``active``, ``idle``, ``idle in transaction`` and so on.
    :ivar wait: what it waits for, by PostgreSQL's names, but for its client's next query.
    :ivar session_seconds: since it connected.
    :ivar transaction_seconds: since its transaction began; None outside of one.
    :ivar state_seconds: since its state changed, and of one that is active since its query began.
    :ivar lock_mode: the lock that it waits for.
    :ivar lock_on: the table of that lock, or its kind.
    :ivar blocked_by: the processes that it waits for; 0 is a prepared transaction.
    :ivar query: the one that runs, or ran last.
    """

    pid: int
    user: str | None
    database: str | None
    application: str
    client: str | None
    kind: str | None
    state: str | None
    wait: str | None
    session_seconds: float | None
    transaction_seconds: float | None
    state_seconds: float | None
    lock_mode: str | None
    lock_on: str | None
    blocked_by: list[int]
    query: str

    @property
    def is_hidden(self) -> bool:
        """Whether the asking role may not see what it does."""
        return self.query == _HIDDEN

    @property
    def is_in_transaction(self) -> bool:
        """Whether it holds a transaction open while its client does something else."""
        return self.state is not None and self.state.startswith("idle in transaction")

    @property
    def is_long(self) -> bool:
        """Whether its transaction is a long one."""
        return (self.transaction_seconds or 0) >= LONG_TRANSACTION


@dataclass(frozen=True)
class Activity:
    """What :func:`read_activity` gives.

    :ivar at: the server's time.
    :ivar database: the one that was asked.
    :ivar max_connections: how many sessions it takes.
    :ivar role: the role that asked.
    :ivar sessions: all but the one that asked, by process.
    """

    at: datetime
    database: str
    max_connections: int
    role: str
    sessions: list[Session]

    def of_clients_here(self) -> list[Session]:
        """Those of clients on this database, the longest transactions first. One that the role may
        not see counts as a client's."""
        here = [
            session
            for session in self.sessions
            if session.database == self.database and session.kind in (None, "client backend")
        ]
        return sorted(
            here,
            key=lambda each: (-(each.transaction_seconds or -1.0), each.state_seconds or 0.0),
        )

    def blockers(self) -> list[tuple[int, Session]]:
        """Who blocks whom, with depths as :meth:`by_urgency` gives them; nobody else."""
        blocking = {pid for session in self.sessions for pid in session.blocked_by}
        return [
            (depth, session)
            for depth, session in self.by_urgency()
            if session.blocked_by or session.pid in blocking
        ]

    def by_urgency(self) -> Iterator[tuple[int, Session]]:
        """Each session once, with its depth: 0, or one more than that of the session that it waits
        for, which stands above it.

        First who blocks others, then what works, open transactions, and what is idle.
        """
        blocked: dict[int, list[Session]] = {}
        known = {session.pid for session in self.sessions}
        for session in self.sessions:
            for pid in session.blocked_by:
                blocked.setdefault(pid, []).append(session)
        given: set[int] = set()

        def with_blocked(session: Session, depth: int) -> Iterator[tuple[int, Session]]:
            if session.pid in given:
                return
            given.add(session.pid)
            yield depth, session
            for each in blocked.get(session.pid, ()):
                yield from with_blocked(each, depth + 1)

        def urgency(session: Session) -> tuple[bool, bool, int, float]:
            waits = not known.isdisjoint(session.blocked_by)
            state = 0 if session.state == "active" else 1 if session.is_in_transaction else 2
            return waits, session.pid not in blocked, state, -(session.transaction_seconds or 0)

        # Those that wait come below whom they wait for, but for the first of a deadlock.
        for session in sorted(self.sessions, key=urgency):
            yield from with_blocked(session, 0)


def read_activity(connection: psycopg.Connection[Any]) -> Activity:
    """What the server's sessions do now.

    :param connection: one in autocommit: a transaction would see the same again and again.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        ((at, database, limit, role),) = cursor.execute(_SERVER).fetchall()
    with connection.cursor(row_factory=class_row(Session)) as sessions:
        sessions.adapters.register_loader("text", _AnyText)
        found = sessions.execute(_SESSIONS).fetchall()
    return Activity(at, database, limit, role, found)


class _AnyText(Loader):
    """Loads the text of databases in other encodings too, which the server gives as it is."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(errors="replace")
