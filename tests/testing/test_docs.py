"""The tests in docs/testing.md and in the quickstart pass, as those of a project."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import RunPytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "testing.md").read_text()
QUICKSTART = (DOCS / "quickstart.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
IMPORTS = """
import unittest
from flaskr import create_app, init_db
from flask_pgmonkey.testing import fresh_database
from conftest import make_post
"""
OF_OUR_OWN = """
def test_rows_to_begin_with(pgdb, ada):
    make_post(pgdb, ada)
    assert pgdb.fetch_value("SELECT count(*) FROM posts") == 1
"""


@pytest.mark.any_version
def test_the_pages_tests_pass_in_a_project(project: Path, run_pytest: RunPytest) -> None:
    for file in project.glob("test_*.py"):
        file.unlink()
    client = "\n\n@pytest.fixture\ndef client(app):\n    return app.test_client()\n"
    setup, fixtures, tests = PROGRAMS[0], PROGRAMS[2], [PROGRAMS[1], *PROGRAMS[3:]]
    (project / "conftest.py").write_text("\n\n".join([setup, fixtures, client]))
    passing = 4
    if sys.version_info < (3, 11):  # as the page says of enterContext
        passing -= 1
        tests.pop()
    else:
        tests[-1] += "\n    def test_empty(self):\n        self.app.test_client().get('/')\n"
    (project / "test_page.py").write_text("\n\n".join([IMPORTS, *tests, OF_OUR_OWN]))
    run = run_pytest()
    assert re.search(rf"\b{passing} passed", run.stdout), run.stdout


def test_the_first_test_of_the_quickstart_passes_and_leaves_the_apps_own_database_alone(
    project: Path, run_pytest: RunPytest
) -> None:
    for file in (*project.glob("test_*.py"), project / "conftest.py"):
        file.unlink()
    shutil.copy(DOCS / "recipes" / "shop.py", project)
    (test,) = re.findall(r"^(import pytest\nfrom shop .*?)^```", QUICKSTART, re.S | re.M)
    (project / "test_shop.py").write_text(test)
    run = run_pytest("-n0")
    assert "1 passed" in run.stdout, run.stdout
    assert not (project / "instance").exists()  # where the embedded server would be
