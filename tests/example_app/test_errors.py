from __future__ import annotations

import logging
import re
import socket
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from flask import Flask

from example_app import create_app
from example_app.database import db, init_db
from flask_pgmonkey.migrations import migrations_of

if TYPE_CHECKING:
    from typing_extensions import LiteralString


def test_without_tables_the_app_offers_to_create_them(empty_desk: Flask) -> None:
    client = empty_desk.test_client()
    page = client.get("/")
    assert page.status_code == 503
    assert "flask --app example_app init-db" in page.text
    assert client.get("/api/users").status_code == 503

    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', page.text))
    assert client.post("/setup", data=form).location == "/"
    assert "Hana Nováková" in client.get("/").text


def test_a_shop_from_before_the_latest_migration_gets_that_and_no_sample_orders(
    empty_desk: Flask,
) -> None:
    with empty_desk.app_context():
        init_db(orders=3)
        assert migrations_of(db).down() == ["20260315100000_order_status.sql"]
    client = empty_desk.test_client()
    page = client.get("/")
    assert page.status_code == 503
    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', page.text))
    assert client.post("/setup", data=form).location == "/"
    assert "placed" in client.get("/orders/3").text
    assert client.get("/orders/4").status_code == 404


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        ("REVOKE CREATE ON SCHEMA public FROM PUBLIC", "permission denied for schema public"),
        ("CREATE TABLE users (id integer PRIMARY KEY)", "already exists"),
    ],
)
def test_a_database_that_does_not_take_the_tables_is_told_with_a_remedy(
    database: dict[str, Any], obstacle: LiteralString, words: str
) -> None:
    with psycopg.connect(**database, autocommit=True) as owner:
        owner.execute("GRANT ALL ON SCHEMA public TO PUBLIC")
        owner.execute(obstacle)
        owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
    # Not a superuser, and owner of nothing here.
    settings = {**database, "options": "-c role=pg_monitor"}
    desk = create_app({"PGMONKEY_CONFIG": {"connection_settings": settings}})

    command = desk.test_cli_runner().invoke(args=["init-db"])
    client = desk.test_client()
    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', client.get("/").text))
    page = client.post("/setup", data=form)

    assert (command.exit_code, page.status_code) == (1, 503)
    assert command.output.count("\n") == 1
    for told in (command.output, page.text):
        assert words in told
        assert "an empty one that belongs to the user" in told
    with desk.app_context():
        db.clear_cache()


def test_while_the_database_is_down_every_page_says_so_and_no_page_says_more(
    database: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        settings = {
            **database,
            "host": "127.0.0.1",
            "port": unused.getsockname()[1],
            "password": "planted-password",
        }
        config = {"connection_settings": settings, "pool_settings": {"timeout": 0.3}}
        app = create_app({"PGMONKEY_CONFIG": config})
        client = app.test_client()
        with caplog.at_level(logging.DEBUG):
            for path in ("/", "/orders/new", "/products", "/users", "/orders.csv", "/api/orders"):
                response = client.get(path)
                assert response.status_code == 503
                assert "does not answer" in response.text
                assert "127.0.0.1" not in response.text
    assert "Connection refused" in caplog.text
    assert "planted-password" not in caplog.text
    with app.app_context():
        db.clear_cache()


def test_init_db_without_a_server_says_so_in_one_line() -> None:
    settings = {"uri": "postgresql://nobody:hunter2@127.0.0.1:1/x"}
    config = {"connection_settings": settings, "pool_settings": {"timeout": 0.3}}
    app = create_app({"PGMONKEY_CONFIG": config})
    result = app.test_cli_runner().invoke(args=["init-db"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: connection failed")
    assert "hunter2" not in result.output
    with app.app_context():
        db.clear_cache()
