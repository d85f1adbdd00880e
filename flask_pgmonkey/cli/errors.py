"""The errors of the commands, each one line on stderr."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..printable import one_line


class WrongUsage(click.ClickException):
    """What the user has to write differently: one line on stderr, exit code 2."""

    exit_code = 2

    def format_message(self) -> str:
        return one_line(self.message)


class WorkFailed(click.ClickException):
    """Work that was asked for properly and failed: one line on stderr, exit code 1."""

    def format_message(self) -> str:
        return one_line(self.message)

    exit_code = 1


def without_uris(text: str) -> str:
    """*text* with only the scheme of each URI in it: what was typed may hold a password."""

    def shortened(uri: re.Match[str]) -> str:
        rest = uri[1]
        body = rest.removesuffix(".").rstrip("'\")")  # What the sentence put around it stays.
        return f"://…{rest[len(body) :]}"

    return re.sub(r"://(\S+)", shortened, text)


@contextmanager
def file_errors_in_words() -> Iterator[None]:
    """Say what is wrong with a file, without numbers of errors.

    :raises WorkFailed: for an OSError that names a file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        problem = error.strerror
        if error.errno == errno.EISDIR:
            problem = "is a folder"
        elif error.errno == errno.ENOENT:
            folder = Path(error.filename).parent
            problem = "no such file" if folder.exists() else f"there is no folder {folder}"
        raise WorkFailed(f"{error.filename}: {problem}") from error
