"""The page on JSON and CSV: what its table says of values is what comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, jsonify
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey

PAGE = (Path(__file__).parents[2] / "docs/json-and-csv.md").read_text()
VALUES = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (.+?) \|$", PAGE, re.M)


@pytest.fixture
def db(database: dict[str, Any]) -> Iterator[PGMonkey[dict[str, Any]]]:
    app = Flask("tests")
    config = {"connection_settings": database, "sync_settings": {"TimeZone": "UTC"}}
    db = PGMonkey(app, config=config, row_factory=dict_row)
    with app.app_context():
        yield db
        db.clear_cache()


def test_the_page_lists_many_values() -> None:
    assert len(VALUES) > 15


@pytest.mark.parametrize(("value", "by_server", "by_jsonify"), VALUES)
def test_values_become_what_the_page_says(
    db: PGMonkey[dict[str, Any]], value: str, by_server: str, by_jsonify: str
) -> None:
    query = f"SELECT {value} AS v".encode()
    assert db.fetch_json(query).decode() == f'[{{"v":{by_server}}}]'
    rows = db.fetch_all(query)
    if by_jsonify == "an error":
        with pytest.raises(TypeError):
            jsonify(rows)
        return
    said = re.match("`(.+?)`", by_jsonify)
    expected = said[1] if said else by_server
    assert jsonify(rows).get_data(as_text=True).strip() == f'[{{"v":{expected}}}]'
