"""Template strings as queries: collected on Python 3.14 and later alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from string.templatelib import Interpolation, Template  # type: ignore[import-not-found]
from typing import Any

from flask_pgmonkey import AsyncDatabase, Database

from .conftest import Site


def template(before: str, value: object, after: str = "") -> Any:
    """``t"{before}{value}{after}"``, which older Pythons could not even parse."""
    return Template(before, Interpolation(value, "value"), after)


def test_template_strings_are_taken_wherever_a_string_is(
    site: Site, items: Callable[[], list[int]]
) -> None:
    db = site.db
    with site.app.app_context():
        assert db.execute(template("INSERT INTO items VALUES (", 1, ")")) == 1
        assert db.fetch_value(template("SELECT n FROM items WHERE n = ", 1)) == 1
        assert db.fetch_one(template("SELECT ", "o'name", "::text")) == ("o'name",)
        assert db.fetch_all(template("SELECT ", 1, "::int")) == [(1,)]
        assert db.fetch_json(template("SELECT ", 1, "::int AS n")) == b'[{"n":1}]'
        assert db.explain(template("SELECT n FROM items WHERE n = ", 1)).root.relation == "items"
        assert list(db.stream(template("SELECT n FROM items WHERE n = ", 1))) == [(1,)]
        with db.transaction() as tx:
            assert tx.fetch_value(template("SELECT ", 1, "::int")) == 1
    assert items() == [1]


def test_template_strings_are_taken_by_a_database(database: dict[str, Any]) -> None:
    db = Database({"connection_settings": database})
    assert db.fetch_value(template("SELECT ", "o'name", "::text")) == "o'name"
    db.close()


def test_template_strings_are_taken_by_an_async_database(database: dict[str, Any]) -> None:
    async def ask() -> Any:
        db = AsyncDatabase({"connection_settings": database})
        try:
            return await db.fetch_value(template("SELECT ", "o'name", "::text"))
        finally:
            await db.disconnect()

    assert asyncio.run(ask()) == "o'name"
