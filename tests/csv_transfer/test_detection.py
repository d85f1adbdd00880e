# ruff: noqa: RUF001
from __future__ import annotations

import pytest

from flask_pgmonkey.csv_transfer.detection import detect_dialect, detect_encoding, detect_header
from flask_pgmonkey.csv_transfer.errors import CSVTransferError

FRENCH = "prénom;ville\nÉlodie;Besançon\nFrançois;Nîmes, à côté de la forêt\n"
GERMAN = "name,ort\nMüller,Köln\nWeiß,Österreich\nJäger,München\n"
SMART = "name,price\n“quoted”,€5\nit’s – naïve,€6\n"
RUSSIAN = "имя,город\nИванов,Москва\nПетров,Санкт-Петербург\nСидоров,привет как дела\n"
POLISH = "imię,miasto\nŁukasz,Wrocław\nŚwięty,Kraków\nzażółć gęślą jaźń,Łódź\n"
JAPANESE = "名前,都市\n山田太郎,東京都\n鈴木一郎,大阪\n日本語のテキスト,こんにちは世界\n"


@pytest.mark.parametrize(
    ("text", "written", "detected"),
    [
        ("id,name\n1,x\n", "ascii", "utf-8"),
        (GERMAN, "utf-8", "utf-8"),
        (GERMAN, "utf-8-sig", "utf-8-sig"),
        (GERMAN, "utf-16", "utf-16"),
        ("\ufeff" + GERMAN, "utf-16-be", "utf-16"),
        (GERMAN, "utf-32", "utf-32"),
        ("\ufeff" + GERMAN, "utf-32-be", "utf-32"),
        (GERMAN, "utf-16-le", "utf-16-le"),
        (GERMAN, "utf-16-be", "utf-16-be"),
        (GERMAN, "latin-1", "cp1252"),
        (FRENCH, "cp1252", "cp1252"),
        (SMART, "cp1252", "cp1252"),
        ("a\ncafé\n", "cp1252", "cp1252"),
        ("a\n€5\n", "cp1252", "cp1252"),
        (POLISH, "cp1250", "cp1250"),
        (RUSSIAN, "cp1251", "cp1251"),
        (JAPANESE, "shift_jis", "cp932"),
        (JAPANESE, "euc_jp", "euc_jp"),
    ],
)
def test_encoding_is_found(text: str, written: str, detected: str) -> None:
    assert detect_encoding(text.encode(written)) == detected


def test_a_sample_that_ends_within_a_character_is_utf8_still() -> None:
    assert detect_encoding("é".encode()[:-1]) == "utf-8"


@pytest.mark.parametrize(
    ("text", "columns", "dialect"),
    [
        ("a,b\n1,2\n", None, (",", '"')),
        ("a;b\n1,5;2,5\n1;2\n", None, (";", '"')),
        ("1,5;2,5\n1,5;3,5\n", ["a", "b"], (";", '"')),
        ("a\tb\n1,0\t2\n", None, ("\t", '"')),
        ("a|b\n1|2\n", None, ("|", '"')),
        ("a;b\nx, y, z;1\n", ["a", "b"], (";", '"')),
        ("'a';'b'\n'x;y';1\n", None, (";", "'")),
        ("'id','name'\n1,'x'\n", ["id", "name"], (",", "'")),
        ("'id','name'\n1,'x'\n", None, (",", "'")),
        ("'id','name'\n1,'x'\n", ["'id'", "'name'"], (",", '"')),
        ("a,b\n'x','y'\n", None, (",", '"')),
        ("note\nfew words, a comma\nnone\n", None, (",", '"')),
        ("note\none; two\n", ["note"], (",", '"')),
        ("a;b\n1\n2;3\n", None, (";", '"')),
        ('"a; b"\n1\n', None, (",", '"')),
    ],
)
def test_dialect_is_found(text: str, columns: list[str] | None, dialect: tuple[str, str]) -> None:
    found = detect_dialect(text.encode(), columns, delimiter=None, quote=None, null="")
    assert (found.delimiter, found.quote) == dialect


def test_what_the_user_says_is_not_guessed() -> None:
    found = detect_dialect(b"a,b\n1,2\n", None, delimiter="|", quote=None, null="-")
    assert (found.delimiter, found.quote, found.null) == ("|", '"', "-")


Rows = list[list[str | None]]


@pytest.mark.parametrize(
    ("rows", "columns", "has_header"),
    [
        ([["id", "name"], ["1", "x"]], ["id", "name"], True),
        ([["ID", "other"], ["1", "x"]], ["id", "name"], True),
        ([["number", "label"], ["1", "x"]], ["id", "name"], True),
        ([["1", "x"], ["2", "y"]], ["id", "name"], False),
        ([["2026-01-01", None], ["2026-01-02", "y"]], None, False),
        ([["a", "b"]], None, True),
        ([["a", "b"], ["c", "d"]], None, True),
    ],
)
def test_header_is_found(rows: Rows, columns: list[str] | None, has_header: bool) -> None:
    assert detect_header(rows, columns, "x.csv") is has_header


def test_a_first_line_that_may_be_either_is_not_guessed() -> None:
    with pytest.raises(CSVTransferError, match=r"x\.csv: .*--header .*--no-header"):
        detect_header([["a", "b"], ["c", "d"]], ["first", "second"], "x.csv")
