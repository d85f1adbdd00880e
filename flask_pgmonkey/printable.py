"""Text of others, made safe for a terminal and for a line of a log.

A server, a file or a command line can hold escape sequences, which terminals obey, and line breaks,
which forge lines. Every command and every log call of this package passes through here.
"""

from __future__ import annotations

import logging
from typing import Any


def printable(text: str) -> str:
    r"""*text* with an escape such as ``\x1b`` for each character that is not printable.

    Those are control characters, line breaks, marks that reorder text, lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def one_line(said: object) -> str:
    """The text of *said*, an error for example, in one printable line; its type if it is empty."""
    return printable(" ".join(str(said).split())) or type(said).__name__


def guard_log() -> None:
    """Let every record of this package's logger be one printable line."""
    logging.getLogger("flask_pgmonkey").addFilter(_make_printable)


def _make_printable(record: logging.LogRecord) -> bool:
    """Make the arguments of *record* safe. What the call itself says after a line break stays so.

    Tools that group records by their template, or read the arguments, still can.
    """
    if isinstance(record.args, tuple):
        safe = [_safe(argument) for argument in record.args]
        if str(record.msg).endswith("\n%s") and record.args:
            safe[-1] = "\n".join(map(printable, str(record.args[-1]).split("\n")))
        record.args = tuple(safe)
    elif record.args:
        record.args = {name: _safe(argument) for name, argument in record.args.items()}
    if record.exc_info and not record.exc_text:
        # Indented, so that a line of a server's words is none of the log's.
        traceback = logging.Formatter().formatException(record.exc_info)
        record.exc_text = "\n".join(f"  {printable(line)}" for line in traceback.splitlines())
    return True


def _safe(argument: Any) -> Any:
    if isinstance(argument, (int, float)) or str(argument).isprintable():
        return argument
    return one_line(argument)
