"""Every generated program runs on a live server, wherever its config file lies."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.codegen import LIBRARIES, generate_program
from flask_pgmonkey.config import CONNECTION_TYPES

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
    program.write_text(generate_program(library, connection_type, str(config)), encoding="utf-8")

    output = run(program, library, connection_type)

    assert expected_output(library, connection_type) in output


@pytest.mark.parametrize("connection_type", CONNECTION_TYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_each_program_resolves_references_if_told_to(
    library: str, connection_type: str, database: dict[str, Any], tmp_path: Path
) -> None:
    references = {"dbname": "${TEST_DBNAME}", "application_name": "${TEST_NAME:-generated}"}
    config = tmp_path / "database.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": {**database, **references}}))
    config.chmod(0o600)
    text = generate_program(
        library, connection_type, str(config), resolve_env=True, allow_sensitive_defaults=True
    )
    program = tmp_path / "program.py"
    program.write_text(text, encoding="utf-8")

    output = run(program, library, connection_type, TEST_DBNAME=database["dbname"])

    assert expected_output(library, connection_type) in output
    assert "ALLOW_SENSITIVE_DEFAULTS" in text.upper()


@pytest.mark.parametrize("name", AWKWARD_NAMES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_path_survives_as_a_string_literal(library: str, name: str) -> None:
    tree = ast.parse(generate_program(library, "pool", f"/srv/{name}"))

    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert f"/srv/{name}" in texts
