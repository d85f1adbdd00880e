"""Whatever a file holds and however it is called, only our errors and the server's come out."""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import psycopg
import pytest

from flask_pgmonkey import PGMonkeyError
from flask_pgmonkey.cli import pgmonkey
from flask_pgmonkey.csv_transfer import import_csv

from .conftest import Connection

pytestmark = pytest.mark.any_version

SEED = 20_261_125
PIECES = [
    *(b",", b";", b"\t", b"|", b'"', b"'", b'""', b"\n", b"\r\n", b"\r", b"\n\n", b"\\.", b"\\.\n"),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xfe\xff", b"\0\0\xfe\xff", b"\x1b[2J", b"\x85"),
    *(b"id", b"name", b"price", b"id,name,price\n", b"1", b"2", b"-1", b"1e999", b"NaN", b"007"),
    *(b"true", b"2026-02-30", b"{", b'{"a": 1}', b"[[[[", b"\\u0000", b" ", b"", b"x" * 100),
    *("é".encode(), "é".encode("latin-1"), "日本".encode("cp932"), "é".encode("utf-16")),
    *(b"NULL", b"=1+1", b"%s", b"{}", b"$1", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"),
]


def byte_strings(count: int) -> Iterator[bytes]:
    """Files of all kinds, from mere noise to nearly good ones."""
    chance = random.Random(SEED)
    for number in range(count):
        match number % 4:
            case 0:
                yield chance.randbytes(chance.randrange(300))
            case 1:
                yield b"".join(chance.choices(PIECES, k=chance.randrange(1, 60)))
            case 2:
                rows = b"".join(
                    b"%d,%b,%d\n" % (n, b"".join(chance.choices(PIECES, k=2)), chance.randrange(9))
                    for n in range(1, chance.randrange(2, 30))
                )
                yield b"id,name,price\n" + rows
            case _:
                text = "id;name\n" + "".join(f"{n};Größe {n}\n" for n in range(30))
                content = bytearray(text.encode(chance.choice(["utf-8", "utf-16", "cp1252"])))
                for _ in range(chance.randrange(1, 9)):
                    content[chance.randrange(len(content))] = chance.randrange(256)
                yield bytes(content)


def options_for(chance: random.Random) -> dict[str, Any]:
    return {
        "on_error": chance.choice(["stop", "skip"]),
        "create": chance.random() < 0.5,
        "keep_names": chance.random() < 0.3,
        "header": chance.choice([None, None, True, False]),
        "dry_run": chance.random() < 0.7,
        "truncate": chance.random() < 0.1,
        "text": chance.random() < 0.3,
        "encoding": chance.choice([None, None, None, "utf-8", "cp1252", "utf-16", "cp932"]),
        "null": chance.choice(["", "", "NULL", "\\N", '"', "\n", "é"]),
        "mapping": chance.choice([None, None, None, {"name": None}, {"id": "price"}]),
    }


def test_1000_byte_strings_as_csv(items: Connection, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    imported, told = 0, list[str]()
    begin = time.monotonic()
    for number, content in enumerate(byte_strings(1000)):
        path = tmp_path / chance.choice(["items.csv", "items.csv.gz", "items.csv.zst"])
        if path.suffix == ".gz" and chance.random() < 0.7:
            content = gzip.compress(content, 1)
        path.write_bytes(content)
        table = chance.choice(["items", f"new_{number}"])
        try:
            import_csv(items, table, path, **options_for(chance))
            imported += 1
        except (PGMonkeyError, psycopg.Error) as error:
            told.append(str(error))
        if number % 50 == 0:
            assert items.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            items.execute("DELETE FROM items WHERE id <> 0")
            items.commit()
    assert imported > 25
    assert len(told) > 50
    assert all(told)
    assert not list(tmp_path.glob(".*.partial"))
    assert time.monotonic() < begin + 60, "a file took long"


NAME_PIECES = [
    *("a", "B", " ", ".", '"', '""', "'", "''", "\\", "/", "-", "--", "/*", ";", "%", "%s"),
    *("{}", "{0}", "$1", "$$", "\n", "\r", "\t", "\0", "\x1b[31m", "\x9b", "\x85", "\u2028"),
    *("é", "日本", "🙂", "\udcff", "\ud800", "\ufffe", "x" * 70, "=", ",", "[red]", ":smile:"),
    *("SELECT", "public.", "://u:p@h", "~", "*", "#", "!", "&", "|", "<", ">", "\u202e", "%(x)s"),
]


def hostile_names(count: int) -> Iterator[str]:
    chance = random.Random(SEED)
    for _ in range(count):
        yield "".join(chance.choices(NAME_PIECES, k=chance.randrange(1, 6)))


def commands_for(name: str, config: str, path: str) -> Iterator[list[str]]:
    database = ["--config", config]
    yield ["import-csv", *database, "--create", name, path]
    yield ["import-csv", *database, "--columns", f"{name}=x", "--", name, path]
    yield ["import-csv", *database, "--create", "--keep-names", "named", f"{path}.{name}"]
    yield ["export-csv", *database, name, f"{path}.{name}.out"]
    yield ["export-csv", *database, "--safe-formulas", "--columns", name, "items"]
    yield ["export-csv", *database, "--where", name, "items"]
    yield ["export-csv", *database, "--query", f'SELECT 1 AS "{name}"']
    yield ["export-csv", *database, "--delimiter", name, "--null", name, "items"]
    yield ["export-csv", *database, "--encoding", name, "items"]
    yield ["create-config", f"{path}.{name}.yaml", "--uri", f"postgresql://h/{name}"]
    yield ["show-config", "--config", name]
    yield [name]


@pytest.mark.usefixtures("items")
def test_500_hostile_names(config_file: Path, tmp_path: Path) -> None:
    """Three of the ways to give a name for each, all of them in turn."""
    runner = click.testing.CliRunner()
    path = tmp_path / "named.csv"
    done = 0
    for number, name in enumerate(hostile_names(500)):
        path.write_text(f'"{name}",id\n1,2\n', encoding="utf-8", errors="replace")
        ways = list(commands_for(name, str(config_file), str(path)))
        for way in range(3):
            words = ways[(number + 4 * way) % len(ways)]
            result = runner.invoke(pgmonkey, words, prog_name="flask pgmonkey")
            told = f"{words!r}: {result.output!r}"
            assert isinstance(result.exception, SystemExit | None), f"{told} {result.exception!r}"
            assert result.exit_code in (0, 1, 2), told
            for line in result.stderr.split("\n"):
                assert line.isprintable(), told
            done += result.exit_code == 0
    assert done > 20
