"""A random table in a random dialect comes in as it was, or ends in our error."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

from flask_pgmonkey import PGMonkeyError
from flask_pgmonkey.csv_transfer import import_csv

from ..servers import Server
from .conftest import Connection

pytestmark = pytest.mark.any_version

SEED = 20_261_125
TABLES = 2000
COLUMNS = ["id", "full_name", "size", "note", "x"]
PIECES = [
    *(",", ";", "\t", "|", '"', "'", '""', "\\", "\\\\", '\\"', "\\N", "\\.", "NULL", " ", "  "),
    *("a", "B", "1", "007", "1,5", "1.5", "-0", "1e5", "2024-03-31", "T", "true", "sep=;", "=1+1"),
    *(
        "é",
        "ß",
        "日本",
        "🙂",
        "\n",
        "\r\n",
        "\r",
        "\n\n",
        "x" * 40,
        "id",
        "full_name",
        "€",
        "#",
        "%",
    ),
]
DELIMITERS = ",;\t|:~^ "
LINE_ENDS = ("\n", "\r\n", "\r")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1", "cp932", "gb18030")
Row = tuple[str | None, ...]


class Written(NamedTuple):
    """How a table was written, and what it holds."""

    content: bytes
    rows: list[Row]
    names: list[str]
    told: dict[str, Any]
    """What the user says of the file, who may say nothing or all."""


def value(chance: random.Random, encoding: str) -> str | None:
    if chance.random() < 0.1:
        return None
    text = "".join(chance.choices(PIECES, k=chance.choice((0, 1, 1, 1, 2, 3))))
    return text.encode(encoding, "ignore").decode(encoding)


def written(chance: random.Random) -> Written:
    encoding = chance.choice(ENCODINGS)
    names = chance.sample(COLUMNS, chance.randrange(1, 5))
    rows = [tuple(value(chance, encoding) for _ in names) for _ in range(chance.randrange(1, 9))]
    delimiter = chance.choice(DELIMITERS)
    quote = chance.choice('"""\'`')
    escape = chance.choice((None, None, "\\", "^"))
    escape = None if escape == delimiter else escape
    line_end = chance.choice(LINE_ENDS)
    null = chance.choice(("", "", "\\N", "NULL"))
    always = chance.random() < 0.3
    has_header = chance.random() < 0.7

    def cell(text: str | None) -> str:
        if text is None:
            return null
        special = (delimiter, quote, "\n", "\r", escape or quote)
        plain = text != null and not any(character in text for character in special)
        if plain and not always and text != "\\.":
            return text
        if escape:
            text = text.replace(escape, 2 * escape)
        return quote + text.replace(quote, (escape or quote) + quote) + quote

    lines = [names, *rows] if has_header else rows
    text = line_end.join(delimiter.join(map(cell, line)) for line in lines)
    text += line_end * chance.choice((0, 1, 1, 3) if len(names) > 1 else (1,))
    told: dict[str, Any] = {
        "encoding": encoding,
        "delimiter": delimiter,
        "quote": quote,
        "escape": escape or "",
        "header": has_header,
    }
    if chance.random() < 0.6:  # The user says no more than what nothing in the file tells.
        if encoding.startswith("utf"):
            del told["encoding"]
        if delimiter in ",;\t|":
            del told["delimiter"]
        if quote == '"':
            del told["quote"]
        if escape is None or (escape == "\\" and any(quote in (v or "") for v in chain(*rows))):
            del told["escape"]
        if has_header:
            del told["header"]
    told["null"] = null
    if not has_header:
        told |= {"columns": names, "skip": 0}
    return Written(text.encode(encoding), rows, names, told)


@pytest.fixture(scope="module")
def connection(server: Server) -> Iterator[Connection]:
    """With a temporary table of texts."""
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(n)) for n in COLUMNS)
    with server.database() as dbname, psycopg.connect(**server.settings(dbname)) as connection:
        connection.execute(sql.SQL("CREATE TEMP TABLE fuzzed ({})").format(columns))
        connection.commit()
        yield connection


def test_2000_tables_in_random_dialects(connection: Connection) -> None:
    chance = random.Random(SEED)
    imported = 0
    told: list[str] = []
    for number in range(TABLES):
        each = written(chance)
        names = sql.SQL(", ").join(map(sql.Identifier, each.names))
        with connection.transaction(force_rollback=True):
            try:
                import_csv(connection, "fuzzed", io.BytesIO(each.content), **each.told)
            except (PGMonkeyError, psycopg.DataError) as error:
                told.append(str(error))
                continue
            found = connection.execute(sql.SQL("SELECT {} FROM fuzzed").format(names)).fetchall()
        assert Counter(found) == Counter(each.rows), f"table {number}: {each.content!r} {each.told}"
        imported += 1
    assert imported > 0.95 * TABLES
    assert all(told)
