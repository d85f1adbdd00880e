"""A cached ``get_database_connection(path)``, beside pgmonkey 4.0.0."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from flask_pgmonkey import PGConnectionManager

from ..servers import choose_server, run_server
from .measuring import print_table, print_versions, time_calls


def main(argv: list[str]) -> None:
    """Print the time of a cached call, and the ratio to hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks cache", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args(argv)
    managers: list[Any] = [PGConnectionManager(), import_module("pgmonkey").PGConnectionManager()]
    with TemporaryDirectory() as folder, run_server(choose_server()) as server:
        path = str(Path(folder, "config.yaml"))
        write_config(path, server.settings())
        calls = [make_call(manager, path) for manager in managers]
        samples = [
            (time_calls(calls[0], 2000), time_calls(calls[1], 20)) for _ in range(arguments.rounds)
        ]
        with server.connect() as connection:
            ours, theirs = (median(taken) for taken in zip(*samples, strict=True))
            print_table(
                ("contender", "cached get_database_connection(path)", "flask_pgmonkey is faster"),
                (
                    ("flask_pgmonkey", f"{ours * 1e6:.1f} µs (at most 5)", ""),
                    ("pgmonkey", f"{theirs * 1e6:.0f} µs", f"{theirs / ours:.0f}x (at least 200)"),
                ),
            )
            print_versions(("psycopg", "pgmonkey"), connection)
    for manager in managers:
        manager.clear_cache()


def write_config(path: str, settings: dict[str, Any]) -> None:
    """A file with a few settings, as real ones have."""
    config = {
        "connection_type": "pool",
        "connection_settings": settings,
        "pool_settings": {"min_size": 1, "max_size": 5, "timeout": 5},
        "sync_settings": {"statement_timeout": "30000", "lock_timeout": "10000"},
    }
    Path(path).write_text(yaml.safe_dump(config))
    Path(path).chmod(0o600)


def make_call(manager: Any, path: str) -> Callable[[], object]:
    """A call whose result is in the cache."""

    def call() -> object:
        return manager.get_database_connection(path, "pool")

    call()
    return call
