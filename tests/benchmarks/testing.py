"""What a test costs on a database of its own, beside one that empties its tables for the next."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import psycopg
from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.testing import fresh_database
from flask_pgmonkey.testing.runs import close, this_run

from .measuring import print_table, print_versions, take_turns

CLONE = "reads and writes, fresh database"
TRUNCATE = "reads and writes, TRUNCATE"
NO_QUERY = "does not query, fresh database"
NOTHING = "does not query"


def make_app(config: object) -> Flask:
    """An app with a view that reads and writes, and one that does not query."""
    app = Flask("app")
    app.config["PGMONKEY_CONFIG"] = config
    db = PGMonkey(app)

    @app.get("/write")
    def write() -> str:
        db.execute("INSERT INTO table0 (note) VALUES ('one more')")
        return str(db.fetch_value("SELECT count(*) FROM table0"))

    @app.get("/hello")
    def hello() -> str:
        return "Hello"

    return app


def main(argv: list[str]) -> None:
    """Print what a test costs, on a server whose data lie on the tmpfs where that has room."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks testing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--tables", type=int, default=30, help="what TRUNCATE takes grows with them"
    )
    arguments = parser.parse_args(argv)
    tables = [f"table{number}" for number in range(arguments.tables)]
    with TemporaryDirectory() as folder, ExitStack() as resources:
        run = this_run(os.environ.get("PGMONKEY_TEST_SERVER", ""), Path(folder))
        resources.callback(close)
        settings = run.settings()
        admin = resources.enter_context(closing(psycopg.connect(**settings, autocommit=True)))
        kept = make_app({"connection_settings": settings})
        fresh = make_app("postgresql://nobody@127.0.0.1:1/production")
        create = "".join(
            f"CREATE TABLE {table} (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            " note text);"
            for table in tables
        )
        schema = Path(folder, "schema.sql")
        schema.write_text(create)
        admin.execute(create.encode())

        def truncating() -> float:
            start = perf_counter()
            assert kept.test_client().get("/write").text == "1"
            admin.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE".encode())
            return perf_counter() - start

        def cloning() -> float:
            start = perf_counter()
            with fresh_database(fresh, schema):
                assert fresh.test_client().get("/write").text == "1"
            return perf_counter() - start

        def without_query() -> float:
            start = perf_counter()
            with fresh_database(fresh, schema):
                fresh.test_client().get("/hello")
            return perf_counter() - start

        def nothing() -> float:
            start = perf_counter()
            fresh.test_client().get("/hello")
            return perf_counter() - start

        taken = take_turns({TRUNCATE: truncating}, arguments.rounds)
        run.begin()
        taken |= take_turns({CLONE: cloning}, arguments.rounds)
        taken |= take_turns({NO_QUERY: without_query, NOTHING: nothing}, arguments.rounds)
        seconds = {name: median(samples) for name, samples in taken.items()}
        kit, truncate = seconds[CLONE], seconds[TRUNCATE]
        print_table(
            ("a test that", "median", "fastest", "bound"),
            [
                (
                    name,
                    f"{seconds[name] * 1e3:.2f} ms",
                    f"{min(samples) * 1e3:.2f} ms",
                    {
                        CLONE: f"{kit / truncate:.2f} times TRUNCATE (at most 2), 20 ms",
                        NO_QUERY: f"{(seconds[NO_QUERY] - seconds[NOTHING]) * 1e3:.2f} ms above"
                        " the next line (at most 0.5)",
                    }.get(name, ""),
                )
                for name, samples in taken.items()
            ],
        )
        print(f"\n{len(tables)} tables, on {run.server.name}.")
        print_versions(("Flask", "psycopg", "psycopg-pool"), admin)
