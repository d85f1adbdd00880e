"""SQL as the monitor shows it: without secrets, escaped, its words told apart."""

from __future__ import annotations

import re
from functools import lru_cache

from markupsafe import Markup, escape

from ..config.redaction import REDACTED, holds_password
from ..connections.parameters import names_secret
from ..printable import printable

_KEYWORDS = (
    "all|alter|analyze|and|any|array|as|asc|begin|between|by|case|cast|commit|conflict|copy|create"
    "|cross|current|declare|default|delete|desc|distinct|do|drop|else|end|except|exists|explain"
    "|false|fetch|filter|first|for|from|full|group|having|if|ilike|in|index|inner|insert|intersect"
    "|interval|into|is|join|last|lateral|left|like|limit|lock|materialized|merge|natural|not"
    "|nothing|null|nulls|of|offset|on|or|order|outer|over|partition|primary|recursive|references"
    "|release|returning|right|rollback|savepoint|select|set|share|show|skip|table|then|to|true"
    "|truncate|union|unique|update|using|values|view|when|where|window|with"
)
# What is cut off in the middle ends with the text.
_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<string> \b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z) | '(?:[^']|'')*(?:'|\Z)
        | (?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z) )
    | (?P<name> "(?:[^"]|"")*(?:"|\Z) )
    | (?P<parameter> %[sbt] | %\(.*?\)[sbt] | \$\d+ )
    | (?P<word> [^\W\d]\w* )
    | (?P<number> \d[\d.]* )
    """,
    re.VERBOSE | re.DOTALL,
)
_IS_KEYWORD = re.compile(_KEYWORDS, re.IGNORECASE)
_SHORT = 400


def without_secrets(sql: str, of: str = "") -> str:
    """*sql* with ``***REDACTED***`` for each literal that may be a secret.

    :param of: a query that it is a part of.
    """
    if not names_secret(sql) and not names_secret(of) and not holds_password(sql):
        return sql
    return _TOKEN.sub(
        lambda found: f"'{REDACTED}'" if found.lastgroup == "string" else found[0], sql
    )


@lru_cache(maxsize=1024)
def short_sql(sql: str, of: str = "") -> Markup:
    """The beginning of a text in one line."""
    line = " ".join(without_secrets(sql, of).split())
    return _marked(line if len(line) <= _SHORT else f"{line[:_SHORT]}…")


@lru_cache(maxsize=64)
def full_sql(sql: str, of: str = "") -> Markup:
    """A text with its lines."""
    return _marked(without_secrets(sql, of).expandtabs(4).strip("\r\n"))


def _marked(sql: str) -> Markup:
    parts: list[str] = []
    at = 0
    for found in _TOKEN.finditer(sql):
        parts.append(_escaped(sql[at : found.start()]))
        at = found.end()
        kind = found.lastgroup
        if kind == "word":
            kind = "keyword" if _IS_KEYWORD.fullmatch(found[0]) else None
        text = _escaped(found[0])
        parts.append(f'<span class="{kind}">{text}</span>' if kind in _MARKED else text)
    parts.append(_escaped(sql[at:]))
    return Markup("".join(parts))  # noqa: S704 - every part is escaped


_MARKED = ("comment", "string", "parameter", "keyword")


def _escaped(text: str) -> str:
    """*text* with its line breaks, and escapes for what would reorder or hide some of it."""
    return str(escape("\n".join(printable(line) for line in text.split("\n"))))
