"""What every command writes to terminals of any width, and elsewhere."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import write_config

TABLE = """
from flask_pgmonkey.cli.terminal import print_table
print_table(["Bind", "Message"], [["default", "[red]a long message[/red] " * 20]])
"""


ALL_COMMANDS = """
import contextlib, json, sys
from flask_pgmonkey.cli import pgmonkey

for arguments in json.loads(sys.argv[1]):
    sys.stdout.flush()
    with contextlib.suppress(SystemExit):
        pgmonkey.main(arguments, prog_name="flask pgmonkey")
"""
"""Every command that prints a table, in one process."""

SCHEMA = """
CREATE TABLE customers_with_a_rather_long_name (
    id bigint PRIMARY KEY,
    name text NOT NULL DEFAULT 'somebody whose name we do not know',
    email_address_of_the_customer text,
    created_at timestamp with time zone DEFAULT now()
);
COMMENT ON COLUMN customers_with_a_rather_long_name.name IS
    'The name as the customer writes it, with all that belongs to it, 日本語 too, in one field';
CREATE INDEX ON customers_with_a_rather_long_name (lower(email_address_of_the_customer))
    WHERE email_address_of_the_customer IS NOT NULL;
"""


def run_in_terminal(code: str, columns: int, *arguments: str, **variables: str) -> str:
    """What *code* writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **variables}
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=theirs, env=environment)
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


def test_a_table_on_a_terminal_is_wrapped_and_loses_nothing() -> None:
    lines = [plain(line) for line in run_in_terminal(TABLE, 60).splitlines()]

    assert all(len(line) <= 60 for line in lines)
    assert "".join(lines).count("[/red]") == 20


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_no_color_and_dumb_terminals_are_respected() -> None:
    assert "\x1b[1m" in run_in_terminal(TABLE, 200, NO_COLOR="")
    assert "\x1b" not in run_in_terminal(TABLE, 200, NO_COLOR="1")
    assert "\x1b" not in run_in_terminal(TABLE, 200, TERM="dumb")


@pytest.fixture
def arguments(database: dict[str, Any], tmp_path: Path) -> str:
    """For every command that prints a table, with long texts to print."""
    with psycopg.connect(**database) as connection:
        connection.execute(SCHEMA)
    (tmp_path / "migrations").mkdir()
    name = "20260101000000_give_the_customers_of_the_shop_a_table_of_their_own.sql"
    (tmp_path / "migrations" / name).write_text("-- migrate:up\n-- migrate:down\n")
    config = str(write_config(tmp_path, database))
    refused = tmp_path / "refused.yaml"
    refused.write_text("connection_settings: {host: 127.0.0.1, port: 1}")
    query = "SELECT id, email_address_of_the_customer FROM customers_with_a_rather_long_name"
    return json.dumps(
        [
            ["test", "--config", str(refused)],
            ["test", "--config", config],
            ["show-config", "--config", config],
            ["inspect", "--config", config],
            ["inspect", "--config", config, "customers_with_a_rather_long_name"],
            ["inspect", "--config", config, "--query", query],
            ["server-config", "--config", config, "--audit"],
            ["migrate", "--config", config, "--folder", str(tmp_path / "migrations"), "status"],
        ]
    )


def piped(arguments: str, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", ALL_COMMANDS, arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def words_of(text: str) -> set[str]:
    """The words but for numbers, which are those of the moment."""
    return {word for word in plain(text).split() if not re.search(r"\d[.:]\d|^\d+$", word)}


def test_no_table_of_any_command_breaks_a_word_or_a_narrow_terminal(arguments: str) -> None:
    elsewhere = piped(arguments, COLUMNS="40", FORCE_COLOR="1")
    assert "\x1b" not in elsewhere
    assert any(len(line) > 150 for line in elsewhere.splitlines())
    assert not any(line.endswith(" ") for line in elsewhere.splitlines())
    for columns in (80, 40):
        shown = run_in_terminal(ALL_COMMANDS, columns, arguments)
        left_out = words_of(elsewhere) - words_of(shown)
        # A block names neither its first cell nor one that is empty, as Rows without statistics.
        first = {"Bind", "Column", "Index", "Key", "Setting", "State", "Table"}
        assert left_out <= first | {"Rows", "Server", "TLS", "Auth", "Connect", "Query", "Pool"}
        assert words_of(shown) <= words_of(elsewhere)
        assert_fits(shown, columns)


def test_the_sessions_fit_a_narrow_terminal(config_file: Path, database: dict[str, Any]) -> None:
    arguments = json.dumps([["top", "--once", "--config", str(config_file)]])
    with psycopg.connect(**{**database, "application_name": "a_shop"}) as idle:
        idle.execute("SELECT 'a query of some length', 'which does not end within a line'")
        for columns in (80, 40):
            shown = run_in_terminal(ALL_COMMANDS, columns, arguments)
            assert {"a_shop", "transaction", "'which"} <= words_of(shown)
            assert_fits(shown, columns)


def assert_fits(shown: str, columns: int) -> None:
    """Only a single word is ever wider, and what is to be copied."""
    for line in map(plain, shown.splitlines()):
        assert width_of(line) <= columns or len(line.split()) == 1 or "# Server" in line


def width_of(line: str) -> int:
    return sum(1 + (character in "日本語") for character in line)
