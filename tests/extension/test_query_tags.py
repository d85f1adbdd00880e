"""``PGMONKEY_QUERY_TAGS``: which route sent a statement, said to the server in a comment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from psycopg import sql

from flask_pgmonkey import ConfigError, PGMonkey

from ..listening import listening

# What the server has of the statement that asks.
OWN = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
TAG = "/*application='shop',route='%2Forders%2F%3Cint%3Anumber%3E'*/"


@pytest.fixture
def make_db(database: dict[str, Any]) -> Iterator[Callable[..., PGMonkey[Any]]]:
    """Makes an app ``shop`` with these tags, and its database."""
    apps = []

    def make(tags: object) -> PGMonkey[Any]:
        app = Flask("shop")
        app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
        app.config["PGMONKEY_QUERY_TAGS"] = tags
        apps.append((app, PGMonkey(app)))
        return apps[-1][1]

    yield make
    for app, db in apps:
        with app.app_context():
            db.clear_cache()


def serve(db: PGMonkey[Any], view: Callable[[int], Any]) -> Callable[[str], Any]:
    """What gets a page of the app, whose orders *view* shows; its exceptions come through."""
    (app,) = db._apps
    app.testing = True
    app.add_url_rule("/orders/<int:number>", "order", view)
    return app.test_client().get


@pytest.mark.parametrize(
    "tags", [("route", "application"), "application, route", ["route", "application"]]
)
def test_each_statement_ends_in_a_comment_with_application_and_route(
    make_db: Callable[..., PGMonkey[Any]], tags: object
) -> None:
    db = make_db(tags)

    def order(number: int) -> str:
        assert db.fetch_value(OWN) == f"{OWN} {TAG}"
        assert db.fetch_value(f"{OWN} AND %s = '%%'", ("%",)) == (f"{OWN} AND $1 = '%' {TAG}")
        assert db.fetch_value(sql.SQL(OWN)) == f"{OWN} {TAG}"
        with db.stream("SELECT statement FROM pg_cursors") as stream:
            assert next(stream)[0].endswith(f"pg_cursors {TAG}")
        db.execute("CREATE TABLE IF NOT EXISTS numbers (n int)")
        assert db.execute_many("INSERT INTO numbers VALUES (%s)", [(1,), (2,)]) == 2
        with db.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
            assert [bytes(block) for block in copy] == [b"1\n"]
        return "done"

    assert serve(db, order)("/orders/7").text == "done"


def test_a_statement_that_is_commented_already_is_left_alone(
    make_db: Callable[..., PGMonkey[Any]],
) -> None:
    db = make_db(("application",))
    commented = (f"/* mine */ {OWN}", f"{OWN} -- mine", f"{OWN} AND '--' = %s")

    def order(number: int) -> str:
        for query in commented[:2]:
            assert db.fetch_value(query) == query
        assert "application" not in db.fetch_value(commented[2], ("--",))
        return "done"

    serve(db, order)("/orders/7")


def test_the_same_route_goes_on_using_its_prepared_statement(
    make_db: Callable[..., PGMonkey[Any]],
) -> None:
    db = make_db(("application", "route"))
    prepared = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE 'SELECT $%'"

    def order(number: int) -> list[Any]:
        db.fetch_value("SELECT %s::int", (number,))
        return [statement for (statement,) in db.fetch_all(prepared)]

    get = serve(db, order)
    found = [get(f"/orders/{number}").json for number in range(8)]
    assert found[-1] == [f"SELECT $1::int {TAG}"]


def test_what_has_no_route_has_no_tag_of_it(make_db: Callable[..., PGMonkey[Any]]) -> None:
    db = make_db(("route",))
    (app,) = db._apps
    with app.app_context():
        assert db.fetch_value(OWN) == OWN

    @app.errorhandler(404)
    def not_found(error: object) -> str:
        return str(db.fetch_value(OWN))

    assert app.test_client().get("/nowhere").text == OWN


def test_a_hostile_name_does_not_end_the_comment(database: dict[str, Any]) -> None:
    app = Flask("shop's */ DROP TABLE users; /*")
    app.config.update(
        PGMONKEY_CONFIG={"connection_settings": database}, PGMONKEY_QUERY_TAGS=("application",)
    )
    db = PGMonkey(app)
    with app.app_context():
        assert db.fetch_value(OWN) == (
            f"{OWN} /*application='shop%27s%20%2A%2F%20DROP%20TABLE%20users%3B%20%2F%2A'*/"
        )
        db.clear_cache()


def test_aio_carries_the_route_across_its_hop(make_db: Callable[..., PGMonkey[Any]]) -> None:
    db = make_db(("application", "route"))

    async def order(number: int) -> str:
        async with db.aio.transaction() as tx:
            assert await tx.fetch_value(OWN) == f"{OWN} {TAG}"
        return str(await db.aio.fetch_value(OWN))

    assert serve(db, order)("/orders/7").text == f"{OWN} {TAG}"
    with listening() as heard:
        assert serve_again(db, "/orders/7") == f"{OWN} {TAG}"
    assert OWN in heard.texts  # without the tag
    assert {event.endpoint for event in heard} == {"order"}


def serve_again(db: PGMonkey[Any], path: str) -> str:
    (app,) = db._apps
    return app.test_client().get(path).text


def test_all_tags_are_sorted_by_their_names(make_db: Callable[..., PGMonkey[Any]]) -> None:
    db = make_db(("route", "framework", "db_driver", "controller", "application"))
    sent = serve(db, lambda number: str(db.fetch_value(OWN)))("/orders/7").text
    names = [pair.partition("=")[0] for pair in sent.removeprefix(f"{OWN} /*").split(",")]
    assert names == ["application", "controller", "db_driver", "framework", "route"]
    assert "framework='flask%3A3" in sent


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (("aplication",), "there is no tag 'aplication'; did you mean 'application'"),
        ("traceparent", "there is no tag 'traceparent'; use some of application, "),
        (True, "must be names of tags, .* not bool"),
    ],
)
def test_a_tag_that_there_is_not_is_refused(
    make_db: Callable[..., PGMonkey[Any]], tags: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_db(tags)


def test_a_session_that_was_reset_is_tagged_still(make_db: Callable[..., PGMonkey[Any]]) -> None:
    db = make_db(("application",))
    (app,) = db._apps
    for _ in range(2):
        with app.app_context():
            db.execute("SET work_mem = '4MB'")
            assert db.fetch_value(OWN).endswith("/*application='shop'*/")
