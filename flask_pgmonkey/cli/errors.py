"""The errors of the commands, each one line on stderr, with what is wrong in a statement below."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psycopg

from ..errors import ConfigError, PGMonkeyError
from ..printable import one_line


class WrongUsage(click.ClickException):
    """What the user has to write differently: one line on stderr, exit code 2."""

    exit_code = 2

    def format_message(self) -> str:
        return one_line(self.message)


class WorkFailed(click.ClickException):
    """Work that was asked for properly and failed: one line on stderr, exit code 1."""

    exit_code = 1

    def format_message(self) -> str:
        return one_line(self.message)


class StatementRefused(WorkFailed):
    """What the server does not understand in a statement: its words, and below them the place."""

    def __init__(self, error: psycopg.Error) -> None:
        self.words: str = error.diag.message_primary or ""  # may have line breaks
        super().__init__(str(error))

    def format_message(self) -> str:
        place = self.message.removeprefix(self.words).strip("\n").splitlines()
        # In a line of the statement one column for each that is none, as libpq counts for its ^.
        shown = ("".join(c if c.isprintable() else "?" for c in line) for line in place)
        return "\n".join([one_line(self.words), *(f"  {line}" for line in shown)])


def put_in_words(error: Exception, ctx: click.Context) -> Exception:
    """What a command shows of *error*; that itself, where click or Python knows what to do."""
    if isinstance(error, click.UsageError):
        path = (error.ctx or ctx).command_path
        words = without_uris(error.format_message())
        if re.search(r"unexpected extra argument.*\.ya?ml\b", words):
            words += "; a config file goes with --config"
        return WrongUsage(f"{words} (see {path} --help)")
    if isinstance(error, ConfigError):
        return WrongUsage(one_line(error))
    if isinstance(error, psycopg.Error):
        if error.diag.statement_position or error.diag.internal_position:
            return StatementRefused(error)
        return WorkFailed(in_one_line(error))
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return error  # The reader of our stdout left; click ends quietly.
    if isinstance(error, (PGMonkeyError, OSError)):
        return WorkFailed(one_line(error))
    return error


def in_one_line(error: psycopg.Error) -> str:
    """The words of *error*, of which libpq sets the second sentence on a line of its own."""
    return one_line(str(error).replace("\n\t", ". ") or error)


def without_uris(text: str) -> str:
    """*text* with only the scheme of each URI in it: what was typed may hold a password."""

    def shortened(uri: re.Match[str]) -> str:
        rest = uri[1]
        body = rest.removesuffix(".").rstrip("'\");")  # What the sentence put around it stays.
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
        elif error.errno == errno.ENOTDIR:
            problem = f"{Path(error.filename).parent} is no folder"
        raise WorkFailed(f"{error.filename}: {problem}") from error
