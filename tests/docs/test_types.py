"""The page on types: its programs run, and what they say at the ends of lines comes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..servers import PrivateServer

PAGE = (Path(__file__).parents[2] / "docs/types.md").read_text()
(SCHEMA,) = re.findall(r"^```sql\n(.*?)^```", PAGE, re.S | re.M)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)


@pytest.fixture
def shop(
    private_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A database with the page's tables, and its database.yaml in the working directory."""
    pytest.importorskip("pgvector")
    with private_server.connect("app") as admin:  # embedded, so it has the extension vector
        admin.execute(SCHEMA)
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
        file = tmp_path / "database.yaml"
        file.write_text(yaml.safe_dump({"connection_settings": private_server.settings()}))
        file.chmod(0o600)
        monkeypatch.chdir(tmp_path)
        yield


@pytest.mark.usefixtures("shop")
def test_every_program_gives_what_it_says() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    promises = 0
    for program in PROGRAMS:
        lines = program.splitlines()
        for statement in ast.parse(program).body:
            assert statement.end_lineno is not None
            *_, promised = lines[statement.end_lineno - 1].partition("  # ")
            if not isinstance(statement, ast.Expr) or not promised:
                module = ast.Module([statement], [])
                exec(compile(module, "types.md", "exec", dont_inherit=True), names)  # noqa: S102
                continue
            value = eval(compile(ast.Expression(statement.value), "types.md", "eval"), names)  # noqa: S307
            assert repr(value) == promised, lines[statement.end_lineno - 1]
            promises += 1
    assert promises > 25
    for db in (names["db"], names["raw"]):
        db.close()
