"""A look at a server: over a connection of its own, which it closes, and within a second or so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from time import monotonic, perf_counter, time
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from ..activity import Activity, read_activity
from ..config import Config
from ..connections import NormalConnection
from ..connections.server_connection import ServerConnection
from ..printable import one_line

TIMEOUT = 1.5
"""Seconds for which a page waits for a server."""
KEPT_FOR = 1.0
"""Seconds for which a look serves everyone who asks."""

# Only of this transaction, so that a pooler in between passes nothing on to others.
_SETTINGS = """
SELECT set_config(name, value, true) FROM (VALUES
    ('application_name', 'flask_pgmonkey monitor'), ('search_path', 'pg_catalog'),
    ('lock_timeout', '100ms'), ('statement_timeout', '1s')) AS settings (name, value)
"""

FACTS = """
SELECT split_part(current_setting('server_version'), ' ', 1) AS version,
    extract(epoch FROM pg_postmaster_start_time())::float AS started_at,
    current_database() AS database, current_user AS user,
    pg_is_in_recovery() AS is_replica,
    current_setting('max_connections')::int AS max_connections,
    -- Which kind a session is that it may not see, a role is not told.
    (SELECT count(*) FROM pg_stat_activity WHERE datid <> 0
        AND coalesce(backend_type, 'client backend') = 'client backend') AS sessions,
    xact_commit AS committed, xact_rollback AS rolled_back, deadlocks, temp_bytes,
    blks_hit AS hits, blks_read AS misses,
    extract(epoch FROM stats_reset)::float AS counted_since
FROM pg_stat_database WHERE datname = current_database()
"""
SIZES = "SELECT pg_database_size(current_database()) AS database"
TABLES = """
SELECT schemaname AS schema, relname AS name, pg_total_relation_size(relid) AS size,
    pg_table_size(relid) AS own_size, n_live_tup AS rows, n_dead_tup AS dead,
    seq_scan AS scans, coalesce(idx_scan, 0) AS index_scans,
    heap_blks_hit + coalesce(idx_blks_hit, 0) AS hits,
    heap_blks_read + coalesce(idx_blks_read, 0) AS misses,
    extract(epoch FROM greatest(last_analyze, last_autoanalyze))::float AS analyzed_at
FROM (SELECT tables.*, relpages FROM pg_stat_user_tables AS tables JOIN pg_class ON oid = relid
      ORDER BY relpages DESC LIMIT 200) AS largest
JOIN pg_statio_user_tables USING (relid, schemaname, relname)
ORDER BY size DESC, 1, 2 LIMIT 15
"""
INDEXES = """
SELECT schemaname AS schema, relname AS table, indexrelname AS name,
    pg_relation_size(indexrelid) AS size, idx_scan AS scans,
    idx_scan = 0 AND NOT indisunique AND NOT EXISTS (
        SELECT FROM pg_constraint WHERE conindid = indexrelid) AS is_unused
FROM (SELECT indexes.*, relpages FROM pg_stat_user_indexes AS indexes
      JOIN pg_class ON oid = indexrelid ORDER BY relpages DESC LIMIT 200) AS largest
JOIN pg_index USING (indexrelid)
ORDER BY size DESC, 1, 2, 3 LIMIT 200
"""
_STATEMENTS_SCHEMA = """
SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'pg_stat_statements'
"""
STATEMENTS = """
SELECT left(query, 5000) AS query, calls, total_exec_time / 1000 AS seconds, rows,
    shared_blks_hit AS hits, shared_blks_read AS misses
FROM {}.pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY total_exec_time DESC LIMIT 15
"""


@dataclass
class Look:
    """What was seen of a server.

    :ivar at: when, in seconds since 1970.
    :ivar seconds: how long it took.
    :ivar error: why nothing was seen; None if something was.
    :ivar activity: what the server's sessions do, if it says that.
    :ivar rows: what each section shows.
    :ivar refusals: why a section shows nothing.
    """

    at: float = field(default_factory=time)
    seconds: float = 0.0
    error: str | None = None
    activity: Activity | None = None
    rows: dict[str, list[Any]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> list[Any]:
        try:
            return self.rows[name]
        except KeyError:
            raise AttributeError(name) from None


SECTIONS: Mapping[str, str] = {
    "facts": FACTS,
    "sizes": SIZES,
    "tables": TABLES,
    "indexes": INDEXES,
}


def look_at(config: Config) -> Look:
    """Look at the server of a config. Raises nothing: what goes wrong is in the look."""
    look = Look()
    began = perf_counter()
    try:
        with closing(ServerConnection.open(NormalConnection(config), None, namedtuple_row)) as conn:
            conn.query_timeout = TIMEOUT
            conn.prepare_threshold = None
            conn.read_only = True
            conn.autocommit = False
            conn.execute(_SETTINGS)
            with _refusing(look, conn, "activity"):
                look.activity = read_activity(conn)
            for name, query in SECTIONS.items():
                _see(look, conn, name, query)
            _see_statements(look, conn)
    except Exception as error:
        look.error = one_line(error)
    look.seconds = perf_counter() - began
    return look


@contextmanager
def _refusing(look: Look, conn: ServerConnection, name: str) -> Iterator[None]:
    """A block that may fail alone: the rest of the page is shown."""
    try:
        with conn.transaction():
            yield
    except psycopg.DatabaseError as error:
        if conn.broken or conn.closed:
            raise
        look.refusals[name] = one_line(error)


def _see(look: Look, conn: ServerConnection, name: str, query: str) -> None:
    with _refusing(look, conn, name):
        look.rows[name] = conn.execute(query.encode()).fetchall()


def _see_statements(look: Look, conn: ServerConnection) -> None:
    schemas = conn.execute(_STATEMENTS_SCHEMA).fetchall()
    if schemas:
        _see(look, conn, "statements", STATEMENTS.format(schemas[0][0]))


class Watcher:
    """Looks at one database for everyone in this process: one look at a time, each kept a second.

    A thread cannot be ended from outside: one that looks at a silent server ends by itself when
    ``connect_timeout`` and the bound of its query have passed.
    """

    def __init__(self, find_config: Callable[[], Config]) -> None:
        self._find_config = find_config
        self._turn = threading.Lock()
        self._running: threading.Thread | None = None
        self._last: Look | None = None
        self._ended_at = float("-inf")

    def look(self) -> Look:
        """The server as it was within the last second, or why it could not be seen."""
        with self._turn:
            if self._last is not None and monotonic() - self._ended_at < KEPT_FOR:
                return self._last
            if self._running is None or not self._running.is_alive():
                self._running = threading.Thread(
                    target=self._run, name="flask_pgmonkey-monitor-look", daemon=True
                )
                self._running.start()
            running = self._running
        running.join(TIMEOUT)
        if not running.is_alive() and self._last is not None:
            return self._last
        return Look(error=f"no answer within {TIMEOUT:g} seconds")

    def _run(self) -> None:
        try:
            look = look_at(self._find_config())
        except Exception as error:  # the config cannot be read any more, or not here
            look = Look(error=one_line(error))
        self._last, self._ended_at = look, monotonic()
