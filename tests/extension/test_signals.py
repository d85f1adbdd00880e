"""Whose events are, in an app: its signals, their sender, bind, endpoint and parameters."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from contextlib import nullcontext
from typing import Any
from weakref import ref

import psycopg
import pytest
from flask import Flask
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey
from flask_pgmonkey.signals import (
    connection_borrowed,
    connection_returned,
    pool_exhausted,
    query_executed,
    transaction_ended,
)

from ..listening import listening
from .conftest import MakeSite, Site

HIDDEN = "***REDACTED***"


def test_a_query_in_a_view_tells_app_bind_endpoint_and_call_site(
    site: Site, db: PGMonkey[Any]
) -> None:
    def view() -> None:
        db.fetch_all("SELECT 1")
        db.execute("SELECT 2")

    with listening() as heard:
        site.visit(view)
        site.visit(view)
    assert heard.senders == [site.app] * 4
    assert {(event.bind, event.endpoint) for event in heard} == {("default", "page")}
    assert {(e.tally.method, e.tally.path) for e in heard} == {("GET", "/")}
    assert [event.call_site.function for event in heard] == ["view"] * 4
    assert [event.call_site.line for event in heard[:2]] == [
        view.__code__.co_firstlineno + 1, view.__code__.co_firstlineno + 2,
    ]  # fmt: skip
    first, second = heard[0].tally, heard[2].tally
    assert heard[1].tally is first is not second is heard[3].tally
    assert first.queries == 2
    assert first.seconds == heard[0].duration + heard[1].duration


def test_a_receiver_hears_of_its_own_app_alone(make_site: MakeSite) -> None:
    one, other = make_site(), make_site()
    heard = []
    with query_executed.connected_to(lambda app, event: heard.append(app), sender=one.app):
        for site in (one, other):
            with site.app.app_context():
                site.db.fetch_all("SELECT 1")
    assert heard == [one.app]


def test_outside_a_request_there_is_no_endpoint(site: Site, db: PGMonkey[Any]) -> None:
    with listening() as heard, site.app.app_context():
        db.fetch_all("SELECT 1")
        db.fetch_all("SELECT 2")
    assert [event.endpoint for event in heard] == [None, None]
    assert heard[0].tally is heard[1].tally
    assert heard[0].tally.queries == 2


@pytest.mark.parametrize("around", [True, False], ids=["in an outer context", "alone"])
def test_what_the_end_of_a_request_does_is_told_as_that_requests(
    site: Site, db: PGMonkey[Any], around: bool
) -> None:
    def view() -> None:
        db.fetch_all("SELECT 1")

    def leave_open() -> None:
        db.connection.execute("BEGIN")

    for visited in (view, leave_open):
        with listening(query_executed, transaction_ended, connection_returned) as heard:
            with site.app.app_context() if around else nullcontext():
                site.visit(visited)
                of_request = [*heard]
                if around:
                    db.fetch_all("SELECT 'outer'")
        assert {event.endpoint for event in of_request} == {"page"}
        assert len({id(event.tally) for event in of_request}) == 1
        kinds = [type(event).__name__ for event in heard]
        assert kinds[-1] == "ConnectionEvent"
        assert ("TransactionEvent" in kinds) == (visited is leave_open)
        of_outer = heard[len(of_request) :]
        assert {event.endpoint for event in of_outer} == ({None} if around else set())


@pytest.mark.parametrize("second", [{}, {"pool_settings": {"max_size": 2}}])
def test_each_event_says_the_right_bind_even_where_binds_share_a_pool(
    database: dict[str, Any], second: dict[str, Any]
) -> None:
    app = Flask("binds")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    app.config["PGMONKEY_BINDS"] = {"second": {"connection_settings": database, **second}}
    db = PGMonkey(app)
    with listening(connection_borrowed, query_executed, connection_returned) as heard:
        with app.app_context():
            db.fetch_all("SELECT 'default'")
            db.bind("second").fetch_all("SELECT 'second'")
            with db.bind("second").stream("SELECT 'second'") as stream:
                assert [*stream] == [("second",)]
            db.release()
            db.fetch_all("SELECT 'default'")
        with app.app_context():
            pool = db.get_connection("pool")
            with pool as conn:
                conn.execute("SELECT 'default'")
            db.clear_cache()
    for event in heard:
        if "SELECT" in getattr(event, "sql", ""):
            assert event.bind in event.sql
    of_pools = [event for event in heard if type(event).__name__ == "ConnectionEvent"]
    assert {event.pool for event in of_pools} == {"default", *(["second"] if second else [])}
    borrowed = [event.bind for event in of_pools]
    # The stream took over the connection, and gave it back first.
    assert borrowed == ["default", *["second"] * 2, *["default"] * 5]


def test_parameters_are_told_in_debug_alone_and_secrets_never(
    site: Site, db: PGMonkey[Any], admin: psycopg.Connection[Any]
) -> None:
    admin.execute("CREATE TABLE users (name text, password text, note jsonb)")

    def view() -> None:
        db.fetch_all("SELECT %s::int, %s", (1, "shown"))
        db.fetch_all("SELECT %(token)s, %(name)s", {"token": "hidden", "name": "shown"})
        db.execute("INSERT INTO users (name, password) VALUES (%s, %s)", ("hidden", "hidden"))
        db.fetch_all("SELECT %s", ("postgresql://user:hidden@host/db",))
        db.fetch_all("SELECT %s", (Jsonb({"api_key": "hidden", "name": "shown"}),))
        db.execute("SELECT 1")

    with listening() as heard:
        site.visit(view)
        site.app.debug = True
        site.visit(view)
    assert [event.parameters for event in heard] == [
        *[None] * 6,
        (1, "shown"),
        {"token": HIDDEN, "name": "shown"},
        (HIDDEN, HIDDEN),
        (HIDDEN,),
        ({"api_key": HIDDEN, "name": "shown"},),
        None,
    ]


def test_a_receiver_that_queries_does_not_recurse(site: Site, db: PGMonkey[Any]) -> None:
    answers = []

    def query(app: Flask, event: object) -> None:
        answers.append(db.fetch_value("SELECT 'in the receiver'"))

    with query_executed.connected_to(query), listening() as heard:
        site.visit(lambda: db.fetch_all("SELECT 1"))
    assert heard.texts == ["SELECT 1"]
    assert answers == ["in the receiver"]


def test_receivers_of_pools_may_query_too(make_site: MakeSite) -> None:
    site = make_site(pool_settings={"max_size": 1, "timeout": 0.2})
    db, answers = site.db, []

    def query(app: Flask, event: object) -> None:
        answers.append(db.fetch_value("SELECT 1"))

    with connection_borrowed.connected_to(query):
        site.visit(lambda: db.fetch_all("SELECT 1"))
    assert answers == [1]

    with site.app.app_context():
        pool = db.pool
        with pool.connection(), listening(pool_exhausted) as heard:
            with pytest.raises(PoolTimeout):
                db.fetch_all("SELECT 1")
    assert (heard.only().bind, heard.senders) == ("default", [site.app])


def test_events_of_threads_that_share_a_context_are_all_told(site: Site, db: PGMonkey[Any]) -> None:
    def view() -> None:
        contexts = [contextvars.copy_context() for _ in range(8)]
        threads = [
            threading.Thread(
                target=context.run,
                args=(lambda: [db.fetch_all("SELECT 1") for _ in range(20)],),
            )
            for context in contexts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with listening() as heard:
        site.visit(view)
    assert len(heard) == 160
    assert {event.endpoint for event in heard} == {"page"}


def test_aio_tells_endpoint_bind_and_call_site_across_its_hop(
    make_site: MakeSite, database: dict[str, Any]
) -> None:
    site = make_site()
    db = site.db

    async def view() -> str:
        await db.aio.fetch_all("SELECT 1")
        async with db.aio.transaction() as tx:
            await tx.execute("SELECT 2")
            async with tx.transaction() as nested:
                await nested.execute("SELECT 3")
        return "done"

    site.app.add_url_rule("/async", "async page", view)
    with listening() as heard:
        assert site.app.test_client().get("/async").text == "done"
    assert heard.texts == [
        "SELECT 1", "BEGIN", "SELECT 2", 'SAVEPOINT "_pg3_2"', "SELECT 3",
        'RELEASE "_pg3_2"', "COMMIT",
    ]  # fmt: skip
    assert {(event.bind, event.endpoint) for event in heard} == {("default", "async page")}
    assert {event.call_site.function for event in heard} == {"view"}
    assert heard.senders == [site.app] * 7
    assert heard[0].tally.queries == 3


def test_a_background_job_tells_its_call_site_without_an_endpoint(
    site: Site, db: PGMonkey[Any]
) -> None:
    async def job() -> None:
        await db.aio.fetch_all("SELECT 1")

    with listening() as heard, site.app.test_request_context("/"):
        db.background.run(job())
    event = heard.only()
    assert (event.endpoint, event.bind, event.call_site.function) == (None, "default", "job")


def test_outside_flask_the_database_is_the_sender(database: dict[str, Any]) -> None:
    db = Database({"connection_settings": database})
    with listening() as heard:
        db.fetch_all("SELECT %s", (1,))
    db.close()
    assert heard.senders == [db]
    assert (heard.only().bind, heard.only().tally, heard.only().parameters) == (None, None, None)
    forgotten = ref(db)
    del db
    heard.senders.clear()
    assert forgotten() is None


async def _query(db: AsyncDatabase[Any]) -> None:
    try:
        await db.fetch_all("SELECT 1")
    finally:
        await db.disconnect()


def test_outside_flask_the_async_database_is_the_sender(database: dict[str, Any]) -> None:
    db = AsyncDatabase({"connection_settings": database})
    with listening() as heard:
        asyncio.run(_query(db))
    assert heard.senders == [db]


def test_a_listener_keeps_no_app_alive(database: dict[str, Any]) -> None:
    app = Flask("forgotten")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    db = PGMonkey(app)
    with listening() as heard:
        with app.app_context():
            db.fetch_all("SELECT 1")
            db.clear_cache()
        assert len(heard) == 1
        heard.senders.clear()
        forgotten = ref(app)
        del app
        gc.collect()
        assert forgotten() is None


def test_a_receiver_that_queries_keeps_no_event_from_others(site: Site, db: PGMonkey[Any]) -> None:
    """What waits to be told meanwhile is told after it."""

    def disturb(sender: object, event: object) -> None:
        db.fetch_value("SELECT 1")

    def view() -> None:
        with db.transaction() as tx:
            tx.fetch_value("SELECT 2")
        db.execute("BEGIN")
        db.execute("COMMIT")

    with listening(query_executed, transaction_ended) as heard:
        with query_executed.connected_to(disturb, site.app):
            site.visit(view)
    told = [getattr(event, "sql", "its end") for event in heard]
    assert told == ["BEGIN", "SELECT 2", "COMMIT", "its end", "BEGIN", "COMMIT", "its end"]
