"""The group ``flask pgmonkey``: what it lists, what it imports, how it shows errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import flask
import pytest

from flask_pgmonkey.cli import COMMANDS

from .conftest import Invoke, Run, RunFlask


def test_flask_help_lists_the_group_without_an_app(run_flask: RunFlask) -> None:
    listed = run_flask("--help").stdout

    assert "pgmonkey  Test, configure and fill PostgreSQL databases." in listed


def test_the_groups_help_lists_every_command_with_a_line_about_it(run_flask: RunFlask) -> None:
    shown = run_flask("pgmonkey", "--help")

    assert shown.returncode == 0
    for command in COMMANDS:
        (line,) = [line for line in shown.stdout.splitlines() if line.startswith(f"  {command} ")]
        assert line.split(command, 1)[1].strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_has_an_example_and_needs_no_app(run: Run, command: str) -> None:
    shown = run(command, "--help")

    assert shown.exit_code == 0
    assert f"pgmonkey {command}" in shown.stdout.split("\n", 1)[1]


def test_help_imports_no_command_and_nothing_that_only_commands_need() -> None:
    """So that it takes little longer than ``flask --version``."""
    code = (
        "import contextlib, io, sys; from flask.cli import main;"
        "sys.argv = ['flask', 'pgmonkey', '--help'];"
        "shown = io.StringIO()\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown): main()\n"
        "assert 'Commands:' in shown.getvalue()\n"
        "ours = [name for name in sys.modules if name.startswith('flask_pgmonkey')]\n"
        "print(sorted(ours), [name for name in ('psycopg', 'rich', 'yaml') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    ours = ["flask_pgmonkey", "flask_pgmonkey.cli", "flask_pgmonkey.printable"]
    assert process.stdout.strip() == f"{ours} []"


def test_an_unknown_command_or_option_is_one_line_and_exit_code_2(run: Run) -> None:
    for arguments, words in (
        (["tset"], "There is no command 'tset'; did you mean test?"),
        (["show_config"], "There is no command 'show_config'; did you mean show-config?"),
        (["frobnicate"], "There is no command 'frobnicate'; there are test, create-config, "),
        (["test", "--jsno"], "No such option"),
        (["--bind", "reports", "test"], "--bind goes after the command, if it has that: flask "),
        (["--config=db.yaml", "test"], "--config goes after the command"),
        (
            ["test", "db.yaml"],
            "unexpected extra argument (db.yaml); a config file goes with",
        ),
        (["test", "--timeout", "10s"], "'10s' is not a number of seconds."),
        (["top", "--interval", "nan"], "'nan' is not a number of seconds."),
    ):
        shown = run(*arguments)

        assert (shown.exit_code, shown.stdout) == (2, "")
        assert words in shown.stderr
        assert shown.stderr.startswith("Error: ")
        assert shown.stderr.count("\n") == 1


def test_without_app_and_config_the_error_names_both(run_flask: RunFlask) -> None:
    shown = run_flask("pgmonkey", "server-config")

    assert shown.returncode == 2
    assert "'flask --app'" in shown.stderr
    assert "--config PATH" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_an_app_without_pgmonkey_is_told_how_to_add_it(invoke: Invoke) -> None:
    result = invoke(flask.Flask("bare"), "test")

    assert result.exit_code == 2
    assert "The app 'bare' has no PGMonkey. Call PGMonkey(app)" in result.stderr


def test_an_unknown_bind_is_answered_with_the_known_ones(
    make_app: Any, invoke: Invoke, config_file: Path
) -> None:
    app = make_app(CONFIG=str(config_file), BINDS={"reports": str(config_file)})

    result = invoke(app, "server-config", "--bind", "report")

    assert result.exit_code == 2
    assert "no bind 'report'; its binds are: default, reports." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "a.yaml", "--bind", "b"], "either --config PATH or --bind NAME"),
        (["--resolve-env"], "PGMONKEY_RESOLVE_ENV"),
        (["--allow-sensitive-defaults"], "PGMONKEY_ALLOW_SENSITIVE_DEFAULTS"),
        (["--config", "a.yaml", "--allow-sensitive-defaults"], "goes with --resolve-env"),
        (["--config", "missing.yaml"], "missing.yaml does not exist"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: Run, arguments: list[str], words: str
) -> None:
    for command in ("test", "server-config", "generate-code", "psql", "url"):
        shown = run(command, *arguments)

        assert (shown.exit_code, shown.stdout) == (2, "")
        assert words in shown.stderr
        assert shown.stderr.count("\n") == 1


def test_a_config_that_the_app_refuses_is_one_line_and_exit_code_2(
    run_flask: RunFlask, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        "app = Flask(__name__)\n"
        "db = PGMonkey(app, config={'connection_settings': {'hots': 'x'}})\n"
    )

    shown = run_flask("pgmonkey", "test")

    assert shown.returncode == 2
    assert "connection_settings.hots" in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["test", "show-config", "server-config", "psql", "url"])
def test_an_app_without_a_config_is_one_line_and_exit_code_2(
    run_flask: RunFlask, tmp_path: Path, command: str
) -> None:
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        "app = Flask(__name__)\n"
        "db = PGMonkey(app)\n"
    )

    shown = run_flask("pgmonkey", command)

    assert (shown.returncode, shown.stdout) == (2, "")
    assert "set PGMONKEY_CONFIG" in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "export-csv"])
def test_what_the_server_points_at_in_a_statement_stays_below_it(
    run: Run, config_file: Path, command: str
) -> None:
    query = "SELECT 1 AS n,\n\t'\x1b 日本' frm x"

    shown = run(command, "--config", config_file, "--query", query)

    assert (shown.exit_code, shown.stdout) == (1, "")
    words, line, caret = shown.stderr.splitlines()
    assert words == 'Error: syntax error at or near "x"'
    assert line == "  LINE 2:  '? 日本' frm x"
    width = sum(1 + (character in "日本") for character in line)  # on a terminal
    assert caret == " " * (width - 1) + "^"


def test_a_hint_of_the_servers_is_kept(run: Run, config_file: Path) -> None:
    shown = run("inspect", "--config", config_file, "--query", "SELECT upper(1, 2)")

    assert shown.stderr.splitlines()[-1].startswith("  HINT:  No function matches the given name")


COMPLETE = """
import sys
from click.shell_completion import BashComplete
from flask.cli import cli

complete = BashComplete(cli, {}, "flask", "_FLASK_COMPLETE")
for line in sys.stdin:
    *words, incomplete = line.removesuffix("\\n").split(" ")
    print(*[item.value or item.type for item in complete.get_completions(words, incomplete)])
"""


def test_the_shell_completes_commands_binds_types_and_files(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        "print('loaded')\n"
        "app = Flask(__name__)\n"
        "app.config['PGMONKEY_BINDS'] = {'reports': 'embedded', 'archive': 'embedded'}\n"
        "db = PGMonkey(app, config='embedded')\n"
    )
    expected = {
        "pgmonkey show": "show-config",
        "--app app pgmonkey test --bind ": "default reports archive",
        "--app app pgmonkey psql --bind re": "reports",
        "--app none pgmonkey psql --bind re": "",
        "pgmonkey test --type as": "async async_pool",
        "pgmonkey url --config ": "file",
        "pgmonkey create-config ": "file",
    }

    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPLETE],
        cwd=tmp_path,
        input="\n".join(expected),
        capture_output=True,
        text=True,
    )

    assert process.stderr == "loaded\n"
    assert dict(zip(expected, process.stdout.splitlines(), strict=True)) == expected


def test_a_server_that_refuses_is_one_line_and_exit_code_1(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "refused.yaml"
    config.write_text("connection_settings: {host: 127.0.0.1, port: 1}")

    shown = run("server-config", "--audit", "--config", config)

    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "Connection refused" in shown.stderr
    assert shown.stderr.count("\n") == 1
