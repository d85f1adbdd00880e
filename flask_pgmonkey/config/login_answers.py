"""What a callable or a program answers that is asked for a login: read, and refused in words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EnvInterpolationError
from .login import Login
from .values import Setting, text
from .yaml_file import type_name

COMMAND_TIMEOUT = 10.0
"""Seconds that a program has."""

_YEAR_9000 = 221_845_392_000  # so that milliseconds are noticed


def read_login(answer: object, place: str) -> Login:
    """The login in what a source answered.

    :raises ConfigError: which names types, and no value.
    """
    if isinstance(answer, Mapping):
        user = answer.get("user", answer.get("username"))
        return Login(
            _text(answer.get("password"), f"{place}: the password in the answer"),
            None if user is None else _text(user, f"{place}: the user in the answer"),
            _expiry(answer.get("expiry"), f"{place}: the expiry in the answer"),
        )
    return Login(_text(answer, f"{place}: the answer"))


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value:
        kind = "an empty text" if value == "" else type_name(value)
        raise ConfigError(f"{place} must be text, not {kind}.")
    return text(Setting(place, value, ""))


def _expiry(value: object, place: str) -> float | None:
    if value is None:
        return None
    moment: Any = value
    if isinstance(value, str):
        with suppress(ValueError):
            # Before Python 3.11, fromisoformat() knows neither Z nor every fraction.
            written = re.sub(r"\.[0-9]+", "", value.strip()).replace("Z", "+00:00")
            moment = datetime.fromisoformat(written)
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return moment.timestamp()
    if isinstance(moment, bool):
        moment = None
    if isinstance(moment, (int, float)) and 0 < moment < _YEAR_9000:
        return float(moment)
    raise ConfigError(
        f"{place} must be a date and time with its time zone (2030-01-31T12:00:00Z), or the "
        f"seconds since 1970, not {type_name(value)}."
    )


def answer_of_command(command: list[str], folder: Path, place: str) -> object:
    """What a program writes to its standard output: text, or an object of JSON.

    No shell is between. What it writes to standard error goes to ours.

    :param folder: where it runs.
    :raises EnvInterpolationError: if it cannot be run, fails, or takes over ten seconds.
    """
    problem = ""
    output = b""
    try:
        output, code = _run(command, folder)
        if code:
            problem = f"ended with exit code {code}; what it wrote to standard error says why"
    except FileNotFoundError:
        problem = "is not there; give the path of the program, or its name if it is on the PATH"
    except OSError as error:
        problem = f"cannot be run: {error.strerror or type(error).__name__}"
    except subprocess.TimeoutExpired:
        problem = f"did not end within {COMMAND_TIMEOUT:g} s"
    except ValueError:
        problem = "has a name, or an argument, that no program can have"
    written = ""
    if not problem:
        try:
            written = output.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            problem = "wrote what is not UTF-8 text"
        else:
            problem = "" if written else "wrote nothing"
    if problem:
        raise EnvInterpolationError(f"{place}: the command {problem}.")
    if written.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            return json.loads(written)
    return written


def _run(command: list[str], folder: Path) -> tuple[bytes, int]:
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=os.name == "posix",
    ) as process:
        try:
            output, _ = process.communicate(timeout=COMMAND_TIMEOUT)
        except BaseException:
            _kill(process)
            raise
        return output, process.returncode


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the program and those that it started: one of them may have its standard output."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
