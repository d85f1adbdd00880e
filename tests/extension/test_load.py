"""Many requests at once, of which most go wrong."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from flask_pgmonkey.connections import borrowed_connections

from .conftest import MakeSite

REQUESTS = 1000


def test_requests_that_raise_cost_no_connection_and_no_row(
    make_site: MakeSite,
    admin: psycopg.Connection[Any],
    items: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = make_site(pool_settings={"min_size": 4, "max_size": 4})
    app, db = site.app, site.db
    app.testing = False
    # It would log a traceback for each request that raises; other tests have the same logger.
    monkeypatch.setattr(app.logger, "disabled", True)

    @app.post("/raise-in-transaction/<int:number>")
    def raise_in_transaction(number: int) -> str:
        with db.transaction():
            db.execute("INSERT INTO items VALUES (%s)", (number,))
            raise LookupError

    @app.post("/raise-after-query/<int:number>")
    def raise_after_query(number: int) -> str:
        db.execute("INSERT INTO items VALUES (%s)", (number,))
        raise LookupError

    @app.post("/succeed/<int:number>")
    def succeed(number: int) -> str:
        with db.transaction():
            db.execute("INSERT INTO items VALUES (%s)", (number,))
            return str(db.fetch_value("SELECT n FROM items WHERE n = %s", (number,)))

    views = ("raise-in-transaction", "raise-after-query", "succeed")

    def send(number: int) -> int:
        return app.test_client().post(f"/{views[number % 3]}/{number}").status_code

    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(send, range(REQUESTS)))

    assert codes == [(500, 500, 200)[number % 3] for number in range(REQUESTS)]
    assert items() == [number for number in range(REQUESTS) if number % 3]
    assert borrowed_connections() == []
    with app.app_context():
        stats = db.pool.get_stats()
        assert (stats["pool_size"], stats["pool_available"]) == (4, 4)
    states = admin.execute(
        "SELECT DISTINCT state FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchall()
    assert states == [("idle",)]


def test_reloads_under_load_fail_no_request(make_site: MakeSite) -> None:
    site = make_site(pool_settings={"max_size": 4})
    db = site.db

    def view() -> str:
        first = db.fetch_value("SELECT 1")
        with db.transaction() as tx:
            return str(first + tx.fetch_value("SELECT 1"))

    def send_many(_: int) -> set[str]:
        return {site.visit(view).text for _ in range(100)}

    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(send_many, range(8))
        with site.app.app_context():
            for _ in range(20):
                db.get_connection("pool", force_reload=True)
        assert set.union(*answers) == {"2"}
    assert borrowed_connections() == []


def test_threads_of_a_context_that_ends_or_loses_its_connection_harm_nobody(
    make_site: MakeSite, admin: psycopg.Connection[Any]
) -> None:
    site = make_site(pool_settings={"min_size": 2, "max_size": 2})
    db = site.db
    deadline = time.monotonic() + 60

    def query_until_the_end(first: int) -> int:
        answers = 0
        while time.monotonic() < deadline:
            try:
                assert db.fetch_value("SELECT %s::int", (first + answers,)) == first + answers
                answers += 1
            except psycopg.OperationalError:
                continue  # until the context borrows another connection, or has ended
            except RuntimeError as error:
                if "has ended" not in str(error):
                    raise
                return answers
        raise TimeoutError

    answered = 0
    with ThreadPoolExecutor(6) as threads:
        for turn in range(40):
            with site.app.app_context():
                stragglers = [
                    threads.submit(contextvars.copy_context().run, query_until_the_end, 1000 * n)
                    for n in range(6)
                ]
                for _ in range(turn % 3):
                    time.sleep(0.01)
                    ended = admin.execute(
                        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    ).fetchall()
                    # One that has yet to hear of its end would be borrowed below.
                    while admin.execute(
                        "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)",
                        ([pid for pid, _ in ended],),
                    ).rowcount:
                        assert time.monotonic() < deadline
                time.sleep(0.01)
            with site.app.app_context():
                assert db.fetch_value("SELECT 'mine'") == "mine"
            answered += sum(straggler.result() for straggler in stragglers)
    assert answered > 0
    assert borrowed_connections() == []
    with site.app.app_context(), db.pool as one, db.pool as another:
        assert one is not another
