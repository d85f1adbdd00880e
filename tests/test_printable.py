from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from flask_pgmonkey.printable import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ü, 日本, 🙂", "plain, ü, 日本, 🙂"),
        ("two  spaces", "two  spaces"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("\u2028\u2029\x85\x7f\x00", r"\u2028\u2029\x85\x7f\x00"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_is_one_line_and_never_empty() -> None:
    assert one_line(ValueError("first\n  second\x1b[2J\x85third")) == r"first second\x1b[2J third"
    assert one_line(ValueError(" \n")) == "ValueError"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged by this package, as a file would have it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("flask_pgmonkey")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def test_no_server_forges_a_line_of_the_log(log: io.StringIO) -> None:
    logger = logging.getLogger("flask_pgmonkey")
    hostile = "gone\nERROR root: all is lost\x1b[2J"
    logger.warning("Closing a connection to %s: %s", "db/\r\nshop", ValueError(hostile))
    logger.warning("%(name)s", {"name": hostile})
    logger.warning("%d of %s", 1, "two")
    assert log.getvalue().splitlines() == [
        r"Closing a connection to db/ shop: gone ERROR root: all is lost\x1b[2J",
        r"gone ERROR root: all is lost\x1b[2J",
        "1 of two",
    ]


def test_lines_of_our_own_stay_lines(log: io.StringIO) -> None:
    logger = logging.getLogger("flask_pgmonkey")
    logger.warning("Lost: %s. It was borrowed at:\n%s", "a\nb", "  File x\n    y\x1b\n")
    assert log.getvalue() == "Lost: a b. It was borrowed at:\n  File x\n    y\\x1b\n\n"


def test_no_server_forges_a_line_of_the_log_in_a_traceback(log: io.StringIO) -> None:
    try:
        raise ValueError("\x1b[2Jgone\n2026-01-01 ERROR forged\rover")
    except ValueError:
        logging.getLogger("flask_pgmonkey").exception("A job failed")

    said, *traceback = log.getvalue().splitlines()
    assert said.endswith("A job failed")
    assert any(r"ValueError: \x1b[2Jgone" in line for line in traceback)
    assert all(line.startswith("  ") and line.isprintable() for line in traceback)
