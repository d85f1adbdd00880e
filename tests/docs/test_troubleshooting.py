"""Each message on the page is one that the package can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES = re.findall(r"^`([^`\n]+)`\n: ", PAGE, re.M)
GAP = "…"


def text_of(node: ast.AST) -> str | None:
    """A text of the source, with a gap for what is filled in."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[sd]", GAP, node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or GAP for value in node.values)
    return None


def texts() -> Iterator[str]:
    for file in (ROOT / "flask_pgmonkey").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Constant, ast.JoinedStr)) and (text := text_of(node)):
                yield " ".join(text.split())


def test_the_page_names_only_messages_that_the_package_prints() -> None:
    printed = list(texts())
    assert len(MESSAGES) > 25
    for message in MESSAGES:
        # A gap may be filled with several parts of the source.
        pattern = re.escape(message).replace(re.escape(GAP), f".*{GAP}.*?")
        found = [text for text in printed if re.search(pattern, text)]
        assert found, f"nothing prints {message}"
