"""Example programs for each connection type, written for a config.

The programs are the files under ``templates``, one for each library and connection type.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .sources import ProgramSource

LIBRARIES = ("flask", "manager", "psycopg")

_OURS = "flask_pgmonkey"
_THIRD_PARTY = ("psycopg", "psycopg_pool")

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701 - The result is Python, not HTML; values go through repr.
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def generate_program(
    library: str,
    connection_type: str,
    source: ProgramSource,
    *,
    allow_sensitive_defaults: bool = False,
) -> str:
    """The text of a Python program that queries the database of *source*.

    :param library: one of :data:`LIBRARIES`.
    :param connection_type: one of :data:`~flask_pgmonkey.config.CONNECTION_TYPES`.
    """

    def app_imports(*imports: str) -> str:
        block = _block({*imports, *source.app_imports})
        return f"{block}\n" if block else ""

    def script_imports(*imports: str) -> str:
        return _imports({*imports, *source.script_imports})

    template = _templates.get_template(f"{library}/{connection_type}.py.jinja")
    return template.render(
        source=source,
        allow_sensitive_defaults=allow_sensitive_defaults,
        app_imports=app_imports,
        script_imports=script_imports,
    )


def _imports(imports: Iterable[str]) -> str:
    """The lines in blocks: the standard library's, other people's, ours."""
    blocks: list[list[str]] = [[], [], []]
    for line in imports:
        package = line.split()[1].partition(".")[0]
        blocks[2 if package == _OURS else 1 if package in _THIRD_PARTY else 0].append(line)
    return "\n".join(_block(block) for block in blocks if block)


def _block(imports: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in sorted(imports, key=_as_isort_does))


def _as_isort_does(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line.split()[1]
