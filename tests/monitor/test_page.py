"""The monitor's pages: who sees them, what they show, and what they never show."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask, abort

from flask_pgmonkey import ConfigError, PGMonkey
from flask_pgmonkey.monitor import monitor_blueprint
from flask_pgmonkey.monitor.page import recording_of

from ..proxy import Proxy
from ..servers import PASSWORD, PrivateServer
from .conftest import Watch, Watched

MakeProxy = Callable[[str, int], Proxy]
PAGES = ("", "requests/", "queries/", "server/default", "config/")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"{{7*7}}</code></main>"


def make_app(database: dict[str, Any], **config: Any) -> tuple[Flask, PGMonkey[Any]]:
    app = Flask("shop")
    app.testing = True
    app.config.from_mapping(PGMONKEY_CONFIG={"connection_settings": database}, **config)
    return app, PGMonkey(app)


# Who sees it


def test_outside_debug_it_is_not_registered_without_authorize(database: dict[str, Any]) -> None:
    app, db = make_app(database)
    with pytest.raises(ConfigError, match=r"monitor_blueprint\(db, authorize=…\)"):
        app.register_blueprint(monitor_blueprint(db), url_prefix="/db")


def test_what_the_refusal_advises_is_a_monitor_for_those_who_may(database: dict[str, Any]) -> None:
    app, db = make_app(database)
    may: list[bool] = [False]
    app.register_blueprint(monitor_blueprint(db, authorize=lambda: may[0]), url_prefix="/db")
    client = app.test_client()
    for path in ("/db/", "/db/config/", "/db/requests/1", "/db/static/monitor.css"):
        assert client.get(path).status_code == 403
    may[0] = True
    response = client.get("/db/", headers={"Host": "shop.example"})
    assert response.status_code == 200
    assert "Overview" in response.text
    with app.app_context():
        db.clear_cache()


def test_authorize_may_abort_by_itself(database: dict[str, Any]) -> None:
    app, db = make_app(database)
    app.register_blueprint(monitor_blueprint(db, authorize=lambda: abort(401)))
    assert app.test_client().get("/").status_code == 401


def test_by_hand_in_debug_it_needs_no_authorize(database: dict[str, Any]) -> None:
    app, db = make_app(database, DEBUG=True)
    app.register_blueprint(monitor_blueprint(db), url_prefix="/db")
    assert app.test_client().get("/db/").status_code == 200
    app.debug = False
    assert app.test_client().get("/db/").status_code == 404


def test_the_key_in_an_app_without_debug_shows_nothing_and_records_nothing(watch: Watch) -> None:
    watched = watch(DEBUG=False)
    watched.visit(lambda: watched.db.fetch_value("SELECT 1"))
    for page in PAGES:
        assert watched.page(page).status_code == 404
    assert not watched.rings.queries


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True),
        ("[::1]:5000", True), ("shop.localhost", True), ("192.168.1.7", True),
        ("evil.example", False), ("localhost.evil.example:5000", False),
        ("127.0.0.1.nip.io", False),
    ],
)  # fmt: skip
def test_without_authorize_no_name_of_a_stranger_leads_to_it(
    watched: Watched, host: str, is_answered: bool
) -> None:
    assert watched.page(Host=host).status_code == (200 if is_answered else 403)


def test_a_strict_csp_allows_the_page_nothing_but_its_own_files(watched: Watched) -> None:
    watched.visit(lambda: watched.db.fetch_value("SELECT 1"))
    for page in PAGES:
        response = watched.page(page)
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert not re.search(r"\sstyle=|<style|\son\w+=|javascript:", response.text)
        assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")
        for script in re.findall(r"<script.*?</script>", response.text, re.DOTALL):
            assert re.fullmatch(r'<script src="/_pgmonkey/static/[\w.]+" defer></script>', script)


def test_the_apps_template_functions_are_not_called(watched: Watched) -> None:
    @watched.app.context_processor
    def ask_the_database() -> dict[str, Any]:
        raise AssertionError

    assert watched.page().status_code == 200


# What they show


def test_every_page_shows_what_was_recorded(
    watched: Watched, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("CREATE TABLE plants (id int PRIMARY KEY, name text)")
    admin.execute("CREATE INDEX plants_name ON plants (name)")

    def view() -> None:
        for number in range(6):
            watched.db.fetch_all("SELECT name FROM plants WHERE id = %s", (number,))
        with pytest.raises(psycopg.errors.UndefinedColumn):
            watched.db.fetch_all("SELECT nothing FROM plants")

    watched.visit(view, "plants.list", "/plants")
    shown = {page: watched.page(page).text for page in PAGES}
    assert "/plants" in shown[""]
    assert "plants.list" in shown[""]
    assert "6 alike" in shown[""]
    assert "UndefinedColumn 42703" in shown[""]
    assert "plants.list" in shown["requests/"]
    assert "test_page.py" in shown["queries/"]
    assert "1 failed" in shown["queries/"]
    assert "plants_name" in shown["server/default"]
    assert "unused" in shown["server/default"]
    assert "pool_settings.max_size" in shown["config/"]
    (request,) = watched.rings.list_requests()
    page = watched.page(f"requests/{request.number}").text
    assert "6 times" in page
    assert "= ANY(%s)" in page
    query = watched.page(f"queries/{request.queries[3].number}").text
    assert '<th scope="row" class="number">1</th><td><code>3</code>' in query


def test_who_has_borrowed_is_shown_with_stack(watched: Watched) -> None:
    def view() -> None:
        watched.db.fetch_value("SELECT 1")
        page = watched.page().text
        assert re.search(r"default, session \d+", page)
        assert "in test_who_has_borrowed_is_shown_with_stack" in page

    watched.visit(view, "borrowing")
    assert "No connection is out." in watched.page().text


def test_outside_debug_neither_parameters_nor_paths_are_shown(database: dict[str, Any]) -> None:
    app, db = make_app(database)
    app.register_blueprint(monitor_blueprint(db, authorize=lambda: True), url_prefix="/db")

    @app.get("/reset/<token>")
    def reset(token: str) -> str:
        db.fetch_value("SELECT %s::text", (token,))
        return "done"

    client = app.test_client()
    client.get("/reset/t0ken")
    (request,) = recording_of(app).rings.list_requests()
    pages = (*PAGES, f"requests/{request.number}", f"queries/{request.queries[0].number}")
    texts = [client.get(f"/db/{page}").text for page in pages]
    with app.app_context():
        db.clear_cache()
    assert not any("t0ken" in text for text in texts)
    assert "Parameters are kept in debug mode alone." in texts[-1]


def test_what_is_gone_says_so(watched: Watched) -> None:
    for page in ("requests/12", "queries/12"):
        response = watched.page(page)
        assert response.status_code == 404
        assert "is not kept here" in response.text
    assert watched.page("server/nothing").status_code == 404


def test_who_blocks_whom_is_shown(watched: Watched, admin: psycopg.Connection[Any]) -> None:
    admin.execute("CREATE TABLE plants (id int)")
    admin.execute("INSERT INTO plants VALUES (1)")
    with watched.app.app_context():
        with watched.db.transaction() as tx:
            tx.execute("UPDATE plants SET id = 2")
            blocked = psycopg.connect(**psycopg_settings(watched), autocommit=True)
            try:
                blocked.pgconn.send_query(b"UPDATE plants SET id = 3")
                deadline = time.monotonic() + 20
                while "Who blocks whom" not in (page := watched.page("server/default").text):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            finally:
                blocked.close()
    tree = page[page.index("Who blocks whom") : page.index("</ul>")]
    assert re.search(r'depth-0".*idle in transaction.*depth-1".*Lock: ', tree, re.DOTALL)


def psycopg_settings(watched: Watched) -> dict[str, Any]:
    settings: dict[str, Any] = watched.app.config["PGMONKEY_CONFIG"]["connection_settings"]
    return settings


def test_a_table_that_is_locked_keeps_only_its_own_part_from_the_page(
    watched: Watched, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("CREATE TABLE plants (id int)")
    with admin.transaction():
        admin.execute("LOCK TABLE plants IN ACCESS EXCLUSIVE MODE")
        page = watched.page("server/default").text
    assert "Not now: canceling statement due to lock timeout" in page
    assert "LOCK TABLE plants" in page.replace("</span>", "").replace('<span class="keyword">', "")


def test_pg_stat_statements_is_read_where_it_is(
    watched: Watched, admin: psycopg.Connection[Any]
) -> None:
    assert "The extension is not installed" in watched.page("server/default").text
    # A stand-in with its columns, because the real one has to be loaded at the server's start.
    admin.execute("SET allow_system_table_mods = on")
    admin.execute("CREATE SCHEMA odd")
    admin.execute(
        "CREATE VIEW odd.pg_stat_statements AS SELECT oid AS dbid, 'SELECT $1' AS query,"
        " 1234::bigint AS calls, 500::float AS total_exec_time, 2468::bigint AS rows,"
        " 3::bigint AS shared_blks_hit, 1::bigint AS shared_blks_read FROM pg_database"
    )
    admin.execute(
        "INSERT INTO pg_extension VALUES (99999, 'pg_stat_statements', 10, 'odd'::regnamespace,"
        " true, '1.10', NULL, NULL)"
    )
    time.sleep(0.1)  # for which a look is kept
    page = watched.page("server/default").text
    admin.execute("DELETE FROM pg_extension WHERE oid = 99999")
    statements = page[page.index('id="statements"') :]
    for shown in ("500.0", "1,234", "0.41", "2,468", "75.0 %"):
        assert f">{shown}<" in statements


# The server is down


def test_a_server_that_is_down_is_said_and_its_return_too(
    watch: Watch, private_server: PrivateServer, proxy: MakeProxy
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port), pool_settings={"timeout": 0.5})
    watched.visit(lambda: watched.db.fetch_value("SELECT 'before'"))
    gate.refuse()
    gate.drop_all()
    for page in ("", "server/default"):
        response = watched.page(page)
        assert response.status_code == 200
        assert "server does not answer" in response.text
    for page in ("requests/", "queries/", "config/"):
        assert watched.page(page).status_code == 200
    gate.accept()
    time.sleep(0.1)  # for which a look is kept
    for page in ("", "server/default"):
        assert "server does not answer" not in watched.page(page).text


def test_a_server_that_says_nothing_costs_a_page_so_long_and_no_longer(
    watch: Watch, private_server: PrivateServer, proxy: MakeProxy
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port))
    gate.deaf()
    began = time.monotonic()
    assert "no answer within 1.5 seconds" in watched.page().text
    assert time.monotonic() - began < 1.5 + 5
    gate.resume()


def test_the_server_is_looked_at_over_a_connection_that_is_none_of_the_pools(
    watch: Watch, private_server: PrivateServer
) -> None:
    watched = watch(private_server.settings(), pool_settings={"max_size": 1, "timeout": 0.2})

    def view() -> None:
        watched.db.fetch_value("SELECT 1")  # the pool has nothing left
        for page in PAGES:
            assert watched.page(page).status_code == 200
        assert "1<small> of 1</small>" in watched.page().text

    watched.visit(view)
    assert len(watched.rings.list_requests()) == 1  # none of the monitor's own
    with private_server.connect() as admin:
        deadline = time.monotonic() + 20
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%monitor'"
        while admin.execute(sessions).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# Secrets, and hostile text


def test_no_secret_is_on_any_page(
    watch: Watch, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTHER_PASSWORD", "hunter2-of-the-environment")
    other = {
        "connection_settings": {
            **{key: value for key, value in database.items() if key != "password"},
            "password": "${OTHER_PASSWORD}",
            "options": "-c my.token=hunter2-in-options",
        }
    }
    watched = watch(
        {**database, "password": "hunter2-in-config"} if "password" not in database else database,
        PGMONKEY_BINDS={"other": other},
        PGMONKEY_RESOLVE_ENV=True,
        SECRET_KEY="hunter2-of-the-app",
    )

    def view() -> None:
        with pytest.raises(psycopg.Error):
            watched.db.execute("SELECT 'hunter2-literal' AS password FROM nowhere")
        watched.db.fetch_one("SELECT %s::text AS password", ("hunter2-parameter",))
        watched.db.fetch_one("SELECT %(token)s::text", {"token": "hunter2-named"})

    watched.visit(view)
    (request,) = watched.rings.list_requests()
    details = [f"queries/{entry.number}" for entry in request.queries]
    for page in (*PAGES, "server/other", f"requests/{request.number}", *details):
        text = watched.page(page).text
        assert "hunter2" not in text, page
        assert PASSWORD not in text
    assert "***REDACTED***" in watched.page("config/").text


def test_hostile_names_and_texts_are_text(
    watch: Watch, database: dict[str, Any], admin: psycopg.Connection[Any]
) -> None:
    hostile = HOSTILE.replace("'", "")
    quoted = '"' + hostile[:50].replace('"', '""') + '"'
    admin.execute(f"CREATE TABLE {quoted} (id int PRIMARY KEY)")
    watched = watch(
        {**database, "application_name": hostile[:60]},
        PGMONKEY_BINDS={HOSTILE.replace("/", ""): {"connection_settings": database}},
    )
    watched.app.name = HOSTILE

    def view() -> None:
        watched.db.fetch_value("SELECT %s::text", (HOSTILE,))
        with pytest.raises(psycopg.Error):
            watched.db.fetch_value(f"SELECT {HOSTILE}")
        with pytest.raises(psycopg.Error):
            watched.db.fetch_value(f"SELECT %({HOSTILE})s::text", {HOSTILE: HOSTILE})
        for page in (*PAGES, "server/default"):
            check(watched.page(page).text)

    def check(text: str) -> None:
        assert "<img" not in text.replace('<img src="/_pgmonkey/static/monitor.svg" alt=""', "")
        assert text.count("<script") == 1
        assert text.count("</main>") == 1

    watched.visit(view, "hostile", f"/{hostile.replace('<', '-').replace('{', '-')}")
    (request,) = watched.rings.list_requests()
    for entry in request.entries:
        check(watched.page(f"queries/{entry.number}").text)
    check(watched.page(f"requests/{request.number}").text)


def test_several_apps_have_a_recording_each(watch: Watch) -> None:
    one, other = watch(), watch()
    one.visit(lambda: one.db.fetch_value("SELECT 1"))
    assert len(recording_of(one.app).rings.queries) == 1
    assert not recording_of(other.app).rings.queries
