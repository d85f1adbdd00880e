"""The databases of tests are made by the app's own migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    return SCHEMA

@pytest.fixture
def app(pgmonkey_database):
    return create_app()

def test_everything_is_applied(app):
    with app.app_context():
        assert db.fetch_all("SELECT title FROM public.books") == [("Emma",)]
        assert pending(db) == []
"""


@pytest.fixture
def shop(project: Path) -> Path:
    """A project with an app, a test and two migrations."""
    for file in project.glob("test_*.py"):
        file.unlink()
    (project / "conftest.py").unlink()
    (project / "shop.py").write_text(APP)
    (project / "migrations").mkdir()
    (project / "migrations" / "1_books.sql").write_text(
        "-- migrate:up\nCREATE TABLE books (title text);\n"
        # As pg_dump does it, whose files become first migrations.
        "SELECT pg_catalog.set_config('search_path', '', false);\n"
        "-- migrate:down\nDROP TABLE books;\n"
    )
    (project / "migrations" / "2_emma.sql").write_text(
        "-- migrate:up transaction:false\nINSERT INTO public.books VALUES ('Emma');\n"
        "-- migrate:down\nTRUNCATE books;\n"
    )
    return project


def test_a_function_that_upgrades_fills_the_tests_databases_and_no_other(
    run_pytest: RunPytest, shop: Path
) -> None:
    (shop / "test_shop.py").write_text(TESTS.replace("SCHEMA", "lambda: upgrade(db)"))
    done = run_pytest("-n0")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("path", ["'migrations'", "Path(__file__).with_name('migrations')"])
def test_so_does_the_path_of_the_migrations_from_wherever_pytest_is_called(
    run_pytest: RunPytest, shop: Path, path: str
) -> None:
    tests = "from pathlib import Path\n" + TESTS.replace("SCHEMA", path)
    (shop / "test_shop.py").write_text(tests)
    (shop / "elsewhere").mkdir()
    done = run_pytest("-n0", "--rootdir", str(shop), str(shop), cwd=shop / "elsewhere")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_folder_without_migrations_notes_none(run_pytest: RunPytest, shop: Path) -> None:
    (shop / "tables").mkdir()
    (shop / "tables" / "1_books.sql").write_text("CREATE TABLE books (title text);")
    (shop / "test_shop.py").write_text(
        TESTS.replace("SCHEMA", "'tables'")
        .replace('[("Emma",)]', "[]")
        .replace("pending(db) == []", "pending(db) == ['1_books.sql', '2_emma.sql']")
    )
    done = run_pytest("-n0")
    assert done.returncode == 0, done.stdout


def test_files_fill_them_without_the_settings_of_requests(
    run_pytest: RunPytest, project: Path
) -> None:
    for file in project.glob("test_*.py"):
        file.unlink()
    (project / "conftest.py").unlink()
    (project / "shop.py").write_text(
        f"{APP}\nfrom flask import g\ndb.session_settings(lambda: {{'app.tenant': g.tenant}})\n"
    )
    (project / "test_shop.py").write_text(
        TESTS.replace("SCHEMA", "'migrations'").replace(
            "    with app.app_context():\n",
            "    from flask import g\n    with app.app_context():\n        g.tenant = 1\n",
        )
    )
    (project / "migrations").mkdir()
    (project / "migrations" / "1_books.sql").write_text(
        "-- migrate:up\nCREATE TABLE books (title text);\nINSERT INTO books VALUES ('Emma');\n"
        "-- migrate:down\nDROP TABLE books;\n"
    )
    done = run_pytest("-n0")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
