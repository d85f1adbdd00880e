"""How an app grows: requests a second over workers and threads, and memory for each connection.

The clients and the server of the database share the processors with the app. So beside the rate
stands what a request costs the app's own processes, which others at work there change less.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import psycopg
import psycopg_pool
from flask import Flask

from flask_pgmonkey import Database, PGMonkey

from ..servers import choose_server, run_server
from .measuring import print_table, print_versions, take_turns
from .request import NOTHING, OURS, SCHEMA

QUERY = "SELECT name FROM users WHERE id = {}"
REQUEST = b"GET / HTTP/1.1\r\nHost: growth\r\nConnection: close\r\n\r\n"
GRID = ((1, 1), (1, 4), (1, 8), (2, 1), (2, 4), (2, 8))
MANY = 50


def main(argv: list[str]) -> None:
    """Print what gunicorn serves with each contender, and what a connection takes in memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(choose_server()))
        settings = server.settings(stack.enter_context(server.database()))
        observer = stack.enter_context(psycopg.connect(**settings, autocommit=True))
        observer.execute(SCHEMA)
        print_table(
            ("workers by threads", *APPS, "requests/s, ours to theirs", "CPU, ours to theirs"),
            (
                _row(settings, workers, threads, arguments.rounds, arguments.seconds)
                for workers, threads in GRID
            ),
        )
        print_table(
            ("each connection takes", "in the app", "in the server"),
            ((name, *_memory_of_each(name, settings, observer)) for name in POOLS),
        )
        peers = ("Flask", "gunicorn", "psycopg", "psycopg-pool", "Flask-SQLAlchemy", "SQLAlchemy")
        print_versions(peers, observer)


# Requests


def _row(
    settings: dict[str, Any], workers: int, threads: int, rounds: int, seconds: float
) -> list[str]:
    with ExitStack() as stack:
        served = {
            name: stack.enter_context(_gunicorn(name, settings, workers, threads)) for name in APPS
        }
        timers = {name: partial(each.time, seconds) for name, each in served.items()}
        samples = take_turns(timers, rounds)
    rates = {name: 1 / median(taken) for name, taken in samples.items()}
    costs = {name: median(each.costs[1:]) for name, each in served.items()}
    others = [name for name in APPS if name not in (OURS, NOTHING)]
    return [
        f"{workers} by {threads}",
        *(f"{rates[name]:,.0f}/s, {costs[name] * 1e6:.0f} µs" for name in APPS),
        ", ".join(f"{rates[OURS] / rates[name]:.2f}" for name in others),
        ", ".join(f"{costs[OURS] / costs[name]:.2f}" for name in others),
    ]


class Served:
    """An app that gunicorn serves.

    :ivar costs: seconds of CPU for each request, a value for each round.
    """

    def __init__(self, address: str, pid: int, clients: int) -> None:
        self.costs: list[float] = []
        self._address = address
        self._master = psutil.Process(pid)
        self._clients = clients

    def time(self, seconds: float) -> float:
        """Seconds for each request, over so many."""
        before = self._cpu()
        took, done = _send_requests(self._address, self._clients, seconds)
        self.costs.append((self._cpu() - before) / done)
        return took / done

    def _cpu(self) -> float:
        times = [worker.cpu_times() for worker in self._master.children()]
        return sum(each.user + each.system for each in times)


@contextmanager
def _gunicorn(name: str, settings: dict[str, Any], workers: int, threads: int) -> Iterator[Served]:
    """gunicorn with a contender's app."""
    app = {"name": name, "settings": settings, "size": threads}
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder, "socket"))
        process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "--bind", f"unix:{address}",
                "--no-control-socket", "--workers", str(workers), "--threads", str(threads),
                "--worker-class", "gthread", "--log-level", "error", f"{__name__}:make_app()",
            ],
            env={**os.environ, "GROWTH_APP": json.dumps(app)},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while True:
                with suppress(OSError):
                    _send_requests(address, workers * threads, 0.5)
                    break
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"gunicorn with {name} does not answer")
                time.sleep(0.05)
            yield Served(address, process.pid, 2 * workers * threads)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _send_requests(address: str, clients: int, seconds: float) -> tuple[float, int]:
    """Seconds, and how many requests so many clients sent in them, one after the other each.

    Each request has a connection of its own, so that idle workers take it.
    """
    done = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            _send_request(selector, address)
        began = time.perf_counter()
        while not done or time.perf_counter() - began < seconds:
            answered = selector.select(30)
            if not answered:
                raise TimeoutError("the app does not answer")
            for key, _ in answered:
                answer = key.fileobj.recv(4096)  # type: ignore[union-attr]
                if answer:
                    if not answer.startswith(b"HTTP/1.1 200 ") and not key.data:
                        raise RuntimeError(f"the app answered {answer[:100]!r}")
                    selector.modify(key.fileobj, selectors.EVENT_READ, data=True)
                    continue
                _close(selector, key.fileobj)
                done += 1
                _send_request(selector, address)
        took = time.perf_counter() - began
        for key in list(selector.get_map().values()):
            _close(selector, key.fileobj)
    return took, done


def _send_request(selector: selectors.BaseSelector, address: str) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    client.sendall(REQUEST)
    selector.register(client, selectors.EVENT_READ, data=False)


def _close(selector: selectors.BaseSelector, client: Any) -> None:
    selector.unregister(client)
    client.close()


def make_app() -> Flask:
    """The app that GROWTH_APP of the environment describes, for gunicorn."""
    described = json.loads(os.environ["GROWTH_APP"])
    app = Flask("growth")
    fetch = APPS[described["name"]](app, described["settings"], described["size"])

    @app.get("/")
    def view() -> str:
        return str(fetch())

    return app


def _use_nothing(app: Flask, settings: dict[str, Any], size: int) -> Callable[[], object]:
    return lambda: "user 7"


def _use_ours(app: Flask, settings: dict[str, Any], size: int) -> Callable[[], object]:
    config = {"connection_settings": settings, "pool_settings": {"max_size": size}}
    db = PGMonkey(app, config=config)
    return lambda: db.fetch_value(QUERY.format("%s"), [7])


def _use_psycopg_pool(app: Flask, settings: dict[str, Any], size: int) -> Callable[[], object]:
    pool = psycopg_pool.ConnectionPool(kwargs=settings, min_size=1, max_size=size, open=True)

    def fetch() -> object:
        with pool.connection() as conn:
            return (conn.execute(QUERY.format("%s"), [7]).fetchone() or [None])[0]

    return fetch


def _use_flask_sqlalchemy(app: Flask, settings: dict[str, Any], size: int) -> Callable[[], object]:
    text = import_module("sqlalchemy").text(QUERY.format(":id"))
    db = import_module("flask_sqlalchemy").SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "connect_args": settings,
        "pool_size": size,
        "max_overflow": 0,
    }
    db.init_app(app)
    return lambda: db.session.execute(text, {"id": 7}).scalar()


APPS = {
    NOTHING: _use_nothing,
    OURS: _use_ours,
    "psycopg_pool": _use_psycopg_pool,
    "Flask-SQLAlchemy": _use_flask_sqlalchemy,
}


# Memory


def _memory_of_each(
    name: str, settings: dict[str, Any], observer: psycopg.Connection[Any]
) -> tuple[str, str]:
    """What the app's process, and the server's own, need for each connection of a pool."""
    few, _ = _memory_with(name, settings, 1, observer)
    many, servers = _memory_with(name, settings, 1 + MANY, observer)
    in_server = f"{median(servers) / 2**20:.1f} MB" if servers else "?"
    return f"{(many - few) / MANY / 1024:.0f} kB", in_server


def _memory_with(
    name: str, settings: dict[str, Any], size: int, observer: psycopg.Connection[Any]
) -> tuple[int, list[int]]:
    context = get_context("spawn")
    here, there = context.Pipe()
    settings = {**settings, "application_name": "growth"}
    process = context.Process(target=_hold, args=(name, settings, size, there), daemon=True)
    process.start()
    used = here.recv()
    pids = observer.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'growth'")
    servers = []
    if observer.info.host.startswith("/"):
        with suppress(psutil.AccessDenied):
            servers = [psutil.Process(pid).memory_full_info().uss for (pid,) in pids]
    here.send(None)
    process.join(30)
    return used, servers


def _hold(name: str, settings: dict[str, Any], size: int, pipe: Any) -> None:
    """Have a query run on each of so many connections, and tell what memory that took."""
    with POOLS[name](settings, size) as connections:
        for conn in connections:
            for _ in range(10):  # psycopg prepares it the sixth time
                conn.execute(QUERY.format("%s"), [7]).fetchall()
        pipe.send(psutil.Process().memory_full_info().uss)
        pipe.recv()


@contextmanager
def _connections_of_ours(settings: dict[str, Any], size: int) -> Iterator[list[Any]]:
    db = Database({"connection_settings": settings, "pool_settings": {"max_size": size}})
    connections = [db.pool.borrow(autocommit=True) for _ in range(size)]
    yield connections
    for conn in connections:
        db.pool.release(conn)
    db.close()


@contextmanager
def _connections_of_psycopg_pool(settings: dict[str, Any], size: int) -> Iterator[list[Any]]:
    with psycopg_pool.ConnectionPool(
        kwargs={**settings, "autocommit": True}, min_size=1, max_size=size, open=True
    ) as pool:
        connections = [pool.getconn() for _ in range(size)]
        yield connections
        for conn in connections:
            pool.putconn(conn)


POOLS = {OURS: _connections_of_ours, "psycopg_pool": _connections_of_psycopg_pool}
