"""``db.release()``: the connection goes back before the context ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import psycopg
import pytest
from flask import Flask, Response, stream_with_context

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

from .conftest import MakeSite, Site


@pytest.fixture
def db(site: Site) -> Iterator[PGMonkey[Any]]:
    """The site's database, in an app context."""
    with site.app.app_context():
        yield site.db


def test_the_next_query_borrows_again(db: PGMonkey[Any]) -> None:
    for _ in range(3):
        assert db.fetch_value("SELECT 1") == 1
        assert len(borrowed_connections()) == 1
        db.release()
        assert borrowed_connections() == []
        db.release()


def test_it_goes_back_clean(db: PGMonkey[Any]) -> None:
    conn = db.connection
    conn.row_factory = psycopg.rows.dict_row
    db.release()
    assert db.fetch_all("SELECT 1 AS n") == [(1,)]


def test_others_borrow_it_meanwhile(make_site: MakeSite) -> None:
    site = make_site(pool_settings={"max_size": 1, "timeout": 5})

    def view() -> None:
        site.db.fetch_value("SELECT 1")
        site.db.release()
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(site.app.test_client().get, "/other")
            assert other.result().text == "1"
        site.db.fetch_value("SELECT 1")

    site.app.add_url_rule("/other", "other", lambda: str(site.db.fetch_value("SELECT 1")))
    assert site.visit(view).status_code == 200
    assert borrowed_connections() == []


def test_a_stream_of_events_holds_none_while_it_waits(site: Site) -> None:
    held: list[int] = []

    def events() -> Iterator[str]:
        for _ in range(3):
            event = str(site.db.fetch_value("SELECT 1"))
            site.db.release()
            held.append(len(borrowed_connections()))
            yield event

    assert site.visit(lambda: Response(stream_with_context(events()))).text == "111"
    assert held == [0, 0, 0]


def test_each_bind_has_its_own(database: dict[str, Any]) -> None:
    app = Flask("tests")
    app.config["PGMONKEY_BINDS"] = {"other": {"connection_settings": database}}
    db = PGMonkey(app, config={"connection_settings": database})
    with app.app_context():
        db.fetch_value("SELECT 1")
        db.bind("other").fetch_value("SELECT 1")
        db.bind("other").release()
        assert len(borrowed_connections()) == 1
        db.release()
        assert borrowed_connections() == []
        db.clear_cache()


def by_block(db: PGMonkey[Any]) -> None:
    with db.transaction():
        db.release()


def by_hand(db: PGMonkey[Any]) -> None:
    db.execute("BEGIN")
    try:
        db.release()
    finally:
        db.execute("ROLLBACK")


def in_copy(db: PGMonkey[Any]) -> None:
    with db.cursor().copy("COPY (SELECT 1) TO STDOUT"):
        db.release()


def in_pipeline(db: PGMonkey[Any]) -> None:
    with db.connection.pipeline():
        db.release()


@pytest.mark.parametrize("around", [by_block, by_hand, in_copy, in_pipeline])
def test_while_something_goes_on_it_is_an_error_and_nothing_is_lost(
    db: PGMonkey[Any], around: Callable[[PGMonkey[Any]], None]
) -> None:
    with pytest.raises(psycopg.ProgrammingError, match=r"release\(\) w"):
        around(db)
    assert db.fetch_value("SELECT 1") == 1
    assert len(borrowed_connections()) == 1


def test_while_another_thread_of_the_context_queries_it_is_an_error(
    db: PGMonkey[Any], admin: psycopg.Connection[Any]
) -> None:
    admin.execute("SELECT pg_advisory_lock(1)")
    pid = db.fetch_value("SELECT pg_backend_pid()")
    query = threading.Thread(
        target=copy_context().run,
        args=(db.fetch_value, "SELECT pg_advisory_xact_lock_shared(1)"),
    )
    query.start()
    waiting = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
    while admin.execute(waiting, [pid]).fetchone() is None:
        pass
    with pytest.raises(psycopg.ProgrammingError, match="another thread"):
        db.release()
    admin.execute("SELECT pg_advisory_unlock(1)")
    query.join()
    db.release()
    assert borrowed_connections() == []


def test_outside_a_context_it_is_the_error_of_any_query(site: Site) -> None:
    with pytest.raises(RuntimeError, match="no app context"):
        site.db.release()
