"""The commented template of a config, and filling it in."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..errors import ConfigError
from ..printable import printable
from .libpq import ENVIRONMENT_VARIABLES
from .redaction import holds_literal_secret, is_literal_secret_key
from .values import Setting, uri_options

_CONNECTION_SECTION = re.compile(r"(^connection_settings:\n(?:(?:  .*)?\n)*)", re.MULTILINE)
_CONNECTION_LINE = re.compile(r"  (?:# )?(?P<key>[a-z_]+): ")


def template() -> str:
    """The template with our defaults."""
    return Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")


def template_from_environment() -> str:
    """The template with a reference to each PG* variable that is set.

    :raises ConfigError: if none is set.
    """
    references = {
        keyword: _from_env(variable)
        if is_literal_secret_key(keyword)
        else _quoted(f"${{{variable}}}")
        for keyword, variable in ENVIRONMENT_VARIABLES.items()
        if variable in os.environ
    }
    if not references:
        raise ConfigError("No PG* environment variable that libpq knows is set, such as PGHOST.")
    return _filled(references)


def template_from_uri(uri: str) -> tuple[str, list[str]]:
    """The template with the parts of *uri*, and the variables that its secrets are now in.

    :raises ConfigError: if the URI is not valid, without quoting it.
    """
    options = uri_options(Setting("the URI", uri, ""))
    variables = {
        keyword: ENVIRONMENT_VARIABLES.get(keyword, f"PG{keyword.upper()}")
        for keyword, value in options.items()
        if holds_literal_secret(keyword, value)
    }
    values = {
        keyword: _from_env(variables[keyword])
        if keyword in variables
        # With a reference in the file, all its values are read for references.
        else _quoted(value.replace("${", "$${") if variables else value)
        for keyword, value in options.items()
    }
    return _filled(values), sorted(variables.values())


def _from_env(variable: str) -> str:
    return f"{{from_env: {variable}}}"


def _quoted(value: str) -> str:
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=sys.maxsize)
    return printable(quoted.rstrip("\n"))  # whose escapes are those of YAML too


def _filled(values: Mapping[str, str]) -> str:
    """The template with the keys and YAML *values* as its only ``connection_settings``."""
    head, section, rest = _CONNECTION_SECTION.split(template(), maxsplit=1)
    missing = dict(values)
    lines = []
    for line in section.rstrip("\n").split("\n"):
        match = _CONNECTION_LINE.match(line)
        if match and match["key"] in missing:
            lines.append(f"  {match['key']}: {missing.pop(match['key'])}")
        elif match and not line.startswith("  # "):
            lines.append(f"  # {line[2:]}")
        else:
            lines.append(line)
    lines += [f"  {key}: {value}" for key, value in missing.items()]
    return head + "\n".join(lines) + "\n\n" + rest
