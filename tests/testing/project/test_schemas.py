"""What fills a database, and what clones have of it."""

import asyncio
import threading

import psycopg
import pytest
from flaskr import create_app, db

from flask_pgmonkey.testing import FreshDatabaseError, fresh_database, runs

NAMES = "SELECT name FROM names ORDER BY name"


@pytest.fixture
def app():
    return create_app({"TESTING": True})


def test_a_schema_may_be_a_file(app, tmp_path):
    file = tmp_path / "schema.sql"
    file.write_text("CREATE TABLE names (name text); INSERT INTO names VALUES ('100 %');")
    with fresh_database(app, file) as databases:
        assert databases.database(app).fetch_all(NAMES) == [("100 %",)]


def test_a_schema_may_be_a_folder_of_migrations_of_which_what_goes_up_runs_in_order(app, tmp_path):
    (tmp_path / "0002_fill.sql").write_text(
        "-- migrate:up transaction:false\nINSERT INTO names VALUES ('ada')\n"
        "-- migrate:down\nDELETE FROM names"
    )
    (tmp_path / "0001_create.sql").write_text(
        "-- migrate:up\nCREATE TABLE names (name text);\n-- migrate:down\nDROP TABLE names"
    )
    (tmp_path / "README.txt").write_text("no SQL")
    with fresh_database(app, tmp_path), app.app_context():
        assert db.fetch_all(NAMES) == [("ada",)]


def test_a_file_that_the_server_refuses_is_named(app, tmp_path):
    file = tmp_path / "wrong.sql"
    file.write_text("CREATE TABLE oops (")
    with fresh_database(app, file), app.app_context():
        with pytest.raises(FreshDatabaseError, match=r"wrong\.sql: syntax error at end of input"):
            db.execute("SELECT 1")
        with pytest.raises(FreshDatabaseError, match="wrong"):  # and is not tried again
            db.execute("SELECT 1")


def test_a_path_without_sql_says_what_to_give(app, tmp_path):
    with fresh_database(app, tmp_path), app.app_context():
        with pytest.raises(FreshDatabaseError, match="no SQL file: give a function"):
            db.execute("SELECT 1")


def test_a_schema_may_be_a_command_of_the_app(app):
    @app.cli.command("init-db")
    def init():
        db.execute("CREATE TABLE names (name text)")

    with fresh_database(app, init) as databases:
        assert databases.database(app).fetch_all(NAMES) == []


def test_what_alter_database_sets_is_set_in_clones_too(app):
    def schema():
        name = db.fetch_value("SELECT current_database()")
        role = db.fetch_value("SELECT current_user")
        db.execute(f'ALTER DATABASE "{name}" SET search_path = blog, public')
        db.execute(f'ALTER DATABASE "{name}" SET DateStyle = "ISO, DMY"')
        db.execute(f'ALTER ROLE "{role}" IN DATABASE "{name}" SET work_mem = 8192')
        db.execute("CREATE SCHEMA blog; CREATE TABLE blog.names (name text)")

    with fresh_database(app, schema), app.app_context():
        assert db.fetch_all(NAMES) == []
        assert db.fetch_value("SHOW search_path") == "blog, public"
        assert db.fetch_value("SHOW DateStyle") == "ISO, DMY"
        assert db.fetch_value("SHOW work_mem") == "8MB"


def test_a_block_within_a_test_has_databases_apart_and_the_same_schema(app, pgdb):
    app.test_client().post("/import", data="outer")
    with fresh_database(app) as databases:
        assert app.test_client().get("/").json == {"posts": []}
        assert databases.database(app).fetch_value("SELECT count(*) FROM users") == 1
    assert app.test_client().get("/").json == {"posts": ["outer"]}
    assert pgdb.fetch_value("SELECT count(*) FROM posts") == 1


def test_old_templates_go_but_none_of_this_run(app, pgmonkey_database, monkeypatch, tmp_path):
    app.test_client().get("/")
    monkeypatch.setattr(runs, "TEMPLATES_KEPT", 0)
    file = tmp_path / "schema.sql"
    file.write_text("CREATE TABLE names (name text)")
    with fresh_database(app, file), app.app_context():
        assert db.fetch_all(NAMES) == []
    for _ in range(4):  # more than the spares
        with fresh_database(app) as databases:
            assert databases.database(app).fetch_value("SELECT count(*) FROM posts") == 0


def test_without_a_schema_the_databases_are_empty(app):
    with fresh_database(app, lambda: None), app.app_context():
        with pytest.raises(psycopg.errors.UndefinedTable):
            db.execute("SELECT * FROM posts")


def test_seeds_use_jobs_and_async_queries_too(app):
    def schema():
        db.execute("CREATE TABLE names (name text)")

        async def seed():
            await db.aio.execute("INSERT INTO names VALUES ('ada')")

        db.background.run(seed())

    with fresh_database(app, schema), app.app_context():
        assert db.fetch_all(NAMES) == [("ada",)]


def test_a_job_that_queries_first_waits_for_a_schema_without_jobs(app):
    with fresh_database(app, lambda: db.execute("CREATE TABLE names (name text)")):
        with app.app_context():

            async def add():
                await db.aio.execute("INSERT INTO names VALUES ('ada')")

            db.background.run(add())
            assert db.fetch_all(NAMES) == [("ada",)]


def test_and_does_not_wait_for_ever_for_one_that_waits_for_the_loop(app):
    async def job():
        await db.aio.execute("SELECT 1")

    with fresh_database(app, lambda: db.background.run(job())), app.app_context():
        with pytest.raises(FreshDatabaseError, match="Let the test query before it starts the job"):
            db.background.run(job())


def test_a_job_of_the_test_goes_on_while_the_template_is_made(app):
    def schema():
        db.execute("CREATE TABLE names (name text)")

    has_queried = threading.Event()

    async def job():
        while not has_queried.is_set():
            await asyncio.sleep(0.01)
        return "done"

    with fresh_database(app, schema), app.app_context():
        running = db.background.submit(job())
        assert db.fetch_all(NAMES) == []
        has_queried.set()
        assert running.result() == "done"
