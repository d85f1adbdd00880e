"""Finding the database of a command, and writing tables."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.cli.common import find_targets
from flask_pgmonkey.errors import ConfigError

TABLE = """
from flask_pgmonkey.cli.common import print_table
print_table(["Bind", "Message"], [["default", "[red]a long message[/red] " * 20]])
"""


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
        target.connect()


def test_an_app_has_a_target_for_each_bind(make_app: Any, invoke: Any, config_file: Path) -> None:
    app = make_app(CONFIG=str(config_file), BINDS={"reports": str(config_file)})

    result = invoke(app, "server-config")

    assert result.exit_code == 0
    assert "Server of default, reports:" in result.stdout


def run_in_terminal(code: str, columns: int, **variables: str) -> str:
    """What *code* writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **variables}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment)
    os.close(theirs)
    blocks = []
    with os.fdopen(ours, "rb", closefd=True) as stream:
        try:
            while block := stream.read1():
                blocks.append(block)
        except OSError:  # Linux's way of saying that the other end was closed.
            pass
    assert process.wait(30) == 0
    return b"".join(blocks).decode()


def test_a_piped_table_keeps_each_row_on_a_line() -> None:
    process = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, text=True)

    header, row = process.stdout.splitlines()
    assert header.split() == ["Bind", "Message"]
    assert row.strip() == "default  " + ("[red]a long message[/red] " * 20).strip()


def test_a_table_on_a_terminal_folds_and_loses_nothing() -> None:
    lines = run_in_terminal(TABLE, 60).splitlines()

    assert all(len(line) <= 60 + len("\x1b[1m\x1b[0m") * 4 for line in lines)
    assert "".join(lines).count("[/red]") == 20


def test_no_color_is_respected() -> None:
    assert "\x1b[" in run_in_terminal(TABLE, 60, NO_COLOR="")
    assert "\x1b[3" not in run_in_terminal(TABLE, 60, NO_COLOR="1")
