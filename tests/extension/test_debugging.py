"""What debug brings: warnings of N+1 queries, and ``Server-Timing``."""

from __future__ import annotations

import gc
import re
from typing import Any

import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.signals import query_executed

from .conftest import MakeSite, Site

HERE = "tests/extension/test_debugging.py"


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    made = make_site()
    made.app.debug = True
    return made


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "flask_pgmonkey.sql"]


def test_a_query_repeated_from_one_line_is_one_warning_that_names_it(
    site: Site, db: PGMonkey[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> None:
        for number in range(12):
            db.fetch_all("SELECT %s", (number,))

    site.visit(view)
    (warning,) = warnings(caplog)
    line = view.__code__.co_firstlineno + 2
    assert warning.startswith(
        f"{HERE}:{line} in view ran the same query 5 times in one request: SELECT %s."
    )
    assert "= ANY(%s)" in warning
    assert "db.allow_repeats()" in warning
    site.visit(view)
    assert len(warnings(caplog)) == 2  # another request


def test_what_is_no_repeat_is_no_warning(
    site: Site, db: PGMonkey[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> None:
        for number in range(12):
            db.fetch_all(f"SELECT {number}")
        for _ in range(4):
            db.fetch_all("SELECT 1")
        db.fetch_all("SELECT 1")
        db.execute_many("SELECT %s::int", [(number,) for number in range(12)])
        with db.transaction():
            with db.stream("SELECT generate_series(1, 20)", batch_size=1) as stream:
                assert len([*stream]) == 20

    site.visit(view)
    with site.app.app_context():
        for _ in range(12):
            db.fetch_all("SELECT 1")  # a command or a job
    assert warnings(caplog) == []


def test_repeats_that_are_allowed_are_no_warning(
    site: Site, db: PGMonkey[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> None:
        with db.allow_repeats():
            for _ in range(12):
                db.fetch_all("SELECT 1")

    site.visit(view)
    assert warnings(caplog) == []


def test_what_the_warning_advises_leaves_no_warning(
    site: Site, db: PGMonkey[Any], caplog: pytest.LogCaptureFixture
) -> None:
    ids = list(range(12))
    site.visit(
        lambda: db.fetch_all("SELECT n FROM generate_series(0, 99) n WHERE n = ANY(%s)", (ids,))
    )
    assert warnings(caplog) == []


def test_repeats_through_aio_are_counted_across_the_hop(
    site: Site, db: PGMonkey[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def view() -> str:
        for _ in range(6):
            await db.aio.fetch_all("SELECT 1")
        with db.allow_repeats():
            for _ in range(6):
                await db.aio.fetch_all("SELECT 2")
        return "done"

    site.app.add_url_rule("/async", "async", view)
    response = site.app.test_client().get("/async")
    (warning,) = warnings(caplog)
    assert " in view ran the same query 5 times in one request: SELECT 1." in warning
    assert 'desc="12 queries"' in response.headers["Server-Timing"]


def test_server_timing_says_how_many_queries_took_how_long(site: Site, db: PGMonkey[Any]) -> None:
    def view() -> None:
        db.fetch_all("SELECT pg_sleep(0.02)")
        with db.transaction():
            db.execute("SELECT 1")

    header = site.visit(view).headers["Server-Timing"]
    found = re.fullmatch(r'db;dur=(\d+\.\d);desc="2 queries"', header)
    assert found is not None
    assert float(found[1]) >= 20
    one = site.visit(lambda: db.fetch_value("SELECT 1")).headers["Server-Timing"]
    assert one.endswith('desc="1 query"')
    assert "Server-Timing" not in site.visit(lambda: None).headers


def test_without_debug_there_is_neither_and_nobody_listens(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()

    def view() -> None:
        assert not query_executed.has_receivers_for(site.app)
        for _ in range(12):
            site.db.fetch_all("SELECT 1")

    assert "Server-Timing" not in site.visit(view).headers
    assert warnings(caplog) == []
    assert not query_executed.has_receivers_for(site.app)


def test_debug_that_shows_only_after_init_app_counts(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()
    site.visit(lambda: None)  # Flask's setup is over
    site.app.debug = True
    response = site.visit(lambda: site.db.fetch_value("SELECT 'first'"))
    assert "Server-Timing" in response.headers


def test_a_second_app_without_debug_is_left_alone(
    site: Site, db: PGMonkey[Any], make_site: MakeSite
) -> None:
    other: Flask = make_site().app
    site.visit(lambda: db.fetch_value("SELECT 1"))
    assert query_executed.has_receivers_for(site.app)
    assert not query_executed.has_receivers_for(other)


def test_when_an_app_in_debug_is_gone_nobody_listens_any_more(database: dict[str, Any]) -> None:
    gc.collect()
    before = len(query_executed.receivers)
    app = Flask("forgotten")
    app.debug = True
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    db = PGMonkey(app)
    with app.app_context():
        db.fetch_value("SELECT 1")
        assert len(query_executed.receivers) == before + 1
        db.clear_cache()
    del app
    gc.collect()
    assert len(query_executed.receivers) == before
