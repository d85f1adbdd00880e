"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey

README = (Path(__file__).parents[2] / "README.md").read_text()
VIEW, APP, SCRIPT = (
    compile(block, "README.md", "exec")
    for block in re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
)


@pytest.fixture
def sql(
    database: dict[str, Any], config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the database of the database.yaml in the working directory."""
    assert config_file.name == "database.yaml"
    monkeypatch.chdir(config_file.parent)
    with psycopg.connect(**database, autocommit=True) as connection:
        yield connection


def test_the_five_lines_are_a_view(sql: psycopg.Connection[Any], config_file: Path) -> None:
    sql.execute("CREATE TABLE users AS SELECT 1 AS id, 'Ada' AS name")
    app = Flask("readme")
    app.config["PGMONKEY_CONFIG"] = str(config_file)
    names: dict[str, Any] = {"app": app, "PGMonkey": PGMonkey}
    exec(VIEW, names)  # noqa: S102
    assert app.test_client().get("/users").json == {"users": [{"id": 1, "name": "Ada"}]}
    with app.app_context():
        names["db"].clear_cache()


def test_the_app_transfers(sql: psycopg.Connection[Any]) -> None:
    sql.execute("CREATE TABLE accounts AS SELECT id, 100 AS balance FROM generate_series(1, 2) id")
    names: dict[str, Any] = {"__name__": "readme"}
    exec(APP, names)  # noqa: S102
    assert names["app"].test_client().post("/transfers").status_code == 204
    balances = sql.execute("SELECT balance FROM accounts ORDER BY id").fetchall()
    assert balances == [(90,), (110,)]
    with names["app"].app_context():
        names["db"].clear_cache()


def test_the_pool_lends(sql: psycopg.Connection[Any]) -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT, names)  # noqa: S102
    assert names["conn"].closed is False
    assert names["manager"].cache_info["size"] == 1
    names["manager"].clear_cache()
