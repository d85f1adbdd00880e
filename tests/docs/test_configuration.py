"""The tables and the YAML of the documentation agree with the code."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from flask_pgmonkey.config import PoolSettings, read_config
from flask_pgmonkey.config.values import CONNECTION_DEFAULTS, TCP_DEFAULTS

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
EXAMPLES = [
    pytest.param(example, id=f"{page.name}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for number, example in enumerate(
        re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.S | re.M)
    )
]


def rows_of(section: str) -> dict[str, list[str]]:
    """The rows of the table below a heading: the first column → the others."""
    text = CONFIGURATION.partition(f"\n### {section}\n")[2].partition("\n### ")[0]
    cells = [row.strip("|").split("|") for row in text.splitlines() if row.startswith("| `")]
    return {key.strip(" `"): [cell.strip() for cell in rest] for key, *rest in cells}


def test_the_pool_table_has_every_key_with_its_default() -> None:
    defaults = {
        key: re.sub(r"the larger of 10 and `min_size`", "10", default)
        for key, (_, default, *_) in rows_of("`pool_settings` and `async_pool_settings`").items()
    }
    expected = {
        key: f"{value:g}" if isinstance(value, float) else str(value).lower()
        for key, value in PoolSettings()._asdict().items()
    }
    assert defaults == expected


def test_the_connection_table_has_our_defaults() -> None:
    rows = rows_of("`connection_settings`")
    for key, default in {**CONNECTION_DEFAULTS, **TCP_DEFAULTS}.items():
        assert rows[key][1].startswith(f"{default},")


@pytest.mark.parametrize("example", EXAMPLES)
def test_yaml_examples_are_configs(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "password"
    password.write_text("something long\n")
    password.chmod(0o600)
    aws = tmp_path / "aws"
    aws.write_text("#!/bin/sh\ncat password\n")
    aws.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "database.yaml"
    file.write_text(example.replace("/run/secrets/shop_db_password", "password"))
    file.chmod(0o600)
    monkeypatch.setenv("SHOP_DB_PASSWORD", "something long")

    settings = read_config(file, resolve_env=True).connect_kwargs()
    assert settings["password"] == "something long"
