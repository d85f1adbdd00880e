"""Running other people's programs on a database of the app."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..printable import one_line
from ..programs import environment_for, settings_for
from .errors import WorkFailed
from .targets import Target

_Run = Callable[[Sequence[str], Mapping[str, str], Sequence[int]], "subprocess.Popen[bytes]"]
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def run_program(command: Sequence[str], target: Target) -> int:
    """The exit code of *command*, run with what leads it to the database of *target*.

    It is 128 and the signal's number if a signal ended the program, as in a shell. This process
    stays beside it: it keeps an embedded server running, and removes the file with the password.

    :raises WorkFailed: if there is no such program.
    """
    settings = settings_for(target.config)
    with _signals_passed_on() as run, environment_for(settings) as (environment, inherited):
        if (folder := _programs_of_wheel(target)) is not None:
            path = environment.get("PATH", os.defpath)
            environment["PATH"] = os.pathsep.join([str(folder), path])
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            code = run(command, environment, inherited).wait()
        except FileNotFoundError as error:
            raise WorkFailed(_no_program(command[0])) from error
        except PermissionError as error:
            raise WorkFailed(f"{command[0]} may not be run: {one_line(error.strerror)}.") from error
    return code if code >= 0 else 128 - code


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
