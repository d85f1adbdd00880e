"""Streamed responses through real web servers: slow clients, clients and servers that go away."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psutil
import pytest

from ..servers import Server
from .running import PATIENCE, Programs, WebServer, wait_for

POOL = {"pool_settings": {"max_size": 2}}
SLOW_READER_MB = int(os.environ.get("PGMONKEY_SLOW_READER_MB", "50"))


def start(programs: Programs, name: str, *options: str) -> WebServer:
    command = (
        ("flask", "--app", "tests.processes.app", "run", "--port", 0, *options)
        if name == "werkzeug"
        else (
            *("gunicorn", "--bind", "127.0.0.1:0", "--worker-class", name, "--threads", 2),
            "tests.processes.app:app",
        )
    )
    return WebServer(
        programs.start(
            *(sys.executable, "-m", *command),
            FLASK_PGMONKEY_CONFIG=programs.config(**POOL),
            HOME=programs.folder,
        )
    )


@pytest.fixture(params=["werkzeug", "sync", "gthread", "gevent"])
def web(request: pytest.FixtureRequest, programs: Programs) -> WebServer:
    return start(programs, request.param)


@contextmanager
def answer_of(web: WebServer, path: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, whose body has not been read."""
    host, _, port = web.address.removeprefix("http://").partition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=PATIENCE)) as client:
        client.request("GET", path)
        answer = client.getresponse()
        with closing(answer):
            assert answer.status == 200
            yield answer


def count_of(kind: str, body: str) -> int:
    """How many rows are in a whole body."""
    if kind == "csv":
        return len(list(csv.reader(io.StringIO(body)))) - 1
    return len(json.loads(body)) if kind == "json" else len(body.splitlines())


def expect_not_valid(kind: str, body: str) -> None:
    """Fail if a body with many rows could be taken for whole."""
    assert body.count("x" * 100) > 1000
    if kind == "csv":
        assert body.endswith('\n"')
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(body if kind == "json" else body.splitlines()[-1])


every_kind = pytest.mark.parametrize("kind", ["json", "lines", "csv"])


@every_kind
def test_a_body_arrives_whole(web: WebServer, kind: str) -> None:
    assert count_of(kind, web.get(f"/rows/{kind}/20000")) == 20_000


@every_kind
def test_a_query_that_fails_halfway_breaks_the_body(
    programs: Programs, web: WebServer, kind: str
) -> None:
    with answer_of(web, f"/rows/{kind}/200000?fails_at=100000") as answer:
        assert answer.getheader("Transfer-Encoding") == "chunked"
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
    expect_not_valid(kind, caught.value.partial.decode())
    # The server goes on, and its connection with it.
    assert count_of(kind, web.get(f"/rows/{kind}/10")) == 10
    wait_for(lambda: not programs.sessions("active"), "the end of the query")


@every_kind
def test_under_the_debugger_which_ends_every_body_it_is_not_valid(
    programs: Programs, kind: str
) -> None:
    web = start(programs, "werkzeug", "--debug", "--no-reload")
    expect_not_valid(kind, web.get(f"/rows/{kind}/200000?fails_at=100000"))


@every_kind
def test_a_client_that_hangs_up_gives_the_connection_back(
    programs: Programs, web: WebServer, kind: str
) -> None:
    for _ in range(3):  # more often than the pool has connections
        with answer_of(web, f"/rows/{kind}/100000000") as answer:
            assert len(answer.read(100_000)) == 100_000
            assert programs.sessions("active")
        wait_for(lambda: not programs.sessions("active"), "the end of the query")
    assert count_of(kind, web.get(f"/rows/{kind}/10")) == 10
    assert len(programs.sessions()) <= 2 + 1  # and the other pool of the app's


@pytest.mark.parametrize(("name", "kind"), [("gthread", "csv"), ("gevent", "json")])
def test_a_database_that_dies_halfway_breaks_the_body(
    programs: Programs, server: Server, name: str, kind: str
) -> None:
    web = start(programs, name)
    with answer_of(web, f"/rows/{kind}/100000000") as answer:
        answer.read(100_000)
        (pid,) = programs.sessions("active")
        with server.connect() as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        with pytest.raises(http.client.IncompleteRead):
            while answer.read(1 << 20):
                pass
    assert count_of(kind, web.get(f"/rows/{kind}/10")) == 10


def test_a_web_server_that_is_killed_halfway_breaks_the_body(programs: Programs) -> None:
    web = start(programs, "gthread")
    worker = json.loads(web.get("/pids"))["process"]
    with answer_of(web, "/rows/csv/100000000") as answer:
        answer.read(100_000)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            while answer.read(1 << 20):
                pass
    wait_for(lambda: not programs.sessions("active"), "the end of the query")


@pytest.mark.parametrize(
    ("name", "kind"), [("werkzeug", "lines"), ("gthread", "csv"), ("gevent", "json")]
)
def test_a_slow_reader_costs_no_memory(
    programs: Programs, server: Server, name: str, kind: str
) -> None:
    """``PGMONKEY_SLOW_READER_MB=2000`` makes it read as much."""
    web = start(programs, name)
    web.get(f"/rows/{kind}/10000")
    process = psutil.Process(json.loads(web.get("/pids"))["process"])
    before = process.memory_info().rss
    size = peak = 0

    def is_waiting() -> Any:
        with server.connect() as admin:
            return admin.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event = 'ClientWrite'",
                [programs.connection_settings["dbname"]],
            ).fetchone()

    with answer_of(web, f"/rows/{kind}/{SLOW_READER_MB * 9_000}") as answer:
        answer.read(1000)
        # All that can be buffered is full: the database waits for the reader.
        wait_for(is_waiting, "a database that waits")
        while block := answer.read(1 << 20):
            size += len(block)
            peak = max(peak, process.memory_info().rss)
    print(f"{name}, {kind}: {size / 1e6:.0f} MB, peak RSS {(peak - before) / 1e6:+.1f} MB")
    assert size > SLOW_READER_MB * 900_000
    assert peak - before < 15_000_000
