"""Every test has the desk on a database of its own, a clone of one that is filled once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_pgmonkey.testing import FreshDatabases

from .. import create_app
from ..database import init_db


@pytest.fixture(scope="session")
def pgmonkey_schema() -> Callable[[], object]:
    """The migrations, which bring customers and products, and 45 orders."""
    return lambda: init_db(orders=45)


@pytest.fixture
def app(pgmonkey_database: FreshDatabases) -> Flask:
    return create_app({"TESTING": True})


class Visitor:
    """A browser with one session, which sends forms with the token of a page."""

    def __init__(self, app: Flask) -> None:
        self.client: FlaskClient = app.test_client()

    def get(self, path: str) -> TestResponse:
        return self.client.get(path)

    def send(self, path: str, **fields: object) -> TestResponse:
        token = re.search(r'name="csrf_token" value="([^"]+)"', self.get("/orders/new").text)
        assert token is not None
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        return self.client.post(path, data={"csrf_token": token[1], **names})


@pytest.fixture
def visitor(app: Flask) -> Visitor:
    return Visitor(app)
