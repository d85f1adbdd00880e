"""What it costs a request with one query to be seen: by nobody, the log, the monitor, debug."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import psycopg

from ..servers import choose_server, run_server
from .measuring import (
    median_difference,
    print_table,
    print_versions,
    processors_apart,
    take_turns,
)

ROOT = Path(__file__).parents[2]
BEFORE = "before"
OFF = "nobody listens"
LINE = "a line that the view logs, to a file"
APPS = {
    OFF: {},
    "a receiver that does nothing": {"LISTEN": True},
    "PGMONKEY_SLOW_QUERY": {"PGMONKEY_SLOW_QUERY": 10},
    "PGMONKEY_QUERY_TAGS": {"PGMONKEY_QUERY_TAGS": ["application", "route"]},
    "PGMONKEY_ECHO, to a file": {"PGMONKEY_ECHO": True},
    "metrics for OpenTelemetry": {"METRICS": "OpenTelemetry"},
    "metrics for Prometheus": {"METRICS": "Prometheus"},
    LINE: {"LOG": True},
    "the monitor": {"MONITOR": True},
    "debug": {"DEBUG": True},
    "debug, and the monitor": {"DEBUG": True, "PGMONKEY_MONITOR": True},
}
BOUNDS = {
    "a receiver that does nothing": "10 µs",
    "PGMONKEY_SLOW_QUERY": "5 µs",
    # Less than a logging handler takes for any line is out of reach.
    "PGMONKEY_ECHO, to a file": "20 µs above a line that the view logs",
    "metrics for OpenTelemetry": "10 µs",
    "metrics for Prometheus": "10 µs",
    "the monitor": "15 µs",
}

# Runs in a process of its own, because one contender's receivers would be heard by all.
PROGRAM = """
import gc, json, logging, os, sys
from time import perf_counter
from flask import Flask
from werkzeug.test import create_environ
from flask_pgmonkey import PGMonkey

settings, keys = json.loads(sys.argv[1]), json.loads(sys.argv[2])
app = Flask("app")
app.config["PGMONKEY_CONFIG"] = {"connection_settings": settings, "pool_settings": {"max_size": 1}}
app.config.update(keys)
logging.getLogger().addHandler(logging.FileHandler(os.devnull))
logger, logs = logging.getLogger("app"), keys.get("LOG")
db = PGMonkey(app)
if keys.get("LISTEN"):
    from flask_pgmonkey.signals import query_executed

    @query_executed.connect_via(app)
    def listen(app, event):
        pass

if keys.get("METRICS") == "OpenTelemetry":
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from flask_pgmonkey.metrics import instrument_app

    instrument_app(app, MeterProvider([InMemoryMetricReader()]))
if keys.get("METRICS") == "Prometheus":
    from flask_pgmonkey.metrics import metrics_blueprint

    app.register_blueprint(metrics_blueprint())
if keys.get("MONITOR"):
    from flask_pgmonkey.monitor import monitor_blueprint

    app.register_blueprint(monitor_blueprint(db, authorize=bool), url_prefix="/seen")

@app.get("/")
def view():
    db.fetch_one("SELECT %s", (7,))
    if logs:
        logger.warning("%s ms: %s", 1.0, "SELECT %s")
    return "fetched"

environ = create_environ("/")

def request():
    body = app.wsgi_app(environ.copy(), lambda status, headers, error=None: None)
    b"".join(body)
    body.close()

for _ in range(200):
    request()
for line in sys.stdin:
    calls = int(line)
    gc.collect(0)
    gc.disable()
    start = perf_counter()
    for _ in range(calls):
        request()
    print((perf_counter() - start) / calls, flush=True)
    gc.enable()
with app.app_context():
    db.clear_cache()
"""


def main(argv: list[str]) -> None:
    """Print the cost of a request with one query for each way to see it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks seeing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=20, help="requests in a round")
    parser.add_argument(
        "--before", type=Path, help="a folder with an earlier flask_pgmonkey, to compare with"
    )
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(choose_server()))
        settings = json.dumps(server.settings(stack.enter_context(server.database())))
        observer = stack.enter_context(psycopg.connect(**json.loads(settings), autocommit=True))
        apart = stack.enter_context(processors_apart(observer))
        print(f"App and server on processors of their own: {'yes' if apart else 'no'}")
        apps = {name: (ROOT, keys) for name, keys in APPS.items()}
        if arguments.before is not None:
            apps[BEFORE] = arguments.before, {}
        programs = {
            name: stack.enter_context(start(folder, settings, json.dumps(keys)))
            for name, (folder, keys) in apps.items()
        }
        timers = {
            name: partial(time_requests, program, arguments.calls)
            for name, program in programs.items()
        }
        for timer in timers.values():
            timer()  # it has connected then
        if apart:  # the backends of the contenders too
            stack.enter_context(processors_apart(observer))
        show(take_turns(timers, arguments.rounds))
        print_versions(("Flask", "psycopg", "psycopg-pool", "blinker"), observer)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The program with the package that lies in *folder*. Its block ends with it."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )


def time_requests(program: subprocess.Popen[str], calls: int) -> float:
    """Seconds for one request, on average over so many."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(f"{calls}\n")
    program.stdin.flush()
    return float(program.stdout.readline())


def show(samples: dict[str, list[float]]) -> None:
    """Print the table: what each costs above a request that nobody sees."""
    off = samples[OFF]
    print_table(
        ("seen by", "a request", "more than unseen", "at most"),
        (
            (
                name,
                f"{median(taken) * 1e6:.1f} µs",
                f"{(above := median_difference(taken, off)) * 1e6:+.1f} µs"
                f" ({above / median(off):+.1%})",
                BOUNDS.get(name, ""),
            )
            for name, taken in samples.items()
        ),
    )
