"""The databases of tests are made by the app's own migrations."""

from __future__ import annotations

from pathlib import Path

from .conftest import RunPytest

APP = """
from flask import Flask
from flask_pgmonkey import PGMonkey
from flask_pgmonkey.migrations import pending, upgrade

db = PGMonkey()

def create_app():
    app = Flask(__name__)
    nowhere = {"host": "127.0.0.1", "port": 1, "user": "nobody"}
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": nowhere, "direct_settings": nowhere}
    db.init_app(app)
    return app
"""
TESTS = """
import pytest
from shop import create_app, db, pending, upgrade

@pytest.fixture(scope="session")
def pgmonkey_schema():
    return lambda: upgrade(db)

@pytest.fixture
def app(pgmonkey_database):
    return create_app()

def test_everything_is_applied(app):
    with app.app_context():
        assert db.fetch_all("SELECT title FROM books") == [("Emma",)]
        assert pending(db) == []
"""


def test_a_function_that_upgrades_fills_the_tests_databases_and_no_other(
    run_pytest: RunPytest, project: Path
) -> None:
    for file in project.glob("test_*.py"):
        file.unlink()
    (project / "conftest.py").unlink()
    (project / "shop.py").write_text(APP)
    (project / "test_shop.py").write_text(TESTS)
    (project / "migrations").mkdir()
    (project / "migrations" / "1_books.sql").write_text(
        "-- migrate:up\nCREATE TABLE books (title text);\nINSERT INTO books VALUES ('Emma');\n"
        "-- migrate:down\nDROP TABLE books;\n"
    )
    done = run_pytest("-n0")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
