"""Every block of code in the documentation runs, or says in the page why it does not.

The reason is a comment above the block: ``<!-- not run: needs an account -->``, or of some commands
in it ``<!-- not run `pgcli`, `flask run`: they wait for somebody -->``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
import yaml
from flask import Flask

from flask_pgmonkey.embedded import find_binaries

from .examples import DOCS, PAGES, ROOT, Example, examples_of

# Who runs the blocks of these languages on these pages.
ELSEWHERE = {
    "README.md": ("python yaml", "tests/docs/test_readme.py"),
    "testing.md": ("python", "tests/testing/test_docs.py"),
    "types.md": ("python sql", "tests/docs/test_types.py"),
    "upgrading.md": ("text", "tests/docs/test_upgrading.py"),
}
# What is read by a person, and not run by anybody.
SHOWN = {"", "diff", "text", "ini"}
SHELL = ("sh", "console")
# What a page takes for granted.
SETUP = Path(__file__).with_name("setup.sql").read_text()
NAMES = Path(__file__).with_name("names.py").read_text()
TABLES = re.compile(r"^CREATE TABLE (\w+)", re.M)

BY_PAGE = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]


def is_elsewhere(page: Path, language: str) -> bool:
    own = f"tests/docs/test_{page.stem.replace('-', '_')}.py"
    if page.parent == DOCS and (ROOT / own).exists() and language in ("python", "sql"):
        return True
    languages, file = ELSEWHERE.get(page.name, ("", ""))
    return language in languages.split() and page.name in (ROOT / file).read_text()


@pytest.mark.parametrize("page", BY_PAGE)
def test_every_block_has_somebody_who_runs_it_or_a_reason(page: Path) -> None:
    known = {*SHOWN, *SHELL, "python", "sql", "yaml", "json"}
    for example in examples_of(page):
        assert example.language in known, f"{example.name}: who runs {example.language}?"
        if example.only:
            assert example.language in SHELL
            missing = [start for start in example.only if f"{start}" not in example.text]
            assert not missing, f"{example.name}: no command begins with {missing}"
        if example.language == "json":
            json.loads(example.text)


@pytest.fixture
def folder(database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a page's programs: an app and its config on a real database."""
    with psycopg.connect(**database, autocommit=True) as conn:
        conn.execute(SETUP)
    config = tmp_path / "database.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": database}))
    config.chmod(0o600)
    (tmp_path / "names.py").write_text(NAMES)
    (tmp_path / "migrations").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pages_with(*languages: str) -> list[Any]:
    """The pages that have blocks of these languages for the tests here."""
    return [
        param
        for param in BY_PAGE
        if any(
            example.language in languages
            and example.reason is None
            and not is_elsewhere(param.values[0], example.language)  # type: ignore[arg-type]
            for example in examples_of(param.values[0])  # type: ignore[arg-type]
        )
    ]


@pytest.mark.parametrize("page", pages_with("python", "sql"))
def test_programs_and_sql_of_a_page_run_one_after_the_other(
    page: Path, folder: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("names")
    monkeypatch.setitem(sys.modules, "names", module)
    names = module.__dict__
    exec(compile(NAMES, "names.py", "exec"), names)  # noqa: S102
    app: Flask = names["app"]
    with psycopg.connect(**database, autocommit=True) as conn, app.test_request_context():
        for example in examples_of(page):
            if example.reason is not None or is_elsewhere(page, example.language):
                continue
            if example.language == "python":
                if "= PGMonkey(app" in example.text:
                    del app.extensions["pgmonkey"]
                code = compile(example.text, example.name, "exec", dont_inherit=True)
                exec(code, names)  # noqa: S102
            elif example.language == "sql" and "-- migrate:" not in example.text:
                run_sql(conn, example.text)
    client = app.test_client()
    for rule in app.url_map.iter_rules():
        if rule.endpoint != "static" and not rule.arguments:
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                response = client.open(rule.rule, method=method)
                assert response.status_code < 400, f"{method} {rule.rule}: {response.text}"
    names["close"]()


def run_sql(conn: psycopg.Connection[Any], text: str) -> None:
    """Run statements, in which tables take the place of those that the test has made."""
    for table in TABLES.findall(text):
        conn.execute(f"DROP TABLE IF EXISTS {table} CASCADE")
    conn.execute(text)


def flask_command(arguments: list[str], output: str) -> None:
    """``flask …`` as a process of its own."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = ["flask", *arguments]
    from flask.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@pytest.fixture(scope="module")
def run_flask() -> Callable[[list[str], Path], tuple[int, str]]:
    """Runs ``flask …`` in a copy of a process that has loaded all it needs: that is fast."""
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["flask_pgmonkey.cli", "flask_pgmonkey.extension", __name__])

    def run(arguments: list[str], folder: Path) -> tuple[int, str]:
        output = folder / "output"
        process = forked.Process(target=flask_command, args=(arguments, str(output)))
        process.start()
        process.join(60)
        assert process.exitcode is not None, f"flask {arguments} did not end"
        return process.exitcode, output.read_text(errors="replace")

    return run


@pytest.mark.any_version
@pytest.mark.parametrize("page", pages_with(*SHELL))
def test_commands_of_a_page_run_one_after_the_other(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, run_flask: Any
) -> None:
    (folder / "shop.py").write_text("from names import *\n")
    for name, text in FILES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o700)
    programs = [str(Path(sys.executable).parent), str(find_binaries(None)), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(programs))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FLASK_APP", "shop")
    monkeypatch.setenv("PGHOST", "localhost")  # for create-config --from-env
    for example in examples_of(page):
        if example.language not in SHELL or is_elsewhere(page, example.language):
            continue
        for command in example.commands():
            status, output = run_command(command, folder, run_flask)
            told = "--audit" in command and "Verdict" in output  # of a server that is the suite's
            assert status == 0 or told, f"{example.name}: {command}\n{output}"


FILES = {
    "seeds.sql": "SELECT 1;\n",
    "report.sql": "SELECT 1;\n",
    "check-rows": "#!/bin/sh\n",
    "orders.csv": "id,total\n100,1\n",
}


def run_command(command: str, folder: Path, run_flask: Any) -> tuple[int, str]:
    words = shlex.split(command, comments=True)
    if words[:2] == ["pip", "install"]:
        return check_requirements(words[2:])
    if "create-config" in words:
        (folder / "database.yaml").unlink(missing_ok=True)
    if words[0] == "flask" and not re.search(r"[|>$]|&&", re.sub(r"'[^']*'", "", command)):
        status, output = run_flask(words[1:], folder)
        return status, output
    run = subprocess.run(
        ["/bin/sh", "-euc", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return run.returncode, run.stdout + run.stderr


def check_requirements(words: list[str]) -> tuple[int, str]:
    """Whether our package has the extras that a ``pip install`` asks for."""
    extras = set(metadata("flask-pgmonkey").get_all("Provides-Extra") or ())
    for word in words:
        asked = re.fullmatch(r"(?:flask-pgmonkey|\.)\[([\w,]+)\]", word)
        if asked and (unknown := set(asked[1].split(",")) - extras):
            return 1, f"{word}: there is no extra {unknown}"
    return 0, ""


def test_a_block_without_its_comment_is_run() -> None:
    text = "<!-- not run `b`: it waits -->\n```sh\na one\nb two\n```\n"
    (example,) = parse(text)
    assert example.commands() == ["a one"]
    (example,) = parse("```sh\na one\nb two  # c\n```\n")
    assert example.commands() == ["a one", "b two  # c"]
    (example,) = parse("<!-- not run: it waits -->\n\n```sh\na one\n```\n")
    assert example.commands() == []


def parse(text: str) -> list[Example]:
    class Page:
        name = "page"

        def read_text(self, encoding: str) -> str:
            return text

    return examples_of(Page())  # type: ignore[arg-type]
