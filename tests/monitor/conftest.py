from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import psycopg
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.monitor import page, recording, server
from flask_pgmonkey.monitor.page import URL_PREFIX, recording_of
from flask_pgmonkey.monitor.recording import Recording, Rings


class Watched:
    """An app in debug mode with ``PGMONKEY_MONITOR``, on the test's database."""

    def __init__(self, settings: dict[str, Any], **config: Any) -> None:
        self.app = Flask("watched")
        self.app.testing = True
        self.app.config.from_mapping(
            {
                "DEBUG": True,
                "PGMONKEY_MONITOR": True,
                "PGMONKEY_CONFIG": {
                    "connection_settings": settings,
                    "pool_settings": config.pop("pool_settings", {}),
                },
                **config,
            }
        )
        self.db: PGMonkey[Any] = PGMonkey(self.app)
        self.app.add_url_rule("/page", "page", str)

    @property
    def recording(self) -> Recording:
        return recording_of(self.app)

    @property
    def rings(self) -> Rings:
        return self.recording.rings

    def page(self, path: str = "", **headers: str) -> TestResponse:
        """A page of the monitor."""
        return self.app.test_client().get(f"{URL_PREFIX}/{path}", headers=headers)

    def visit(self, view: Any, endpoint: str = "page", path: str = "/page") -> TestResponse:
        """Send a request that *view* answers; its exceptions come through."""
        if endpoint not in self.app.view_functions:
            self.app.add_url_rule(path, endpoint)

        def answer() -> str:
            view()
            return "done"

        self.app.view_functions[endpoint] = answer
        return self.app.test_client().get(path)


class Watch(Protocol):
    """Makes watched apps; keywords are keys of the app's config."""

    def __call__(self, settings: dict[str, Any] | None = None, **config: Any) -> Watched: ...


@pytest.fixture
def watch(database: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Makes apps with a monitor that looks often, on the test's database if not on another."""
    monkeypatch.setattr(page, "EVERY", 0.1)
    monkeypatch.setattr(recording, "SECONDS_BETWEEN_SAMPLES", 0.1)
    monkeypatch.setattr(server, "KEPT_FOR", 0.1)
    made: list[Watched] = []

    def make(settings: dict[str, Any] | None = None, **config: Any) -> Watched:
        made.append(Watched(settings or database, **config))
        return made[-1]

    yield make
    for each in made:
        with each.app.app_context():
            each.db.clear_cache()


@pytest.fixture
def watched(watch: Watch) -> Watched:
    return watch()


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside the app's."""
    with psycopg.connect(**database, autocommit=True) as connection:
        yield connection
