"""A request after the server has closed every connection of the pool."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from statistics import median
from time import perf_counter
from typing import Any

import psycopg
from flask import Flask

from flask_pgmonkey import PGMonkey

from ..servers import choose_server, run_server
from .measuring import print_table, print_versions

SIZES = (4, 10, 50)


def main(argv: list[str]) -> None:
    """Print what such a request takes for pools of several sizes."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args(argv)
    with run_server(choose_server()) as server, server.database() as dbname:
        with server.connect() as admin:
            rows = []
            for size in SIZES:
                taken = measure(server.settings(dbname), admin, size, arguments.rounds)
                rows.append((size, f"{median(taken) * 1e3:.1f} ms", f"{max(taken) * 1e3:.1f} ms"))
            print_table(
                ("connections terminated", "request after it", "slowest (at most 50)"), rows
            )
            print_versions(("Flask", "psycopg", "psycopg-pool"), admin)


def measure(
    settings: dict[str, Any], admin: psycopg.Connection, size: int, rounds: int
) -> list[float]:
    """Seconds of the request in each round. An error of the request ends the benchmark."""
    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    db = PGMonkey(
        app,
        config={
            "connection_settings": settings,
            "pool_settings": {"min_size": size, "max_size": size},
        },
    )

    @app.get("/")
    def view() -> str:
        return str(db.fetch_value("SELECT 1"))

    client = app.test_client()
    taken = []
    for number in range(rounds):
        with app.app_context():
            fill(db, size)
        terminate_all(admin, settings["dbname"])
        start = perf_counter()
        client.get("/")
        taken.append(perf_counter() - start)
        print(f"{size} connections: round {number + 1} of {rounds}", file=sys.stderr)
    with app.app_context():
        db.clear_cache()
    return taken


def fill(db: PGMonkey, size: int) -> None:
    """Have the pool open all its connections."""
    with ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(db.pool.connection(timeout=30))


def terminate_all(admin: psycopg.Connection, dbname: str) -> None:
    """Return when the server has closed every connection to the database."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
        (dbname,),
    )
    time.sleep(0.05)  # the kernel passes the end of the sockets on
