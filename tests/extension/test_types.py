"""``PGMonkey(types=…)`` and the key ``types`` in views, ``db.aio`` and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import flask
import psycopg
import pytest
import yaml

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.cli import pgmonkey


class Mood(str, Enum):
    GLAD = "glad"
    SAD = "sad"


@dataclass
class Address:
    street: str
    zip: str | None


@pytest.fixture
def connection(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")
        connection.execute("CREATE TYPE address AS (street text, zip text)")
        connection.execute("CREATE TYPE pair AS (a integer, b integer)")
        yield connection


def test_types_serve_the_request_its_transactions_and_aio(
    connection: psycopg.Connection[Any], database: dict[str, Any]
) -> None:
    app = flask.Flask("shop")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database, "types": ["later"]}
    db = PGMonkey(app, types={"mood": Mood, "address": Address})
    home = Address("High St", None)

    @app.get("/")
    async def show() -> dict[str, Any]:
        moods = await db.aio.fetch_value("SELECT ARRAY[%s]", [Mood.SAD])
        return {"moods": moods}

    with app.test_request_context():
        assert db.fetch_one("SELECT 'glad'::mood, %s", [home]) == (Mood.GLAD, home)
        assert db.fetch_value("SELECT 'glad'::mood", into=Mood) is Mood.GLAD
        connection.execute("CREATE TYPE later AS ENUM ('x')")
        with db.transaction() as tx:
            assert tx.fetch_value("SELECT '{x}'::later[]") == "{x}"
            with pytest.raises(psycopg.ProgrammingError, match="within a transaction"):
                db.refresh_types()
        db.refresh_types()
        assert db.fetch_value("SELECT '{x}'::later[]") == ["x"]
    assert app.test_client().get("/").json == {"moods": ["sad"]}
    with app.app_context():
        db.clear_cache()


def test_the_command_line_shows_and_tries_the_types(
    connection: psycopg.Connection[Any], database: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "database.yaml"
    types = [{"enum": "mood"}, "hstore"]
    path.write_text(yaml.safe_dump({"connection_settings": database, "types": types}))
    path.chmod(0o600)
    app = flask.Flask("shop")
    app.config["PGMONKEY_CONFIG"] = str(path)
    PGMonkey(app, types={"address": Address, "pair": None})
    runner = app.test_cli_runner()

    shown = json.loads(runner.invoke(pgmonkey, ["show-config", "--json"]).stdout)
    assert shown[-3:] == [
        {"key": "types", "value": "enum mood, hstore", "origin": "file"},
        {"key": "types.address", "value": "Address", "origin": "app"},
        {"key": "types.pair", "value": None, "origin": "app"},
    ]
    lines = runner.invoke(pgmonkey, ["show-config"]).stdout.splitlines()
    assert lines[-2].split() == ["types.address", "Address", "app"]

    missing = "there is no type hstore: CREATE EXTENSION hstore makes it"
    tried = runner.invoke(pgmonkey, ["test"])
    assert tried.exit_code == 0, tried.output
    assert tried.stderr == ""
    assert tried.stdout.splitlines()[5:] == [
        "default: types: enum mood, address, pair",
        f"default: warning: type hstore: {missing}",
    ]
    for row in json.loads(runner.invoke(pgmonkey, ["test", "--json"]).stdout):
        assert row["types"] == {
            **{"enum mood": None, "hstore": missing, "address": None, "pair": None},
        }

    query = "SELECT 'glad'::mood AS mood, '{}'::mood[] AS moods, ROW('a', 'b')::address AS home"
    made = runner.invoke(pgmonkey, ["inspect", "--query", query, "--dataclass"])
    assert [line.strip() for line in made.stdout.splitlines() if " | None" in line] == [
        "mood: Enum | None",
        "moods: list[Enum] | None",
        "home: Address | None",
    ]
    assert f"from {__name__} import Address" in made.stdout
