"""What a run that goes wrong says, and what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_pgmonkey.testing.server import DOCKER_IMAGE

from ..servers import PrivateServer
from .conftest import RunPytest
from .test_plugin import only_test, our_databases, passed

CommandOf = Callable[..., "dict[str, Any]"]
HANGS = """
import time
def test_hangs(client):
    client.get("/")
    open("ready", "w").close()
    time.sleep(60)
"""
QUERIES = "def test_queries(client):\n    client.get('/')\n"


def start_and_hang(command: CommandOf, project: Path) -> subprocess.Popen[str]:
    """A run that is in the middle of a test which has queried."""
    only_test(project, HANGS)
    run = subprocess.Popen(**command())
    deadline = time.monotonic() + 30
    while not (project / "ready").exists():
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    return run


def test_a_query_outside_of_a_test_is_an_error_that_says_what_to_ask_for(
    run_pytest: RunPytest, project: Path
) -> None:
    only_test(
        project,
        """
import pytest
from flaskr import create_app, db
@pytest.fixture(scope="session")
def early():
    app = create_app()
    with app.app_context():
        db.fetch_value("SELECT 1")
def test_early(early, pgmonkey_database): pass
""",
    )
    done = run_pytest()
    assert "outside of a test that has databases of its own" in done.stdout, done.stdout
    assert "ask for the fixture pgmonkey_database" in done.stdout


def test_an_ini_file_may_ask_for_it_for_every_test(run_pytest: RunPytest, project: Path) -> None:
    only_test(
        project,
        """
from flaskr import create_app, db
def test_it():
    with create_app().app_context():
        assert db.fetch_value("SELECT count(*) FROM posts") == 0
""",
    )
    with (project / "pytest.ini").open("a") as ini:
        ini.write("usefixtures = pgmonkey_database pgmonkey_no_leaks\n")
    assert passed(run_pytest()) == 1


def test_a_schema_function_that_fails_stops_the_run_with_its_error(
    run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    only_test(project, QUERIES * 2)
    (project / "flaskr" / "schema.sql").write_text("CREATE TABLE oops (")
    done = run_pytest()
    assert "Interrupted: pgmonkey_schema failed, so that no test has a database: SyntaxError" in (
        done.stdout
    )
    assert "= 1 failed in" in done.stdout, done.stdout
    assert not our_databases(private_server)


def test_the_next_run_clears_up_after_one_that_was_killed_and_drops_nothing_else(
    command: CommandOf, run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    with start_and_hang(command, project) as killed:
        killed.kill()
    left = our_databases(private_server)
    assert left
    with private_server.connect() as admin:
        admin.execute('CREATE DATABASE "pgmonkey_test_of_somebody" OWNER app')
    only_test(project, QUERIES)
    assert passed(run_pytest()) == 1
    assert our_databases(private_server) == ["pgmonkey_test_of_somebody"]
    with private_server.connect() as admin:
        admin.execute('DROP DATABASE "pgmonkey_test_of_somebody"')


def test_a_run_leaves_the_databases_of_one_that_goes_on_alone(
    command: CommandOf, run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    with start_and_hang(command, project) as other:
        theirs = our_databases(private_server)
        only_test(project, QUERIES)
        assert passed(run_pytest()) == 1
        assert set(theirs) <= set(our_databases(private_server))
        other.send_signal(signal.SIGINT)
    assert not our_databases(private_server)


def test_ctrl_c_leaves_nothing(
    command: CommandOf, project: Path, private_server: PrivateServer
) -> None:
    with start_and_hang(command, project) as interrupted:
        interrupted.send_signal(signal.SIGINT)
        output, _ = interrupted.communicate(timeout=30)
    assert "KeyboardInterrupt" in output
    assert not our_databases(private_server)


def test_a_role_that_may_not_make_databases_is_told_at_once_what_allows_it(
    run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    only_test(project, QUERIES)
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app NOCREATEDB")
    done = run_pytest()
    assert "Interrupted: The role app may not make databases" in done.stdout, done.stdout
    remedy = re.findall(r"Interrupted: .+ can allow it: (ALTER ROLE .+?;)", done.stdout)[0]
    with private_server.connect() as admin:
        admin.execute(remedy)
    assert passed(run_pytest()) == 1


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("postgresql://nobody:secret-word@127.0.0.1:1/postgres", "cannot be reached"),
        ("secret-word", "names no server: use a postgresql:// URI, 'docker' or 'embedded'"),
    ],
)
def test_a_server_that_is_not_there_is_one_error_without_its_secrets(
    run_pytest: RunPytest, project: Path, server: str, words: str
) -> None:
    only_test(project, QUERIES * 2)
    done = run_pytest(on=server)
    assert done.returncode != 0
    assert words in done.stdout, done.stdout
    assert done.stdout.count("error in") <= 1
    assert "secret-word" not in done.stdout


GOES_AWAY = """
import os, signal, pytest
@pytest.mark.parametrize("number", range(20))
def test_it(client, app, pgdb, number):
    if number == 4:
        file = pgdb.fetch_value("SHOW data_directory") + "/postmaster.pid"
        os.kill(int(open(file).readline()), signal.SIGQUIT)
    assert client.get("/").status_code == 200
"""


def test_a_server_that_goes_away_stops_the_run_with_one_sentence(
    run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    only_test(project, GOES_AWAY)
    with private_server.connect() as admin:
        admin.execute("GRANT pg_read_all_settings TO app")
    done = run_pytest()
    assert "1 failed, 4 passed" in done.stdout, done.stdout
    assert re.search(r"Interrupted: The tests' server, .+, cannot be reached", done.stdout)


def test_an_embedded_server_that_dies_is_started_again(
    run_pytest: RunPytest, project: Path
) -> None:
    only_test(project, GOES_AWAY)
    done = run_pytest(on="embedded")
    folder = Path(re.findall(r"flask_pgmonkey: embedded PostgreSQL in (\S+)", done.stdout)[0])
    shutil.rmtree(folder)
    counts = re.search(r"(\d) failed, (\d+) passed", done.stdout)
    assert counts is not None, done.stdout
    assert int(counts[1]) <= 3, done.stdout


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to mount a tmpfs"
)
@pytest.mark.parametrize(("megabytes", "place"), [(64, ".cache"), (700, "/dev/shm")])
def test_a_tmpfs_without_room_is_passed_over_and_one_that_fills_up_is_one_error(
    command: CommandOf, project: Path, tmp_path: Path, megabytes: int, place: str
) -> None:
    only_test(
        project,
        """
import pytest
@pytest.mark.parametrize("number", range(20))
def test_it(client, number):
    if number == 3:
        with open("/dev/shm/ballast", "wb") as file, pytest.raises(OSError):
            while True:
                file.write(bytes(1 << 20))
    client.get("/")
""",
    )
    run = command(on="embedded")
    run["env"]["XDG_CACHE_HOME"] = str(tmp_path / ".cache")
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
    run["args"] = ["unshare", "-m", "sh", "-c", mount, "sh", *run["args"]]
    done = subprocess.run(**run, timeout=90)
    assert place in re.findall(r"flask_pgmonkey: embedded PostgreSQL in (\S+)", done.stdout)[0]
    if megabytes == 700:
        # Where it is full first, at the template's file or in the server's log.
        refusal = "Interrupted: The tests' server.+(Its disk is full: make|Make room there)"
        assert re.search(refusal, done.stdout, re.DOTALL), done.stdout
    else:
        assert "20 passed" in done.stdout, done.stdout


def test_a_job_that_does_not_end_fails_its_test(run_pytest: RunPytest, project: Path) -> None:
    only_test(
        project,
        """
import asyncio
from flaskr import db
def test_leaves_a_job(app):
    with app.app_context():
        db.execute("SELECT 1")
        db.background.submit(asyncio.sleep(60))
""",
    )
    done = run_pytest()
    assert "left background jobs that had not ended 5 s after it: sleep" in done.stdout, done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_without_a_docker_engine_one_error_says_so(
    run_pytest: RunPytest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    done = run_pytest("-q", "-n", workers, "test_blog.py", on="docker")
    assert done.returncode != 0
    assert f"No container of {DOCKER_IMAGE} could be started" in done.stdout
    assert "Is there a Docker engine" in done.stdout
    assert len(re.findall("^(?:ERROR|FAILED) test_", done.stdout, re.MULTILINE)) <= 1
    assert "ResourceWarning" not in done.stdout
