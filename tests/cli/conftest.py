"""Running commands, in this process and as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import flask
import pytest
import yaml

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.cli import pgmonkey

from ..servers import PrivateServer
from ..suite import Suite

RunFlask = Callable[..., "subprocess.CompletedProcess[str]"]
Run = Callable[..., click.testing.Result]
Invoke = Callable[..., click.testing.Result]

PLANTED = r"planted:pass\word%@/ü"
"""A password that every format has to quote."""


def write_config(folder: Path, settings: dict[str, Any], **sections: Any) -> Path:
    """Write a config that only its owner may read."""
    config = folder / "db.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": settings, **sections}))
    config.chmod(0o600)
    return config


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def planted(private_server: PrivateServer) -> Iterator[PrivateServer]:
    """A server whose user has a password that every format has to quote."""
    private_server.set_password("app", PLANTED)
    yield private_server
    private_server.set_password("app", private_server.password)


@pytest.fixture
def embedded_app(suite: Suite, open_folder: Path, tmp_path: Path) -> Path:
    """The instance folder of ``app.py`` in ``tmp_path``, an app with the embedded server."""
    instance = open_folder / "instance"
    suite.copy_cluster(instance / "postgres" / "data")
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        f"app = Flask(__name__, instance_path={str(instance)!r})\n"
        "db = PGMonkey(app, config='embedded')\n"
    )
    return instance


@pytest.fixture
def run_flask(tmp_path: Path) -> RunFlask:
    """``flask …`` in a process of its own, in ``tmp_path``, warnings being errors."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "flask", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``flask pgmonkey …`` in this process, in ``tmp_path``, without an app."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> click.testing.Result:
        runner = click.testing.CliRunner()
        return runner.invoke(pgmonkey, list(map(str, arguments)), prog_name="flask pgmonkey")

    return run


@pytest.fixture
def make_app(tmp_path: Path) -> Callable[..., flask.Flask]:
    """Makes an app with PGMonkey, from ``PGMONKEY_…`` keys without their prefix."""

    def make(**keys: Any) -> flask.Flask:
        app = flask.Flask("shop", root_path=str(tmp_path), instance_path=str(tmp_path))
        app.config.update({f"PGMONKEY_{name}": value for name, value in keys.items()})
        PGMonkey(app)
        return app

    return make


@pytest.fixture
def invoke() -> Invoke:
    """``flask pgmonkey …`` in this process, with an app."""

    def run(app: flask.Flask, *arguments: object) -> click.testing.Result:
        runner = app.test_cli_runner()
        return runner.invoke(pgmonkey, [str(argument) for argument in arguments])

    return run
