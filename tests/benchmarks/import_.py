"""``import flask_pgmonkey`` above what it needs: Flask, psycopg, psycopg_pool and PyYAML."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory

from .measuring import print_table, print_versions

PROGRAM = """
import flask, psycopg, psycopg_pool, yaml
from time import perf_counter
start = perf_counter()
from flask_pgmonkey import PGMonkey
print(perf_counter() - start)
"""


def main(argv: list[str]) -> None:
    """Print what the import takes, each time in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks import", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args(argv)
    with TemporaryDirectory() as compiled:
        import_once(compiled)
        taken = [import_once(compiled) for _ in range(arguments.rounds)]
    print_table(
        ("import flask_pgmonkey", "median (at most 10)", "fastest", "slowest"),
        [("", *(f"{value * 1e3:.1f} ms" for value in (median(taken), min(taken), max(taken))))],
    )
    print_versions(("Flask", "psycopg", "psycopg-pool"))


def import_once(compiled: str) -> float:
    """Seconds that the import took in a new process, which keeps compiled modules in a folder."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "PYTHONPYCACHEPREFIX": compiled},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout)
