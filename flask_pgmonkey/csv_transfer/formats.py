"""Files that are no CSV, known by their first bytes."""

from __future__ import annotations

from .errors import CSVTransferError

SAVE_AS_CSV = "save its sheet as CSV"
UNPACK = "unpack it first"
MARKS = (
    (
        b"PK\x03\x04",
        "a zip archive, such as an Excel workbook (xlsx)",
        f"{SAVE_AS_CSV}, or {UNPACK}",
    ),
    (b"PK\x05\x06", "an empty zip archive", UNPACK),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (xls)", SAVE_AS_CSV),
    (b"\x1f\x8b\x08", "compressed with gzip", "rename it so that it ends in .gz, or use zcat"),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "rename it so that it ends in .zst, or use zstdcat",
    ),
    (b"BZh", "compressed with bzip2", "unpack it with bzcat, and give - for the file"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it with xzcat, and give - for the file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"PAR1", "a Parquet file", "convert it to CSV"),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV"),
    (b"%PDF-", "a PDF document", "ask for the table as CSV"),
)
MARKUP = {b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"<?xml": "an XML document"}


def refuse_other_formats(first: bytes, file: str) -> None:
    """Make sure that *first* begins no file of another kind.

    :raises CSVTransferError: if it does, with what it is.
    """
    for mark, what, remedy in MARKS:
        is_binary = not mark.decode("latin-1").isprintable()
        if first.startswith(mark) and (is_binary or not _is_plain(first)):
            raise CSVTransferError(f"{file}: this is no CSV, it is {what}; {remedy}", file=file)
    begin = first[:100].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, what in MARKUP.items():
        if begin.startswith(mark):
            raise CSVTransferError(
                f"{file}: this is no CSV, it is {what}; if a spreadsheet opens it, {SAVE_AS_CSV}",
                file=file,
            )


def _is_plain(text: bytes) -> bool:
    """Whether there is nothing but what texts hold, so that a mark may be a word of one."""
    return not any(byte < 32 and byte not in b"\t\r\n\f\v" for byte in text[:4096])
