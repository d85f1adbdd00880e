"""``PGMONKEY_QUERY_TAGS``: a comment on each statement that says which app and route sent it.

In the format of sqlcommenter, which PostgreSQL's logs, ``pg_stat_activity`` and hosted databases
show. The same route has the same comment, so that psycopg goes on preparing its statements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from importlib.metadata import version
from urllib.parse import quote

from flask import Flask, has_request_context, request

from .config.values import nearest_name
from .errors import ConfigError

KEY = "PGMONKEY_QUERY_TAGS"
TAGS = ("application", "controller", "db_driver", "framework", "route")


def read_tags(value: object) -> tuple[str, ...]:
    """The names of the tags, in the order of the comment.

    :raises ConfigError: for one that there is not.
    """
    if isinstance(value, str):  # from the environment
        value = [name.strip() for name in value.split(",") if name.strip()]
    if not isinstance(value, (tuple, list, set, frozenset)):
        raise ConfigError(
            f"{KEY} must be names of tags, such as ('application', 'route'), not"
            f" {type(value).__name__}."
        )
    for name in value:
        if name not in TAGS:
            nearest = nearest_name(str(name), TAGS)
            remedy = f"did you mean {nearest!r}?" if nearest else f"use some of {', '.join(TAGS)}."
            raise ConfigError(f"{KEY}: there is no tag {str(name)[:40]!r}; {remedy}")
    return tuple(sorted(value))


def find_tag_of(app: Flask, names: Iterable[str]) -> Callable[[], bytes]:
    """What gives the comment of a statement that is sent now."""
    always = {"application": app.name, "db_driver": _release("psycopg")}
    always["framework"] = _release("flask")
    return partial(_current_tag, lru_cache(maxsize=1024)(partial(_tag, tuple(names), always)))


def _release(package: str) -> str:
    return f"{package}:{version(package)}"


def _current_tag(tag_of: Callable[[str | None, str | None], bytes]) -> bytes:
    if not has_request_context():
        return tag_of(None, None)
    rule = request.url_rule
    return tag_of(rule.endpoint, rule.rule) if rule is not None else tag_of(None, None)


def _tag(
    names: tuple[str, ...], always: dict[str, str], endpoint: str | None, route: str | None
) -> bytes:
    values = {**always, "controller": endpoint, "route": route}
    # What quote() leaves alone neither ends the comment nor its quotes.
    pairs = (f"{name}='{quote(value, safe='')}'" for name in names if (value := values[name]))
    comment = ",".join(pairs)
    return f"/*{comment}*/".encode() if comment else b""
