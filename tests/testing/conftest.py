"""Projects of users, whose tests run in a pytest of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from flask_pgmonkey.testing.server import DOCKER_IMAGE

from ..servers import PrivateServer, docker_can_run

collect_ignore = ["project"]
if not docker_can_run(DOCKER_IMAGE):
    collect_ignore.append("test_container.py")
PROJECT = Path(__file__).with_name("project")
WITHOUT_OURS = ("PYTEST_", "PGMONKEY_", "PYTHONDONTWRITEBYTECODE")
MODULE = "flask_pgmonkey.testing.plugin"
# An installation that is older than the entry point has none.
AUTOLOADED = () if entry_points(group="pytest11", name="flask_pgmonkey") else ("-p", MODULE)

RunPytest = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The tutorial's app and its tests, in a folder of their own."""
    return Path(
        shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    )


@pytest.fixture
def uri(private_server: PrivateServer) -> str:
    """A server without other runs' databases, as ``PGMONKEY_TEST_SERVER`` names it."""
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CREATEDB")
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format_map(
        private_server.settings()
    )


@pytest.fixture
def command(
    project: Path, uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, object]]:
    """The keyword arguments of ``subprocess`` that run the project's tests on our server.

    With no other plugin than ours, which saves the time to load them, unless *autoload* is on.
    """
    compiled = tmp_path_factory.getbasetemp() / "compiled"  # once for all tests

    def arguments(*options: str, on: str | None = uri, autoload: bool = False) -> dict[str, object]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(WITHOUT_OURS)
        }
        environment["PYTHONPYCACHEPREFIX"] = str(compiled)
        if on is not None:
            environment["PGMONKEY_TEST_SERVER"] = on
        plugins: tuple[str, ...] = AUTOLOADED
        if not autoload:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            plugins = ("-p", MODULE, "-p", "xdist")
        return {
            "args": [sys.executable, "-m", "pytest", *plugins, "-p", "no:cacheprovider", *options],
            "cwd": project,
            "env": environment,
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }

    return arguments


@pytest.fixture
def run_pytest(command: Callable[..., dict[str, object]]) -> RunPytest:
    """Runs the project's tests, in its folder unless *cwd* is another.

    *on* is the server, ours unless another is named.
    """

    def run(
        *options: str, cwd: Path | None = None, **more: object
    ) -> subprocess.CompletedProcess[str]:
        arguments = command(*options, **more)
        return subprocess.run(**{**arguments, **({"cwd": cwd} if cwd else {})}, timeout=90)  # type: ignore[call-overload,no-any-return]

    return run
