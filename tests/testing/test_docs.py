"""The programs of docs/testing.md are the tests of a project, and pass."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .conftest import RunPytest

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()
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
