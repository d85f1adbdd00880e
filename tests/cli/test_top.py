"""``flask pgmonkey top``; what it shows is held by tests/test_activity.py."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from ..servers import PrivateServer
from .conftest import Invoke, Run
from .test_hostile_text import HOSTILE, assert_harmless

PATIENCE = 20.0


@pytest.fixture
def config(private_server: PrivateServer, tmp_path: Path) -> Path:
    path = tmp_path / "db.yaml"
    settings = private_server.settings(connect_timeout=2)
    path.write_text(yaml.safe_dump({"connection_settings": settings}))
    path.chmod(0o600)
    return path


@pytest.fixture
def blocked(database: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """The processes of two sessions: one holds a lock, and the other waits for it."""
    with (
        psycopg.connect(**database, application_name="waiter") as waiter,
        psycopg.connect(**database, application_name="holder") as holder,
    ):
        holder.execute("CREATE TABLE items (n integer)")
        holder.commit()
        holder.execute("LOCK TABLE items")
        thread = threading.Thread(target=waiter.execute, args=("SELECT n\nFROM items",))
        thread.start()
        waiting = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
        with psycopg.connect(**database, autocommit=True) as observer:
            deadline = time.monotonic() + PATIENCE
            while not observer.execute(waiting, (waiter.info.backend_pid,)).fetchone():
                assert time.monotonic() < deadline, "nobody waits"
                time.sleep(0.01)
        yield holder.info.backend_pid, waiter.info.backend_pid
        holder.rollback()
        thread.join(PATIENCE)


class Terminal:
    """The command in a process of its own, at a terminal of 30 lines and 160 columns."""

    def __init__(self, *arguments: object) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "LINES": "30", "COLUMNS": "160"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flask", "pgmonkey", "top", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # Linux's word for the end
            while chunk := os.read(self._ours, 65536):
                self.shown += chunk.decode(errors="replace")

    def wait_for(self, pattern: str, since: int = 0) -> int:
        """Where *pattern* ends in what was shown, from *since* on."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.compile(pattern).search(self.shown, since)):
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.shown[-3000:]!r}"
            assert self.process.poll() is None, self.shown[-3000:]
            time.sleep(0.02)
        return found.end()

    def interrupt(self) -> int:
        """Its exit code after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._ours)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: object) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def test_once_shows_who_blocks_whom(
    run: Run, config_file: Path, blocked: tuple[int, int], database: dict[str, Any]
) -> None:
    holder, waiter = blocked

    shown = run("top", "--config", config_file, "--once")

    assert (shown.exit_code, shown.stderr) == (0, "")
    head, _, columns, *lines = shown.stdout.splitlines()
    assert re.match(rf"\S+/{database['dbname']} at \d\d:\d\d:\d\d: \d+ other sessions of", head)
    assert "1 waiting for a lock" in head
    assert columns.split("  ")[0] == "PID"
    (at,) = (at for at, line in enumerate(lines) if line.startswith(str(holder)))
    assert "idle in transaction" in lines[at]
    assert lines[at + 1].startswith(f"└ {waiter}")
    assert lines[at + 1].endswith(f"[{holder}: AccessShareLock on items] SELECT n FROM items")


def test_json_is_the_same_for_programs(
    run: Run, config_file: Path, blocked: tuple[int, int]
) -> None:
    holder, waiter = blocked

    shown = run("top", "--config", config_file, "--once", "--json")

    page = json.loads(shown.stdout)
    sessions = {session["pid"]: session for session in page["sessions"]}
    assert sessions[waiter]["blocked_by"] == [holder]
    assert sessions[waiter]["lock_on"] == "items"
    assert sessions[waiter]["query"] == "SELECT n\nFROM items"
    assert sessions[holder]["application"] == "holder"
    assert page.keys() == {"at", "database", "max_connections", "role", "sessions"}


def test_a_bind_of_the_app_is_looked_at(
    make_app: Any, invoke: Invoke, database: dict[str, Any]
) -> None:
    app = make_app(CONFIG={}, BINDS={"reports": {"connection_settings": database}})
    shown = invoke(app, "top", "--bind", "reports", "--once")
    assert shown.exit_code == 0, shown.output
    assert f"/{database['dbname']} at " in shown.stdout


def test_a_first_look_that_fails_is_an_error(run: Run, tmp_path: Path) -> None:
    for more in ([], ["--once"], ["--json"]):
        shown = run("top", "--config", "postgresql://app:hidden@127.0.0.1:1/shop", *more)
        assert shown.exit_code == 1
        assert shown.stdout == ""
        assert len(shown.stderr.splitlines()) == 1
        assert "hidden" not in shown.stderr


def test_an_interval_is_seconds(run: Run, config_file: Path) -> None:
    for wrong in ("0", "nan", "-1", "soon"):
        assert run("top", "--config", config_file, "--interval", wrong).exit_code == 2


def test_names_and_queries_cannot_drive_the_terminal(
    run: Run, config_file: Path, database: dict[str, Any]
) -> None:
    name = HOSTILE.encode("ascii", "ignore").decode()
    with psycopg.connect(**database, autocommit=True, application_name=name) as conn:
        conn.execute(f"SELECT '{HOSTILE}', '[bold]'")
        assert_harmless(run("top", "--config", config_file, "--once"))
        shown = run("top", "--config", config_file, "--once", "--json")
    assert_harmless(shown)
    assert HOSTILE in "".join(each["query"] for each in json.loads(shown.stdout)["sessions"])


def test_a_role_without_pg_monitor_is_told_so(
    run: Run, config: Path, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("REVOKE pg_monitor FROM app")
        try:
            shown = run("top", "--config", config, "--once")
            admin.execute("GRANT pg_monitor TO app")
            after = run("top", "--config", config, "--once")
        finally:
            admin.execute("GRANT pg_monitor TO app")
    assert "The role app may not see what 1 of them do" in shown.stdout
    assert "may not see" not in after.stdout


def test_it_looks_again_and_ctrl_c_ends_it_quietly(
    open_terminal: Callable[..., Terminal], config: Path, private_server: PrivateServer
) -> None:
    terminal = open_terminal("--config", config, "--interval", "0.1")
    seen = terminal.wait_for("0 other sessions of at most 100")
    with private_server.connect() as conn:
        conn.execute("SELECT 'a new one'")
        seen = terminal.wait_for("SELECT 'a new one'", seen)
    terminal.wait_for("0 other sessions of at most 100", seen)
    assert terminal.interrupt() == 0
    for word in ("Traceback", "Aborted", "Error"):
        assert word not in terminal.shown


def test_a_server_that_goes_away_is_said_and_found_again(
    open_terminal: Callable[..., Terminal], config: Path, private_server: PrivateServer
) -> None:
    terminal = open_terminal("--config", config, "--interval", "0.1")
    seen = terminal.wait_for("0 other sessions of at most 100")
    private_server.stop()
    seen = terminal.wait_for(r"As it was at [\d:]+; asking again: ", seen)
    private_server.start()
    with private_server.connect() as conn:
        conn.execute("SELECT 'after it'")
        terminal.wait_for("SELECT 'after it'", seen)
    assert terminal.interrupt() == 0


def test_a_server_that_is_silent_holds_up_nobody(
    open_terminal: Callable[..., Terminal], config: Path, private_server: PrivateServer
) -> None:
    terminal = open_terminal("--config", config, "--interval", "0.1")
    seen = terminal.wait_for("0 other sessions of at most 100")
    private_server.pause()
    try:
        terminal.wait_for("the server has not answered within 3 seconds", seen)
        assert terminal.interrupt() == 0
    finally:
        private_server.resume()


def test_json_is_a_line_for_each_look(config: Path, private_server: PrivateServer) -> None:
    command = [sys.executable, "-m", "flask", "pgmonkey", "top", "--json", "--interval", "0.1"]
    with subprocess.Popen(
        [*command, "--config", config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        private_server.stop()
        for line in process.stdout:
            looks.append(json.loads(line))
            if "error" in looks[-1]:
                break
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (0, "")
    assert looks[0]["at"] < looks[1]["at"]
    assert looks[-1].keys() == {"error"}
