# ruff: noqa: RUF001
from __future__ import annotations

import pytest

from flask_pgmonkey.csv_transfer.detection import detect_dialect, detect_encoding, detect_header
from flask_pgmonkey.csv_transfer.dialect import Dialect
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
        (POLISH, "cp1250", "cp1250"),
        (RUSSIAN, "cp1251", "cp1251"),
        (JAPANESE, "shift_jis", "cp932"),
        (JAPANESE, "euc_jp", "euc_jp"),
    ],
)
def test_encoding_is_found(text: str, written: str, detected: str) -> None:
    assert detect_encoding(text.encode(written), "x.csv") == detected


@pytest.mark.parametrize("text", ["a\nb\ncafé\n", "a\nb\n€5\n", SMART.replace("name,", "name\n")])
def test_an_encoding_of_which_too_little_tells_is_not_guessed(text: str) -> None:
    with pytest.raises(CSVTransferError, match=r"x\.csv, line [3]: .* --encoding"):
        detect_encoding(text.encode("cp1252"), "x.csv")


@pytest.mark.parametrize("text", [GERMAN, FRENCH, RUSSIAN, POLISH, JAPANESE])
@pytest.mark.parametrize("times", [1, 40])
def test_a_byte_of_another_encoding_does_not_outweigh_a_text_in_utf8(text: str, times: int) -> None:
    assert detect_encoding((text * times).encode() + b"caf\xe9\n", "x.csv") == "utf-8"


def test_as_much_of_one_encoding_as_of_another_is_not_guessed() -> None:
    with pytest.raises(CSVTransferError, match="--encoding"):
        detect_encoding("é\n".encode() * 9 + b"caf\xe9\n" * 9, "x.csv")


def test_a_sample_that_ends_within_a_character_is_utf8_still() -> None:
    assert detect_encoding("é".encode()[:-1], "x.csv") == "utf-8"


def detected(
    text: str,
    columns: list[str] | None,
    *,
    delimiter: str | None = None,
    quote: str | None = None,
    escape: str | None = None,
    null: str = "",
) -> Dialect:
    return detect_dialect(
        text.encode(),
        columns,
        delimiter=delimiter,
        quote=quote,
        escape=escape,
        null=null,
        null_quoted=False,
        file="x.csv",
    )


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
    found = detected(text, columns)
    assert (found.delimiter, found.quote) == dialect


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("1,5;2,5\n1,5;3,5\n", None),
        ("1,5;2,5\n", None),
        ("x,y;1\nz,a;2\n", ["one", "two"]),
        ("1;2024-01-01 10:00;a,b\n2;2024-01-01 11:00;c,d\n", None),
    ],
)
def test_delimiters_are_weighed_by_what_they_give(text: str, columns: list[str] | None) -> None:
    assert detected(text, columns).delimiter == ";"


@pytest.mark.parametrize("text", ["a,b;c\nd,e;f\n", "x|y,z\n"])
def test_delimiters_that_are_as_likely_are_not_guessed(text: str) -> None:
    with pytest.raises(CSVTransferError, match=r"x\.csv: .*--delimiter") as caught:
        detected(text, None)
    for delimiter in {",", ";", "|"} & {*text}:
        assert repr(delimiter) in str(caught.value)
        assert detected(text, None, delimiter=delimiter).delimiter == delimiter


@pytest.mark.parametrize(
    ("text", "escape"),
    [
        ('a,b\n2,"say \\"hi\\" now"\n', "\\"),
        ('a,b\n2,"say ""hi"" now"\n', None),
        ('a,b\n2,"C:\\"\n', None),
        ('a,b\n2,"C:\\","x"\n', None),
        ('a,b\n2,say \\"hi\\"\n', None),
    ],
)
def test_backslashes_before_quotes_are_found(text: str, escape: str | None) -> None:
    assert detected(text, None).escape == escape
    assert detected(text, None, escape='"').escape is None
    assert detected(text, None, escape="\\").escape == "\\"


def test_a_delimiter_that_would_tear_a_quoted_value_is_none() -> None:
    assert detected('x,"a;b",c\ny,"d;e",f\n', ["one", "two"]).delimiter == ","


def test_what_the_user_says_is_not_guessed() -> None:
    found = detected("a,b\n1,2\n", None, delimiter="|", null="-")
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
        ([["1", "x"]], None, False),
        ([["year", "n/a"], ["2019", "1"], ["2020", "2"]], None, True),
        ([["n/a", "1", "2"], ["2", "5", "6"]], None, False),
        ([["Country", "2019", "2020"], ["2018", "x", "y"]], None, True),
    ],
)
def test_header_is_found(rows: Rows, columns: list[str] | None, has_header: bool) -> None:
    assert detect_header(rows, columns, "x.csv") is has_header


@pytest.mark.parametrize(
    "rows",
    [
        [["a", "b"], ["c", "d"]],
        [["a", "b"]],
        [["Country", "2019", "2020"], ["France", "67", "68"]],
        [["Country", "2019"], ["France", "67.5"], ["Spain", None]],
        [["Store", "1", "2", "3"], ["A", "5", "9", "8"]],
        [["n/a", "1"], ["2", "5"]],
        [[None], ["a"]],
    ],
)
@pytest.mark.parametrize("columns", [None, ["first", "second"]])
def test_a_first_line_that_may_be_either_is_not_guessed(
    rows: Rows, columns: list[str] | None
) -> None:
    with pytest.raises(CSVTransferError, match=r"x\.csv: .*--header .*--no-header"):
        detect_header(rows, columns, "x.csv")


@pytest.mark.parametrize("encoding", ["cp437", "cp850", "mac_roman"])
@pytest.mark.parametrize("times", [1, 30])
def test_what_no_file_is_expected_in_is_not_taken_for_something_else(
    encoding: str, times: int
) -> None:
    for text in ("a,b\n1,Müller\n", "a,b\n1,größe\n2,Straße\n", "name\nÉlodie à Besançon\n"):
        with pytest.raises(CSVTransferError, match="--encoding"):
            detect_encoding((text * times).encode(encoding), "x.csv")
