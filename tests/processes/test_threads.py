"""Threads within requests: each context has its own connection, and gives it back."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask, copy_current_request_context, request

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

PID = "SELECT pg_backend_pid()"
db = PGMonkey()


@pytest.fixture
def app(config_file: Path) -> Iterator[Flask]:
    app = Flask(__name__)
    app.config["PGMONKEY_CONFIG"] = config_file
    db.init_app(app)
    yield app
    with app.app_context():
        db.clear_cache()


def test_a_copied_request_context_has_its_own_connection(app: Flask) -> None:
    @app.get("/")
    def view() -> list[int]:
        @copy_current_request_context
        def in_thread() -> int:
            assert request.path == "/"
            pid: int = db.fetch_value(PID)
            assert db.fetch_value(PID) == pid
            return pid

        mine = db.fetch_value(PID)
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(in_thread).result()
        assert len(borrowed_connections()) == 1
        return [mine, other, db.fetch_value(PID)]

    before, in_thread, after = app.test_client().get("/").get_json()
    assert before == after != in_thread
    assert not borrowed_connections()


def test_a_copied_request_context_may_outlive_the_request(app: Flask) -> None:
    over = threading.Event()

    @app.get("/")
    def view() -> str:
        @copy_current_request_context
        def in_thread() -> int:
            over.wait(10)
            return int(db.fetch_value(PID))

        db.fetch_value(PID)
        late.append(threads.submit(in_thread))
        return "soon"

    late: list[Future[int]] = []
    with ThreadPoolExecutor(1) as threads:
        assert app.test_client().get("/").text == "soon"
        assert not borrowed_connections()
        over.set()
        assert late[0].result() > 0
    assert not borrowed_connections()


def test_threads_of_a_view_with_app_contexts_work_at_the_same_time(app: Flask) -> None:
    @app.get("/")
    def view() -> list[int]:
        together = threading.Barrier(3)

        def in_thread() -> int:
            with app.app_context():
                pid: int = db.fetch_value(PID)
                together.wait(10)
                assert db.fetch_value(PID) == pid
                return pid

        mine = db.fetch_value(PID)
        with ThreadPoolExecutor(3) as threads:
            return [mine, *(f.result() for f in [threads.submit(in_thread) for _ in range(3)])]

    pids = app.test_client().get("/").get_json()
    assert len(set(pids)) == 4
    assert not borrowed_connections()


def test_a_thread_in_the_context_of_a_request_that_ended_borrows_nothing(app: Flask) -> None:
    @app.get("/")
    def view() -> str:
        contexts.append(contextvars.copy_context())
        return str(db.fetch_value(PID))

    contexts: list[contextvars.Context] = []
    app.test_client().get("/")
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(lambda: contexts[0].run(lambda: db.fetch_value(PID)))
        with pytest.raises(RuntimeError, match="has ended"):
            late.result()
    assert not borrowed_connections()
