"""Queries as a batch beside the same queries one by one, near the server and far from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from statistics import median
from threading import Event
from typing import Any

import psycopg
from flask import Flask

from flask_pgmonkey import PGMonkey

from ..proxy import Proxy
from ..round_trips import count_round_trips
from ..servers import choose_server, run_server
from .measuring import print_table, print_versions, processors_apart, take_turns, time_calls

COUNTS = (1, 2, 3, 10)
QUERY = "SELECT total FROM orders WHERE id = %s"
SCHEMA = """
    CREATE TABLE orders (id integer PRIMARY KEY, total integer);
    INSERT INTO orders SELECT n, n * 7 FROM generate_series(1, 1000) AS n;
"""
SINGLY = "one after the other"
OURS = "db.batch()"
OURS_IN_TRANSACTION = "tx.batch()"
PSYCOPG = "psycopg's pipeline()"


def main(argv: list[str]) -> None:
    """Print what a batch costs, as a part of what its queries cost one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks batch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=20, help="how often in a round")
    parser.add_argument("--delay", type=float, default=1.5, help="of the far server, in ms")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(choose_server()))
        settings = server.settings(stack.enter_context(server.database()))
        observer = stack.enter_context(psycopg.connect(**settings, autocommit=True))
        observer.execute(SCHEMA)
        # A proxy in this process would have to wait for its interpreter.
        far = stack.enter_context(far_server(settings, arguments.delay / 1000))
        if stack.enter_context(processors_apart(observer)):
            print("App and server on processors of their own")
        measure("On the same machine", settings, arguments.rounds, arguments.calls)
        fewer = max(1, arguments.calls // 10)
        measure(f"{arguments.delay:g} ms away", far, arguments.rounds // 2, fewer)
        print_versions(("Flask", "psycopg"), observer)


def measure(where: str, settings: dict[str, Any], rounds: int, calls: int) -> None:
    """Print the table for one server."""
    app = Flask(__name__)
    db = PGMonkey(app, config={"connection_settings": {**settings, "sslmode": "disable"}})
    rows = []
    with app.app_context():
        for count in COUNTS:
            contenders = {
                SINGLY: partial(run_singly, db, count),
                OURS: partial(run_batch, db, count),
                PSYCOPG: partial(run_pipeline, db.connection, count),
            }
            for run in contenders.values():
                for _ in range(10):  # psycopg prepares a query the sixth time
                    run()
            with count_round_trips(db.connection) as trips:
                run_batch(db, count)
            timers = {name: partial(time_calls, run, calls) for name, run in contenders.items()}
            with db.transaction() as tx:
                inside = take_turns(
                    {
                        SINGLY: partial(time_calls, partial(run_singly, tx, count), calls),
                        OURS: partial(time_calls, partial(run_batch, tx, count), calls),
                    },
                    rounds,
                )
            taken = {name: median(times) for name, times in take_turns(timers, rounds).items()}
            inner = {name: median(times) for name, times in inside.items()}
            rows.append(
                (
                    count,
                    f"{taken[SINGLY] * 1e6:.0f} µs",
                    f"{taken[OURS] * 1e6:.0f} µs",
                    trips.count,
                    f"{taken[OURS] / taken[SINGLY]:.2f}x",
                    f"{inner[OURS] / inner[SINGLY]:.2f}x",
                    f"{taken[PSYCOPG] / taken[SINGLY]:.2f}x",
                )
            )
        db.clear_cache()
    print(f"\n{where}")
    head = ("queries", SINGLY, OURS, "round trips", "batch costs", "in a transaction", PSYCOPG)
    print_table(head, rows)


def run_singly(db: Any, count: int) -> list[Any]:
    """The queries, a round trip each."""
    return [db.fetch_value(QUERY, [n]) for n in range(1, count + 1)]


def run_batch(db: Any, count: int) -> list[Any]:
    """The queries, in one round trip."""
    with db.batch() as b:
        results = [b.fetch_value(QUERY, [n]) for n in range(1, count + 1)]
    return [result.result() for result in results]


def run_pipeline(conn: psycopg.Connection[Any], count: int) -> list[Any]:
    """The queries, in a transaction and a pipeline of psycopg's."""
    with conn.pipeline(), conn.transaction():
        cursors = [conn.execute(QUERY, [n]) for n in range(1, count + 1)]
        return [cursor.fetchone() for cursor in cursors]


@contextmanager
def far_server(settings: dict[str, Any], delay: float) -> Iterator[dict[str, Any]]:
    """The settings of the same database with so many seconds more for each round trip."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    target = settings["host"], settings["port"]
    process = context.Process(target=serve_proxy, args=(*target, delay, theirs), daemon=True)
    process.start()
    try:
        yield {**settings, "host": Proxy.host, "port": pipe.recv()}
    finally:
        process.terminate()
        process.join(10)


def serve_proxy(host: str, port: int, delay: float, pipe: Any) -> None:
    """Be a proxy that tells its port, until the process is ended."""
    proxy = Proxy(host, port, delay)
    pipe.send(proxy.port)
    Event().wait()
