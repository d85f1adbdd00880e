"""The desk where it is not as it should be. What it does when it is, its own tests show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

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
