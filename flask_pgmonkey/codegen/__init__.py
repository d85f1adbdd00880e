"""Example programs for each connection type, written for a config file.

The programs are the files under ``templates``, one for each library and connection type.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LIBRARIES = ("flask", "manager", "psycopg")


def python_string(text: str) -> str:
    """The literal of *text*, in double quotes like the rest of a program where it can be."""
    literal = repr(text)
    return literal if '"' in literal else f'"{literal[1:-1]}"'


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701 - The result is Python, not HTML; values go through repr.
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["python_string"] = python_string


def generate_program(
    library: str,
    connection_type: str,
    config_path: str,
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> str:
    """The text of a Python program that queries the database of *config_path*.

    The program reads the file itself when it runs, so nothing of the file's content is in it.

    :param library: one of :data:`LIBRARIES`.
    :param connection_type: one of :data:`~flask_pgmonkey.config.CONNECTION_TYPES`.
    """
    template = _templates.get_template(f"{library}/{connection_type}.py.jinja")
    return template.render(
        config_path=config_path,
        resolve_env=resolve_env,
        allow_sensitive_defaults=allow_sensitive_defaults,
    )
