"""A view that answers with the rows of a query as JSON: by jsonify, and by the server."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any

import psycopg
from flask import Flask, Response, jsonify
from psycopg.rows import dict_row
from werkzeug.test import create_environ

from flask_pgmonkey import PGMonkey

from ..servers import choose_server, run_server
from .measuring import print_table, print_versions, processors_apart, take_turns

SIZES = (20, 1_000, 10_000)
ROWS = """
    CREATE TABLE orders AS
    SELECT n AS id, 'customer ' || n % 100 AS customer, n % 7 = 0 AS is_paid,
        (n * 1.25)::numeric(10, 2) AS total, timestamptz '2026-01-01' + n * interval '1 min' AS at
    FROM generate_series(1, 10000) AS n;
    ALTER TABLE orders ADD PRIMARY KEY (id);
    ANALYZE orders;
"""
QUERY = "SELECT id, customer, is_paid, total, at FROM orders WHERE id <= %s ORDER BY id"
BY_PYTHON = "`jsonify(db.fetch_all(…))`, rows as dictionaries"
BY_SERVER = "`db.json_response(…)`"
STREAMED = "`db.stream_json(…)`"
BOUNDS = {20: 0.8, 1_000: 0.35, 10_000: 0.3}


def main(argv: list[str]) -> None:
    """Print what a request takes with each, beside jsonify, in time and in the app's own CPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks json", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(choose_server()))
        settings = server.settings(stack.enter_context(server.database()))
        observer = stack.enter_context(psycopg.connect(**settings, autocommit=True))
        observer.execute(ROWS)
        app = Flask("app")
        db = PGMonkey(
            app,
            config={"connection_settings": settings, "pool_settings": {"max_size": 1}},
            row_factory=dict_row,
        )
        views: dict[str, Callable[[int], Response]] = {
            BY_PYTHON: lambda size: jsonify(db.fetch_all(QUERY, (size,))),
            BY_SERVER: lambda size: db.json_response(QUERY, (size,)),
            STREAMED: lambda size: db.stream_json(QUERY, (size,)),
        }
        for number, view in enumerate(views.values()):
            app.add_url_rule(f"/{number}/<int:size>", str(number), view)
        for number in range(len(views)):
            request(app, create_environ(f"/{number}/1"))
        apart = stack.enter_context(processors_apart(observer))
        print(f"App and server on processors of their own: {'yes' if apart else 'no'}")
        for size in SIZES:
            measure(app, list(views), size, arguments.rounds)
        with app.app_context():
            db.clear_cache()
        print_versions(("Flask", "psycopg"), observer)


def measure(app: Flask, names: list[str], size: int, rounds: int) -> None:
    """Print the table for answers of *size* rows."""
    calls = max(1, 2_000 // size)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    timers = {
        name: partial(time_requests, app, create_environ(f"/{number}/{size}"), calls, cpu[name])
        for number, name in enumerate(names)
    }
    wall = take_turns(timers, rounds)
    print_table(
        (f"{size:,} rows", "a request", "beside jsonify", "at most", "CPU of the app", "beside it"),
        (
            (
                name,
                f"{median(taken) * 1e3:.2f} ms",
                f"{median(taken) / median(wall[BY_PYTHON]):.2f}",
                BOUNDS[size] if name == BY_SERVER else "",
                f"{median(cpu[name]) * 1e3:.2f} ms",
                f"{median(cpu[name]) / median(cpu[BY_PYTHON]):.2f}",
            )
            for name, taken in wall.items()
        ),
    )


def time_requests(app: Flask, environ: dict[str, Any], calls: int, cpu: list[float]) -> float:
    """Seconds for one request, on average over so many; the CPU seconds go to *cpu*."""
    began, cpu_began = perf_counter(), process_time()
    for _ in range(calls):
        request(app, environ)
    cpu.append((process_time() - cpu_began) / calls)
    return (perf_counter() - began) / calls


def request(app: Flask, environ: dict[str, Any]) -> None:
    """One request, whose body is read to its end."""
    body: Any = app.wsgi_app(environ.copy(), lambda status, headers, error=None: print)
    for _ in body:
        pass
    body.close()
