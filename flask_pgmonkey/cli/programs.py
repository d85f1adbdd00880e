"""Other people's programs on a database of the app: what they are told, and how they are run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import quote, urlencode

from ..config.libpq import (
    COMPILED_DEFAULTS,
    ENVIRONMENT_VARIABLES,
    PASSWORD_KEYWORDS,
    effective_options,
    password_of,
)
from ..config.values import CONNECTION_DEFAULTS, TCP_DEFAULTS
from ..errors import ConfigError, EmbeddedServerError
from ..printable import one_line
from .errors import WorkFailed
from .targets import Target

if sys.platform != "win32":
    import fcntl

_Run = Callable[[Sequence[str], Mapping[str, str], Sequence[int]], "subprocess.Popen[bytes]"]
_PASSFILE_PREFIX = "flask-pgmonkey-passfile-"
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_IN_FRONT_OF_QUERY = ("host", "port", "user", "dbname")
# What only libpq understands, or another variable says; other drivers refuse what they do not know.
_NOT_IN_URL = frozenset({"passfile", "service", "servicefile", "requirepeer", "krbsrvname"})
_SAID_BY_OTHERS = frozenset({"service", "servicefile"})  # libpq has read it
_DEFAULTS = {**COMPILED_DEFAULTS, "sslcertmode": "allow"}
_SECRETS = PASSWORD_KEYWORDS | {"sslpassword", "scram_client_key", "scram_server_key"}


def run_program(command: Sequence[str], target: Target) -> int:
    """The exit code of *command*, run with what leads it to the database of *target*.

    It is 128 and the signal's number if a signal ended the program, as in a shell. This process
    stays beside it: it keeps an embedded server running, and removes the file with the password.

    :raises WorkFailed: if there is no such program.
    """
    with _signals_passed_on() as run, environment_for(target) as (environment, inherited):
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            code = run(command, environment, inherited).wait()
        except FileNotFoundError as error:
            raise WorkFailed(_no_program(command[0])) from error
        except PermissionError as error:
            raise WorkFailed(f"{command[0]} may not be run: {one_line(error.strerror)}.") from error
    return code if code >= 0 else 128 - code


@contextmanager
def environment_for(target: Target) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment for programs on the database of *target*, until the end of the block, and the
    descriptors that a program has to inherit.

    libpq's variables are those of the config and of nothing else, ``direct_settings`` first, with
    the password in a file that only we may read; ``DATABASE_URL`` is without it.

    :raises WorkFailed: for a secret that programs cannot be given.
    """
    settings = {key: str(value) for key, value in target.config.direct().connect_kwargs().items()}
    for keyword in settings.keys() & (_SECRETS - ENVIRONMENT_VARIABLES.keys()):
        raise WorkFailed(f"No program can be given {keyword} without showing it to other users.")
    options = _options(settings)
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
    if (folder := _programs_of_wheel(target)) is not None:
        environment["PATH"] = os.pathsep.join([str(folder), environment.get("PATH", os.defpath)])
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
    options = _options(settings)
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
    from ..embedded import find_binaries

    try:
        program = find_binaries(None) / name
    except (ConfigError, EmbeddedServerError):
        return None
    return str(program) if program.exists() else None


def _options(settings: Mapping[str, str]) -> dict[str, str]:
    """What libpq would connect with, from wherever it takes it, without its built-in defaults."""
    effective, objection = effective_options(settings)
    if objection:
        raise WorkFailed(f"libpq refuses these settings: {objection}")
    return {
        keyword: value
        for keyword, value in effective.items()
        if keyword in _IN_FRONT_OF_QUERY
        or (keyword not in _SAID_BY_OTHERS and _DEFAULTS.get(keyword) != value)
    }


def _programs_of_wheel(target: Target) -> Path | None:
    if target.source != "embedded":
        return None
    from ..embedded import find_binaries

    return find_binaries(None)


def _no_program(name: str) -> str:
    if name != "psql":
        return f"There is no {name} on the PATH."
    return (
        "There is no psql on the PATH. It comes with PostgreSQL's client programs:"
        " postgresql-client (Debian, Ubuntu), postgresql (Fedora), libpq (Homebrew)."
    )


@contextmanager
def _passfile(options: Mapping[str, str], password: str) -> Iterator[tuple[str, int]]:
    """A file in libpq's format with *password* for the hosts of *options*, until the block ends.

    Held by a lock, which the program inherits, so that what a killed process has left behind is
    known by nobody's holding it.
    """
    user = options.get("user", "*")
    for name, value in (("password", password), ("user", user)):
        if "\n" in value or value.endswith("\r"):
            raise WorkFailed(f"No program can be given a {name} with a line break in it.")
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


@contextmanager
def _signals_passed_on() -> Iterator[_Run]:
    """A block with what starts one program, to which the signals go that this process gets.

    What is typed at a terminal reaches all of its foreground, and so the program by itself. Before
    there is a program, a signal ends this process, and cleans up.
    """
    running: list[subprocess.Popen[bytes]] = []

    def run(
        command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(command, env=environment, pass_fds=inherited))
        return running[0]

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not running:
            raise SystemExit(128 + number)
        if number != signal.SIGINT or not _is_in_foreground():
            running[0].send_signal(number)

    numbers = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield run
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_foreground() -> bool:
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False  # There is no terminal.
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
