"""The tests of the example app pass, as whoever has cloned it runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from ..servers import Server

ROOT = Path(__file__).parents[2]


def test_the_example_apps_own_tests_pass(server: Server) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    uri = f"postgresql://?{urlencode(server.settings())}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "example_app"],
        cwd=ROOT,
        env={**kept, "PGMONKEY_TEST_SERVER": uri},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 70
    assert "skipped" not in done.stdout
