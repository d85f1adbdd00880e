from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from example_app import create_app
from example_app.database import db, init_db


def contents() -> dict[str, list[Any]]:
    tables = ("users", "products", "orders", "order_lines")
    return {table: sorted(db.fetch_all(f"SELECT * FROM {table}")) for table in tables}


def test_init_db_fills_every_table_and_changes_nothing_the_second_time(empty_desk: Flask) -> None:
    first = empty_desk.test_cli_runner().invoke(args=["init-db"])
    assert (first.exit_code, first.output) == (
        0,
        "The orders desk is ready: 200 sample orders added.\n",
    )
    with empty_desk.app_context():
        filled = contents()
    assert len(filled["orders"]) == 200

    again = empty_desk.test_cli_runner().invoke(args=["init-db"])
    assert "0 sample orders added" in again.output
    with empty_desk.app_context():
        assert contents() == filled


def test_init_db_adds_orders_up_to_the_number_asked_for(desk: Flask) -> None:
    result = desk.test_cli_runner().invoke(args=["init-db", "--orders", "20000"])
    assert "19,955 sample orders added" in result.output
    with desk.app_context():
        wrong_totals = db.fetch_value(
            "SELECT count(*) FROM orders WHERE total IS DISTINCT FROM"
            " (SELECT sum(quantity * price) FROM order_lines WHERE order_id = orders.id)"
        )
        assert (db.fetch_value("SELECT count(*) FROM orders"), wrong_totals) == (20_000, 0)


def test_init_db_may_run_twice_at_once(empty_desk: Flask) -> None:
    def fill() -> int:
        with empty_desk.app_context():
            return init_db(orders=50)

    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(fill) for _ in range(2)]
        assert sorted(run.result(timeout=30) for run in runs) == [0, 50]


@pytest.mark.parametrize(
    ("sync_settings", "words"),
    [(None, "missing.yaml does not exist"), ({"statement_timeot": "7s"}, "statement_timeot")],
)
def test_a_config_that_cannot_be_used_is_one_line(
    database: dict[str, Any], tmp_path: Path, sync_settings: dict[str, str] | None, words: str
) -> None:
    config = tmp_path / "missing.yaml"
    if sync_settings is not None:
        config = tmp_path / "refused.yaml"
        content = {"connection_settings": database, "sync_settings": sync_settings}
        config.write_text(yaml.safe_dump(content))
        config.chmod(0o600)

    run = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "example_app", "init-db"],
        env={**os.environ, "FLASK_PGMONKEY_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (run.returncode, run.stdout) == (2, "")
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_environment_names_the_database(
    config_file: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_PGMONKEY_CONFIG", str(config_file))
    with create_app().app_context():
        assert db.fetch_value("SELECT current_database()") == database["dbname"]
        db.clear_cache()
