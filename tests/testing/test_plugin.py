"""What the pytest plugin promises to the tests of a project: more of it stands in those."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from ..servers import PrivateServer
from .conftest import RunPytest

LIVE = """
import os
import urllib.request

import pytest
from flaskr import create_app

@pytest.fixture(params=["queried before", "not queried before"])
def app(request, pgmonkey_database):
    app = create_app({"TESTING": True, "SERVER_NAME": "localhost"})  # Flask 3.0 goes by it
    app.add_url_rule("/pid", view_func=lambda: str(os.getpid()))
    if request.param == "queried before":
        assert app.test_client().get("/").json == {"posts": []}
    return app

@pytest.mark.parametrize("number", [1, 2])
def test_it(live_server, pgdb, number):
    def ask(path, data=None):
        return urllib.request.urlopen(live_server.url(path), data).read()

    ask("/import", b"live")
    assert b"live" in ask("/")
    assert int(ask("/pid")) != os.getpid()
    assert pgdb.fetch_all("SELECT title FROM posts") == [("live",)]
"""
FAILS = "def test_fails(client):\n    assert client.get('/').status_code == 1\n"


def our_databases(server: PrivateServer) -> list[str]:
    """The clones that are left on the server; templates stay on purpose."""
    with server.connect() as admin:
        rows = admin.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, 'pgmonkey_test_')"
        )
        return [name for (name,) in rows]


def only_test(project: Path, body: str, conftest: str = "") -> None:
    """Put one test file in the place of the project's, and more into its conftest."""
    for other in project.glob("test_*.py"):
        other.unlink()
    (project / "test_it.py").write_text(body)
    with (project / "conftest.py").open("a") as file:
        file.write(conftest)


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tests have passed, of a run without failures."""
    assert done.returncode == 0, done.stdout
    return int(re.findall(r"(\d+) passed", done.stdout)[-1])


def test_every_test_has_databases_of_its_own(
    run_pytest: RunPytest, private_server: PrivateServer
) -> None:
    done = run_pytest()
    assert passed(done) > 40
    assert f"flask_pgmonkey: PostgreSQL at 127.0.0.1:{private_server.port}\n" in done.stdout
    assert re.search(r"template pgmonkey_template_\w+, made in \d", done.stdout)
    assert re.search(r"flask_pgmonkey: \d+ clones, \d+\.\d ms each in the median", done.stdout)
    assert not our_databases(private_server)


def test_so_it_has_in_parallel_in_any_order_and_beside_pytest_flask(
    run_pytest: RunPytest, private_server: PrivateServer
) -> None:
    listed = run_pytest("--collect-only", "-q").stdout
    tests = re.findall(r"^test_\w+\.py::.+$", listed, re.MULTILINE)
    random.shuffle(tests)
    done = run_pytest("-n2", "--dist=worksteal", *tests, autoload=True)
    assert passed(done) == len(tests), tests
    assert not our_databases(private_server)


def test_a_template_of_an_earlier_run_is_found_until_what_makes_it_changes(
    run_pytest: RunPytest, project: Path
) -> None:
    only_test(project, "def test_it(client):\n    assert client.get('/').json == {'posts': []}")
    assert ", made in" in run_pytest().stdout
    assert ", of an earlier run, found in" in run_pytest().stdout
    assert ", made in" in run_pytest("--pgmonkey-create").stdout
    with (project / "flaskr" / "schema.sql").open("a") as file:
        file.write("INSERT INTO posts (author_id, title) VALUES (1, 'seed');")
    done = run_pytest()
    assert ", made in" in done.stdout
    assert "assert {'posts': ['seed']} == {'posts': []}" in done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_failed_test_keeps_its_databases_until_the_next_run_and_says_how_to_get_there(
    run_pytest: RunPytest, project: Path, private_server: PrivateServer, workers: str
) -> None:
    only_test(project, f"{FAILS}\ndef test_passes(client):\n    client.get('/')\n")
    done = run_pytest("--pgmonkey-keep", "-n", workers)
    kept = re.findall(r"kept of test_it\.py::test_fails: (.+)", done.stdout)
    assert len(kept) == 2, done.stdout
    assert len(our_databases(private_server)) == 2
    done = run_pytest("-k", "passes")
    assert passed(done) == 1
    assert not our_databases(private_server)


def test_the_embedded_server_goes_on_for_a_look_into_what_is_kept_and_then_ends(
    run_pytest: RunPytest, project: Path
) -> None:
    only_test(project, FAILS)
    done = run_pytest("--pgmonkey-keep", on="embedded")
    folder = Path(re.findall(r"flask_pgmonkey: embedded PostgreSQL in (\S+)", done.stdout)[0])
    try:
        kept = re.findall(r"kept of .+: flask pgmonkey psql --config '(.+)'", done.stdout)
        with psycopg.connect(kept[0]) as conn:
            conn.execute("SELECT * FROM visits")
        (project / "test_it.py").write_text("def test_passes(client):\n    client.get('/')\n")
        assert passed(run_pytest(on="embedded")) == 1
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(kept[0])
    finally:
        shutil.rmtree(folder)


def test_the_plugin_is_asleep_until_a_fixture_of_it_is_asked_for(
    run_pytest: RunPytest, project: Path
) -> None:
    asleep = "import sys\ndef test_it():\n    assert 'flask_pgmonkey.database' not in sys.modules\n"
    only_test(project, asleep)
    (project / "conftest.py").unlink()
    done = run_pytest("--pgmonkey-keep", on="nonsense")
    assert passed(done) == 1
    assert "flask_pgmonkey:" not in done.stdout


def test_the_live_server_of_pytest_flask_finds_the_tests_database_in_its_process(
    run_pytest: RunPytest, project: Path
) -> None:
    with (project / "pytest.ini").open("a") as ini:
        # Its own forks beside threads, of which Python warns from 3.12 on.
        ini.write("    ignore:.*fork:DeprecationWarning\nlive_server_scope = function\n")
    only_test(project, LIVE)
    assert passed(run_pytest(autoload=True)) == 4


def test_unittest_runs_without_pytest_and_leaves_nothing(
    project: Path, uri: str, private_server: PrivateServer
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "test_unittest"],
        cwd=project,
        env={"PGMONKEY_TEST_SERVER": uri, "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.endswith("OK\n"), done.stderr
    assert not our_databases(private_server)
