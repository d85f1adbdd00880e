"""What the monitor keeps: the last of everything, in so much memory and no more."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask import Flask, abort

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.monitor import recording
from flask_pgmonkey.signals import (
    connection_borrowed,
    connection_returned,
    pool_exhausted,
    query_executed,
)

from .conftest import Watch, Watched

SAMPLER = "flask_pgmonkey-monitor"


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


def test_a_request_is_kept_with_its_queries_its_status_and_its_time(watched: Watched) -> None:
    def view() -> None:
        watched.db.fetch_value("SELECT 1")
        with watched.db.transaction() as tx:
            tx.fetch_value("SELECT %s::int", (2,))
        abort(404)

    watched.visit(view)
    (request,) = watched.rings.list_requests()
    assert [entry.query.sql for entry in request.queries] == ["SELECT 1", "SELECT %s::int"]
    assert [entry.query.sql for entry in request.entries][1] == "BEGIN"
    assert (request.tally.endpoint, request.tally.method) == ("page", "GET")
    assert request.finished is not None
    assert (request.finished.status, request.finished.error) == (404, None)
    assert request.finished.duration >= request.tally.seconds > 0
    assert request.began <= request.entries[0].query.started_at <= request.ended
    assert watched.rings.find_request(request.number) is not None
    (again,) = watched.rings.list_requests()
    assert again.number == request.number


def test_an_exception_that_leaves_the_view_is_the_end_of_its_request(watched: Watched) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        watched.visit(lambda: watched.db.fetch_value("SELECT 1 / %s", (0,)))
    (request,) = watched.rings.list_requests()
    assert request.finished is not None
    assert request.finished.error == "DivisionByZero"
    assert request.errors == 1
    (error,) = watched.rings.errors
    assert (error.query.sql, error.query.sqlstate) == ("SELECT 1 / %s", "22012")
    found = watched.rings.find_query(error.number)
    assert found is not None
    assert found.sql == "SELECT 1 / %s"


def test_repeats_are_counted_by_text_and_line(watched: Watched) -> None:
    def view() -> None:
        for number in range(7):
            watched.db.fetch_value("SELECT %s::int", (number,))
        watched.db.fetch_value("SELECT 'once'")

    watched.visit(view)
    (request,) = watched.rings.list_requests()
    assert [(sql, times) for (sql, _), times in request.repeats.items()] == [("SELECT %s::int", 7)]
    assert request.most_alike == 7


def test_slow_queries_are_those_that_the_apps_config_calls_slow(watch: Watch) -> None:
    for bound, is_slow in ((0.01, True), (30, False)):
        watched = watch(PGMONKEY_SLOW_QUERY=bound)
        watched.visit(lambda watched=watched: watched.db.fetch_value("SELECT pg_sleep(0.02)"))
        assert [entry.query.sql for entry in watched.rings.slow] == (
            ["SELECT pg_sleep(0.02)"] if is_slow else []
        )


def test_who_has_borrowed_is_known_with_the_calls_that_led_there(watched: Watched) -> None:
    def view() -> None:
        watched.db.fetch_value("SELECT 1")
        ((pool, conn),) = watched.recording.borrowed()
        borrower = watched.rings.borrowers[pool, conn.info.backend_pid]
        assert (borrower.event.endpoint, pool) == ("page", "default")
        assert borrower.stack[0].file == __file__
        assert borrower.stack[0].function == "view"
        assert any(call.function == "wsgi_app" for call in borrower.stack)

    watched.visit(view)
    assert watched.recording.borrowed() == []
    wait_for(lambda: not watched.rings.borrowers)


def test_a_connection_that_was_lost_is_out_no_more(watched: Watched) -> None:
    with watched.app.app_context():
        conn = watched.db.pool.borrow()
        assert len(watched.rings.borrowers) == 1
        del conn
        gc.collect()
    wait_for(lambda: not watched.rings.borrowers)


def test_waiting_in_vain_is_kept(watch: Watch) -> None:
    watched = watch(pool_settings={"max_size": 1, "timeout": 0.05})

    def view() -> None:
        watched.db.fetch_value("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            watched.db.pool.borrow()

    watched.visit(view)
    ((_, event),) = watched.rings.exhausted
    assert event.endpoint == "page"
    assert "1 of at most 1 are borrowed" in event.message


def test_the_pools_are_sampled_and_that_opens_none(watch: Watch, database: dict[str, Any]) -> None:
    watched = watch(PGMONKEY_BINDS={"other": {"connection_settings": {**database, "user": "me"}}})
    watched.visit(lambda: watched.db.fetch_value("SELECT 1"))
    sample = wait_for(lambda: [each for each in watched.rings.samples if each.pools])[-1]
    assert [*sample.pools] == ["default"]
    assert sample.pools["default"].max_size == 10


def test_the_sampler_ends_with_its_app(watch: Watch, database: dict[str, Any]) -> None:
    app = Flask("short-lived")
    app.config.from_mapping(
        DEBUG=True, PGMONKEY_MONITOR=True, PGMONKEY_CONFIG={"connection_settings": database}
    )
    db: PGMonkey[Any] = PGMonkey(app)
    before = {thread for thread in threading.enumerate() if thread.name == SAMPLER}
    with app.app_context():
        db.fetch_value("SELECT 1")
        (sampler,) = {each for each in threading.enumerate() if each.name == SAMPLER} - before
        db.clear_cache()
    del app, db
    gc.collect()
    sampler.join(20)
    assert not sampler.is_alive()


def test_queries_through_aio_belong_to_their_request(watched: Watched) -> None:
    async def ask() -> None:
        await asyncio.gather(*(watched.db.aio.fetch_value("SELECT 'aio'") for _ in range(3)))

    watched.visit(lambda: asyncio.run(ask()))
    (request,) = watched.rings.list_requests()
    assert [entry.query.sql for entry in request.queries] == ["SELECT 'aio'"] * 3
    assert request.tally.endpoint == "page"
    assert "default (async)" in watched.recording.measure()


def test_megabytes_of_a_query_are_not_kept(watched: Watched) -> None:
    text, numbers = "x" * 1_000_000, list(range(50_000))
    named: dict[str, Any] = {"blob": b"x" * 5_000_000, "small": [[1], [2]], "nothing": None}

    def view() -> None:
        watched.db.fetch_value("SELECT length(%s)", (text,))
        watched.db.fetch_value("SELECT cardinality(%s)", (numbers,))
        watched.db.fetch_value("SELECT length(%(blob)s), %(small)s::text, %(nothing)s::int", named)
        watched.db.fetch_value(f"SELECT '{text}'")

    watched.visit(view)
    first, second, third, fourth = (entry.query for entry in watched.rings.queries)
    assert str(first.parameters[0]) == f"{'x' * 100}… (1000000 characters in all)"
    assert str(second.parameters[0]) == "list of length 50000"
    assert str(third.parameters["blob"]) == "bytes of length 5000000"
    assert third.parameters["small"] == [[1], [2]]
    assert third.parameters["nothing"] is None
    assert len(fourth.sql) < recording.LONGEST_TEXT + 100


def test_memory_is_flat_once_the_rings_are_full(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "QUERIES", 100)
    monkeypatch.setattr(recording, "REQUESTS", 50)
    monkeypatch.setattr(recording, "REMARKABLE", 20)
    monkeypatch.setattr(recording, "SLOW", 0.0000001)  # not by the config, which would log them
    watched = watch()

    def view() -> None:
        for _ in range(3):
            watched.db.fetch_value("SELECT %s::text", ("x" * 900,))

    def memory_after(requests: int) -> int:
        for _ in range(requests):
            watched.visit(view)
        watched.rings.list_requests()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        full = memory_after(100)
        assert memory_after(300) - full < 100_000  # 300 requests come to twenty times that
    finally:
        tracemalloc.stop()
    assert len(watched.rings.queries) == 100
    assert len(watched.rings.requests) == 50
    assert len(watched.rings.slow) == 20
    assert len(watched.rings.request_numbers) <= 100


def test_parameters_are_kept_in_debug_alone_and_secrets_never(watch: Watch) -> None:
    watched = watch()

    def view() -> None:
        watched.db.fetch_value("SELECT %s::text", ("shown",))
        watched.db.fetch_value("SELECT %s::text AS password", ("hidden",))

    watched.visit(view)
    shown, hidden = (entry.query.parameters for entry in watched.rings.queries)
    assert shown == ("shown",)
    assert hidden == ("***REDACTED***",)
    watched.app.debug = False
    watched.visit(view)
    assert [entry.query.parameters for entry in watched.rings.queries][2:] == [None, None]


def test_without_the_monitor_nothing_listens_and_nothing_is_imported(
    watch: Watch, database: dict[str, Any]
) -> None:
    watched = watch(PGMONKEY_MONITOR=False, DEBUG=False)
    watched.visit(lambda: watched.db.fetch_value("SELECT 1"))
    for signal in (query_executed, connection_borrowed, connection_returned, pool_exhausted):
        assert not signal.has_receivers_for(watched.app)
    program = (
        "import sys; from flask import Flask; from flask_pgmonkey import PGMonkey;"
        "app = Flask('app'); app.config['PGMONKEY_CONFIG'] = 'postgresql://nowhere/x';"
        "PGMonkey(app); print([name for name in sys.modules if 'monitor' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done


def test_debug_that_shows_only_after_init_app_counts(watch: Watch) -> None:
    watched = watch(DEBUG=False)
    watched.app.debug = True  # as app.run(debug=True) does
    watched.visit(lambda: watched.db.fetch_value("SELECT 1"))
    assert len(watched.rings.list_requests()) == 1
