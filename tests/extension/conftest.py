from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psycopg
import pytest
from flask import Flask, Response
from werkzeug.test import TestResponse

from flask_pgmonkey import PGMonkey

collect_ignore = [] if sys.version_info >= (3, 14) else ["test_templates.py"]


class Site:
    """An app with one page, whose view a test brings along."""

    def __init__(self, app: Flask, db: PGMonkey[Any]) -> None:
        self.app = app
        self.db: PGMonkey[Any] = db
        self._view: Callable[[], Any] = str
        app.testing = True
        app.add_url_rule("/", "page", self._answer)

    def visit(self, view: Callable[[], Any]) -> TestResponse:
        """Send a request that *view* answers; its exceptions come through."""
        self._view = view
        return self.app.test_client().get("/")

    def _answer(self) -> Any:
        answer = self._view()
        return answer if isinstance(answer, (str, Response)) else "done"


class MakeSite(Protocol):
    """Makes sites on the test's database and closes them when the test ends."""

    def __call__(self, db: PGMonkey[Any] | None = None, **config: Any) -> Site: ...


@pytest.fixture
def make_site(database: dict[str, Any]) -> Iterator[MakeSite]:
    """Makes sites. Keywords are sections of the config beside ``connection_settings``."""
    sites = []

    def make(db: PGMonkey[Any] | None = None, **config: Any) -> Site:
        db = db or PGMonkey()
        app = Flask("tests")
        app.config["PGMONKEY_CONFIG"] = {"connection_settings": database, **config}
        db.init_app(app)
        sites.append(Site(app, db))
        return sites[-1]

    yield make
    for site in sites:
        with site.app.app_context():
            site.db.clear_cache()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


@pytest.fixture
def db(site: Site) -> PGMonkey[Any]:
    return site.db


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside the app's, with a table ``items`` of one column ``n``."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (n integer PRIMARY KEY)")
        yield connection


@pytest.fixture
def items(admin: psycopg.Connection[Any]) -> Callable[[], list[int]]:
    """What others see in the table ``items``."""
    return lambda: [n for (n,) in admin.execute("SELECT n FROM items ORDER BY n").fetchall()]
