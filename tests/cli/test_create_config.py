from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from flask_pgmonkey.cli import pgmonkey
from flask_pgmonkey.config import PoolSettings, load_config, read_config
from flask_pgmonkey.config.values import POOL_KEYS, SECTIONS, TCP_DEFAULTS


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.yaml"


def create(*arguments: Any) -> Result:
    return CliRunner().invoke(pgmonkey, ["create-config", *map(str, arguments)])


def test_the_template_has_every_section_with_our_defaults(path: Path) -> None:
    result = create(path)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == f"Wrote {path}.\n"
    written = load_config(path)
    assert set(written) == {"connection_type", *SECTIONS}
    assert set(written["pool_settings"]) == set(written["async_pool_settings"]) == set(POOL_KEYS)
    config = read_config(path)
    assert config.pool == config.async_pool == PoolSettings()
    assert config.target == "postgres@localhost:5432/postgres"
    assert config.connect_kwargs()["connect_timeout"] == "3"


def test_every_commented_line_of_the_template_can_be_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(path)
    lines = path.read_text().splitlines()
    active = [
        line.replace("# ", "", 1) if line.startswith("  # ") and ": " in line else line
        for line in lines
        if not line.startswith("#")
    ]
    sentences = [line for line in active if line.endswith(".") or "; times in" in line]
    path.write_text("\n".join(line for line in active if line not in sentences))
    monkeypatch.setenv("PGPASSWORD", "pw")
    config = read_config(path, resolve_env=True)
    assert len(config.connect_kwargs()) > 12
    assert len(config.sync_settings) == len(config.async_settings) == 4


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    umask = os.umask(0)
    try:
        create(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        create(path, "--force")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(umask)


def test_an_existing_file_stays_without_force(path: Path) -> None:
    path.write_text("mine")
    result = create(path)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {path} exists already; --force replaces it.\n"
    assert path.read_text() == "mine"
    assert create(path, "--force").exit_code == 0
    assert "connection_settings" in path.read_text()
    assert os.listdir(path.parent) == [path.name]


def test_a_dash_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create("db.yaml")
    printed = create("-")
    with_uri = create("-", "--uri", "postgresql://app:hunter2@localhost/shop")
    assert (printed.exit_code, printed.stderr) == (0, "")
    assert printed.stdout == Path("db.yaml").read_text()
    assert "  password: {from_env: PGPASSWORD}\n" in with_uri.stdout
    assert "PGPASSWORD" in with_uri.stderr
    assert "Wrote" not in with_uri.stderr
    assert os.listdir() == ["db.yaml"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none/", "none/ is a folder: name the file to write in it."),
        ("file/db.yaml", "file/db.yaml: file is no folder"),
    ],
)
def test_a_folder_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    result = create(path)
    assert (result.exit_code, result.stderr) == (1, f"Error: {words}\n")
    assert os.listdir() == ["file"]


def test_a_link_that_leads_nowhere_is_not_followed(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    assert create(path).exit_code == 1
    assert not path.with_name("elsewhere").exists()


def test_force_replaces_the_file_that_a_link_leads_to(path: Path) -> None:
    shared = path.with_name("shared.yaml")
    shared.write_text("old")
    shared.chmod(0o644)
    path.symlink_to(shared.name)

    assert create(path, "--force").exit_code == 0

    assert path.is_symlink()
    assert "connection_settings" in shared.read_text()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600
    assert sorted(os.listdir(path.parent)) == [path.name, shared.name]


def test_force_writes_into_a_pipe(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert create(path, "--force").exit_code == 0
        assert b"connection_settings" in os.read(reader, 65_536)
    finally:
        os.close(reader)

    assert path.is_fifo()


def test_a_missing_folder_is_one_line_on_stderr(path: Path) -> None:
    for option in ([], ["--force"]):
        result = create(path / "below" / "db.yaml", *option)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert result.stderr.endswith(f"there is no folder {path / 'below'}\n")


@pytest.mark.parametrize("option", [[], ["--force"]])
def test_a_folder_is_not_taken_for_a_file(path: Path, option: list[str]) -> None:
    path.mkdir()
    result = create(path, *option)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {path} is a folder: name the file to write in it.\n"
    assert os.listdir(path.parent) == [path.name]


def test_from_env_refers_to_the_variables_that_are_set(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"PGHOST": "db", "PGUSER": "app", "PGPASSWORD": "hunter2", "PGAPPNAME": "a: b"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    result = create(path, "--from-env")
    assert result.exit_code == 0
    assert "--resolve-env" in result.stderr
    assert load_config(path)["connection_settings"] == {
        "host": "${PGHOST}",
        "user": "${PGUSER}",
        "password": {"from_env": "PGPASSWORD"},
        "application_name": "${PGAPPNAME}",
    }
    kwargs = read_config(path, resolve_env=True).connect_kwargs()
    assert kwargs["password"] == "hunter2"
    assert kwargs["application_name"] == "a: b"


def test_from_env_without_variables_is_wrong_usage(path: Path) -> None:
    result = create(path, "--from-env")
    assert result.exit_code == 2
    assert "PGHOST" in result.stderr
    assert not path.exists()


def test_the_password_of_a_uri_goes_into_a_reference(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = (
        "postgresql://app:hun%40ter2@h1,h2:77/sh$%7Bop%7D?application_name=%22a%22%20%23b%0Ac%C3%A9"
    )
    result = create(path, "--uri", uri)
    assert result.exit_code == 0
    assert "PGPASSWORD" in result.stderr
    assert "ter2" not in path.read_text() + result.output
    monkeypatch.setenv("PGPASSWORD", "rotated")
    assert read_config(path, resolve_env=True).connect_kwargs() == {
        "user": "app",
        "password": "rotated",
        "host": "h1,h2",
        "port": ",77",
        "dbname": "sh${op}",
        "application_name": '"a" #b\ncé',
        "connect_timeout": "3",
        **TCP_DEFAULTS,
    }


def test_options_with_a_secret_go_into_a_reference(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = create(path, "--uri", "postgresql://db/shop?options=-c%20app.token%3Dhunter2")
    assert "PGOPTIONS" in result.stderr
    assert "hunter2" not in path.read_text() + result.output
    monkeypatch.setenv("PGOPTIONS", "-c app.token=rotated")
    settings = read_config(path, resolve_env=True).connect_kwargs()
    assert settings["options"] == "-c app.token=rotated"


def test_a_uri_without_a_password_needs_no_references(path: Path) -> None:
    result = create(path, "--uri", "postgresql://app@localhost/sh$%7Bop%7D")
    assert result.stderr == f"Wrote {path}.\n"
    settings = load_config(path)["connection_settings"]
    assert settings == {"user": "app", "host": "localhost", "dbname": "sh${op}"}


@pytest.mark.parametrize("uri", ["postgresql://app:hun@ter2@db", "mysql://app:hunter2@db", ""])
def test_a_wrong_uri_is_an_error_that_does_not_quote_it(path: Path, uri: str) -> None:
    result = create(path, "--uri", uri)
    assert result.exit_code == 2
    assert "URI" in result.stderr
    assert "ter2" not in result.output
    assert not path.exists()


def test_from_env_and_uri_exclude_each_other(path: Path) -> None:
    result = create(path, "--from-env", "--uri", "postgresql://")
    assert result.exit_code == 2
    assert not path.exists()


def test_what_was_written_connects(
    path: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"host": "HOST", "port": "PORT", "user": "USER", "dbname": "DATABASE"}
    for key, name in {**variables, "password": "PASSWORD"}.items():
        if key in database:
            monkeypatch.setenv(f"PG{name}", str(database[key]))
    assert create(path, "--from-env").exit_code == 0
    result = CliRunner().invoke(
        pgmonkey, ["test", "--config", str(path), "--resolve-env", "--type", "pool"]
    )
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(path.read_text())["connection_settings"].keys() <= {
        *variables,
        "password",
    }


@pytest.mark.parametrize(
    ("uri", "is_told"),
    [
        ("postgresql://app@db.example/shop", True),
        ("postgresql://app@localhost,10.1.2.3/shop?sslmode=require", True),
        ("postgresql://app@db.example/shop?sslmode=verify-full", False),
        ("postgresql://app@localhost/shop", False),
        ("postgresql://app@[::1]/shop", False),
        ("postgresql:///shop?host=/run/postgresql", False),
    ],
)
def test_for_a_server_on_another_machine_tls_that_verifies_it_is_suggested(
    path: Path, uri: str, is_told: bool
) -> None:
    result = create(path, "--uri", uri)
    assert result.exit_code == 0
    assert ("set sslmode: verify-full" in result.stderr) is is_told


def test_tls_is_suggested_for_the_host_of_the_environment_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert "require_auth: scram-sha-256" in create(path, "--from-env").stderr
