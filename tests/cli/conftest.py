"""Running commands, in this process and as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import flask
import pytest

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.cli import pgmonkey

RunFlask = Callable[..., "subprocess.CompletedProcess[str]"]
Run = Callable[..., click.testing.Result]
Invoke = Callable[..., click.testing.Result]


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
