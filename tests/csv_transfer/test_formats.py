from __future__ import annotations

import bz2
import encodings.aliases
import gzip
import io
import lzma
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flask_pgmonkey.csv_transfer import CSVTransferError, check_encoding, import_csv

from .conftest import Connection

WriteFile = Callable[[str | bytes], Path]
CSV = b"id,name\n1,x\n"
zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, CSV)
    return content.getvalue()


def refused(connection: Connection, path: Path, told: str) -> None:
    with pytest.raises(CSVTransferError, match=rf"{path.name}: this is no CSV, it is .*{told}"):
        import_csv(connection, "items", path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (zipped("xl/workbook.xml"), "xlsx.*save its sheet as CSV"),
        (b"PK\x05\x06" + bytes(18), "empty zip"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "xls"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip"),
        (b"PAR1\x15\0\x15", "Parquet"),
        (b"SQLite format 3\0\x10", "SQLite"),
        (b"%PDF-1.7\n%\xe2\xe3\n\0\1\2", "PDF"),
        (b"<html><table><tr><td>1</table>", "HTML"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE HTML>\n<table>", "HTML"),
        (b'<?xml version="1.0"?>\n<Workbook/>', "XML.*save its sheet"),
    ],
)
def test_what_is_no_csv_is_called_by_its_name(
    items: Connection, csv_file: WriteFile, content: bytes, told: str
) -> None:
    refused(items, csv_file(content), told)


@pytest.mark.parametrize(
    ("pack", "told", "ending"),
    [
        (gzip.compress, "gzip.*ends in .gz, or use zcat", ".csv.gz"),
        (zstd.compress, "zstd.*ends in .zst, or use zstdcat", ".csv.zst"),
    ],
)
def test_a_packed_file_without_its_ending_is_read_when_it_has_it(
    items: Connection, csv_file: WriteFile, pack: Callable[[bytes], bytes], told: str, ending: str
) -> None:
    path = csv_file(pack(CSV))
    refused(items, path, told)

    assert import_csv(items, "items", path.rename(path.with_suffix(ending))).rows == 1


@pytest.mark.parametrize(
    ("pack", "unpack", "told"),
    [
        (bz2.compress, bz2.decompress, "bzip2.*bzcat, and give - for the file"),
        (lzma.compress, lzma.decompress, "xz.*xzcat, and give - for the file"),
        (lambda _: zipped("x.csv"), lambda _: CSV, "zip.*unpack it first"),
    ],
)
def test_what_else_is_packed_is_read_when_it_is_unpacked(
    items: Connection,
    csv_file: WriteFile,
    pack: Callable[[bytes], bytes],
    unpack: Callable[[bytes], bytes],
    told: str,
) -> None:
    path = csv_file(pack(CSV))
    refused(items, path, told)

    assert import_csv(items, "items", io.BytesIO(unpack(path.read_bytes()))).rows == 1


@pytest.mark.parametrize("name", ["BZh", "PAR1", "%PDF-", "PK", "7z"])
def test_a_word_of_a_text_is_no_mark(items: Connection, csv_file: WriteFile, name: str) -> None:
    path = csv_file(f"{name},id\nx,1\n")
    assert import_csv(items, "items", path, mapping={name: "name"}).rows == 1


@pytest.mark.parametrize("encoding", sorted({*encodings.aliases.aliases.values(), "idna"}))
def test_an_encoding_reads_a_file_or_the_error_says_why(
    items: Connection, csv_file: WriteFile, encoding: str
) -> None:
    try:
        check_encoding(encoding)
    except LookupError:
        return
    options: dict[str, Any] = {"encoding": encoding, "delimiter": ",", "header": True}
    assert import_csv(items, "items", csv_file(CSV.decode().encode(encoding)), **options).rows == 1
    for wrong in (b"id,name\n2,\xff\x81\n", b"\xff\xff\xffid,name\n2,x\n"):
        with suppress(CSVTransferError):
            import_csv(items, "items", csv_file(wrong), **options)


@pytest.mark.parametrize("name", ["undefined", "idna", "punycode", "unicode_escape", "rot13", "x"])
def test_what_no_file_is_written_in_is_no_encoding(name: str) -> None:
    with pytest.raises(LookupError, match=name):
        check_encoding(name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_in_another_encoding_than_the_one_that_was_named(
    items: Connection, csv_file: WriteFile, encoding: str
) -> None:
    path = csv_file(CSV * 3)
    with pytest.raises(CSVTransferError, match=rf"items\.csv, line 1: .*{encoding}.*--encoding"):
        import_csv(items, "items", path, encoding=encoding)
    assert import_csv(items, "items", csv_file(CSV), encoding="utf-8").rows == 1
