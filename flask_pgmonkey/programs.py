"""What leads other people's programs to a database: variables, a URL, and a file with the password.

The password is in no argument and in no variable, which lists of processes show.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

from .config import Config
from .config.libpq import (
    COMPILED_DEFAULTS,
    ENVIRONMENT_VARIABLES,
    PASSWORD_KEYWORDS,
    effective_options,
    password_of,
)
from .config.values import CONNECTION_DEFAULTS, PSYCOPG_KEYS, TCP_DEFAULTS
from .errors import ConfigError, EmbeddedServerError, PGMonkeyError

if sys.platform != "win32":
    import fcntl

_PASSFILE_PREFIX = "flask-pgmonkey-passfile-"
_IN_FRONT_OF_QUERY = ("host", "port", "user", "dbname")
# What only libpq understands, or another variable says; other drivers refuse what they do not know.
_NOT_IN_URL = frozenset({"passfile", "service", "servicefile", "requirepeer", "krbsrvname"})
_SAID_BY_OTHERS = frozenset({"service", "servicefile"})  # libpq has read it
_DEFAULTS = {**COMPILED_DEFAULTS, "sslcertmode": "allow"}
_SECRETS = PASSWORD_KEYWORDS | {"sslpassword", "scram_client_key", "scram_server_key"}


def settings_for(config: Config) -> dict[str, str]:
    """What libpq is told of *config*, ``direct_settings`` first. May block.

    :raises EnvInterpolationError: if a reference cannot be resolved.
    """
    return {
        keyword: str(value)
        for keyword, value in config.direct().connect_kwargs().items()
        if keyword not in PSYCOPG_KEYS
    }


@contextmanager
def environment_for(
    settings: Mapping[str, str],
) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment for programs on the database of *settings*, until the end of the block, and
    the descriptors that a program has to inherit.

    libpq's variables are those of *settings* and of nothing else, with the password in a file that
    only we may read; ``DATABASE_URL`` is without it.

    :raises PGMonkeyError: for a secret that programs cannot be given.
    """
    for keyword in settings.keys() & (_SECRETS - ENVIRONMENT_VARIABLES.keys()):
        raise PGMonkeyError(f"No program can be given {keyword} without showing it to other users.")
    options = options_in_use(settings)
    password = password_of(settings)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {*ENVIRONMENT_VARIABLES.values(), "PGSERVICEFILE"}
    }
    for keyword, value in options.items():
        if keyword in ENVIRONMENT_VARIABLES:
            environment[ENVIRONMENT_VARIABLES[keyword]] = value
    environment["DATABASE_URL"] = url_for(settings)
    if password is None:
        yield environment, ()
        return
    with _passfile(options, password) as (path, descriptor):
        environment[ENVIRONMENT_VARIABLES["passfile"]] = path
        yield environment, (descriptor,)


def url_for(settings: Mapping[str, str], *, with_secrets: bool = False) -> str:
    """A ``postgresql://`` URL for drivers of all kinds: libpq's form, without its own defaults.

    Several hosts and sockets stand where libpq reads them, and not every driver does.
    """
    options = options_in_use(settings)
    hosts = options.get("host", "").split(",")
    ports = options.get("port", "").split(",")
    query = {
        keyword: value
        for keyword, value in {**settings, **options}.items()
        if keyword not in _NOT_IN_URL | _SECRETS
        and keyword not in _IN_FRONT_OF_QUERY
        and {**TCP_DEFAULTS, **CONNECTION_DEFAULTS}.get(keyword) != value
    }
    if any(host[:1] in ("/", "@") for host in hosts):
        server = ""
        query = {"host": options["host"], "port": options.get("port", "5432"), **query}
    else:
        ports = ports * len(hosts) if len(ports) == 1 else ports
        server = ",".join(
            (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
            for host, port in zip(hosts, ports, strict=False)
        )
    credentials = quote(options.get("user", ""), safe="")
    if with_secrets:
        if (password := password_of(settings)) is not None:
            credentials += ":" + quote(password, safe="")
        query |= {key: settings[key] for key in settings.keys() & (_SECRETS - {"password"})}
    name = quote(options.get("dbname", ""), safe="")
    ending = "?" + urlencode(query, quote_via=quote) if query else ""
    return f"postgresql://{credentials and credentials + '@'}{server}/{name}{ending}"


def find_program(name: str) -> str | None:
    """A program of PostgreSQL's in the wheel of the embedded server; None without that."""
    from .embedded import find_binaries

    try:
        program = find_binaries(None) / name
    except (ConfigError, EmbeddedServerError):
        return None
    return str(program) if program.exists() else None


def options_in_use(settings: Mapping[str, str]) -> dict[str, str]:
    """What libpq would connect with, from wherever it takes it, without its built-in defaults.

    :raises PGMonkeyError: with libpq's words, if it refuses them.
    """
    effective, objection = effective_options(settings)
    if objection:
        raise PGMonkeyError(f"libpq refuses these settings: {objection}")
    return {
        keyword: value
        for keyword, value in effective.items()
        if keyword in _IN_FRONT_OF_QUERY
        or (keyword not in _SAID_BY_OTHERS and _DEFAULTS.get(keyword) != value)
    }


@contextmanager
def _passfile(options: Mapping[str, str], password: str) -> Iterator[tuple[str, int]]:
    """A file in libpq's format with *password* for the hosts of *options*, until the block ends.

    Held by a lock, which the program inherits, so that what a killed process has left behind is
    known by nobody's holding it.
    """
    user = options.get("user", "*")
    for name, value in (("password", password), ("user", user)):
        if "\n" in value or value.endswith("\r"):
            raise PGMonkeyError(f"No program can be given a {name} with a line break in it.")
    _remove_what_kills_left()
    descriptor, path = tempfile.mkstemp(prefix=_PASSFILE_PREFIX)  # 0600
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        hosts = options.get("host", "").split(",")
        if any(host[:1] in ("", "/", "@") for host in hosts):
            hosts.append("localhost")  # as which libpq looks the usual socket up
        hosts += options.get("hostaddr", "").split(",")
        for host in dict.fromkeys(filter(None, hosts)):
            fields = (host, "*", "*", user, password)
            line = ":".join(_escaped(field) for field in fields)
            os.write(descriptor, os.fsencode(f"{line}\n"))
        yield path, descriptor
    finally:
        os.unlink(path)
        os.close(descriptor)


def _escaped(field: str) -> str:
    """A field of a passfile, in which a backslash takes the meaning of what follows."""
    return field.replace("\\", "\\\\").replace(":", "\\:")


def _remove_what_kills_left() -> None:
    """Remove the passfiles of ours that no process holds any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PASSFILE_PREFIX}*"):
        with suppress(OSError):  # somebody else's, in use, or gone
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if sys.platform != "win32":
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    path.unlink()
            finally:
                os.close(descriptor)
