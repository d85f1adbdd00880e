"""Every generated program runs on a live server, wherever its config file lies."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from flask_pgmonkey.codegen import LIBRARIES, generate_program
from flask_pgmonkey.codegen.sources import (
    embedded_source,
    file_source,
    mapping_source,
    uri_source,
)
from flask_pgmonkey.config import CONNECTION_TYPES
from flask_pgmonkey.errors import ConfigError

from ..servers import PrivateServer
from ..suite import Suite

ROOT = Path(__file__).parents[2]

AWKWARD_NAMES = (
    "plain.yaml",
    "with space.yaml",
    "with 'single' quotes.yaml",
    'with "double" quotes.yaml',
    """with 'both' "quotes".yaml""",
    r"with \back\n slash.yaml",
    "with {braces} {{ and }} %s.yaml",
    "mit Ümläut 🐒.yaml",
)
VIEWS = {"pool", "async_pool"}
CALL_THE_VIEW = """
import runpy, sys
app = runpy.run_path(sys.argv[1])["app"]
print(app.test_client().get("/").text)
"""


def run(program: Path, library: str, connection_type: str, **variables: str) -> str:
    """What *program* prints when it runs, warnings being errors."""
    command = [sys.executable, "-W", "error", str(program)]
    if library == "flask":
        command = [sys.executable, "-W", "error", "-m", "flask", "--app", str(program)]
        command += ["show-version"]
        if connection_type in VIEWS:
            command = [sys.executable, "-W", "error", "-c", CALL_THE_VIEW, str(program)]
    process = subprocess.run(
        command,
        cwd=program.parent,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


def expected_output(library: str, connection_type: str) -> str:
    if library != "flask" and connection_type in VIEWS:
        return "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
    return "PostgreSQL"


def every_setting(database: dict[str, Any]) -> dict[str, Any]:
    """A config with something in every section, numbers in quotes included."""
    return {
        "connection_type": "pool",
        "connection_settings": {**database, "connect_timeout": "5", "sslcert": None},
        "pool_settings": {"min_size": "1", "max_size": 4, "check_on_checkout": True},
        "async_pool_settings": {"min_size": 2, "max_idle": "30", "leak_threshold": 10},
        "sync_settings": {"statement_timeout": "10s", "jit": False},
        "async_settings": {"search_path": "public, pg_catalog"},
    }


@pytest.mark.parametrize("connection_type", CONNECTION_TYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_each_program_queries_the_server(
    library: str, connection_type: str, database: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / """it's a "config" \\ file.yaml"""
    config.write_text(yaml.safe_dump(every_setting(database)))
    config.chmod(0o600)
    program = tmp_path / "program.py"
    source = file_source(str(config), str(tmp_path), resolve_env=False)
    program.write_text(generate_program(library, connection_type, source), encoding="utf-8")

    output = run(program, library, connection_type)

    assert expected_output(library, connection_type) in output


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_program_resolves_references_if_told_to(
    library: str, database: dict[str, Any], tmp_path: Path
) -> None:
    connection_type = "pool"
    references = {"dbname": "${TEST_DBNAME}", "application_name": "${TEST_NAME:-generated}"}
    config = tmp_path / "database.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": {**database, **references}}))
    config.chmod(0o600)
    source = file_source(str(config), str(tmp_path), resolve_env=True)
    text = generate_program(library, connection_type, source, allow_sensitive_defaults=True)
    program = tmp_path / "program.py"
    program.write_text(text, encoding="utf-8")

    output = run(program, library, connection_type, TEST_DBNAME=database["dbname"])

    assert expected_output(library, connection_type) in output
    assert "ALLOW_SENSITIVE_DEFAULTS" in text.upper()


@pytest.mark.parametrize("name", AWKWARD_NAMES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_path_survives_as_a_string_literal(library: str, name: str) -> None:
    for folder, literal in (("/srv", name), ("/srv/apps", f"../{name}"), ("/", f"/srv/{name}")):
        source = file_source(f"/srv/{name}", folder, resolve_env=False)
        tree = ast.parse(generate_program(library, "pool", source))

        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert literal in texts


def test_a_program_finds_its_file_from_wherever_it_is_run(
    database: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "conf").mkdir()
    config = tmp_path / "conf" / "db.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": database}))
    config.chmod(0o600)
    source = file_source(str(config), str(tmp_path / "app"), resolve_env=False)
    (tmp_path / "app").mkdir()
    program = tmp_path / "app" / "program.py"
    program.write_text(generate_program("manager", "normal", source))
    shown = subprocess.run([sys.executable, program], cwd="/", capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "PostgreSQL" in shown.stdout


@pytest.mark.parametrize(("library", "type_"), [("flask", "pool"), ("psycopg", "async")])
def test_a_program_takes_a_uri_from_the_environment(
    library: str, type_: str, database: dict[str, Any], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(generate_program(library, type_, uri_source()))

    output = run(program, library, type_, DATABASE_URL=f"postgresql://?{urlencode(database)}")

    assert "PostgreSQL" in output


@pytest.mark.parametrize(("library", "type_"), [("flask", "async"), ("manager", "pool")])
def test_a_program_holds_a_mapping_but_for_its_secrets(
    library: str, type_: str, private_server: PrivateServer, tmp_path: Path
) -> None:
    mapping = {
        "connection_settings": private_server.settings(application_name="${literal}"),
        "pool_settings": {"max_size": 4},
        "sync_settings": {"app.token": "do-not-show"},
    }
    program = tmp_path / "program.py"
    text = generate_program(library, type_, mapping_source(mapping, resolve_env=False))
    program.write_text(text)

    secrets = {"PGPASSWORD": private_server.password, "PGAPP_TOKEN": "do-not-show"}
    output = run(program, library, type_, **secrets)

    assert expected_output(library, type_) in output
    assert "$${literal}" in text
    for secret in secrets.values():
        assert secret not in text


def test_what_no_program_can_hold_is_an_error() -> None:
    mapping = {"connection_settings": {"host": object()}}
    with pytest.raises(ConfigError, match="object objects, which no program can be given"):
        mapping_source(mapping, resolve_env=False)


@pytest.mark.parametrize(("library", "type_"), [("flask", "normal"), ("manager", "async")])
@pytest.mark.parametrize("instance", ["instance", "elsewhere"])
def test_a_program_uses_the_embedded_server_of_the_app(
    library: str, type_: str, instance: str, suite: Suite, open_folder: Path
) -> None:
    postgres = open_folder / instance / "postgres"
    suite.copy_cluster(postgres / "data")
    program = open_folder / "program.py"
    source = embedded_source(str(postgres), str(open_folder))
    program.write_text(generate_program(library, type_, source))

    assert "PostgreSQL" in run(program, library, type_)
    assert ("instance_path" in program.read_text()) == (
        library == "flask" and instance == "elsewhere"
    )


@pytest.mark.any_version
def test_every_program_is_clean_to_type_checkers(tmp_path: Path) -> None:
    sources = {
        "file": file_source(str(tmp_path / "db.yaml"), str(tmp_path), resolve_env=False),
        "flags": file_source("/srv/db.yaml", str(tmp_path), resolve_env=True),
        "uri": uri_source(),
        "mapping": mapping_source(
            {"connection_settings": {"host": "db", "password": "x"}, "pool_settings": {}},
            resolve_env=False,
        ),
        "embedded": embedded_source(str(tmp_path / "postgres"), str(tmp_path)),
    }
    for name, source in sources.items():
        for library in LIBRARIES:
            for type_ in CONNECTION_TYPES:
                program = tmp_path / f"{name}_{library}_{type_}.py"
                flag = name == "flags"
                program.write_text(
                    generate_program(library, type_, source, allow_sensitive_defaults=flag)
                )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    assert "in 60 source files" in checked.stdout
