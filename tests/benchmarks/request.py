"""What queries add to the cost of a request, and the round trips that they take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

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
    take_turns,
    time_calls,
)

if TYPE_CHECKING:
    from typing_extensions import Self

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
NOTHING = "no database"
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
    """Print the cost of a request with 1 and with 3 queries, and the ratios to hold.

    Each contender has a process of its own, as in an app: in one process with others, Python
    specializes psycopg's code for none of their classes.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks request", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=20, help="requests in a round")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(choose_server()))
        settings = server.settings(stack.enter_context(server.database()))
        observer = stack.enter_context(psycopg.connect(**settings, autocommit=True))
        observer.execute(SCHEMA)
        apart = stack.enter_context(processors_apart(observer))
        print(f"App and server on processors of their own: {'yes' if apart else 'no'}")
        processes = {
            name: stack.enter_context(ContenderProcess(name, settings)) for name in CONTENDERS
        }
        if apart:  # the backends of the contenders too
            stack.enter_context(processors_apart(observer))
        for queries in (1, 3):
            measure(processes, queries, arguments.rounds, arguments.calls)
        peers = ("Flask", "psycopg", "psycopg-pool", "pgmonkey", "Flask-SQLAlchemy", "SQLAlchemy")
        print_versions(peers, observer)


def measure(processes: dict[str, ContenderProcess], queries: int, rounds: int, calls: int) -> None:
    """Print the table for a view with so many queries."""
    trips = {name: process.prepare(queries) for name, process in processes.items()}
    timers = {name: partial(process.time, calls) for name, process in processes.items()}
    samples = take_turns(timers, rounds)
    base = samples.pop(NOTHING)
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


class ContenderProcess:
    """A contender in a process of its own, which does what it is told."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, settings, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pipe.send(None)
        self._process.join(10)

    def prepare(self, queries: int) -> int:
        """Make a view with so many queries; gives the round trips of a request to it."""
        self._pipe.send(("prepare", queries))
        trips: int = self._pipe.recv()
        return trips

    def time(self, calls: int) -> float:
        """Seconds for one request, on average over so many."""
        self._pipe.send(("time", calls))
        seconds: float = self._pipe.recv()
        return seconds


def serve(name: str, settings: dict[str, Any], pipe: Any) -> None:
    """Do what a :class:`ContenderProcess` sends, until it sends None."""
    with CONTENDERS[name](settings) as contender:
        request: Callable[[], object] = str
        while (task := pipe.recv()) is not None:
            what, number = task
            if what == "time":
                pipe.send(time_calls(request, number))
                continue
            request = make_requests(contender.fetch, contender.register, number)
            for _ in range(10):  # psycopg prepares a query the sixth time
                request()
            if name == NOTHING:
                pipe.send(0)
                continue
            with count_round_trips(contender.connection()) as counted:
                request()
            pipe.send(counted.count)


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


@contextmanager
def use_nothing(settings: dict[str, Any]) -> Iterator[Contender]:
    """The same view without a database: what its requests cost is taken from all others."""
    yield Contender(lambda n: None, lambda app: None, psycopg.connect)


@contextmanager
def use_held_connection(settings: dict[str, Any]) -> Iterator[Contender]:
    """One connection for the process, in autocommit: nothing can cost less."""
    queries = [query.format("%s") for query in QUERIES]
    with psycopg.connect(**settings, autocommit=True) as conn:

        def fetch(count: int) -> None:
            for query in queries[:count]:
                conn.execute(query, (7,)).fetchone()

        yield Contender(fetch, lambda app: None, lambda: conn)


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


CONTENDERS = {
    NOTHING: use_nothing,
    "held psycopg connection": use_held_connection,
    OURS: use_pgmonkey_of_this_project,
    "psycopg_pool, pool.connection()": use_psycopg_pool,
    "pgmonkey 4.0.0, its Flask recipe": use_pgmonkey_4,
    "Flask-SQLAlchemy": use_flask_sqlalchemy,
}
