from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.cli import pgmonkey

from .conftest import RunFlask


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.yaml"


def show(*arguments: Any) -> Result:
    return CliRunner().invoke(pgmonkey, ["show-config", *map(str, arguments)])


def origins_of(result: Result) -> dict[str, tuple[Any, str]]:
    assert result.exit_code == 0, result.output
    return {row["key"]: (row["value"], row["origin"]) for row in json.loads(result.stdout)}


def test_each_value_shows_with_its_origin(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hunter2")
    path.write_text(
        """
        connection_settings:
          host: ${DB_HOST}
          port: ${DB_PORT:-77}
          password: {from_file: secret}
          autocommit: 'on'
        pool_settings: {max_size: '20'}
        sync_settings: {app.token: hunter2, lock_timeout: 5s}
        """
    )
    monkeypatch.setenv("DB_HOST", "db")
    monkeypatch.setenv("PGUSER", "app")
    shown = origins_of(show("--config", path, "--resolve-env", "--json"))
    expected = {
        "connection_type": ("normal", "default"),
        "connection_settings.host": ("db", "environment DB_HOST"),
        "connection_settings.port": ("77", "file"),
        "connection_settings.password": ("***REDACTED***", f"file {tmp_path / 'secret'}"),
        "connection_settings.autocommit": ("on", "file"),
        "connection_settings.user": ("app", "environment PGUSER"),
        "connection_settings.dbname": ("app", "libpq default"),
        "connection_settings.sslmode": ("prefer", "libpq default"),
        "connection_settings.connect_timeout": ("3", "default"),
        "connection_settings.keepalives_idle": ("30", "default"),
        "connection_settings.tcp_user_timeout": ("30000", "default"),
        "pool_settings.max_size": (20, "file"),
        "pool_settings.min_size": (1, "default"),
        "async_pool_settings.timeout": (5.0, "default"),
        "sync_settings.app.token": ("***REDACTED***", "file"),
        "sync_settings.lock_timeout": ("5s", "file"),
    }
    assert {key: shown[key] for key in expected} == expected


def test_the_parts_of_a_uri_and_of_the_environment_are_told_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(
        "connection_settings: {uri: 'postgresql://app:hunter2@db/shop?connect_timeout=9', port: 7}"
    )
    monkeypatch.setenv("PGLOADBALANCEHOSTS", "random")
    monkeypatch.setenv("PGHOST", "elsewhere")
    shown = origins_of(show("--config", path, "--json"))
    for key, value in (
        ("uri", ("***REDACTED***", "file")),
        ("password", ("***REDACTED***", "URI")),
        ("host", ("db", "URI")),
        ("connect_timeout", ("9", "URI")),
        ("port", ("7", "file")),
        ("load_balance_hosts", ("random", "environment PGLOADBALANCEHOSTS")),
    ):
        assert shown[f"connection_settings.{key}"] == value


def test_values_of_a_service_name_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text("[shop]\nhost=db\nuser=app\npassword=hunter2\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    path.write_text("connection_settings: {service: shop}")
    result = show("--config", path, "--json")
    shown = origins_of(result)
    assert "hunter2" not in result.output
    assert shown["connection_settings.host"] == ("db", "service shop")
    assert shown["connection_settings.user"] == ("app", "service shop")
    assert shown["connection_settings.sslmode"] == ("prefer", "libpq default")
    path.write_text("connection_type: pool")
    monkeypatch.setenv("PGSERVICE", "shop")
    shown = origins_of(show("--config", path, "--json"))
    assert shown["connection_settings.service"] == ("shop", "environment PGSERVICE")
    assert shown["connection_settings.host"] == ("db", "libpq, with service shop")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_secret_shows(path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    path.write_text(
        """
        connection_settings:
          uri: postgresql://app:hunter2-uri@db/shop
          sslpassword: hunter2-key
          oauth_client_secret: {from_env: SECRET}
        sync_settings: {app.api_token: hunter2-token}
        """
    )
    monkeypatch.setenv("SECRET", "hunter2-oauth")
    monkeypatch.setenv("PGOPTIONS", "-c app.token=hunter2-options")
    monkeypatch.setenv("PGPASSWORD", "hunter2-environment")
    result = show("--config", path, "--resolve-env", *options)
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert result.stdout.count("***REDACTED***") == 6


def test_the_password_of_the_environment_is_listed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("connection_type: pool")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    shown = origins_of(show("--config", path, "--json"))
    assert shown["connection_settings.password"] == ("***REDACTED***", "environment PGPASSWORD")


def test_a_command_is_shown_and_not_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("connection_settings: {password: {from_command: [no-such, hunter2]}}")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    result = show("--config", path, "--resolve-env", "--json")
    shown = origins_of(result)
    assert shown["connection_settings.password"] == ("***REDACTED***", "command")
    assert result.stdout.count('"connection_settings.password"') == 1
    assert "hunter2" not in result.output


def test_the_table_has_a_line_for_each_value(path: Path) -> None:
    path.write_text("pool_settings: {check_on_checkout: true}")
    lines = [line.split() for line in show("--config", path).stdout.splitlines()]
    assert lines[0] == ["Key", "Value", "Origin"]
    assert ["pool_settings.check_on_checkout", "true", "file"] in lines
    assert ["pool_settings.max_size", "10", "default"] in lines


def test_a_config_error_is_one_line_and_exit_code_2(path: Path) -> None:
    path.write_text("connection_settings: {passwrod: hunter2}")
    result = show("--config", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: file {path}: connection_settings.passwrod is not a known key; "
        "did you mean password?\n"
    )


def test_what_cannot_be_resolved_for_the_owner_is_shown_with_why(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWNER", "owner")
    path.write_text(
        """
        connection_settings: {host: db}
        direct_settings:
          user: ${OWNER}
          password: {from_env: OWNER_PASSWORD}
          host: ${OWNER_HOST}
          sslrootcert: {from_file: none.crt}
        """
    )
    path.chmod(0o600)
    result = show("--config", path, "--resolve-env", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = origins_of(result)
    assert shown["direct_settings.user"] == ("owner", "environment OWNER")
    assert shown["direct_settings.host"] == (
        "${OWNER_HOST}",
        "unresolved: the environment variable OWNER_HOST is not set",
    )
    assert shown["direct_settings.password"] == (
        "***REDACTED***",
        "unresolved: the environment variable OWNER_PASSWORD is not set",
    )
    assert "none.crt" in shown["direct_settings.sslrootcert"][1]


def test_values_of_the_embedded_server_are_said_to_be(
    run_flask: RunFlask, embedded_app: Path
) -> None:
    shown = json.loads(run_flask("pgmonkey", "show-config", "--json").stdout)
    assert {"embedded"} == {
        value["origin"] for value in shown if value["key"] == "connection_settings.dbname"
    }
    assert "mapping" not in {value["origin"] for value in shown}


def test_a_bind_of_an_app_is_shown() -> None:
    app = Flask(__name__)
    app.config["PGMONKEY_CONFIG"] = "postgresql://app@one/a"
    app.config["PGMONKEY_BINDS"] = {"reports": {"connection_settings": {"host": "two"}}}
    PGMonkey(app)
    runner = app.test_cli_runner()
    shown = origins_of(runner.invoke(pgmonkey, ["show-config", "--json"]))
    assert shown["connection_settings.host"] == ("one", "URI")
    shown = origins_of(runner.invoke(pgmonkey, ["show-config", "--bind", "reports", "--json"]))
    assert shown["connection_settings.host"] == ("two", "mapping")
