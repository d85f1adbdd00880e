"""What a run that goes wrong says, and what it leaves behind."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..servers import PrivateServer
from .conftest import RunPytest
from .test_plugin import add_test, our_databases

HANGS = """
import time
def test_hangs(client):
    client.get("/")
    open("ready", "w").close()
    time.sleep(60)
"""


def test_a_query_outside_of_a_test_is_an_error_that_says_what_to_ask_for(
    run_pytest: RunPytest, project: Path
) -> None:
    add_test(
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
    done = run_pytest("-n0")
    assert "outside of a test that has databases of its own" in done.stdout, done.stdout
    assert "ask for the fixture pgmonkey_database" in done.stdout


def test_a_schema_function_that_fails_stops_the_run_with_its_error(
    run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    (project / "flaskr" / "schema.sql").write_text("CREATE TABLE oops (")
    done = run_pytest("-n0")
    assert "Interrupted: pgmonkey_schema failed, so that no test has a database: SyntaxError" in (
        done.stdout
    )
    assert "1 error in" in done.stdout, done.stdout
    assert not our_databases(private_server)


def test_the_next_run_clears_up_after_one_that_was_killed(
    command: Callable[..., dict[str, Any]],
    run_pytest: RunPytest,
    project: Path,
    private_server: PrivateServer,
) -> None:
    original = (project / "test_blog.py").read_text()
    add_test(project, HANGS)
    with subprocess.Popen(**command("-n0")) as killed:
        deadline = time.monotonic() + 30
        while not (project / "ready").exists():
            assert time.monotonic() < deadline
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.05)
        killed.kill()
    assert our_databases(private_server)
    (project / "test_blog.py").write_text(original)
    done = run_pytest("-n0")
    assert done.returncode == 0, done.stdout
    assert not our_databases(private_server)


def test_ctrl_c_leaves_nothing(
    command: Callable[..., dict[str, Any]], project: Path, private_server: PrivateServer
) -> None:
    add_test(project, HANGS)
    with subprocess.Popen(**command("-n0")) as interrupted:
        deadline = time.monotonic() + 30
        while not (project / "ready").exists():
            assert time.monotonic() < deadline
            assert interrupted.poll() is None, interrupted.communicate()
            time.sleep(0.05)
        interrupted.send_signal(signal.SIGINT)
        output, _ = interrupted.communicate(timeout=30)
    assert "KeyboardInterrupt" in output
    assert not our_databases(private_server)


def test_a_role_that_may_not_make_databases_is_told_what_allows_it(
    run_pytest: RunPytest, project: Path, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app NOCREATEDB")
    done = run_pytest("-n0")
    assert 'ALTER ROLE "app" CREATEDB;' in done.stdout, done.stdout
    with private_server.connect() as admin:
        admin.execute('ALTER ROLE "app" CREATEDB;')
    assert run_pytest("-n0").returncode == 0


def test_a_server_that_is_not_there_is_one_error(run_pytest: RunPytest) -> None:
    done = run_pytest("-n0", on="postgresql://nobody:secret-word@127.0.0.1:1/postgres")
    assert "cannot be reached" in done.stdout, done.stdout
    assert "1 error in" in done.stdout, done.stdout
    assert "secret-word" not in done.stdout


def test_a_job_that_does_not_end_fails_its_test(run_pytest: RunPytest, project: Path) -> None:
    add_test(
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
    done = run_pytest("-n0")
    assert "left background jobs that had not ended 5 s after it: sleep" in done.stdout, done.stdout


def test_too_many_queries_are_listed(run_pytest: RunPytest, project: Path) -> None:
    add_test(
        project,
        """
from flaskr import db
def test_repeats(app, pgmonkey_queries):
    with app.app_context(), pgmonkey_queries(at_most=1):
        for number in range(2):
            db.execute("INSERT INTO counts VALUES (%s)", [number])
""",
    )
    done = run_pytest("-n0")
    assert "2 queries, more than 1:" in done.stdout, done.stdout
    assert "1. INSERT INTO counts VALUES (%s)   (2 times)   at test_blog.py:" in done.stdout
