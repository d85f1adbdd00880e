"""What the libpq in use knows: its keywords, its URIs, and what it makes of a set of options."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

_DEFAULTS = pq.Conninfo.get_defaults()

#: Every keyword of a connection string (``PQconndefaults``).
KEYWORDS = frozenset(option.keyword.decode() for option in _DEFAULTS)

#: The keywords that libpq itself marks as passwords.
PASSWORD_KEYWORDS = frozenset(
    option.keyword.decode() for option in _DEFAULTS if option.dispchar == b"*"
)

#: The environment variable that stands in for each keyword, where there is one.
ENVIRONMENT_VARIABLES = {
    option.keyword.decode(): option.envvar.decode() for option in _DEFAULTS if option.envvar
}

#: The values that are compiled into libpq.
COMPILED_DEFAULTS = {
    option.keyword.decode(): option.compiled.decode() for option in _DEFAULTS if option.compiled
}

URI_SCHEMES = ("postgresql://", "postgres://")

# libpq looks at this keyword last of all, so an impossible value for it makes libpq judge all the
# others and then stop before it connects.
_LAST_CHECKED, _ITS_VALUES = (
    ("load_balance_hosts", ("disable", "random"))
    if "load_balance_hosts" in KEYWORDS
    else (
        "target_session_attrs",
        ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    )
)
_IMPOSSIBLE = "?"


def is_connection_string(text: str) -> bool:
    """Whether *text* is meant as a URI or a ``key=value`` string, of any kind, right or wrong."""
    if re.search(r"://|\bpostgres(?:ql)?:/", text):
        return True
    return any(name in ("host", "dbname") or "passw" in name for name in names_before_equals(text))


def names_before_equals(text: str) -> Iterator[str]:
    """Each word that has a ``=`` behind it, as in a connection string."""
    # With the boundaries, no word is looked at from each of its letters on.
    return (match[1] for match in re.finditer(r"\b(\w+)\b\s*=", text))


def parse_uri(uri: str) -> dict[str, str] | None:
    """Split a ``postgresql://`` URI into its options, or give None if that cannot be done safely.

    None is also the answer where libpq would cut the URI in the wrong place because of a
    character that is not percent-encoded, and take a part of the password for a host or a name.
    """
    rest = uri.partition("://")[2]
    credentials, _, server = (
        rest.partition("@") if "@" in rest.partition("/")[0] else ("", "", rest)
    )
    try:
        parsed = pq.Conninfo.parse(uri.encode())
        options = {option.keyword.decode(): option.val.decode() for option in parsed if option.val}
    except (psycopg.OperationalError, UnicodeError):
        return None
    in_wrong_place = "@" in server and any(
        "@" in options.get(key, "") for key in ("host", "dbname")
    )
    return None if in_wrong_place or "?" in credentials else options


def unknown_parameters(uri: str) -> list[str]:
    """The parameters after the ``?`` of *uri* that libpq does not know.

    None is named where a part of a password that is not percent-encoded could be among them.
    """
    query = uri.partition("?")[2]
    names = [part.partition("=")[0] for part in query.split("&") if part != "ssl=true"]
    if "@" in query or not PASSWORD_KEYWORDS.isdisjoint(names):
        return []
    return [name for name in names if name not in KEYWORDS and re.fullmatch(r"[A-Za-z_]+", name)]


def effective_options(options: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """All options that libpq would connect with, and its objection to them, else ``""``.

    Environment, service file and built-in defaults are included, the password is not. Nothing is
    connected to and no name is looked up. The options are incomplete if there is an objection.
    """
    judged = {**options, "password": _IMPOSSIBLE, _LAST_CHECKED: _IMPOSSIBLE}
    connection = pq.PGconn.connect_start(make_conninfo("", **judged).encode())
    try:
        objection = connection.error_message.decode(errors="replace").strip()
        effective = {
            o.keyword.decode(): o.val.decode(errors="replace") for o in connection.info if o.val
        }
    finally:
        connection.finish()
    effective.pop("password", None)
    effective.pop(_LAST_CHECKED, None)
    if _LAST_CHECKED in objection and f'"{_IMPOSSIBLE}"' in objection:
        objection = ""
        if options.get(_LAST_CHECKED, _ITS_VALUES[0]) not in _ITS_VALUES:
            objection = f'invalid {_LAST_CHECKED} value: "{options[_LAST_CHECKED]}"'
    return effective, objection


def password_of(options: Mapping[str, str]) -> str | None:
    """The password that libpq would use: that of *options*, of the environment or of the service.

    One in a passfile is looked for only when libpq connects.
    """
    judged = {**options, _LAST_CHECKED: _IMPOSSIBLE}
    connection = pq.PGconn.connect_start(make_conninfo("", **judged).encode())
    try:
        found = {o.keyword: o.val for o in connection.info}.get(b"password")
    finally:
        connection.finish()
    return found.decode(errors="surrogateescape") if found else None


def uses_tcp(effective: Mapping[str, str]) -> bool:
    """Whether libpq would reach any of the hosts of :func:`effective_options` over TCP."""
    hosts = (effective.get("hostaddr") or effective.get("host", "")).split(",")
    # Without a host it is a socket, but for Windows. An abstract socket begins with @.
    return any(host[:1] not in ("/", "@") if host else os.name == "nt" for host in hosts)


def is_elsewhere(host: str) -> bool:
    """Whether *host*, a name or an address, is another machine than this one, or may be."""
    if host[:1] in ("", "/", "@") or host.lower() == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return True
