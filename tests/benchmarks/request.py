"""What queries add to the cost of a request, and the round trips that they take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psycopg
import psycopg_pool
import yaml
from flask import Flask
from werkzeug.test import create_environ

from flask_pgmonkey import PGMonkey

from ..round_trips import count_round_trips
from ..servers import choose_server, run_server
from .measuring import (
    median_difference,
    print_table,
    print_versions,
    processors_apart,
    time_alternating,
)

QUERIES = (
    "SELECT name FROM users WHERE id = {}",
    "SELECT total FROM orders WHERE id = {}",
    "SELECT count(*) FROM orders WHERE user_id = {}",
)
SCHEMA = """
    CREATE TABLE users (id integer PRIMARY KEY, name text);
    CREATE TABLE orders (id integer PRIMARY KEY, user_id integer, total integer);
    CREATE INDEX ON orders (user_id);
    INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 100) AS n;
    INSERT INTO orders SELECT n, n % 100 + 1, n * 7 FROM generate_series(1, 1000) AS n;
"""
OURS = "flask_pgmonkey"
BOUNDS = {
    "held psycopg connection": 1.25,
    "psycopg_pool, pool.connection()": 0.7,
    "Flask-SQLAlchemy": 0.4,
}


class Contender(NamedTuple):
    """A way to query in a view."""

    fetch: Callable[[int], object]
    """Runs the first *n* queries."""
    register: Callable[[Flask], object]
    connection: Callable[[], psycopg.Connection[Any]]
    """The one psycopg connection that it queries through."""


def main(argv: list[str]) -> None:
    """Print the cost of a request with 1 and with 3 queries, and the ratios to hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks request", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=20, help="requests in a round")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(choose_server()))
        settings = server.settings(stack.enter_context(server.database()))
        held = stack.enter_context(psycopg.connect(**settings, autocommit=True))
        held.execute(SCHEMA)
        contenders = {
            "held psycopg connection": use_held_connection(held),
            OURS: stack.enter_context(use_pgmonkey_of_this_project(settings)),
            "psycopg_pool, pool.connection()": stack.enter_context(use_psycopg_pool(settings)),
            "pgmonkey 4.0.0, its Flask recipe": stack.enter_context(use_pgmonkey_4(settings)),
            "Flask-SQLAlchemy": stack.enter_context(use_flask_sqlalchemy(settings)),
        }
        apart = stack.enter_context(processors_apart(held))
        print(f"App and server on processors of their own: {'yes' if apart else 'no'}")
        for queries in (1, 3):
            measure(contenders, queries, arguments.rounds, arguments.calls)
        peers = ("Flask", "psycopg", "psycopg-pool", "pgmonkey", "Flask-SQLAlchemy", "SQLAlchemy")
        print_versions(peers, held)


def measure(contenders: dict[str, Contender], queries: int, rounds: int, calls: int) -> None:
    """Print the table for a view with so many queries."""
    requests = {"": make_requests(lambda n: None, lambda app: None, queries)}
    trips = {}
    for name, contender in contenders.items():
        requests[name] = make_requests(contender.fetch, contender.register, queries)
        for _ in range(10):  # psycopg prepares a query the sixth time
            requests[name]()
        with count_round_trips(contender.connection()) as counted:
            requests[name]()
        trips[name] = counted.count
    samples = time_alternating(requests, rounds=rounds, calls=calls)
    base = samples.pop("")
    costs = {name: median_difference(taken, base) for name, taken in samples.items()}
    print(f"\nA view with {queries} queries; without them {median(base) * 1e6:.0f} µs")
    print_table(
        ("contender", "cost of the queries", "round trips", "flask_pgmonkey costs", "at most"),
        (
            (
                name,
                f"{cost * 1e6:.0f} µs",
                trips[name],
                "" if name == OURS else f"{costs[OURS] / cost:.2f}x",
                f"{BOUNDS[name]}x" if name in BOUNDS else "",
            )
            for name, cost in costs.items()
        ),
    )


def make_requests(
    fetch: Callable[[int], object], register: Callable[[Flask], object], queries: int
) -> Callable[[], object]:
    """A function that sends one request to an app whose view runs so many queries."""
    app = Flask(__name__)
    register(app)

    @app.get("/")
    def view() -> str:
        fetch(queries)
        return "fetched"

    environ = create_environ("/")

    def respond(status: str, headers: object, error: object = None) -> Callable[[bytes], object]:
        if status != "200 OK":
            raise RuntimeError(f"the view answered {status}")
        return sys.stdout.buffer.write

    def request() -> None:
        body = app.wsgi_app(environ.copy(), respond)
        b"".join(body)
        body.close()  # type: ignore[attr-defined]

    return request


def use_held_connection(conn: psycopg.Connection[Any]) -> Contender:
    """One connection for the process, in autocommit: nothing can cost less."""
    queries = [query.format("%s") for query in QUERIES]

    def fetch(count: int) -> None:
        for query in queries[:count]:
            conn.execute(query, (7,)).fetchone()

    return Contender(fetch, lambda app: None, lambda: conn)


@contextmanager
def use_pgmonkey_of_this_project(settings: dict[str, Any]) -> Iterator[Contender]:
    """What a view of ours looks like."""
    db = PGMonkey(
        config={"connection_settings": settings, "pool_settings": {"max_size": 1}},
    )
    queries = [query.format("%s") for query in QUERIES]
    apps: list[Flask] = []

    def register(app: Flask) -> None:
        apps.append(app)
        db.init_app(app)

    def fetch(count: int) -> None:
        for query in queries[:count]:
            db.fetch_one(query, (7,))

    def connection() -> psycopg.Connection[Any]:
        with apps[-1].app_context():
            return db.connection

    yield Contender(fetch, register, connection)
    for app in apps:
        with app.app_context():
            db.clear_cache()


@contextmanager
def use_psycopg_pool(settings: dict[str, Any]) -> Iterator[Contender]:
    """The first lines of psycopg_pool's documentation."""
    queries = [query.format("%s") for query in QUERIES]
    with psycopg_pool.ConnectionPool(kwargs=settings, min_size=1, max_size=1) as pool:

        def fetch(count: int) -> None:
            with pool.connection() as conn:
                for query in queries[:count]:
                    conn.execute(query, (7,)).fetchone()

        def connection() -> psycopg.Connection[Any]:
            with pool.connection() as conn:
                return conn

        yield Contender(fetch, lambda app: None, connection)


@contextmanager
def use_pgmonkey_4(settings: dict[str, Any]) -> Iterator[Contender]:
    """The ``Database`` class that pgmonkey's page of recipes gives for Flask."""
    queries = [query.format("%s") for query in QUERIES]
    manager = import_module("pgmonkey").PGConnectionManager()
    with TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        config = {
            "connection_type": "pool",
            "connection_settings": settings,
            "pool_settings": {"min_size": 1, "max_size": 1},
        }
        path.write_text(yaml.safe_dump(config))
        pool = manager.get_database_connection(str(path), "pool")

        def fetch(count: int) -> None:
            for query in queries[:count]:
                with pool as conn, conn.cursor() as cursor:
                    cursor.execute(query, (7,))
                    cursor.fetchone()

        def connection() -> psycopg.Connection[Any]:
            with pool.pool.connection() as conn:
                return conn  # type: ignore[no-any-return]

        yield Contender(fetch, lambda app: None, connection)
        manager.clear_cache()


@contextmanager
def use_flask_sqlalchemy(settings: dict[str, Any]) -> Iterator[Contender]:
    """A session for each app context, with textual queries."""
    sqlalchemy = import_module("sqlalchemy")
    db = import_module("flask_sqlalchemy").SQLAlchemy()
    queries = [sqlalchemy.text(query.format(":id")) for query in QUERIES]
    apps: list[Flask] = []

    def register(app: Flask) -> None:
        apps.append(app)
        app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://"
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
            "connect_args": settings,
            "pool_size": 1,
            "max_overflow": 0,
        }
        db.init_app(app)

    def fetch(count: int) -> None:
        for query in queries[:count]:
            db.session.execute(query, {"id": 7}).fetchone()

    def connection() -> psycopg.Connection[Any]:
        with apps[-1].app_context():
            pooled = db.engine.raw_connection()
            try:
                return pooled.driver_connection  # type: ignore[no-any-return]
            finally:
                pooled.close()

    yield Contender(fetch, register, connection)
    for app in apps:
        with app.app_context():
            db.engine.dispose()
