"""What fills a database, and what clones have of it."""

import psycopg
import pytest
from flaskr import create_app, db

from flask_pgmonkey.testing import FreshDatabaseError, fresh_database

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
