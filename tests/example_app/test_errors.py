from __future__ import annotations

import logging
import re
import socket
from typing import Any

import pytest
from flask import Flask

from example_app import create_app


def test_without_tables_the_app_offers_to_create_them(empty_desk: Flask) -> None:
    client = empty_desk.test_client()
    page = client.get("/")
    assert page.status_code == 503
    assert "flask --app example_app init-db" in page.text
    assert client.get("/api/users").status_code == 503

    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', page.text))
    assert client.post("/setup", data=form).location == "/"
    assert "Hana Nováková" in client.get("/").text


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
        client = create_app({"PGMONKEY_CONFIG": {"connection_settings": settings}}).test_client()
        with caplog.at_level(logging.DEBUG):
            for path in ("/", "/orders/new", "/products", "/users", "/orders.csv", "/api/orders"):
                response = client.get(path)
                assert response.status_code == 503
                assert "does not answer" in response.text
                assert "127.0.0.1" not in response.text
    assert "Connection refused" in caplog.text
    assert "planted-password" not in caplog.text


def test_init_db_without_a_server_says_so_in_one_line() -> None:
    app = create_app({"PGMONKEY_CONFIG": "postgresql://nobody:hunter2@127.0.0.1:1/x"})
    result = app.test_cli_runner().invoke(args=["init-db"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: connection failed")
    assert "hunter2" not in result.output
