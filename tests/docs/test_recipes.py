"""Every file under docs/recipes runs as it stands, beside a database.yaml of a real database."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from flask_pgmonkey.connections import borrowed_connections

from ..servers import PrivateServer
from ..suite import Suite

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = DOCS / "recipes"

PROGRAMS = {
    "normal_connection": [
        "The second insert was rolled back.",
        "Users: [('Ada',)]",
        "The second call gave the same object: True",
    ],
    "pool": [
        "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        "The second call gave the same pool: True",
    ],
    "async_connection": ["Users: 0", "The second call gave the same object: True"],
    "async_pool": ["Connections used: 3", "The second call gave the same pool: True"],
    "asyncio_database": ["Inside the transaction: 2", "At once: ['Ada', 'Grace']"],
    "typed_rows": [
        "Users: ['Ada', 'Anita', 'Grace']",
        "Initials: ['A 2', 'G 1']",
        "How many: 3 ['Ada', 'Anita', 'Grace']",
        "Without into: {'name': 'Ada'}",
    ],
    "explaining": [
        "Seq Scan on visits dropped 9998 rows by (page = '7'::smallint)",
        "With an index: Aggregate > Index Only Scan",
        "Its cost is less: True",
    ],
    "batches": [
        "Added: 2",
        "Names: ['Ada', 'Grace'] 2",
        "The error is in query 2 of 2 of the batch",
        "All or nothing: 2",
    ],
    "script_database": ["Inside the transaction: [('ADA',), ('GRACE',)]", "Users: 2"],
}
APPS = {
    "first_view",
    "listening",
    "shop",
    "flask_database",
    "flask_factory",
    "fastapi_database",
    "quart_database",
    "async_views",
    "background_job",
    "transactions",
    "streaming",
    "json_and_csv",
    "slow_calls",
    "health_checks",
    "monitor",
    "opentelemetry_metrics",
    "prometheus",
    "semantic_search",
    "sql_files",
    "tenants",
    "transfers",
}

SCHEMA = """
    CREATE TABLE users (id integer GENERATED ALWAYS AS IDENTITY, name text NOT NULL);
    CREATE TABLE nicknames (name text PRIMARY KEY);
    CREATE TABLE orders (id integer, total integer);
"""


@pytest.fixture
def tables(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the recipes' database; its database.yaml is in the working directory."""
    config = tmp_path / "database.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": database}))
    config.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute(SCHEMA)
        yield connection


@pytest.fixture
def load(
    tables: psycopg.Connection[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ModuleType]:
    """Import a recipe from a copy beside the config file."""

    def load_recipe(name: str) -> ModuleType:
        copy = tmp_path / f"{name}.py"
        copy.write_text((RECIPES / f"{name}.py").read_text())
        spec = importlib.util.spec_from_file_location(name, copy)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_recipe


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_print_what_they_say(tables: psycopg.Connection[Any], name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", RECIPES / f"{name}.py"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == PROGRAMS[name]


def test_every_recipe_is_run_here_and_shown_on_a_page() -> None:
    recipes = {file.stem for file in RECIPES.glob("*.py")}
    assert recipes == PROGRAMS.keys() | APPS
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert {name for name in recipes if f"recipes/{name}.py" not in pages} == set()


def test_listening_counts_queries_by_endpoint(
    tables: psycopg.Connection[Any], load: Callable[[str], ModuleType]
) -> None:
    recipe = load("listening")
    tables.execute("INSERT INTO users (name) VALUES ('Ada')")
    client = recipe.app.test_client()
    client.get("/users")
    assert client.get("/users").json == {"users": ["Ada"], "queries": {"list_users": 2}}
    recipe.query_executed.disconnect(recipe.count)
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_first_view_answers_users(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("first_view")
    tables.execute("INSERT INTO users (name) VALUES ('Ada')")
    response = recipe.app.test_client().get("/users")
    assert response.json == {"users": [{"id": 1, "name": "Ada"}]}
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_shop_runs_in_an_empty_folder(open_folder: Path) -> None:
    (open_folder / "shop.py").write_text((RECIPES / "shop.py").read_text())
    get_users = "import shop; print(shop.app.test_client().get('/users').text)"
    init_db = ["-m", "flask", "--app", "shop", "init-db"]
    runs = [
        subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=open_folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        for arguments in (init_db, init_db, ["-c", get_users])
    ]
    assert json.loads(runs[-1].stdout) == {"users": [{"id": 1, "name": "Ada"}]}


def test_flask_with_a_module_level_database(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("flask_database")
    tables.execute("INSERT INTO users (name) VALUES ('Ada')")
    response = recipe.app.test_client().get("/users")
    assert response.json == {"users": [{"id": 1, "name": "Ada"}]}
    recipe.db.close()


def test_flask_factory_takes_its_database_from_the_environment(
    load: Callable[[str], ModuleType],
    tables: psycopg.Connection[Any],
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load("flask_factory")
    tables.execute("INSERT INTO users (name) VALUES ('Ada')")
    first = recipe.create_app()
    monkeypatch.setenv("FLASK_PGMONKEY_CONFIG", str(config_file))
    second = recipe.create_app("no-such-file.yaml")
    for app in (first, second):
        assert app.test_client().get("/users").json == {"users": [{"id": 1, "name": "Ada"}]}
        with app.app_context():
            recipe.db.clear_cache()


def test_fastapi_through_its_lifespan(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("fastapi_database")
    tables.execute("INSERT INTO orders VALUES (1, 250)")

    async def ask() -> Any:
        transport = httpx.ASGITransport(recipe.app)
        async with recipe.app.router.lifespan_context(recipe.app):
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return (await client.get("/orders")).json()

    assert asyncio.run(ask()) == {"orders": [{"id": 1, "total": 250}]}
    wait_until_alone(tables)


def test_quart_through_its_serving(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("quart_database")
    tables.execute("INSERT INTO orders VALUES (1, 250)")

    async def ask() -> Any:
        async with recipe.app.test_app() as running:
            response = await running.test_client().get("/orders")
            return await response.get_json()

    assert asyncio.run(ask()) == {"orders": [{"id": 1, "total": 250}]}
    wait_until_alone(tables)


def test_async_views_query_at_once_and_in_a_transaction(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("async_views")
    client = recipe.app.test_client()
    assert client.post("/orders/1/250").json == {"turnover": 250}
    assert client.get("/summary").json == {"users": 0, "orders": 1, "turnover": 250}
    with recipe.app.app_context():
        recipe.db.clear_cache()
    wait_until_alone(tables)


def test_semantic_search_finds_what_is_alike(open_folder: Path, suite: Suite) -> None:
    pytest.importorskip("pgvector")
    suite.copy_cluster(open_folder / "instance" / "postgres" / "data")
    (open_folder / "semantic_search.py").write_text((RECIPES / "semantic_search.py").read_text())
    search = """
        import json
        from semantic_search import app, db
        assert app.test_cli_runner().invoke(args=["init-db"]).exit_code == 0
        client = app.test_client()
        for text in ("A cat sat on the mat", "Pools of connections", "Two cats on a mat", "Sums"):
            assert client.post("/notes", data={"text": text}).status_code == 201
        with app.app_context():
            assert type(db.fetch_value("SELECT embedding FROM notes")).__name__ == "Vector"
        print(client.get("/notes?q=two cats on one mat").text)
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(search)],
        cwd=open_folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    first, second, third = json.loads(run.stdout)["notes"]
    assert (first["text"], second["text"]) == ("Two cats on a mat", "A cat sat on the mat")
    assert first["similarity"] > second["similarity"] > third["similarity"]
    assert run.stderr == ""


def test_sql_in_files_runs_on_the_requests_connection(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any], tmp_path: Path
) -> None:
    pytest.importorskip("aiosql")
    (tmp_path / "users.sql").write_text((RECIPES / "users.sql").read_text())
    recipe = load("sql_files")
    client = recipe.app.test_client()
    assert client.post("/users/Ada").json == {"id": 1}
    assert client.post("/users/Grace").status_code == 201
    assert client.get("/users/A").json == {"users": [{"id": 1, "name": "Ada (1)"}]}
    with recipe.app.app_context():
        recipe.db.clear_cache()
    wait_until_alone(tables)


def test_a_background_job_goes_on_behind_the_answer(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("background_job")
    client = recipe.app.test_client()
    assert client.post("/users/Ada").status_code == 202
    deadline = time.monotonic() + 5
    while client.get("/users").json != {"users": 1}:
        assert time.monotonic() < deadline, "the job did not add the user"
    with recipe.app.app_context():
        recipe.db.clear_cache()
    wait_until_alone(tables)


def wait_until_alone(connection: psycopg.Connection[Any]) -> None:
    """Return once no other session uses the connection's database."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    deadline = time.monotonic() + 5
    while connection.execute(sessions).fetchone() != (1,):
        assert time.monotonic() < deadline, "a session of the recipe is still connected"


def test_a_nested_transaction_is_a_savepoint(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("transactions")
    client = recipe.app.test_client()
    assert client.post("/users/Adam").status_code == 201
    assert client.post("/users/Adalbert").status_code == 201
    nicknames = tables.execute("SELECT name FROM nicknames ORDER BY name").fetchall()
    assert nicknames == [("Ada",), ("Ada2",)]
    assert client.get("/report").json == {"users": 2, "nicknames": 2}
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_a_transfer_is_made_once_and_told_once(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    tables.execute("CREATE TABLE accounts (id integer PRIMARY KEY, balance integer)")
    tables.execute("INSERT INTO accounts SELECT n, 1000 FROM generate_series(1, 2) AS n")
    recipe = load("transfers")

    def send(number: int) -> int:
        payer, payee = (1, 2) if number % 2 else (2, 1)
        client = recipe.app.test_client()
        code: int = client.post(f"/transfer/{payer}/{payee}/{number}").status_code
        return code

    with ThreadPoolExecutor(3) as threads:
        codes = [*threads.map(send, range(1, 13)), send(999999)]
    assert codes.pop() == 409
    made = [number for number, code in enumerate(codes, 1) if code == 200]
    assert made  # on a slow machine four attempts may not do
    assert sorted(int(text.split()[0]) for text in recipe.sent) == made
    balance = 1000 + sum(-number if number % 2 else number for number in made)
    assert tables.execute("SELECT balance FROM accounts ORDER BY id").fetchall() == [
        (balance,),
        (2000 - balance,),
    ]
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_tenants_see_their_own_notes_alone(
    load: Callable[[str], ModuleType], private_server: PrivateServer, tmp_path: Path
) -> None:
    page = (DOCS / "tenants.md").read_text()
    (schema,) = re.findall(r"^```sql\n(.*?)^```", page, re.S | re.M)
    config = tmp_path / "database.yaml"  # of a user for whom policies hold
    config.write_text(yaml.safe_dump({"connection_settings": private_server.settings()}))
    with psycopg.connect(**private_server.settings(), autocommit=True) as owner:
        owner.execute(schema)
    recipe = load("tenants")
    client = recipe.app.test_client()
    ada, grace = {"X-Tenant": "1"}, {"X-Tenant": "2"}
    for text, who, count in (("one", ada, 1), ("two", grace, 1), ("three", ada, 2)):
        answer = client.post("/notes", data=text, headers=who)
        assert (answer.status_code, answer.json) == (201, {"notes": count})
    assert client.get("/notes", headers=ada).json == ["one", "three"]
    assert client.get("/notes", headers=grace).json == ["two"]
    assert client.get("/notes").status_code == 401
    with recipe.app.app_context():
        assert recipe.db.fetch_all("SELECT text FROM notes") == []
        recipe.db.clear_cache()


def test_a_stream_of_any_size(load: Callable[[str], ModuleType]) -> None:
    recipe = load("streaming")
    lines = recipe.app.test_client().get("/numbers.csv").text.splitlines()
    assert len(lines) == 100_000
    assert lines[-1] == "100000,200000"
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_orders_come_and_go_as_json_and_csv(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    recipe = load("json_and_csv")
    client = recipe.app.test_client()
    orders = "id,total\n1,250\n2,100\n"
    assert client.post("/orders", data=orders).json == {"rows": 2}
    form = {"file": (io.BytesIO(b"total;id\n70;3\n"), "orders.csv")}
    assert client.post("/orders", data=form).json == {"rows": 1}
    wrong = {"file": (io.BytesIO(b"id,total\n4,5\n5,many\n"), "orders.csv")}
    refused = client.post("/orders", data=wrong)
    page = (DOCS / "json-and-csv.md").read_text()
    assert refused.status_code == 422
    assert refused.json == json.loads(page.partition("```json\n")[2].partition("```")[0])
    rows = [{"id": 1, "total": 250}, {"id": 2, "total": 100}, {"id": 3, "total": 70}]
    assert client.get("/orders/newest?limit=2").json == rows[:0:-1]
    assert client.get("/orders.json").json == rows
    lines = client.get("/orders.ndjson").text.splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert client.get("/orders.csv").text == orders + "3,70\n"
    assert client.get("/summary").json == rows[::-1]
    with recipe.app.app_context():
        recipe.db.clear_cache()
    wait_until_alone(tables)


def test_health_checks_answer(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any]
) -> None:
    client = load("health_checks").app.test_client()
    assert client.get("/health/live").json == {"status": "alive"}
    ready = {"status": "ready", "failures": 0, "pool": None}
    page = (DOCS / "monitoring.md").read_text()
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert client.get("/health/ready").json == {
        "status": "ready",
        "databases": {"default": ready},
    }
    assert shown["databases"]["default"].keys() == ready.keys()


@pytest.mark.parametrize("name", ["opentelemetry_metrics", "prometheus"])
def test_metrics_are_those_that_the_page_lists(
    load: Callable[[str], ModuleType], tables: psycopg.Connection[Any], name: str
) -> None:
    recipe = load(name)
    with recipe.app.app_context():
        recipe.db.fetch_all("SELECT 1")
    if name == "prometheus":
        shown = recipe.app.test_client().get("/metrics").text
        listed = re.findall(r"`(db_client_\w+)`", (DOCS / "monitoring.md").read_text())
        assert len(listed) == 9
        assert not [metric for metric in listed if f"# TYPE {metric} " not in shown]
    else:
        assert "pgmonkey_metrics" in recipe.app.extensions
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_slow_calls_hold_no_connection(
    load: Callable[[str], ModuleType],
    tables: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load("slow_calls")
    borrowed: list[list[str]] = []

    def ask_another_service(name: str) -> str:
        borrowed.append(borrowed_connections())
        return name.upper()

    monkeypatch.setattr(recipe, "ask_another_service", ask_another_service)
    client = recipe.app.test_client()
    for name in ("Ada", "Grace"):
        assert client.post(f"/users/{name}/nickname").status_code == 201
    response = client.get("/events", buffered=False)
    events = iter(response.iter_encoded())
    assert [next(events), next(events)] == [b"data: Ada\n\n", b"data: Grace\n\n"]
    borrowed.append(borrowed_connections())
    response.close()
    assert borrowed == [[], [], []]
    assert tables.execute("SELECT name FROM nicknames ORDER BY name").fetchall() == [
        ("ADA1",),
        ("GRACE2",),
    ]
    with recipe.app.app_context():
        recipe.db.clear_cache()


def test_the_monitor_asks_for_its_password(
    load: Callable[[str], ModuleType],
    tables: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MONITOR_PASSWORD", "of-operators")
    client = load("monitor").app.test_client()
    assert client.get("/database/").status_code == 403
    assert client.get("/database/", auth=("me", "wrong")).status_code == 403
    assert client.get("/database/", auth=("me", "of-operators")).status_code == 200
