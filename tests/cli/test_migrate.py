"""``flask pgmonkey migrate``, and the functions under it, with dbmate and real servers."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey, migrations
from flask_pgmonkey.config import read_config
from flask_pgmonkey.errors import ConfigError, MigrationError
from flask_pgmonkey.programs import find_program

from ..proxy import Proxy
from ..servers import PrivateServer
from .conftest import PLANTED, Invoke, Run, RunFlask, write_config

MakeProxy = Callable[[str, int], Proxy]

FIRST = (
    "20260101000000_books.sql",
    "CREATE TABLE books (id int, title text);\nINSERT INTO books VALUES (1, 'Emma');",
    "DROP TABLE books;",
)
SECOND = (
    "20260102000000_pages.sql",
    "ALTER TABLE books ADD COLUMN pages int;",
    "ALTER TABLE books DROP COLUMN pages;",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the migrations are, for commands in ``tmp_path``."""
    path = tmp_path / "migrations"
    path.mkdir()
    return path


@pytest.fixture
def planted(planted: PrivateServer) -> Iterator[PrivateServer]:
    """The same, without what a test has made there."""
    yield planted
    with planted.connect("app") as admin:
        admin.execute("DROP TABLE IF EXISTS books, schema_migrations")


def write(folder: Path, *files: tuple[str, str, str], options: str = "") -> None:
    """Write migrations: the name of the file, what goes up and what goes down."""
    for name, up, down in files:
        (folder / name).write_text(
            f"-- migrate:up{options}\n{up}\n\n-- migrate:down{options}\n{down}\n"
        )


@contextmanager
def migrating(
    folder: Path, server: PrivateServer, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """``migrate`` in a process of its own, which has begun with the first file."""
    config = write_config(folder, server.settings(password=PLANTED))
    with subprocess.Popen(
        [sys.executable, "-m", "flask", "pgmonkey", "migrate", "--config", config],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Applying: {FIRST[0]}\n"
        yield process


def columns(settings: dict[str, Any], table: str = "books") -> list[str]:
    with psycopg.connect(**settings) as conn:
        return [
            name
            for (name,) in conn.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
                " ORDER BY ordinal_position",
                [table],
            )
        ]


# The actions


def test_files_are_applied_in_the_order_of_their_names_and_rolled_back(
    run: Run, folder: Path, config_file: Path, database: dict[str, Any]
) -> None:
    write(folder, FIRST, SECOND)
    config = ("--config", config_file)

    checked = run("migrate", "check", *config)
    assert checked.exit_code == 1
    assert checked.stdout == f"{FIRST[0]}\n{SECOND[0]}\n"

    done = run("migrate", *config)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.index(f"Applied: {FIRST[0]}") < done.stdout.index(f"Applied: {SECOND[0]}")
    assert columns(database) == ["id", "title", "pages"]
    assert run("migrate", "check", *config).exit_code == 0
    assert run("migrate", "up", *config).stdout == "Nothing is pending.\n"

    assert f"Rolled back: {SECOND[0]}" in run("migrate", "down", *config).stdout
    assert columns(database) == ["id", "title"]
    shown = run("migrate", "status", *config)
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["State", "File"],
        ["applied", FIRST[0]],
        ["pending", SECOND[0]],
    ]
    run("migrate", "down", *config)
    assert run("migrate", "down", *config).stdout == "No migration is applied.\n"
    assert columns(database) == []


def test_status_is_json_too_and_tells_what_has_no_file_here(
    run: Run, folder: Path, config_file: Path
) -> None:
    write(folder, FIRST, SECOND)
    run("migrate", "--config", config_file)
    (folder / SECOND[0]).unlink()
    shown = run("migrate", "status", "--json", "--config", config_file)
    assert json.loads(shown.stdout) == [
        {"version": "20260101000000", "name": FIRST[0], "state": "applied"},
        {"version": "20260102000000", "name": "20260102000000", "state": "missing"},
    ]
    down = run("migrate", "down", "--config", config_file)
    assert down.exit_code == 1
    assert "has no file of it" in down.stderr


def test_new_makes_a_file_that_can_be_applied(run: Run, tmp_path: Path, config_file: Path) -> None:
    made = run("migrate", "new", "add the books", "--config", config_file)
    path = tmp_path / made.stdout.strip()
    assert path.parent == tmp_path / "migrations"
    assert path.name.endswith("_add_the_books.sql")
    assert run("migrate", "--config", config_file).exit_code == 0
    refused = run("migrate", "new", "../../x", "--config", config_file)
    assert refused.exit_code == 1
    assert "letters, digits" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new"], "with a NAME"),
        (["up", "books"], "with a NAME"),
        (["check", "--json"], "--json goes with"),
        (["sideways"], "sideways"),
    ],
)
def test_wrong_usage_is_one_line(
    run: Run, config_file: Path, arguments: list[str], words: str
) -> None:
    shown = run("migrate", *arguments, "--config", config_file)
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("action", ["up", "down", "check", "status", "lint"])
def test_a_folder_that_is_not_there_is_an_error(run: Run, config_file: Path, action: str) -> None:
    shown = run("migrate", action, "--config", config_file)
    assert shown.exit_code == 1
    assert "'flask pgmonkey migrate new NAME' makes it" in shown.stderr


def test_two_files_with_the_same_version_are_refused(
    run: Run, folder: Path, config_file: Path
) -> None:
    write(folder, FIRST, ("20260101000000_other.sql", "SELECT 1", "SELECT 1"))
    shown = run("migrate", "--config", config_file)
    assert shown.exit_code == 1
    assert "same version" in shown.stderr


def test_lint_shows_what_locks_too_much(run_flask: RunFlask, folder: Path) -> None:
    write(folder, ("1_index.sql", "CREATE INDEX of_title ON books (title);", "DROP INDEX of_title"))
    write(
        folder,
        ("2_index.sql", "CREATE INDEX CONCURRENTLY IF NOT EXISTS a ON b (c);", "DROP TABLE b;"),
        options=" transaction:false",
    )
    shown = run_flask("pgmonkey", "migrate", "lint", "--config", "nowhere.yaml", NO_COLOR="1")
    assert shown.returncode == 1
    assert "require-concurrent-index-creation" in shown.stdout
    assert "migrations/1_index.sql:2:1" in shown.stdout
    assert "-timeout" not in shown.stdout
    assert "2_index.sql" not in shown.stdout


@pytest.mark.parametrize(
    ("action", "remedy"),
    [("up", 'pip install "flask-pgmonkey[migrations]"'), ("lint", "pip install squawk-cli")],
)
def test_a_missing_program_is_one_sentence_with_the_remedy(
    run: Run,
    folder: Path,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    remedy: str,
) -> None:
    write(folder, FIRST)
    empty = folder.parent / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(empty))
    shown = run("migrate", action, "--config", config_file)
    assert shown.exit_code == 1
    assert remedy in shown.stderr
    assert shown.stderr.count("\n") == 1


# What goes wrong


@pytest.mark.parametrize(
    ("before", "broken", "line", "words"),
    [
        ("", "SELECT 1\n  FROM nowhere;", ", line 4", 'relation "nowhere" does not exist (42P01)'),
        ("-- why\n\n", "INSERT INTO books\nVALUES (1/0);", "", "division by zero (22012)"),
        ("-- why\n\n", "SELECT $;", ", line 5", 'syntax error at or near "$" (42601)'),
    ],
)
def test_a_wrong_file_has_the_server_s_words_and_nothing_half_done_and_can_be_mended(
    run: Run,
    folder: Path,
    config_file: Path,
    database: dict[str, Any],
    before: str,
    broken: str,
    line: str,
    words: str,
) -> None:
    write(folder, FIRST)
    path = folder / SECOND[0]
    path.write_text(f"{before}-- migrate:up\n{SECOND[1]}\n{broken}\n-- migrate:down\n{SECOND[2]}\n")

    failed = run("migrate", "--config", config_file)

    assert failed.exit_code == 1
    assert f"migrations/{path.name}{line}: {words}. Nothing of this file" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert columns(database) == ["id", "title"]
    write(folder, SECOND)
    assert run("migrate", "--config", config_file).exit_code == 0
    assert columns(database) == ["id", "title", "pages"]


def test_a_file_without_blocks_is_named(run: Run, folder: Path, config_file: Path) -> None:
    (folder / "1_x.sql").write_text("SELECT 1;\n")
    shown = run("migrate", "--config", config_file)
    assert shown.exit_code == 1
    assert "migrations/1_x.sql: dbmate requires each migration to define an up" in shown.stderr


def test_the_line_of_a_wrong_way_down_is_that_of_the_file(
    run: Run, folder: Path, config_file: Path
) -> None:
    write(folder, FIRST, ("20260102000000_x.sql", "SELECT 1;\n", "SELECT 1;\nSELECT nonsense;"))
    run("migrate", "--config", config_file)
    shown = run("migrate", "down", "--config", config_file)
    assert shown.exit_code == 1
    assert '_x.sql, line 7: column "nonsense" does not exist' in shown.stderr


def test_two_at_once_do_it_once(
    tmp_path: Path, folder: Path, config_file: Path, database: dict[str, Any]
) -> None:
    write(folder, (FIRST[0], f"{FIRST[1]} SELECT pg_sleep(1);", FIRST[2]), SECOND)
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "flask", "pgmonkey", "migrate", "--config", config_file],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    output = "".join(stdout for stdout, _ in ended)
    assert output.count(f"Applied: {FIRST[0]}") == output.count(f"Applied: {SECOND[0]}") == 1
    with psycopg.connect(**database) as conn:
        assert conn.execute("SELECT count(*) FROM books").fetchone() == (1,)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(migrations, "_SECONDS_BETWEEN_ATTEMPTS", 0.1)


def test_a_file_whose_lock_others_hold_is_tried_again(
    folder: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, FIRST)
    config = read_config({"connection_settings": database})
    migrations.Migrations(config, folder).up()
    write(folder, SECOND)
    impatient(monkeypatch)
    told: list[str] = []
    with psycopg.connect(**database) as holder, psycopg.connect(**database) as other:
        holder.execute("SELECT * FROM books")

        def report(line: str) -> None:
            told.append(line)
            if "tried again" in line:
                assert other.execute("SELECT count(*) FROM books").fetchone() == (1,)
                other.rollback()
                holder.rollback()

        assert migrations.Migrations(config, folder).up(report) == [SECOND[0]]
    assert [line for line in told if "tried again" in line] == [
        f"Others hold what {SECOND[0]} needs: it is tried again (2 of 10)"
    ]


def test_a_file_whose_lock_others_keep_is_given_up(
    folder: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, FIRST)
    config = read_config({"connection_settings": database})
    migrations.Migrations(config, folder).up()
    write(folder, SECOND)
    impatient(monkeypatch)
    monkeypatch.setattr(migrations, "ATTEMPTS", 2)
    with psycopg.connect(**database) as holder:
        holder.execute("SELECT * FROM books")
        with pytest.raises(MigrationError, match=r"lock timeout.*tried 2 times.*Nothing of this"):
            migrations.Migrations(config, folder).up()
        holder.rollback()
    assert columns(database) == ["id", "title"]


def test_an_index_made_concurrently_waits_for_the_others_and_is_valid(
    folder: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = "20260102000000_index.sql", "CREATE INDEX CONCURRENTLY of_id ON books (id);", "SELECT 1"
    write(folder, FIRST, ("20260103000000_last.sql", "ALTER TABLE books ADD x int;", "SELECT 1"))
    write(folder, index, options=" transaction:false")
    impatient(monkeypatch)
    config = read_config({"connection_settings": database})
    with psycopg.connect(**database) as holder:
        # A snapshot, which a concurrent index waits for.
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1")
        timer = threading.Timer(1, holder.rollback)
        timer.start()
        done = migrations.Migrations(config, folder).up()
        timer.join()
    assert done == [FIRST[0], index[0], "20260103000000_last.sql"]
    with psycopg.connect(**database) as conn:
        assert conn.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'of_id'::regclass"
        ).fetchone() == (True,)


def test_a_file_outside_of_transactions_that_fails_says_what_may_be_done(
    run: Run, folder: Path, config_file: Path
) -> None:
    write(folder, ("1_x.sql", "SELECT nonsense;", "SELECT 1"), options=" transaction:false")
    shown = run("migrate", "--config", config_file)
    assert shown.exit_code == 1
    assert "1_x.sql, line 2: " in shown.stderr
    assert "see what is there before you run it again" in shown.stderr


def test_sigterm_ends_it_and_leaves_nothing(
    tmp_path: Path, folder: Path, planted: PrivateServer, temporary: Path
) -> None:
    write(folder, (FIRST[0], f"{FIRST[1]} SELECT pg_sleep(600);", FIRST[2]))
    with migrating(tmp_path, planted) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
    deadline = time.monotonic() + 10  # the server looks once in a second who is still there
    with planted.connect("app") as admin:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"
        while admin.execute(sessions).fetchone() != (0,):
            assert time.monotonic() < deadline, "the statement goes on"
            time.sleep(0.05)
    assert columns(planted.settings(password=PLANTED)) == []


def test_a_dbmate_that_is_killed_is_one_line_and_leaves_nothing(
    tmp_path: Path, folder: Path, planted: PrivateServer, temporary: Path
) -> None:
    write(folder, (FIRST[0], f"{FIRST[1]} SELECT pg_sleep(600);", FIRST[2]))
    with migrating(tmp_path, planted) as process:
        (dbmate,) = children_of(process.pid)
        os.kill(int(dbmate.name), signal.SIGKILL)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"{FIRST[0]}: dbmate ended with exit code -9." in stderr
    assert stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []


# Where the database is, and who may see what


def test_the_password_is_in_no_argument_no_variable_no_output_and_no_file_that_stays(
    tmp_path: Path, folder: Path, planted: PrivateServer, temporary: Path
) -> None:
    write(folder, (FIRST[0], f"{FIRST[1]} SELECT pg_sleep(1.5);", FIRST[2]), SECOND)
    variables = {"PGTZ": "UTC", "PGREQUIREPEER": "x", "DBMATE_MIGRATIONS_TABLE": "other"}
    with migrating(tmp_path, planted, **variables) as process:
        (child,) = children_of(process.pid)
        shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        environment = (child / "environ").read_bytes().decode().split("\0")
        (passfile,) = [file for file in temporary.iterdir() if file.is_file()]
        assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "dbmate" in (shown)
    assert "schema_migrations" not in stdout
    for text in (shown, *environment, stdout, stderr):
        assert "planted" not in text
        assert "pass%5Cword" not in text
    assert list(temporary.iterdir()) == []
    assert columns(planted.settings(password=PLANTED), "schema_migrations") == ["version"]


def children_of(pid: int) -> list[Path]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path("/proc", child) for child in found]


def test_several_hosts_lead_to_the_one_that_takes_writes(
    run: Run, planted: PrivateServer, proxy: MakeProxy, tmp_path: Path, folder: Path
) -> None:
    refusing = proxy(planted.host, planted.port)
    refusing.refuse()
    config = write_config(
        tmp_path,
        planted.settings(
            password=PLANTED,
            host=f"{refusing.host},{planted.host}",
            port=f"{refusing.port},{planted.port}",
            target_session_attrs="prefer-standby",
        ),
    )
    write(folder, FIRST)
    done = run("migrate", "--config", config)
    assert (done.exit_code, done.stderr) == (0, "")


def test_a_service_and_options_are_read(
    run: Run,
    planted: PrivateServer,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = tmp_path / "services.conf"
    services.write_text(
        f"[shop]\nhost={planted.host}\nport={planted.port}\nuser=app\ndbname=app\n"
        f"password={PLANTED}\noptions=-c search_path=shop\n"
    )
    services.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    with planted.connect("app") as admin:
        admin.execute("CREATE SCHEMA shop AUTHORIZATION app")
    write(folder, FIRST)
    config = write_config(tmp_path, {"service": "shop"})
    done = run("migrate", "--config", config)
    assert (done.exit_code, done.stderr) == (0, "")
    assert run("migrate", "check", "--config", config).exit_code == 0
    with planted.connect("app") as admin:
        assert admin.execute("SELECT count(*) FROM shop.schema_migrations").fetchone() == (1,)
        admin.execute("DROP SCHEMA shop CASCADE")


def test_files_and_databases_are_taken_as_they_come(
    run: Run, database: dict[str, Any], tmp_path: Path, folder: Path
) -> None:
    (folder / "1_é x.sql").write_bytes(
        b"--migrate:up\r\nCREATE TABLE books (\xc3\xa9 int);\r\n"
        b"--  migrate:down\r\nDROP TABLE books;"
    )
    (folder / "12_first.sql").write_text("-- migrate:up\nSELECT 1;\n-- migrate:down\n")
    (folder / "2_index.sql").write_bytes(
        b"--migrate:up transaction:false\r\nCREATE INDEX CONCURRENTLY of ON books (\xc3\xa9);\r\n"
        b"-- migrate:down transaction:false\r\nDROP INDEX CONCURRENTLY of;"
    )
    config = write_config(tmp_path, {**database, "client_encoding": "SQL_ASCII"})
    done = run("migrate", "--config", config)
    assert (done.exit_code, done.stderr) == (0, "")
    applied = [line.split(" in ")[0] for line in done.stdout.splitlines() if "Applied" in line]
    assert applied == ["Applied: 12_first.sql", "Applied: 1_é x.sql", "Applied: 2_index.sql"]
    assert run("migrate", "check", "--config", config).exit_code == 0
    for _ in range(3):
        assert run("migrate", "down", "--config", config).exit_code == 0
    assert columns(database) == []


def test_direct_settings_say_where_and_as_whom(
    run: Run, planted: PrivateServer, tmp_path: Path, folder: Path
) -> None:
    pooled = {"host": "no-such-pooler.invalid", "user": "reader", "password": "other"}
    direct = planted.settings(password=PLANTED)
    config = write_config(tmp_path, pooled, direct_settings=direct)
    write(folder, FIRST)
    done = run("migrate", "--config", config)
    assert (done.exit_code, done.stderr) == (0, "")
    assert columns(direct) == ["id", "title"]


def test_a_server_that_is_not_there_is_one_line(run: Run, tmp_path: Path, folder: Path) -> None:
    write(folder, FIRST)
    settings = {"host": "127.0.0.1", "port": 1, "user": "app", "password": PLANTED}
    shown = run("migrate", "--config", write_config(tmp_path, settings))
    assert shown.exit_code == 1
    assert "connection failed" in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert "planted" not in shown.stderr


def test_the_embedded_server_is_migrated_and_dumped(
    run_flask: RunFlask, embedded_app: Path, tmp_path: Path, folder: Path
) -> None:
    write(folder, FIRST)
    done = run_flask("pgmonkey", "migrate")
    assert (done.returncode, done.stderr) == (0, "")
    dumped = run_flask("pgmonkey", "migrate", "dump")
    assert (dumped.returncode, dumped.stderr) == (0, "")
    assert dumped.stdout == f"{tmp_path / 'schema.sql'}\n"
    schema = (tmp_path / "schema.sql").read_text()
    assert "CREATE TABLE public.books" in schema
    assert "('20260101000000')" in schema
    assert not list(embedded_app.rglob("postmaster.pid"))


def test_a_pg_dump_that_is_too_old_is_not_used(
    run: Run,
    folder: Path,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = tmp_path / "bin" / "pg_dump"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    write(folder, FIRST)
    run("migrate", "--config", config_file)
    assert run("migrate", "dump", "--config", config_file).exit_code == 0

    monkeypatch.setattr(migrations, "find_program", lambda name: None)
    (tmp_path / "schema.sql").unlink()
    shown = run("migrate", "dump", "--config", config_file)
    assert shown.exit_code == 1
    assert "here is only that of 9: install postgresql-client-1" in shown.stderr
    assert not (tmp_path / "schema.sql").exists()


def test_a_dump_shows_no_option_to_others(
    run: Run,
    folder: Path,
    database: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = find_program("pg_dump")
    assert program is not None
    watched = tmp_path / "bin" / "pg_dump"
    watched.parent.mkdir()
    watched.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/arguments\nexec {program} "$@"\n')
    watched.chmod(0o755)
    monkeypatch.setenv("PATH", f"{watched.parent}:{os.environ['PATH']}")
    write(folder, FIRST)
    config = write_config(tmp_path, {**database, "options": "-c app.token=planted"})
    dumped = run("migrate", "dump", "--config", config)
    assert (dumped.exit_code, dumped.stderr) == (0, "")
    arguments = (tmp_path / "arguments").read_text()
    assert "--schema-only" in arguments
    assert "planted" not in arguments
    assert database["password"] not in arguments


# In an app


@pytest.fixture
def app(tmp_path: Path, database: dict[str, Any]) -> Flask:
    app = Flask("shop", root_path=str(tmp_path), instance_path=str(tmp_path))
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    return app


def test_an_app_can_look_and_upgrade_at_its_start(app: Flask, folder: Path) -> None:
    db = PGMonkey(app)
    write(folder, FIRST, SECOND)
    with app.app_context():
        assert migrations.pending(db) == [FIRST[0], SECOND[0]]
        assert migrations.upgrade(db) == [FIRST[0], SECOND[0]]
        assert migrations.pending(db) == migrations.upgrade(db) == []
        assert db.fetch_value("SELECT title FROM books") == "Emma"
        db.clear_cache()


def test_types_that_an_upgrade_makes_are_known_at_once(app: Flask, folder: Path) -> None:
    class Mood(Enum):
        GLAD = "glad"

    db = PGMonkey(app, types={"mood": Mood})
    write(folder, ("1_mood.sql", "CREATE TYPE mood AS ENUM ('glad');", "DROP TYPE mood;"))
    with app.app_context():
        assert db.fetch_value("SELECT 1") == 1  # on a connection that knows no mood
        assert migrations.upgrade(db) == ["1_mood.sql"]
        assert db.fetch_one("SELECT 'glad'::mood, %s = 'glad'::mood", [Mood.GLAD]) == (
            Mood.GLAD,
            True,
        )
        db.clear_cache()


def test_an_upgrade_within_a_transaction_is_refused_before_it_begins(
    app: Flask, folder: Path
) -> None:
    db = PGMonkey(app)
    write(folder, FIRST)
    with app.app_context():
        with db.transaction():
            with pytest.raises(psycopg.ProgrammingError, match="transaction"):
                migrations.upgrade(db)
        assert migrations.pending(db) == [FIRST[0]]
        db.clear_cache()


def test_each_bind_has_a_folder_of_its_own(
    app: Flask, folder: Path, private_server: PrivateServer, invoke: Invoke
) -> None:
    app.config["PGMONKEY_BINDS"] = {
        "reports": {"connection_settings": private_server.settings()},
        "other": {"connection_settings": private_server.settings()},
    }
    db = PGMonkey(app)
    refused = invoke(app, "migrate", "check", "--bind", "reports")
    assert refused.exit_code == 2
    assert "PGMONKEY_MIGRATIONS names no folder for the bind 'reports'" in refused.stderr

    app.config["PGMONKEY_MIGRATIONS"] = {"default": "migrations", "reports": "for_reports"}
    of_reports = folder.parent / "for_reports"
    of_reports.mkdir()
    write(of_reports, ("1_facts.sql", "CREATE TABLE facts ();", "DROP TABLE facts;"))
    assert invoke(app, "migrate", "--bind", "reports").exit_code == 0
    with app.app_context():
        assert migrations.pending(db) == []
        assert migrations.pending(db.bind("reports")) == []
        assert db.bind("reports").fetch_all("SELECT * FROM facts") == []
        with pytest.raises(ConfigError, match="'other'"):
            migrations.pending(db.bind("other"))
        db.clear_cache()
    dumped = invoke(app, "migrate", "dump", "--bind", "reports")
    assert dumped.stdout == f"{folder.parent / 'schema_reports.sql'}\n", dumped.stderr
    assert invoke(app, "migrate", "down", "--bind", "reports").exit_code == 0


def test_a_migration_under_load_fails_no_request(app: Flask, folder: Path) -> None:
    db = PGMonkey(app)
    write(folder, FIRST)

    @app.get("/")
    def list_books() -> str:
        return str(db.fetch_all("SELECT * FROM books"))

    with app.app_context():
        migrations.upgrade(db)
    answers: list[tuple[int, str]] = []
    ended = threading.Event()

    def visit() -> None:
        client = app.test_client()
        while not ended.is_set():
            answer = client.get("/")
            answers.append((answer.status_code, answer.text))

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    deadline = time.monotonic() + 20
    try:
        while len(answers) < 200:  # so that every connection has the statement prepared
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for number in range(4):
            name = f"2027010{number + 1}000000_more.sql"
            write(folder, (name, f"ALTER TABLE books ADD COLUMN more{number} int;", "SELECT 1;"))
            with app.app_context():
                assert migrations.upgrade(db) == [name]
        before = len(answers)
        while len(answers) < before + 50:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        ended.set()
        for visitor in visitors:
            visitor.join()
    assert {status for status, _ in answers} == {200}
    assert answers[-1][1] == "[(1, 'Emma', None, None, None, None)]"
    with app.app_context():
        db.clear_cache()
