"""Files that were made to eat memory and time."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from flask_pgmonkey.csv_transfer import CSVTransferError, import_csv
from flask_pgmonkey.csv_transfer.dialect import Dialect, quote_end_markers

from .conftest import Connection

pytestmark = pytest.mark.any_version

WriteFile = Callable[[str | bytes], Path]
MEBIBYTE = 1 << 20

# Prints the error, the seconds and the mebibytes that the import took above those before it.
PROGRAM = """
import json, resource, sys, time
import psycopg
from flask_pgmonkey.csv_transfer import import_csv
settings, path, options = map(json.loads, sys.argv[1:])
outcome = "imported"
with psycopg.connect(**settings) as connection:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    try:
        import_csv(connection, "notes", path, **options)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([outcome, time.monotonic() - begin, (peak - before) // 1024]))
"""


def zipped(path: Path, blocks: Iterable[bytes]) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for block in blocks:
            file.write(block)
    return path


def run(database: dict[str, Any], path: Path, **options: Any) -> tuple[str, float, int]:
    words = [json.dumps(each) for each in (database, str(path), options)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    outcome, seconds, mebibytes = json.loads(done.stdout)
    return outcome, seconds, mebibytes


@pytest.fixture
def notes(connection: Connection) -> Connection:
    connection.execute("CREATE TABLE notes (id integer, note text)")
    connection.commit()
    return connection


MANY = 4096
BLOCK = b"x" * (MEBIBYTE // 8)


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("begin", [b"", b'id,"', b"id,note,"])
def test_a_first_line_without_an_end(
    database: dict[str, Any], tmp_path: Path, begin: bytes, create: bool
) -> None:
    path = zipped(tmp_path / "bomb.csv.gz", [begin, *[BLOCK] * MANY])
    outcome, seconds, mebibytes = run(database, path, create=create)
    assert outcome.startswith(f"CSVTransferError: {path}, line 1: the line that begins here is")
    assert "longer than 16 MiB" in outcome
    assert seconds < 10
    assert mebibytes < 150


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize(
    "line",  # with ids, because pytest puts them into the environment, where 128 KiB are too many
    [b"y,z\n" * (MEBIBYTE // 32), b"\n" * (MEBIBYTE // 8)],
    ids=["rows", "blank lines"],
)
def test_a_quote_that_opens_in_the_header(
    database: dict[str, Any], tmp_path: Path, line: bytes
) -> None:
    path = zipped(tmp_path / "bomb.csv.gz", [b'id,"note\n', *[line] * MANY])
    outcome, seconds, mebibytes = run(database, path)
    assert "line 1: the record that begins here is longer than 16 MiB; is its quote" in outcome
    assert seconds < 20
    assert mebibytes < 400


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize(
    "options",
    [{"on_error": "skip"}, {"mapping": {"more": None}}, {"on_error": "skip", "create": True}],
)
def test_a_quote_that_stays_open(
    database: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    header = b"id,note,more\n" if "mapping" in options else b"id,note\n"
    row = b"1,x,y\n" if "mapping" in options else b"1,x\n"
    path = zipped(tmp_path / "bomb.csv.gz", [header, row * 9, b'2,"', *[BLOCK + b"\n"] * MANY])
    outcome, seconds, mebibytes = run(database, path, **options)
    assert "line 11: the record that begins here is longer than 64 MiB; is its quote" in outcome
    assert seconds < 20
    assert mebibytes < 300
    assert not (tmp_path / "bomb.rejected.csv").exists()


@pytest.mark.usefixtures("notes")
def test_a_long_record_passes_through_without_being_held(
    database: dict[str, Any], tmp_path: Path
) -> None:
    path = zipped(tmp_path / "long.csv.gz", [b"id,note\n1,", *[BLOCK] * 1024, b"\n"])
    outcome, _, mebibytes = run(database, path)
    assert outcome == "imported"
    assert mebibytes < 50


@pytest.mark.usefixtures("notes")
def test_a_record_that_postgresql_cannot_hold(database: dict[str, Any], tmp_path: Path) -> None:
    lines = b"y\n" * (MEBIBYTE // 2)
    path = zipped(tmp_path / "bomb.csv.gz", [b"id,note\n1,x\n", b'2,"', *[lines] * 1030])
    outcome, _, mebibytes = run(database, path)
    assert outcome.startswith(f"CSVTransferError: {path}, line ")
    assert "PostgreSQL takes 1 GB for a record: is a quote left open there?" in outcome
    assert mebibytes < 50


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("header", [None, True, False])
@pytest.mark.parametrize("quoted", [False, True])
def test_100_000_columns_are_refused_at_once(
    items: Connection, csv_file: WriteFile, create: bool, header: bool | None, quoted: bool
) -> None:
    names = (f'"name {n}"' if quoted else f"name_{n}" for n in range(100_000))
    path = csv_file(",".join(names) + "\n" + "1," * 99_999 + "1\n")
    begin = time.monotonic()
    with pytest.raises(CSVTransferError) as caught:
        import_csv(items, "new" if create else "items", path, create=create, header=header)
    assert time.monotonic() < begin + 2
    assert len(str(caught.value)) < 1000


def test_columns_above_postgresqls_number_can_be_left_out(
    connection: Connection, csv_file: WriteFile
) -> None:
    names = [f"name_{n}" for n in range(2000)]
    path = csv_file(",".join(names) + "\n" + "1," * 1999 + "1\n")
    with pytest.raises(CSVTransferError, match=r"has 2,000 columns.* 1,600 at most.*leave columns"):
        import_csv(connection, "wide", path, create=True)
    left_out: dict[str, str | None] = dict.fromkeys(names[1000:])
    assert import_csv(connection, "wide", path, create=True, mapping=left_out).rows == 1


def test_a_name_as_long_as_a_file_does_not_fill_the_error(
    items: Connection, csv_file: WriteFile
) -> None:
    for header in ("x" * MEBIBYTE, f"{'x' * MEBIBYTE},{'x' * MEBIBYTE}"):
        with pytest.raises(CSVTransferError) as caught:
            import_csv(items, "items", csv_file(header + "\n1\n"), header=True)
        assert len(str(caught.value)) < 1500


def test_end_markers_are_found_in_lines_of_any_length() -> None:
    tracemalloc.start()
    try:
        kept = sum(map(len, quote_end_markers((BLOCK for _ in range(512)), Dialect())))
        assert kept == 512 * len(BLOCK)
        assert tracemalloc.get_traced_memory()[1] < 2 * MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [b'"' * MEBIBYTE, b'""' * MEBIBYTE, b'",' * MEBIBYTE],
    ids=["single", "doubled", "ended"],
)
def test_quotes_upon_quotes_are_split_in_linear_time(text: bytes) -> None:
    begin = time.monotonic()
    values = Dialect().values(text)
    assert time.monotonic() < begin + 5
    assert values


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/urandom"])
@pytest.mark.parametrize("create", [False, True])
def test_a_device_is_no_csv_file(items: Connection, device: str, create: bool) -> None:
    with pytest.raises(CSVTransferError, match=f"{device}: is a device, not a file"):
        import_csv(items, "new" if create else "items", device, create=create)


def test_a_pipe_is_read_like_a_file(items: Connection, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with subprocess.Popen(["sh", "-c", 'printf "id,name\\n1,x\\n" >"$0"', tmp_path / "pipe.csv"]):
        assert import_csv(items, "items", tmp_path / "pipe.csv").rows == 1
