"""Finding the database of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.cli.targets import Target, find_targets
from flask_pgmonkey.errors import ConfigError

from ..servers import PrivateServer
from .conftest import Invoke, Run


def test_a_targets_connection_has_the_settings_and_commits_its_block(
    database: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "database.yaml"
    content = {"connection_settings": database, "sync_settings": {"statement_timeout": "7s"}}
    config.write_text(yaml.safe_dump(content))
    (target,) = find_targets(str(config), None)

    with target.connect() as connection:
        assert not connection.autocommit
        assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
        connection.execute("CREATE TABLE kept ()")

    assert connection.closed
    with target.connect() as connection:
        connection.execute("SELECT FROM kept")


def test_a_setting_that_the_server_refuses_is_a_config_error(
    database: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "database.yaml"
    content = {"connection_settings": database, "sync_settings": {"statement_timeot": "7s"}}
    config.write_text(yaml.safe_dump(content))
    (target,) = find_targets(str(config), None)

    with pytest.raises(ConfigError, match=r"sync_settings\.statement_timeot"):
        target.connect().__enter__()


def test_a_targets_connection_speaks_utf8_whatever_the_database_does(
    private_server: PrivateServer, tmp_path: Path
) -> None:
    with private_server.connect() as admin:
        admin.execute(
            "CREATE DATABASE ascii OWNER app TEMPLATE template0"
            " ENCODING SQL_ASCII LOCALE_PROVIDER libc LOCALE 'C'"
        )
    config = tmp_path / "database.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": private_server.settings("ascii")}))
    config.chmod(0o600)
    (target,) = find_targets(str(config), None)

    with target.connect() as connection:
        connection.execute("CREATE TABLE cafés AS SELECT 'é'::text AS prix")
        assert connection.execute("SELECT prix, current_user FROM cafés").fetchone() == ("é", "app")


def test_an_app_has_a_target_for_each_bind(make_app: Any, invoke: Any, config_file: Path) -> None:
    app = make_app(CONFIG=str(config_file), BINDS={"reports": str(config_file)})

    result = invoke(app, "server-config")

    assert result.exit_code == 0
    assert "Server of default, reports:" in result.stdout


URI = "postgresql://app:planted-pw@127.0.0.1:1/shop?sslpassword=planted-too"


@pytest.mark.parametrize(
    "command",
    [
        *("test", "test --json", "server-config", "server-config --json", "server-config --audit"),
        *("show-config", "show-config --json", "generate-code", "psql", "url"),
        *("export-csv orders", "import-csv orders orders.csv"),
    ],
)
def test_a_uri_is_a_config_and_never_shown(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "orders.csv").write_text("id\n1\n")

    shown = run(*command.split(), "--config", URI)

    assert isinstance(shown.exception, SystemExit | None)
    assert shown.output
    assert "planted" not in shown.output
    assert "app:" not in shown.output


def test_a_uri_is_named_as_one(run: Run) -> None:
    assert "\nURI   normal" in run("test", "--config", URI).stdout
    assert run("server-config", "--config", URI).stdout.startswith("# Server of URI: 127.0.0.1:1\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["test", "--config", f" {URI}"],
        ["test", "--config", "mysql://app:planted-pw@db/shop"],
        ["test", "--config", "host=db password=planted-pw"],
        ["test", URI],
        ["server-config", URI, "--json"],
        ["generate-code", "x", URI],
        ["create-config", URI],
        ["create-config", URI, "--force"],
        [URI],
    ],
)
def test_a_uri_in_the_wrong_place_is_an_error_without_it(run: Run, arguments: list[str]) -> None:
    shown = run(*arguments)

    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "planted" not in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_uri_for_a_bind_is_an_error_without_it(
    make_app: Any, invoke: Invoke, config_file: Path
) -> None:
    shown = invoke(make_app(CONFIG=str(config_file)), "test", "--bind", URI)

    assert shown.exit_code == 2
    assert "The app has no bind 'postgresql://…'; its binds are: default." in shown.stderr
    assert "planted" not in shown.stderr


def test_nothing_of_a_target_shows_a_secret() -> None:
    (target,) = find_targets("postgresql://app:hunter2@db/shop", None)
    assert target.source == "postgresql://app:hunter2@db/shop"
    mapping = Target("default", {"connection_settings": {"password": "hunter2"}}, False, False)
    for shown in (target, mapping):
        assert "hunter2" not in f"{shown!r} {shown} {shown.config!r}"
