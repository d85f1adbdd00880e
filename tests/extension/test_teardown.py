"""Queries in what Flask calls at the end of requests and contexts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import flask
import pytest
from flask import Flask, Response, stream_with_context

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

from .conftest import Site

Query = Callable[[PGMonkey[Any]], object]


def fetch(db: PGMonkey[Any]) -> object:
    return db.fetch_value("SELECT 1")


def fetch_twice(db: PGMonkey[Any]) -> object:
    db.fetch_value("SELECT 2")
    return db.fetch_value("SELECT 1")


def fetch_in_transaction(db: PGMonkey[Any]) -> object:
    with db.transaction() as tx:
        return tx.fetch_value("SELECT 1")


def fetch_by_cursor(db: PGMonkey[Any]) -> object:
    return db.cursor().execute("SELECT 1").fetchall()[0][0]


def begin_by_hand(db: PGMonkey[Any]) -> object:
    db.connection.execute("BEGIN")
    return 1


def stream(db: PGMonkey[Any]) -> object:
    return next(iter(db.stream("SELECT 1")))[0]


@pytest.fixture(params=["before init_app", "after init_app"])
def late_site(database: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site with ``late``: registers what Flask calls late, before or after ``init_app``.

    Its pool has one connection, so that one left out would fail the next request.
    """
    app = Flask("tests")
    db: PGMonkey[Any] = PGMonkey(
        config={"connection_settings": database, "pool_settings": {"max_size": 1, "timeout": 1}}
    )
    site = Site(app, db)
    if request.param == "before init_app":
        yield from _with_late(site, db.init_app)
    else:
        db.init_app(app)
        yield from _with_late(site, lambda app: None)
    with app.app_context():
        db.clear_cache()


def _with_late(site: Site, init_app: Callable[[Flask], None]) -> Iterator[Site]:
    site.app.extensions["late"] = init_app
    yield site


@pytest.mark.parametrize("view", [str, fetch], ids=["no query", "a query"])
@pytest.mark.parametrize(
    "query",
    [fetch, fetch_twice, fetch_in_transaction, fetch_by_cursor, begin_by_hand, stream],
)
@pytest.mark.parametrize(
    "where",
    [
        "teardown_request",
        "teardown_appcontext",
        "request_tearing_down",
        "appcontext_tearing_down",
    ],
)
def test_whatever_ends_a_request_may_query(
    late_site: Site, where: str, query: Query, view: Callable[..., Any]
) -> None:
    site, found = late_site, []

    def at_the_end(*_: object, **extra: object) -> None:
        found.append(query(site.db))

    if where.startswith("teardown"):
        getattr(site.app, where)(at_the_end)
        site.app.extensions.pop("late")(site.app)
    else:
        site.app.extensions.pop("late")(site.app)
        getattr(flask, where).connect(at_the_end, site.app)
    for n in range(1, 4):
        assert site.visit(lambda: str(view(site.db) if view is fetch else "")).status_code == 200
        assert borrowed_connections() == []
        assert found == [1] * n


def test_a_command_s_teardown_may_query(late_site: Site) -> None:
    site, found = late_site, []
    site.app.teardown_appcontext(lambda error: found.append(fetch(site.db)))
    site.app.extensions.pop("late")(site.app)
    with site.app.app_context():
        site.db.execute("SELECT 1")
    assert found == [1]
    assert borrowed_connections() == []


def test_a_streamed_response_ends_with_a_query_too(late_site: Site) -> None:
    site, found = late_site, []
    site.app.teardown_appcontext(lambda error: found.append(fetch(site.db)))
    site.app.extensions.pop("late")(site.app)

    def hear(sender: Flask, **extra: object) -> None:
        found.append(fetch(site.db))

    flask.appcontext_tearing_down.connect(hear, site.app)

    def view() -> Response:
        return Response(stream_with_context(str(fetch(site.db)) for _ in range(3)))

    assert site.visit(view).text == "111"
    assert found == [1] * len(found)
    assert len(found) >= 2
    assert borrowed_connections() == []


def test_what_runs_on_after_the_end_is_still_refused(site: Site, db: PGMonkey[Any]) -> None:
    ended = threading.Event()
    outcome: list[str] = []

    def run_on() -> None:
        ended.wait(10)
        try:
            db.fetch_value("SELECT 1")
        except RuntimeError as error:
            outcome.append(str(error))

    threads: list[threading.Thread] = []

    def view() -> None:
        db.fetch_value("SELECT 1")
        threads.append(threading.Thread(target=copy_context().run, args=(run_on,)))
        threads[0].start()

    def hear(sender: Flask, **extra: object) -> None:
        db.fetch_value("SELECT 1")

    with flask.appcontext_tearing_down.connected_to(hear, site.app):
        site.visit(view)
    ended.set()
    threads[0].join()
    del threads[:]
    assert "has ended" in outcome[0]
    assert borrowed_connections() == []
