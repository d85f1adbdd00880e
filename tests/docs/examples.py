"""The blocks of code in the documentation, and what is done with each."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(
    r"^(?:[ ]*<!-- not run(?P<only> [^:]*)?: (?P<reason>[^>]+) -->\n+)?"
    r"(?P<indent>[ ]*)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)


class Example(NamedTuple):
    """A block of code.

    :ivar reason: why it is not run; None where it is.
    :ivar only: of a block of commands, those that are not run begin with one of these.
    """

    name: str
    language: str
    text: str
    reason: str | None
    only: tuple[str, ...]

    def commands(self) -> list[str]:
        """The commands of a block for the shell that are to be run."""
        text = self.text.replace("\\\n", " ")
        if self.language == "console":
            lines = re.findall(r"^\$ (.*)$", text, re.M)
        else:
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        if self.reason is not None and not self.only:
            return []
        return [line for line in lines if not line.startswith(self.only or ("\0",))]


def examples_of(page: Path) -> list[Example]:
    """The blocks of a page in their order, those without a language too."""
    return [
        Example(
            f"{page.name}-{number}",
            block["language"],
            textwrap.dedent(block["text"]),
            block["reason"],
            tuple(re.findall(r"`([^`]+)`", block["only"] or "")),
        )
        for number, block in enumerate(_BLOCK.finditer(page.read_text(encoding="utf-8")))
    ]
