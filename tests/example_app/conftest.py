from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from example_app import create_app
from example_app.database import db, init_db


@pytest.fixture
def empty_desk(database: dict[str, Any]) -> Iterator[Flask]:
    """The example app on a database without tables."""
    desk = create_app({"PGMONKEY_CONFIG": {"connection_settings": database}})
    yield desk
    with desk.app_context():
        db.clear_cache()


@pytest.fixture
def desk(empty_desk: Flask) -> Flask:
    """The example app with its tables, customers, products and 45 orders."""
    with empty_desk.app_context():
        init_db(orders=45)
    return empty_desk


class Visitor:
    """A browser with one session, which sends forms with the token of a page."""

    def __init__(self, desk: Flask) -> None:
        self.client: FlaskClient = desk.test_client()

    def get(self, path: str) -> TestResponse:
        return self.client.get(path)

    def send(self, path: str, **fields: object) -> TestResponse:
        token = re.search(r'name="csrf_token" value="([^"]+)"', self.get("/orders/new").text)
        assert token is not None
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        return self.client.post(path, data={"csrf_token": token[1], **names})


@pytest.fixture
def visitor(desk: Flask) -> Visitor:
    return Visitor(desk)
