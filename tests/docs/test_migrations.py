"""The migrations in the documentation go up and down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flask_pgmonkey.config import read_config
from flask_pgmonkey.migrations import Migrations

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["evolving-the-schema.md", "cli/migrate.md"])
def test_migrations_go_up_and_down(page: str, tmp_path: Path, database: dict[str, Any]) -> None:
    examples = re.findall(
        r"^```sql\n(-- migrate:up.*?)^```", (DOCS / page).read_text(), re.S | re.M
    )
    assert examples
    for number, example in enumerate(examples, 1):
        (tmp_path / f"{number}_example.sql").write_text(example)
    with psycopg.connect(**database) as conn:
        conn.execute("CREATE TABLE users (id int PRIMARY KEY)")
    migrations = Migrations(read_config({"connection_settings": database}), tmp_path)
    assert len(migrations.up()) == len(examples)
    for _ in examples:
        assert migrations.down()
    assert migrations.down() == []


def test_a_schema_that_is_there_becomes_the_first_migration(
    tmp_path: Path, database: dict[str, Any]
) -> None:
    page = (DOCS / "evolving-the-schema.md").read_text()
    (note,) = re.findall(r"^```sql\n(CREATE TABLE schema_migrations.*?)^```", page, re.S | re.M)
    (version,) = re.findall(r"\('(\d+)'\)", note)
    (tmp_path / f"{version}_all.sql").write_text("-- migrate:up\nSELECT 1/0;\n-- migrate:down\n")
    with psycopg.connect(**database) as conn:
        conn.execute(note)
    migrations = Migrations(read_config({"connection_settings": database}), tmp_path)
    assert migrations.up() == []
