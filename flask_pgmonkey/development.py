"""What ``flask`` commands do for the embedded server: their end stops it, however it comes."""

from __future__ import annotations

import atexit
import signal
import threading
from types import FrameType

import click
from flask.cli import ScriptInfo


def stop_with_command(folder: str) -> None:
    """Have the end of the ``flask`` command that loads the app stop the server in *folder*.

    Python ends by SIGTERM and SIGHUP without doing anything. And the process that reloads kills the
    one that serves, which then leaves the server behind. Elsewhere than in a command, whoever runs
    the app sees to its end.
    """
    command = click.get_current_context(silent=True)
    if command is None or command.find_object(ScriptInfo) is None:
        return
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _end)
    if command.info_name == "run":
        atexit.register(_stop_what_was_left, folder)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as a shell says it


def _stop_what_was_left(folder: str) -> None:
    from .embedded import stop_if_unused  # a tenth of the time of importing this package

    stop_if_unused(folder)
