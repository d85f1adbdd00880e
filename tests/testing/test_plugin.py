"""What the pytest plugin promises to the tests of a project."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import psycopg
import pytest

from ..servers import PrivateServer
from .conftest import PROJECT, RunPytest

TESTS = 12


def our_databases(server: PrivateServer) -> list[str]:
    """The clones that are left on the server; templates stay on purpose."""
    with server.connect() as admin:
        rows = admin.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, 'pgmonkey_test_')"
        )
        return [name for (name,) in rows]


def add_test(project: Path, body: str, conftest: str = "") -> None:
    """Put one test file in the place of the project's, and more into its conftest."""
    (project / "test_blog.py").write_text(body)
    with (project / "conftest.py").open("a") as file:
        file.write(conftest)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_test_has_databases_of_its_own_on_a_server_that_is_named(
    run_pytest: RunPytest, private_server: PrivateServer, workers: str
) -> None:
    done = run_pytest("-n", workers)
    assert done.returncode == 0, done.stdout
    assert f"{TESTS} passed" in done.stdout
    assert "template pgmonkey_template_" in done.stdout
    assert not our_databases(private_server)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_tests_does_not_matter(run_pytest: RunPytest, seed: int) -> None:
    listed = run_pytest("--collect-only", "-q").stdout
    tests = re.findall(r"^test_blog\.py::.+$", listed, re.MULTILINE)
    assert len(tests) == TESTS
    random.Random(seed).shuffle(tests)
    done = run_pytest("-n0", *tests)
    assert f"{TESTS} passed" in done.stdout, done.stdout


def test_a_template_of_an_earlier_run_is_found_until_what_makes_it_changes(
    run_pytest: RunPytest, project: Path
) -> None:
    assert ", made in" in run_pytest("-n0").stdout
    assert ", of an earlier run, found in" in run_pytest("-n0").stdout
    assert ", made in" in run_pytest("-n0", "--pgmonkey-create").stdout
    with (project / "flaskr" / "schema.sql").open("a") as file:
        file.write("INSERT INTO posts (author_id, title) VALUES (1, 'seed');")
    done = run_pytest("-n0", "-k", "async")
    assert ", made in" in done.stdout
    assert "assert {'posts': 1} == {'posts': 0}" in done.stdout


def test_a_failed_test_keeps_its_database_on_the_embedded_server_until_the_next_run(
    run_pytest: RunPytest, project: Path
) -> None:
    add_test(project, "def test_fails(client):\n    assert client.get('/').status_code == 1\n")
    done = run_pytest("-n0", "--pgmonkey-keep", on="embedded")
    kept = re.search(r"kept: flask pgmonkey psql --config '(.+)'", done.stdout)
    assert kept is not None, done.stdout
    folder = Path(re.findall(r"embedded PostgreSQL in (\S+)", done.stdout)[0])
    try:
        with psycopg.connect(kept[1]) as conn:
            conn.execute("SELECT * FROM visits")
        shutil.copy(PROJECT / "test_blog.py", project)
        done = run_pytest("-n2", on="embedded")
        assert f"{TESTS} passed" in done.stdout, done.stdout
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(kept[1])
    finally:
        shutil.rmtree(folder)
