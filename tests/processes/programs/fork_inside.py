"""A fork inside of open blocks: the child has connections of its own, the parent's go on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from flask import Flask

from flask_pgmonkey import Database, PGConnectionManager, PGMonkey
from tests.processes.forking import EXITS, FORKS, in_child

config, where, fork, leave = sys.argv[1], sys.argv[2], FORKS[sys.argv[3]], EXITS[sys.argv[4]]

TABLE = f"forks{os.getpid()}"
INSERT = f"INSERT INTO {TABLE} VALUES (pg_backend_pid()) RETURNING pid"
manager = PGConnectionManager()
database = Database(config)
app = Flask(__name__)
db = PGMonkey(app, config=config)


def insert_by(conn: psycopg.Connection) -> int:
    row = conn.execute(INSERT).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def block(connection_type: Any) -> Iterator[None]:
    connection = manager.get_database_connection(config, connection_type)
    with connection as conn:
        pid = insert_by(conn)
        yield
        assert insert_by(conn) == pid


@contextmanager
def pool_connection() -> Iterator[None]:
    pool = manager.get_database_connection(config, "pool")
    with ExitStack() as stack:
        conn = stack.enter_context(pool.connection())
        pid = insert_by(conn)
        yield
        assert insert_by(conn) == pid


@contextmanager
def request() -> Iterator[None]:
    with app.test_request_context():
        pid = db.fetch_value(INSERT)
        yield
        assert db.fetch_value(INSERT) == pid


@contextmanager
def stream() -> Iterator[None]:
    with app.test_request_context():
        pid = db.fetch_value(INSERT)
        rows = db.stream("SELECT pg_backend_pid() FROM generate_series(1, 5)", batch_size=2)
        assert next(rows) == (pid,)
        yield
        assert list(rows) == [(pid,)] * 4
        assert db.fetch_value(INSERT) == pid


@contextmanager
def app_transaction() -> Iterator[None]:
    with app.test_request_context(), db.transaction():
        pid = db.fetch_value(INSERT)
        yield
        assert db.fetch_value(INSERT) == pid


@contextmanager
def database_transaction() -> Iterator[None]:
    with database.transaction() as tx:
        pid = tx.fetch_value(INSERT)
        yield
        assert tx.fetch_value(INSERT) == pid


def insert_everywhere() -> list[int]:
    with app.app_context():
        found = [db.fetch_value(INSERT), database.fetch_value(INSERT)]
    for connection_type in ("normal", "pool"):
        with manager.get_database_connection(config, connection_type) as conn:
            found.append(insert_by(conn))
    return found


database.execute(f"CREATE TABLE {TABLE} (pid int)")
places = {
    "normal block": lambda: block("normal"),
    "pool block": lambda: block("pool"),
    "pool.connection()": pool_connection,
    "request": request,
    "stream": stream,
    "db.transaction()": app_transaction,
    "Database.transaction()": database_transaction,
}
children: list[int] = []
with places[where]():
    for _ in range(2):
        children += in_child(insert_everywhere, fork=fork, leave=leave)

pids = [pid for (pid,) in database.fetch_all(f"SELECT pid FROM {TABLE}")]
by_parent = [pid for pid in pids if pid not in children]
assert sorted(children) == sorted(pid for pid in pids if pid in children), (children, pids)
assert len(by_parent) == 2, pids
assert len(set(by_parent)) == 1, pids
