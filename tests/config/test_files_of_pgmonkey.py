"""Config files written for pgmonkey 4 load unchanged, and connect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flask_pgmonkey import PGConnectionManager

EVERY_DOCUMENTED_KEY = """
connection_type: 'normal'
connection_settings:
  user: '{user}'
  password: '{password}'
  host: '{host}'
  port: '{port}'
  dbname: '{dbname}'
  sslmode: 'prefer'
  sslcert: ''
  sslkey: ''
  sslrootcert: ''
  connect_timeout: '10'
  application_name: 'myapp'
  keepalives: '1'
  keepalives_idle: '60'
  keepalives_interval: '15'
  keepalives_count: '5'
  autocommit: false
sync_settings:
  # nothing but comments
pool_settings:
  min_size: 5
  max_size: '20'
  timeout: 30
  max_idle: 300
  max_lifetime: 3600
  check_on_checkout: false
  max_waiting: 0
  reconnect_timeout: 300
  num_workers: 3
async_settings:
  idle_in_transaction_session_timeout: '5000'
  statement_timeout: '30000'
  lock_timeout: '10000'
  work_mem: '256MB'
async_pool_settings:
  min_size: 5
  max_size: 20
  timeout: 30
  max_idle: 300
  max_lifetime: 3600
  check_on_checkout: 'false'
"""
NO_MORE_THAN_A_PASSWORD = """
connection_type: 'pool'
connection_settings:
  user: '{user}'
  password: '{password}'
  host: '{host}'
  port: '{port}'
  dbname: '{dbname}'
"""
REFERENCES = """
connection_settings:
  user: '${{PGM_USER:-{user}}}'
  password: {{from_env: PGM_PASSWORD}}
  host: '${{PGM_HOST}}'
  port: '${{PGM_PORT:-1}}'
  dbname: '${{PGM_DATABASE:-{dbname}}}'
"""
SECRET_FILE = """
connection_settings:
  user: '{user}'
  password: {{from_file: {folder}/password}}
  host: '{host}'
  port: '{port}'
  dbname: '{dbname}'
"""
OUTDATED_WRAPPER = """
postgresql:
  connection_type: 'normal'
  connection_settings:
    user: '{user}'
    password: '{password}'
    host: '{host}'
    port: '{port}'
    dbname: '{dbname}'
"""


def _connects(path: Path, **options: bool) -> Any:
    manager = PGConnectionManager()
    with manager.get_database_connection(path, **options) as conn:  # type: ignore[call-overload]
        row = conn.execute("SELECT current_database()").fetchone()
    manager.clear_cache()
    return row[0]


def _write(tmp_path: Path, text: str, database: dict[str, Any]) -> Path:
    path = tmp_path / "database.yaml"
    path.write_text(text.format(**database, folder=tmp_path))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("text", [EVERY_DOCUMENTED_KEY, NO_MORE_THAN_A_PASSWORD])
def test_a_file_with_literal_values_connects(
    tmp_path: Path, database: dict[str, Any], text: str
) -> None:
    assert _connects(_write(tmp_path, text, database)) == database["dbname"]


def test_a_file_with_references_connects(
    tmp_path: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGM_HOST", database["host"])
    monkeypatch.setenv("PGM_PORT", str(database["port"]))
    monkeypatch.setenv("PGM_PASSWORD", database["password"])
    path = _write(tmp_path, REFERENCES, database)
    assert _connects(path, resolve_env=True) == database["dbname"]


def test_a_file_with_a_secret_file_connects(tmp_path: Path, database: dict[str, Any]) -> None:
    secret = tmp_path / "password"
    secret.write_text(database["password"] + "\n")
    secret.chmod(0o600)
    path = _write(tmp_path, SECRET_FILE, database)
    assert _connects(path, resolve_env=True) == database["dbname"]


def test_a_file_in_the_outdated_wrapper_connects(tmp_path: Path, database: dict[str, Any]) -> None:
    path = _write(tmp_path, OUTDATED_WRAPPER, database)
    with pytest.warns(DeprecationWarning, match="postgresql"):
        assert _connects(path) == database["dbname"]
