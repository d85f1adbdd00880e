"""Writing tables, to a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

TABLE = """
from flask_pgmonkey.cli.terminal import print_table
print_table(["Bind", "Message"], [["default", "[red]a long message[/red] " * 20]])
"""


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
