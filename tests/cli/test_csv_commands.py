from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from flask_pgmonkey.cli import pgmonkey

from .conftest import write_config

COMMAND = (
    sys.executable,
    "-c",
    "from flask_pgmonkey.cli import pgmonkey; pgmonkey(prog_name='flask pgmonkey')",
)
NUMBERED = b"ALTER TABLE items ALTER id SET NOT NULL, ALTER id ADD GENERATED ALWAYS AS IDENTITY"
DEADLINE = 30
"""Seconds."""

Run = Callable[..., Result]
Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def connection(database: dict[str, Any]) -> Iterator[Connection]:
    """In autocommit mode, to a database with the table ``items``, which has one row."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id integer, name text)")
        connection.execute("INSERT INTO items VALUES (0, 'old')")
        yield connection


@pytest.fixture
def run(config_file: Path, connection: Connection) -> Run:
    """Runs a command on the database of ``connection``."""

    def run(command: str, *arguments: object, **how: Any) -> Result:
        words = [command, "--config", str(config_file), *map(str, arguments)]
        return CliRunner().invoke(pgmonkey, words, **how)

    return run


@pytest.fixture
def start(
    config_file: Path, connection: Connection
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command in a process of its own, with pipes, and ends it at the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: str, *arguments: object, **how: Any) -> subprocess.Popen[bytes]:
        words = [*COMMAND, command, "--config", str(config_file), *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(words, **{**pipes, **how}))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def rows_of(connection: Connection, table: str = "items") -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {table} ORDER BY 1".encode()).fetchall()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_goes_in_and_comes_out(run: Run, connection: Connection, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("name;id\nnew;1\n")
    result = run("import-csv", "items", path)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert result.stderr == ("1 row into items (read as utf-8, delimiter ';', with header).\n")
    assert rows_of(connection) == [(0, "old"), (1, "new")]
    result = run("export-csv", "items", tmp_path / "out.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"2 rows into {tmp_path / 'out.csv'}.\n"
    assert (tmp_path / "out.csv").read_text() == "id,name\n0,old\n1,new\n"


def test_standard_input_and_output(run: Run, connection: Connection) -> None:
    result = run("import-csv", "items", "-", "--no-header", input="1,new\n")
    assert result.exit_code == 0, result.output
    assert rows_of(connection) == [(0, "old"), (1, "new")]
    for arguments in (["items"], ["items", "-"], ["--query", "SELECT * FROM items"]):
        result = run("export-csv", *arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (
            0,
            "id,name\n0,old\n1,new\n",
            "",
        )


def test_a_pipe_by_its_name_is_standard_output(start: Any) -> None:
    written, told = start("export-csv", "items", "/dev/stdout").communicate(timeout=DEADLINE)

    assert (written, told) == (b"id,name\n0,old\n", b"1 row into /dev/stdout.\n")


def test_an_environment_that_asks_for_sql_ascii_changes_nothing(
    run: Run, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "items.csv"
    file.write_text("id,name\n1,é\n", encoding="utf-8")
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")

    assert run("import-csv", "items", file).exit_code == 0

    assert rows_of(connection) == [(0, "old"), (1, "é")]
    assert run("export-csv", "items").stdout == "id,name\n0,old\n1,é\n"


def test_every_option_of_import_is_heard(run: Run, connection: Connection, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes("'Nr'|'Text'|'Rest'\n1|é|x\n2|NONE|y\nz|\n".encode("cp1250"))
    result = run(
        *("import-csv", "items", path, "--encoding", "cp1250", "--delimiter", "|", "--quote", "'"),
        *("--header", "--columns", "Nr=id,Text=name,Rest=", "--null", "NONE", "--truncate"),
        *("--on-error", "skip"),
    )
    assert result.exit_code == 0, result.output
    assert rows_of(connection) == [(1, "é"), (2, None)]
    assert f'{path}, line 4, column "id" ' in result.stderr
    assert f"1 rejected row is in {tmp_path / 'items.rejected.csv'}." in result.stderr
    result = run("import-csv", "items", path, "--columns", "id,name,rest", "--dry-run")
    assert result.exit_code == 1
    result = run(
        "import-csv", "new", path, "--create", "--text", "--keep-names", "--sample", 1, "--header",
        "--encoding", "cp1250", "--on-error", "skip", "--dry-run",
    )  # fmt: skip
    assert "Made the table new: Nr text, Text text, Rest text." in result.stderr
    assert "all rolled back." in result.stderr
    assert connection.execute("SELECT to_regclass('new')").fetchone() == (None,)


def test_every_option_of_export_is_heard(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    result = run(
        *("export-csv", "items", path, "--columns", "name,id,name", "--where", "id = 0"),
        *("--encoding", "utf-16", "--delimiter", r"\t", "--quote", "'", "--null", "NONE"),
        "--no-header",
    )
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == "old\t0\told\n".encode("utf-16")
    result = run("export-csv", "--query", "SELECT 'a''b' AS x", path, "--quote", "'")
    assert path.read_text() == "x\n'a''b'\n"


def test_settings_beside_the_file_are_used_and_overruled(
    run: Run, connection: Connection, tmp_path: Path
) -> None:
    path = tmp_path / "items.csv"
    path.write_text("A Name;An,Id\nx;1,2\n")
    settings = tmp_path / "items.yaml"
    settings.write_text("has_headers: false\nauto_create_table: true\ndelimiter: ','\n")
    assert run("import-csv", "first", path, "--dry-run").stderr.startswith(
        "Made the table first: column_1 text, column_2 text."
    )
    result = run("import-csv", "second", path, "--header", "--delimiter", ";", "--save-settings")
    assert result.stderr.startswith("Made the table second: a_name text, an_id text.")
    result = run("import-csv", "third", path)
    assert result.stderr.startswith("Made the table third: a_name text, an_id text.")
    settings.write_text(settings.read_text().replace("lowercase: true", "lowercase: false"))
    result = run("import-csv", "fourth", path)
    assert result.stderr.startswith("Made the table fourth: A Name text, An,Id text.")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["import-csv", "items", "x.csv", "--delimiter", "ab"], "'ab' is not one ASCII"),
        (["import-csv", "items", "x.csv", "--encoding", "nope"], "unknown encoding: nope"),
        (["import-csv", "items", "x.csv", "--encoding", "rot13"], "not a text encoding"),
        (["import-csv", "items", "x.csv", "--encoding", "undefined"], "unknown encoding"),
        (["export-csv", "items", "x.csv", "--encoding", "idna"], "not of files"),
        (["import-csv", "items", "x.csv", "--delimiter", ";", "--quote", ";"], "both ';'"),
        (["import-csv", "items", "x.csv", "--delimiter", '"'], "are both '\"'"),
        (["import-csv", "items", "x.csv", "--delimiter", ";", "--escape", ";"], "escape is ';'"),
        (["import-csv", "items", "x.csv", "--text"], "--text goes with --create"),
        (["import-csv", "items", "x.csv", "--columns", "a=b,c"], "not both"),
        (["import-csv", "items", "-", "--save-settings"], "--save-settings needs a FILE"),
        (["import-csv", "items"], "Missing argument 'FILE'"),
        (["export-csv"], "Name a TABLE or give --query"),
        (["export-csv", "items", "x.csv", "--query", "SELECT 1"], "--query takes the place"),
        (["export-csv", "--query", "SELECT 1", "--where", "true"], "--query takes the place"),
        (["export-csv", "items", "--quote", ","], "both ','"),
        (["export-csv", "items", "--columns", ""], "'--columns': a name is empty."),
        (["export-csv", "items", "--columns", "id,,name"], "'--columns': a name is empty."),
        (["import-csv", "items", "x.csv", "--columns", " "], "'--columns': a name is empty."),
        (["export-csv", "--query", " ;"], "'--query': there is no SQL in it."),
        (["export-csv", "items", "--where", ""], "'--where': there is no SQL in it."),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, words: list[str], told: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_settings_file_exits_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "items.yaml").write_text("has_headers: maybe\n")
    result = run("import-csv", "items", tmp_path / "items.csv")
    assert result.exit_code == 2
    assert "items.yaml: has_headers must be true or false, not text" in result.stderr


@pytest.mark.parametrize("content", [None, "{}", "{connection_settings: {host: none.invalid}}"])
@pytest.mark.parametrize("options", [[], ["--save-settings"]])
def test_a_config_beside_the_file_is_refused_and_kept(
    run: Run,
    connection: Connection,
    config_file: Path,
    tmp_path: Path,
    content: str | None,
    options: list[str],
) -> None:
    settings = config_file if content is None else tmp_path / "items.yaml"
    if content is not None:
        settings.write_text(content)
    before = settings.read_bytes()
    path = settings.with_suffix(".csv")
    path.write_text("id,name\n1,new\n")
    result = run("import-csv", "items", path, *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: file {settings}: ")
    assert result.stderr.endswith("rename one of the two\n")
    assert result.stderr.count("\n") == 1
    assert settings.read_bytes() == before
    assert rows_of(connection) == [(0, "old")]


def test_a_dry_run_keeps_the_rejected_rows_of_an_earlier_run(run: Run, tmp_path: Path) -> None:
    path, rejected = tmp_path / "items.csv", tmp_path / "items.rejected.csv"
    rejected.write_text("what was there")
    path.write_text("id,name\n1,new\nx,bad\n")
    result = run("import-csv", "items", path, "--on-error", "skip", "--dry-run")
    assert result.exit_code == 0, result.output
    assert f'{path}, line 3, column "id" ' in result.stderr
    assert "\n1 row would be rejected.\n1 row into items " in result.stderr
    assert rejected.read_text() == "what was there"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["import-csv", "items", "none.csv"], "Error: none.csv: no such file\n"),
        (["import-csv", "items", "/none/x.csv"], "/none/x.csv: there is no folder /none\n"),
        (["import-csv", "items", "/tmp"], "Error: /tmp: is a folder\n"),
        (["import-csv", "items", "/"], "Error: /: is a folder\n"),
        (["import-csv", "a.b.c", "/dev/stdin"], "'a.b.c' is not the name of a table"),
        (["import-csv", "", "/dev/stdin"], "'' is not the name of a table"),
        (["export-csv", ""], "'' is not the name of a table"),
        (["import-csv", "none", "/dev/stdin"], "the file is empty"),
        (["export-csv", "none"], 'there is no table "none"'),
        (["export-csv", "items", "/none/x.csv"], "/none/x.csv: there is no folder /none\n"),
        (["export-csv", "items", "/tmp"], "Error: /tmp: is a folder\n"),
    ],
)
def test_work_that_fails_exits_with_1(
    start: Callable[..., subprocess.Popen[bytes]], words: list[str], told: str
) -> None:
    process = start(*words, stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, err
    assert out == b""
    assert told in err.decode()
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_is_interrupted_leaves_the_table(
    start: Callable[..., subprocess.Popen[bytes]], connection: Connection, how: signal.Signals
) -> None:
    process = start("import-csv", "items", "-", "--truncate")
    assert process.stdin is not None
    process.stdin.write(b"id,name\n" + b"1,x\n" * 200_000)
    process.stdin.flush()
    wait_until(lambda: connection.execute("SELECT 1 FROM pg_stat_progress_copy").fetchone())
    process.send_signal(how)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (128 + how, b"")
    assert err == b"Interrupted: nothing was imported.\n"
    assert rows_of(connection) == [(0, "old")]


@pytest.mark.parametrize(
    ("size_before", "how"),
    [
        (0, signal.SIGINT),
        (500_000, signal.SIGINT),
        (0, signal.SIGTERM),
        (500_000, signal.SIGTERM),
        (0, signal.SIGHUP),
    ],
)
def test_an_export_that_is_interrupted_leaves_the_old_file(
    start: Callable[..., subprocess.Popen[bytes]],
    connection: Connection,
    tmp_path: Path,
    size_before: int,
    how: signal.Signals,
) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    path = folder / "items.csv"
    path.write_text("what was there")
    width = size_before // 300 + 1
    query = f"SELECT pg_sleep(0.001), repeat('x', {width}) FROM generate_series(1, 1000000)"
    process = start("export-csv", "--query", query, path)
    wait_until(
        lambda: any(
            each != path and each.stat().st_size >= size_before for each in folder.iterdir()
        )
    )
    for partial in folder.glob(".*.partial"):
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    process.send_signal(how)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (128 + how, b"")
    assert err == b"Interrupted: nothing was written.\n"
    assert [each.name for each in folder.iterdir()] == ["items.csv"]
    assert path.read_text() == "what was there"
    wait_until(lambda: not connection.execute("SELECT 1 FROM pg_stat_progress_copy").fetchone())


def test_an_export_removes_what_a_killed_one_has_left(
    start: Callable[..., subprocess.Popen[bytes]], connection: Connection, tmp_path: Path
) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    path = folder / "items.csv"
    process = start("export-csv", "--query", "SELECT pg_sleep(600)", path)
    wait_until(lambda: list(folder.iterdir()))
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert len(list(folder.iterdir())) == 1
    process = start("export-csv", "items", path)
    assert process.communicate(timeout=DEADLINE)[1] == f"1 row into {path}.\n".encode()
    assert [each.name for each in folder.iterdir()] == ["items.csv"]
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_an_export_to_a_full_disk_leaves_nothing(
    config_file: Path, connection: Connection, tmp_path: Path, ending: str
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = (
        'mount -t tmpfs -o size=256k tmpfs "$0" && echo before >"$0/old.csv$ENDING" || exit 99;'
        ' "$@"; code=$?; ls -A "$0"; cat "$0/old.csv$ENDING"; exit $code'
    )
    query = "SELECT md5(n::text) FROM generate_series(1, 100000) AS n"
    done = subprocess.run(
        [
            *("unshare", "--mount", *as_root, "sh", "-c", script, str(folder), *COMMAND),
            *("export-csv", "--config", str(config_file)),
            *("--query", query, str(folder / f"old.csv{ending}")),
        ],
        env={**os.environ, "ENDING": ending},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"old.csv{ending}\nbefore\n"
    assert "No space left on device" in done.stderr
    assert f"old.csv{ending}: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_progress_is_shown_on_a_terminal_and_only_there(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    terminal, stderr = pty.openpty()
    query = "SELECT n FROM generate_series(1, 200000) AS n"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = start("export-csv", "--query", query, stderr=stderr, env=environment)
    os.close(stderr)
    out, _ = process.communicate(timeout=DEADLINE)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert out.splitlines() == [b"n", *(b"%d" % n for n in range(1, 200_001))]
    assert "export" in shown
    assert "rows" in shown
    assert "MB/s" in shown or "kB/s" in shown or "?" in shown
    process = start("export-csv", "--query", query)
    assert process.communicate(timeout=DEADLINE)[1] == b""


def test_a_reader_that_leaves_ends_the_export_quietly(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = start("export-csv", "--query", "SELECT n FROM generate_series(1, 1000000) AS n")
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert err == b""


def test_the_limits_of_requests_do_not_end_bulk_work(
    database: dict[str, Any], connection: Connection, tmp_path: Path
) -> None:
    limits = {"statement_timeout": "100ms", "idle_in_transaction_session_timeout": "100ms"}
    config = write_config(tmp_path, database, sync_settings=limits)
    connection.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END'"
    )
    connection.execute(
        "CREATE TRIGGER slow BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    slow = ["--query", "SELECT id, pg_sleep(0.2) FROM items"]
    for words in (["import-csv", "items", "-", "--no-header"], ["export-csv", *slow]):
        words += ["--config", str(config)]
        result = CliRunner().invoke(pgmonkey, words, input="1,new\n")
        assert result.exit_code == 0, result.output
    assert rows_of(connection) == [(0, "old"), (1, "new")]


def test_a_sequence_that_went_on_is_told(run: Run, connection: Connection) -> None:
    connection.execute(NUMBERED)
    result = run("import-csv", "items", "-", input="id,name\n41,x\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("The sequence of id goes on behind 41.\n1 row into items ")


def test_a_sequence_that_may_not_be_set_is_told_with_what_sets_it(
    database: dict[str, Any], connection: Connection, tmp_path: Path
) -> None:
    connection.execute(NUMBERED)
    connection.execute("CREATE ROLE csv_inserter; GRANT INSERT ON items TO csv_inserter")
    config = write_config(tmp_path, database, sync_settings={"role": "csv_inserter"})
    try:
        words = ["import-csv", "items", "-", "--config", str(config)]
        result = CliRunner().invoke(pgmonkey, words, input="id,name\n41,x\n")
        assert result.exit_code == 0, result.output
        told, statement, _ = result.stderr.replace(": ", "\n", 1).split("\n", 2)
        assert told.startswith("The sequence of id may be behind the file's values")
        connection.execute(statement.encode())
        row = connection.execute("INSERT INTO items DEFAULT VALUES RETURNING id").fetchone()
        assert row == (42,)
    finally:
        connection.execute("DROP OWNED BY csv_inserter; DROP ROLE csv_inserter")
