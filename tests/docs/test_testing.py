"""The page on testing: its conftest and its tests run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from ..servers import Server
from ..testing.conftest import AUTOLOADED, PROJECT

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()
CONFTEST, FIRST, ROWS, COUNTED, UNITTEST = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)

CLIENT = """
@pytest.fixture
def client(app):
    return app.test_client()
"""
USES = """
def test_rows_to_begin_with(client, pgdb, ada):
    make_post(pgdb, ada)
    assert client.get("/").json == {"posts": ["A post"]}
"""
IMPORTS = """
import unittest
from flask_pgmonkey.testing import fresh_database
from flaskr import create_app, init_db
"""
METHOD = """
    def test_it_begins_empty(self):
        assert self.app.test_client().get("/").json == {"posts": []}
"""


def test_the_conftest_and_every_test_of_the_page_pass(server: Server, tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "flaskr", tmp_path / "flaskr")
    tables = tmp_path / "flaskr" / "schema.sql"
    tables.write_text(re.sub(r"INSERT INTO users.*", "", tables.read_text()))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST + CLIENT)
    tests = {"first": FIRST, "rows": f"import pytest\n{ROWS}{USES}", "counted": COUNTED}
    if sys.version_info >= (3, 11):  # as the page says
        tests["unittest"] = IMPORTS + UNITTEST + METHOD
    for name, text in tests.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *AUTOLOADED, "-q", "-n0", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**kept, "PGMONKEY_TEST_SERVER": f"postgresql://?{urlencode(server.settings())}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout
