"""Requests while the server is gone, silent or killed, each figure beside its bound."""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from time import monotonic, sleep
from typing import Any, NamedTuple

import psycopg
from flask import Flask

from flask_pgmonkey import PGMonkey

from ..proxy import Proxy
from ..servers import PrivateServer, create_cluster, make_open_folder
from .measuring import print_table, print_versions

WORKERS = 2
REQUESTS_PER_SECOND = 20
TIMEOUT = 5.0  # the pool's own
AT_ONCE = 0.1


class Answer(NamedTuple):
    """How a request went."""

    worker: int
    start: float
    seconds: float
    error: str
    """The name of its error's class; empty where it went well."""
    is_psycopgs: bool

    @property
    def end(self) -> float:
        """When it was over."""
        return self.start + self.seconds


class Finding(NamedTuple):
    """A figure beside its bound."""

    what: str
    measured: str
    bound: str
    holds: bool


def main(argv: list[str]) -> None:
    """Print what each fault costs. The exit code is 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks faults", description=__doc__)
    parser.add_argument(
        "--outages", type=float, nargs="*", default=[3, 20, 40], help="seconds of each restart"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    arguments = parser.parse_args(argv)
    findings: list[Finding] = []
    with private_server() as server:
        for seconds in arguments.outages:
            findings += measure_outage(server, seconds, arguments.threads)
        for measure in (measure_stopped_in_mid_query, measure_lost_flows, measure_killing):
            findings += measure(server)
        print_table(
            ("fault", "measured", "bound", "holds"),
            ((*finding[:3], "yes" if finding.holds else "NO") for finding in findings),
        )
        with server.connect() as admin:
            print_versions(("Flask", "psycopg", "psycopg-pool"), admin)
    if not all(finding.holds for finding in findings):
        sys.exit(1)


@contextmanager
def private_server() -> Iterator[PrivateServer]:
    """A server that may be hurt."""
    folder = make_open_folder()
    try:
        create_cluster(folder / "data")
        with closing(PrivateServer(folder / "data")) as server:
            yield server
    finally:
        shutil.rmtree(folder)


class Site:
    """An app whose page queries, and remembers how its requests went."""

    def __init__(
        self, settings: dict[str, Any], query: str = "SELECT 1", worker: int = 0, **config: Any
    ) -> None:
        self._app = Flask(__name__)
        self._worker = worker
        self.db = PGMonkey(self._app, config={"connection_settings": settings, **config})
        self._app.add_url_rule("/", "page", lambda: str(self.db.fetch_value(query)))
        self._app.testing = True  # errors come through

    def visit(self) -> Answer:
        """Send a request."""
        start = monotonic()
        error: Exception | None = None
        try:
            self._app.test_client().get("/")
        except Exception as raised:
            error = raised
        return Answer(
            self._worker,
            start,
            monotonic() - start,
            type(error).__name__ if error else "",
            isinstance(error, psycopg.Error),
        )

    def warm(self, connections: int) -> None:
        """Have the pool open so many connections."""
        with self._app.app_context():
            for conn in [self.db.pool.borrow(timeout=30) for _ in range(connections)]:
                self.db.pool.release(conn)

    def close(self) -> None:
        """Close the pool."""
        with self._app.app_context():
            self.db.clear_cache()


def serve(number: int, threads: int, settings: dict[str, Any], requests: Any, answers: Any) -> None:
    """A worker of a web server, each of whose threads answers requests until it is sent None."""
    with closing(Site(settings, worker=number, pool_settings={"timeout": TIMEOUT})) as site:
        site.warm(threads)
        answers.put(None)

        def answer_all() -> None:
            while requests.get() is not None:
                answers.put(site.visit())

        answering = [threading.Thread(target=answer_all) for _ in range(threads)]
        for thread in answering:
            thread.start()
        for thread in answering:
            thread.join()


def measure_outage(server: PrivateServer, seconds: float, threads: int) -> list[Finding]:
    """Stop the server for so long, under a steady load on warm workers."""
    context = get_context("spawn")
    requests, answers = context.Queue(), context.Queue()
    workers = [
        context.Process(
            target=serve, args=(n, threads, server.settings(), requests, answers), daemon=True
        )
        for n in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        answers.get(timeout=60)
    is_over = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        while not is_over.wait(1 / REQUESTS_PER_SECOND):
            requests.put("/")
            sent += 1

    sender = threading.Thread(target=send)
    sender.start()
    sleep(1)
    server.stop()
    sleep(seconds)
    server.start()
    started_at = monotonic()
    sleep(2)
    is_over.set()
    sender.join()
    taken: list[Answer] = [answers.get(timeout=60) for _ in range(sent)]
    for _ in range(WORKERS * threads):
        requests.put(None)
    for worker in workers:
        worker.join(30)
    failed = [answer for answer in taken if answer.error]
    fault = f"server gone for {seconds:g} s"
    if seconds < TIMEOUT:
        return [
            Finding(f"{fault}: failed of {len(taken)} requests", f"{len(failed)}", "0", not failed)
        ]
    known_at = {
        n: min(each.end for each in failed if each.worker == n and each.seconds > AT_ONCE)
        for n in range(WORKERS)
    }
    waited = [answer for answer in failed if answer.start < known_at[answer.worker]]
    rest = max(answer.seconds for answer in failed if answer not in waited)
    recovered = max(0.0, max(answer.end for answer in failed) - started_at)
    return [
        Finding(
            f"{fault}: failed of {len(taken)} requests",
            f"{len(failed)}",
            "with psycopg's error",
            all(answer.is_psycopgs for answer in failed),
        ),
        Finding(
            f"{fault}: waited, of {WORKERS} workers with {threads} threads",
            f"{len(waited)}, for {max(answer.seconds for answer in waited):.1f} s at most",
            f"{WORKERS * threads}, for {TIMEOUT + 0.5:g} s",
            len(waited) <= WORKERS * threads
            and all(answer.seconds <= TIMEOUT + 0.5 for answer in waited),
        ),
        Finding(
            f"{fault}: slowest of the others that failed",
            f"{rest * 1e3:.0f} ms",
            f"{AT_ONCE * 1e3:.0f} ms",
            rest <= AT_ONCE,
        ),
        Finding(
            f"{fault}: last error after its end", f"{recovered:.2f} s", "0.3 s", recovered <= 0.3
        ),
    ]


def measure_stopped_in_mid_query(server: PrivateServer) -> list[Finding]:
    """Stop every process of the server while a query runs that may take 2 s."""
    config: dict[str, Any] = {"pool_settings": {"query_timeout": 2}}
    with closing(Site(server.settings(), "SELECT pg_sleep(60)", **config)) as site:
        site.warm(1)
        stopping = threading.Timer(0.5, server.pause)
        stopping.start()
        answer = site.visit()
        stopping.join()
        server.resume()
    return [
        Finding(
            "stopped in mid-query, query_timeout 2",
            f"{answer.error} after {answer.seconds:.1f} s",
            "psycopg's error within 4 s",
            answer.is_psycopgs and answer.seconds <= 4,
        )
    ]


def measure_lost_flows(server: PrivateServer) -> list[Finding]:
    """Swallow what goes over the connections that there are; new ones are fine."""
    with closing(Proxy(server.host, server.port)) as proxy:
        settings = server.settings(port=proxy.port)
        config: dict[str, Any] = {"pool_settings": {"query_timeout": 2, "max_size": 6}}
        with closing(Site(settings, **config)) as site, ThreadPoolExecutor(6) as threads:
            site.warm(6)
            taken = [threads.submit(site.visit) for _ in range(REQUESTS_PER_SECOND)]
            proxy.lose_flows()
            lost_at = monotonic()
            for _ in range(8 * REQUESTS_PER_SECOND):
                sleep(1 / REQUESTS_PER_SECOND)
                taken.append(threads.submit(site.visit))
            answers = [each.result() for each in taken]
    failed = [answer for answer in answers if answer.error]
    recovered = max((answer.end for answer in failed), default=lost_at) - lost_at
    return [
        Finding(
            f"old flows lost, query_timeout 2: last error ({len(failed)} of {len(answers)})",
            f"after {recovered:.1f} s",
            "psycopg's error within 5 s",
            recovered <= 5 and all(answer.is_psycopgs for answer in failed),
        )
    ]


def measure_killing(server: PrivateServer) -> list[Finding]:
    """Send 1,000 requests while a backend dies every 10 ms."""
    count = 1000
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
        " ORDER BY random() LIMIT 1"
    )
    is_over = threading.Event()

    def kill_on() -> None:
        with server.connect() as admin:
            while not is_over.wait(0.01):
                admin.execute(kill)

    settings = server.settings()
    query = "SELECT 1 FROM pg_sleep(0.005)"
    config: dict[str, Any] = {
        "pool_settings": {"max_size": 8},
        "sync_settings": {"statement_timeout": "10s", "lock_timeout": "5s"},
    }
    with closing(Site(settings, query, **config)) as site, ThreadPoolExecutor(8) as threads:
        site.warm(8)
        killer = threading.Thread(target=kill_on)
        killer.start()
        taken = [threads.submit(site.visit) for _ in range(count)]
        answers = [each.result() for each in taken]
        is_over.set()
        killer.join()
    failed = [answer for answer in answers if answer.error]
    foreign = [answer for answer in failed if not answer.is_psycopgs]
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(a.error for a in failed).items())
    return [
        Finding(
            f"a backend dies every 10 ms: failed of {count} requests",
            f"{len(failed)} ({kinds}), slowest {max(answer.seconds for answer in answers):.2f} s",
            "with psycopg's error alone",
            not foreign,
        )
    ]
