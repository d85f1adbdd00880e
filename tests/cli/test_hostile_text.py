"""Text of others never drives the terminal and never forges a line."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click.testing
import flask
import psycopg
import pytest
import yaml

import flask_pgmonkey
from flask_pgmonkey.cli.targets import Target
from flask_pgmonkey.codegen import LIBRARIES, generate_program
from flask_pgmonkey.codegen.sources import file_source, mapping_source
from flask_pgmonkey.config import CONNECTION_TYPES, load_config, read_config
from flask_pgmonkey.server_audit import client_of, recommend_hba_rules

from .conftest import Invoke, Run

ESCAPE = "\x1b[2J\x1b]0;owned\x07"
FORGED = "x\nError: forged\r\n\x85forged\u2028forged"
HOSTILE = f"{ESCAPE}{FORGED}\u202e"


def assert_harmless(result: click.testing.Result, lines: int | None = None) -> None:
    """Nothing in it but printable lines, none of which begins as the text of another says."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for line in result.output.split("\n"):
        assert line.isprintable(), line
        assert not line.startswith(("Error: forged", "forged", "host all"))
    if lines is not None:
        assert len(result.output.splitlines()) == lines, result.output


@pytest.fixture
def hostile_config(database: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes a config file with more connection_settings."""

    def write(**more: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"connection_settings": {**database, **more}}))
        return path

    return write


def calls_in(package: Path) -> Iterator[tuple[str, ast.Call]]:
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file.name, node


def test_nothing_is_said_past_what_makes_it_printable() -> None:
    """So that the next command or log call is held to it as well."""
    found = []
    for file, call in calls_in(Path(flask_pgmonkey.__file__).parent):
        said = ast.unparse(call.args[0]) if call.args else ""
        match ast.unparse(call.func).split("."):
            case ["logger", "warning" | "error" | "exception" | "info" | "debug"] if not isinstance(
                call.args[0], ast.Constant
            ):
                found.append((file, said))  # the filter looks at the arguments only
            case ["click", "echo"] if not said.startswith(("printable(", "json.dumps(")):
                found.append((file, said))
            case ["warnings", "warn"] if "printable(" not in said:
                found.append((file, said))
            case ["print"] | ["sys", "stdout" | "stderr", "write"]:
                found.append((file, said))
    assert found == [("generate_code.py", "program")]  # which has its own test below


def test_names_of_a_csv_file(run: Run, config_file: Path, tmp_path: Path) -> None:
    header = '"' + HOSTILE.replace("\n", "") + '",id\n'
    path = tmp_path / f"{HOSTILE}.csv"
    path.write_text(header + "1,2\n", encoding="utf-8", newline="")
    for more in ([], ["--create"], ["--create", "--keep-names"], ["--columns", f"{HOSTILE}=id"]):
        command = ("import-csv", "--config", config_file, *more)
        assert_harmless(run(*command, f"t{len(more)}", path), None if more else 1)
        assert_harmless(run(*command, HOSTILE, path))


def test_names_and_comments_that_inspect_shows(run: Run, config_file: Path) -> None:
    settings = yaml.safe_load(config_file.read_text())["connection_settings"]
    with psycopg.connect(**settings, autocommit=True) as connection:
        connection.execute(f"""
            CREATE TABLE "{HOSTILE}" ("{HOSTILE}" text DEFAULT '{HOSTILE}' UNIQUE);
            COMMENT ON TABLE "{HOSTILE}" IS '{HOSTILE}';
            COMMENT ON COLUMN "{HOSTILE}"."{HOSTILE}" IS '{HOSTILE}';
        """)
    inspect = ("inspect", "--config", config_file)
    for words in (
        [],
        ["--json"],
        [HOSTILE],
        [HOSTILE, "--dataclass"],
        [f"{HOSTILE}x"],
        ["--query", f'SELECT 1 AS "{HOSTILE}"', "--dataclass"],
        ["--query", f'SELECT 1 AS "{HOSTILE}"'],
    ):
        result = run(*inspect, *words)
        assert_harmless(result)
        assert (
            r"\x1b[2J" in result.output or r"\u001b[2J" in result.output or "x_2j" in result.output
        )


def test_words_of_the_server(run: Run, config_file: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config_file.read_text())["connection_settings"]
    with psycopg.connect(**settings, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id text)")
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION '%', NEW.id; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    path = tmp_path / "items.csv"
    path.write_text(f'id\n"{HOSTILE}"\n', encoding="utf-8", newline="")
    for mode in ("stop", "skip"):
        result = run("import-csv", "--config", config_file, "--on-error", mode, "items", path)
        assert_harmless(result)
        assert r"\x1b[2J" in result.output
    for query in (f'SELECT "{HOSTILE}"', f'SELECT 1 FROM "{HOSTILE}"', f"SELECT '{HOSTILE}'::int"):
        result = run("export-csv", "--config", config_file, "--query", query)
        assert_harmless(result, 3)  # with the statement and where in it
        assert result.exit_code == 1


def test_values_of_a_config(run: Run, hostile_config: Callable[..., Path]) -> None:
    assert_harmless(run("url", "--config", hostile_config(host=f"::1{HOSTILE}")), 1)
    config = hostile_config(application_name=HOSTILE, dbname=HOSTILE)
    for command in ("show-config", "test", "server-config", "generate-code", "url"):
        for form in ([], ["--json"]):
            result = run(command, "--config", config, *form)
            if command != "generate-code" or not form:
                assert_harmless(result)
    assert_harmless(run("export-csv", "--config", config, "items"), 1)


@pytest.mark.parametrize("command", ["show-config", "test", "server-config", "generate-code"])
def test_names_of_files_and_binds(
    run: Run, make_app: Callable[..., flask.Flask], invoke: Invoke, command: str, tmp_path: Path
) -> None:
    assert_harmless(run(command, "--config", f"{HOSTILE}.yaml"), 1)
    nobody = {"connection_settings": {"host": "127.0.0.1", "port": 1}}
    app = make_app(CONFIG=nobody, BINDS={HOSTILE: nobody})
    assert_harmless(invoke(app, command, "--bind", HOSTILE))
    assert_harmless(invoke(app, command, "--bind", f"no {HOSTILE}"), 1)
    assert_harmless(run(f"{HOSTILE}"), 1)
    assert_harmless(run(command, f"--{HOSTILE}"), 1)
    assert_harmless(run("create-config", f"none/{HOSTILE}"), 1)
    assert_harmless(run("create-config", f"{HOSTILE}.new", "--uri", "postgresql://db"), 2)


def test_a_warning_about_a_file(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.yaml"
    path.write_text("postgresql: {connection_settings: {host: db}}")
    with pytest.warns(DeprecationWarning, match="the key postgresql") as warned:
        load_config(path)
    assert str(warned[0].message).isprintable()


@pytest.mark.parametrize("name", [HOSTILE, '"""\nimport os\n', "'\"\\", "{{ config_path }}"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("type_", CONNECTION_TYPES)
def test_the_name_of_a_file_in_a_program(library: str, type_: str, name: str) -> None:
    name = name.replace("/", "")
    in_mapping = mapping_source({"connection_settings": {"dbname": name}}, resolve_env=False)
    for source in (file_source(f"/srv/{name}", "/srv", resolve_env=False), in_mapping):
        program = generate_program(library, type_, source)
        assert all(line.isprintable() for line in program.split("\n"))
        nodes = ast.walk(ast.parse(program))
        assert name in [node.value for node in nodes if isinstance(node, ast.Constant)]


def test_parts_of_a_uri_in_a_config(run: Run, tmp_path: Path) -> None:
    part = f"'\"{HOSTILE} # x: y"
    quoted = quote(part, safe="")
    run(
        "create-config",
        "new.yaml",
        "--uri",
        f"postgresql://{quoted}@db/d?application_name={quoted}",
    )
    text = (tmp_path / "new.yaml").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in text.split("\n"))
    settings = yaml.safe_load(text)["connection_settings"]
    assert (settings["user"], settings["application_name"]) == (part, part)


def test_no_name_adds_a_rule_to_pg_hba_conf(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for user in ("app\nhost all all 0.0.0.0/0 trust", 'a" "b\rhost all all', "app # \x1b[2J"):
        settings = {"host": "127.0.0.1", "user": user, "dbname": user, "application_name": user}
        path.write_text(yaml.safe_dump({"connection_settings": settings}))
        result = run("server-config", "--config", path)
        assert_harmless(result)
        rules = result.output.partition("# pg_hba.conf: ")[2].splitlines()[1:]
        assert [rule for rule in rules if rule and not rule.startswith('host "a')] == []
        assert "no line can name it" in result.output


def test_a_name_like_a_pattern_lets_in_nobody_else() -> None:
    config = read_config(
        {"connection_settings": {"host": "127.0.0.1", "user": "/.*é", "dbname": "d"}}
    )
    (rule, _) = recommend_hba_rules(client_of(config))
    pattern = rule.user.strip('"').removeprefix("/")
    assert re.fullmatch(pattern, "/.*é")
    assert not re.match(pattern, "postgres")


def test_a_repr_shows_no_secret() -> None:
    settings = {"host": "127.0.0.1", "user": "u", "password": "hunter2", "sslpassword": "hunter2"}
    uri = "postgresql://u:hunter2@127.0.0.1/d"
    for source in (uri, {"connection_settings": settings}, {"connection_settings": {"uri": uri}}):
        assert "hunter2" not in repr(Target("default", source, False, False))
        assert "hunter2" not in repr(client_of(read_config(source)))
