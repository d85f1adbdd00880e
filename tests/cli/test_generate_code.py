"""``flask pgmonkey generate-code``; that the programs run is held by tests/codegen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Invoke, Run

PASSWORD = "do-not-print-me"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "db.yaml"
    content = {
        "connection_type": "async_pool",
        "connection_settings": {"host": "db.example.com", "password": PASSWORD},
    }
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    return path


def test_the_type_is_the_configs_own_unless_named(run: Run, config: Path) -> None:
    generated = run("generate-code", "--config", config, "--library", "manager")
    named = run(
        *("generate-code", "--config", config),
        *("--library", "manager", "--type", "normal"),
    )

    assert '"async_pool"' in generated.stdout
    assert '"normal"' in named.stdout
    assert (generated.exit_code, generated.stderr) == (0, "")


def test_the_path_of_the_file_is_relative_to_the_program(
    run: Run, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    for path in (config, config.name):
        here = run("generate-code", "--config", path)
        run("generate-code", "--config", path, "--output", "app/program.py", "--force")

        assert (
            "# The config file, from this file's folder.\n"
            'app.config["PGMONKEY_CONFIG"] = "db.yaml"\n'
        ) in here.stdout
        assert '= "../db.yaml"\n' in (tmp_path / "app" / "program.py").read_text()


def test_nothing_of_the_files_content_is_in_the_program(run: Run, config: Path) -> None:
    for library in ("flask", "manager", "psycopg"):
        generated = run("generate-code", "--config", config, "--library", library)

        assert PASSWORD not in generated.stdout
        assert "db.example.com" not in generated.stdout


def test_the_flags_are_carried_into_the_program_unresolved(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "references.yaml"
    config.write_text("connection_settings: {password: {from_env: NOT_SET_HERE}}")

    generated = run(
        *("generate-code", "--config", config, "--type", "pool", "--resolve-env"),
        *("--allow-sensitive-defaults", "--library", "psycopg"),
    )

    assert generated.exit_code == 0, generated.stderr
    assert "resolve_env=True" in generated.stdout
    assert "allow_sensitive_defaults=True" in generated.stdout


def test_a_config_that_cannot_be_used_is_refused(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("pool_settings: {max_sice: 4}")

    generated = run("generate-code", "--config", config, "--type", "pool")

    assert (generated.exit_code, generated.stdout) == (2, "")
    assert "pool_settings.max_sice" in generated.stderr


def test_output_goes_to_a_new_file_only(run: Run, config: Path, tmp_path: Path) -> None:
    command = ("generate-code", "--config", config, "--output", "program.py")
    program = tmp_path / "program.py"

    first = run(*command)
    assert (first.exit_code, first.stdout, first.stderr) == (0, "", "Wrote program.py.\n")
    program.write_text("mine")

    second = run(*command)
    assert second.exit_code == 1
    assert second.stderr == "Error: program.py exists already; --force replaces it.\n"
    assert program.read_text() == "mine"

    assert run(*command, "--force").exit_code == 0
    assert "PGMonkey" in program.read_text()


def test_a_dash_as_output_prints_it(run: Run, config: Path, tmp_path: Path) -> None:
    printed = run("generate-code", "--config", config)
    as_output = run("generate-code", "--config", config, "--output", "-")

    assert (as_output.stdout, as_output.stderr) == (printed.stdout, "")
    assert os.listdir(tmp_path) == [config.name]


def test_a_folder_that_is_missing_is_one_line(run: Run, config: Path) -> None:
    shown = run("generate-code", "--config", config, "--output", "no/program.py")

    assert shown.exit_code == 1
    assert "no/program.py" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_bind_gives_its_config_and_the_apps_flags(
    make_app: Any, invoke: Invoke, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(
        CONFIG={"connection_settings": {"host": "db", "password": PASSWORD}},
        BINDS={
            "reports": config.name,
            "embedded": "embedded",
            "uri": f"postgresql://app:{PASSWORD}@db/x",
        },
        RESOLVE_ENV=True,
    )
    monkeypatch.chdir(config.parent)

    generated = invoke(app, "generate-code", "--bind", "reports")
    assert generated.exit_code == 0
    assert 'app.config["PGMONKEY_CONFIG"] = "db.yaml"' in generated.stdout
    assert 'app.config["PGMONKEY_RESOLVE_ENV"] = True' in generated.stdout

    for bind, words in (
        ("default", '"password": {\n            "from_env": "PGPASSWORD",'),
        ("embedded", 'app.config["PGMONKEY_CONFIG"] = "embedded"'),
        ("uri", 'app.config["PGMONKEY_CONFIG"] = os.environ["DATABASE_URL"]'),
    ):
        generated = invoke(app, "generate-code", "--bind", bind)
        assert (generated.exit_code, generated.stderr) == (0, "")
        assert words in generated.stdout
        assert PASSWORD not in generated.stdout
    assert not (Path(os.path.dirname(config)) / "postgres").exists()
