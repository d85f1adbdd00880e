"""EXPLAIN at a click: what it runs, what it never runs, and for whom."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from psycopg import sql
from werkzeug.test import Client, TestResponse

from flask_pgmonkey.monitor.page import URL_PREFIX

from .conftest import Watch, Watched


@pytest.fixture
def plants(admin: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    admin.execute("CREATE TABLE plants (id serial PRIMARY KEY, name text, height int)")
    admin.execute(
        "INSERT INTO plants (name, height) SELECT 'fern', n FROM generate_series(1, 500) AS n"
    )
    admin.execute("ANALYZE plants")
    return admin


class Visitor:
    """A browser that looks at the last query."""

    def __init__(self, watched: Watched) -> None:
        self.client: Client = watched.app.test_client()
        self.address = f"{URL_PREFIX}/queries/{watched.rings.queries[-1].number}"

    def click(self, analyze: bool = False, **fields: str) -> TestResponse:
        page = self.client.get(self.address).text
        sent = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
        analyzing = {"analyze": "1"} if analyze else {}
        return self.client.post(f"{self.address}/plan", data={**sent, **analyzing, **fields})


def explain(watched: Watched, *query: Any, analyze: bool = False) -> str:
    """The page with the plan of a query that the app has just run."""
    watched.visit(lambda: watched.db.execute(*query))
    response = Visitor(watched).click(analyze)
    assert response.status_code == 200
    return response.text


def alarm(page: str) -> str:
    found = re.search(r'<p class="alarm" role="alert">(.*?)</p>', page)
    return found[1] if found else ""


def test_a_plan_is_a_tree_of_steps(watched: Watched, plants: psycopg.Connection[Any]) -> None:
    page = explain(
        watched,
        "SELECT name, count(*) FROM plants WHERE height > %s GROUP BY name ORDER BY 2",
        (100,),
    )
    assert alarm(page) == ""
    depths = re.findall(r'class="main depth depth-(\d)">\s+(\w+)', page)
    assert [step for _, step in depths] == ["Sort", "HashAggregate", "Seq"]
    assert [depth for depth, _ in depths] == ["0", "1", "2"]
    assert "Own cost" in page
    assert "Filter (height &gt; " in re.sub("<.*?>", "", page)


def test_run_and_measured_it_shows_times_and_wrong_estimates(
    watched: Watched, plants: psycopg.Connection[Any]
) -> None:
    query = "SELECT * FROM plants WHERE height %% 2 = %s AND length(name) = 4"
    page = explain(watched, query, (0,), analyze=True)
    assert alarm(page) == ""
    assert "Own ms" in page
    assert "ran for" in page
    assert "expected 1<" in page
    assert "Rows dropped by filters" in page


def test_what_changes_rows_is_planned_and_never_run(
    watched: Watched, plants: psycopg.Connection[Any]
) -> None:
    count = "SELECT count(*) FROM plants"
    for query in ("DELETE FROM plants WHERE id = %s", "UPDATE plants SET height = %s"):
        page = explain(watched, query, (-1,))
        assert alarm(page) == ""
        before = plants.execute(count).fetchone()
        assert "Run it and measure" not in page
        assert "Only a SELECT" in alarm(explain(watched, query, (-1,), analyze=True))
        assert plants.execute(count).fetchone() == before


@pytest.mark.parametrize(
    "query",
    [
        "WITH gone AS (DELETE FROM plants RETURNING 1) SELECT count(*) FROM gone",
        "SELECT nextval('plants_id_seq')",
        "/* a */ (SELECT nextval('plants_id_seq'))",
    ],
)
def test_a_select_that_writes_is_refused_by_the_server(
    watched: Watched, plants: psycopg.Connection[Any], query: str
) -> None:
    watched.visit(lambda: watched.db.execute(query))
    plants.execute("INSERT INTO plants (name) VALUES ('ivy')")
    page = Visitor(watched).click(analyze=True).text
    assert "read-only transaction" in alarm(page)
    assert plants.execute("SELECT count(*) FROM plants WHERE name = 'ivy'").fetchone() == (1,)


def test_of_several_statements_none_runs(watched: Watched, plants: psycopg.Connection[Any]) -> None:
    several = "SELECT 1; DELETE FROM plants"
    watched.visit(lambda: watched.db.connection.execute(several))
    plants.execute("INSERT INTO plants (name) VALUES ('ivy')")
    page = Visitor(watched).click().text
    assert "cannot insert multiple commands" in alarm(page)
    assert plants.execute("SELECT count(*) FROM plants").fetchone() == (1,)


def test_without_its_parameters_a_plan_is_the_generic_one(
    watch: Watch, plants: psycopg.Connection[Any]
) -> None:
    watched = watch()
    page = explain(
        watched,
        "SELECT %(password)s::text, id FROM plants WHERE id = %(id)s AND name LIKE 'f%%'",
        {"password": "hidden", "id": 3},
    )
    assert alarm(page) == ""
    assert "(id = $2)" in re.sub("<.*?>", "", page)
    assert "Run it and measure" not in page


def test_no_secret_of_a_text_is_in_what_the_server_says_of_it(
    watched: Watched, plants: psycopg.Connection[Any]
) -> None:
    plants.execute("CREATE TABLE users (name text, password text)")
    for query in (
        "INSERT INTO users VALUES ('me', 'hunter2') RETURNING password",
        "CREATE TABLE copied AS SELECT 'hunter2' AS password",
        "COMMENT ON COLUMN users.password IS 'hunter2'",
        "SELECT password FROM users WHERE name = 'hunter2'",
    ):
        assert "hunter2" not in explain(watched, query)


def test_composed_queries_are_explained_as_they_ran(
    watched: Watched, plants: psycopg.Connection[Any]
) -> None:
    query = sql.SQL("SELECT {} FROM plants WHERE id = %s").format(sql.Identifier("name"))
    assert "plants_pkey" in explain(watched, query, (3,))


def test_what_has_no_plan_says_so(watched: Watched, plants: psycopg.Connection[Any]) -> None:
    page = explain(watched, "CREATE TABLE pots (id int)")
    assert "syntax error" in alarm(page)

    def copy() -> None:
        with watched.db.cursor() as cursor, cursor.copy("COPY plants TO STDOUT") as rows:
            assert [*rows]

    watched.visit(copy)
    visitor = Visitor(watched)
    assert "Explain" not in visitor.client.get(visitor.address).text
    assert "have no plan" in alarm(visitor.click().text) or visitor.click().status_code == 400


def test_the_plan_takes_no_connection_of_the_pool(
    watch: Watch, plants: psycopg.Connection[Any]
) -> None:
    watched = watch(pool_settings={"max_size": 1, "timeout": 0.2})

    def view() -> None:
        watched.db.fetch_all("SELECT * FROM plants")
        assert "Seq Scan on plants" in Visitor(watched).click(analyze=True).text

    watched.visit(view)
    assert [entry.query.sql for entry in watched.rings.queries] == ["SELECT * FROM plants"]


def test_no_other_site_can_have_it_explained(
    watched: Watched, plants: psycopg.Connection[Any]
) -> None:
    watched.visit(lambda: watched.db.fetch_all("SELECT * FROM plants"))
    visitor = Visitor(watched)
    stranger = watched.app.test_client()
    assert stranger.post(f"{visitor.address}/plan").status_code == 400
    assert stranger.post(f"{visitor.address}/plan", data={"monitor_token": ""}).status_code == 400
    forged = {"monitor_token": "x" * 43}
    assert stranger.post(f"{visitor.address}/plan", data=forged).status_code == 400
    assert visitor.click(monitor_token="x" * 43).status_code == 400
    assert visitor.click().status_code == 200
    page = visitor.client.get(visitor.address).text
    token = re.search(r'name="monitor_token" value="([^"]+)"', page)
    assert token is not None
    answer = visitor.client.post(
        f"{visitor.address}/plan",
        data={"monitor_token": token[1]},
        headers={"Sec-Fetch-Site": "cross-site"},
    )
    assert answer.status_code == 400
    cookie = visitor.client.get_cookie("pgmonkey_monitor", path=f"{URL_PREFIX}/")
    assert cookie is not None
    assert (cookie.http_only, cookie.same_site) == (True, "Strict")
    assert visitor.client.get(f"{visitor.address}/plan").status_code == 302


def test_an_app_that_demands_a_token_of_its_own_gets_it(
    watched: Watched, plants: psycopg.Connection[Any]
) -> None:
    watched.app.add_template_global(lambda: "of-the-app", "csrf_token")
    watched.visit(lambda: watched.db.fetch_all("SELECT * FROM plants"))
    visitor = Visitor(watched)
    assert '<input type="hidden" name="csrf_token" value="of-the-app">' in (
        visitor.client.get(visitor.address).text
    )
