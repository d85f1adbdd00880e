"""Tables as lines of text."""

from __future__ import annotations

from flask_pgmonkey.cli.tables import laid_out, plain, wrapped

HEADERS = ["PID", "State", "Query"]
SHORT = ["1", "idle", "COMMIT"]
LONG = ["4711", "idle_in_transaction", "UPDATE orders SET total = 12 WHERE id = 7"]


def lines(rows: list[list[str]], width: int) -> list[str]:
    return [line for line, _ in laid_out(HEADERS, rows, width)]


def test_a_table_that_fits_has_a_line_for_each_row() -> None:
    assert lines([SHORT, LONG], 80) == [
        "PID   State                Query",
        "1     idle                 COMMIT",
        "4711  idle_in_transaction  UPDATE orders SET total = 12 WHERE id = 7",
    ]
    assert list(plain([HEADERS, SHORT, LONG])) == lines([SHORT, LONG], 80)


def test_a_cell_that_does_not_fit_has_several_lines() -> None:
    assert lines([SHORT, LONG], 50) == [
        "PID   State                Query",
        "1     idle                 COMMIT",
        "4711  idle_in_transaction  UPDATE orders SET total",
        "                           = 12 WHERE id = 7",
    ]


def test_a_row_that_would_be_too_high_is_a_block_among_the_others() -> None:
    assert lines([SHORT, LONG, SHORT], 38) == [
        "PID  State  Query",
        "1    idle   COMMIT",
        "4711",
        "  State  idle_in_transaction",
        "  Query  UPDATE orders SET total = 12",
        "         WHERE id = 7",
        "1    idle   COMMIT",
    ]


def test_where_most_rows_are_too_long_all_are_blocks() -> None:
    assert lines([LONG, SHORT], 24) == [
        "4711",
        "  State",
        "    idle_in_transaction",
        "  Query  UPDATE orders",
        "         SET total = 12",
        "         WHERE id = 7",
        "1",
        "  State  idle",
        "  Query  COMMIT",
    ]


def test_a_word_is_never_broken_however_narrow_it_is() -> None:
    for width in range(1, 80):
        words = " ".join(lines([SHORT, LONG, SHORT], width)).split()
        assert set(words) <= {*" ".join([*HEADERS, *SHORT, *LONG]).split()}
        assert words.count("idle_in_transaction") == 1


def test_wide_characters_take_two_columns() -> None:
    assert wrapped("日本 日本", 7) == ["日本", "日本"]
    assert list(plain([["a", "b"], ["日本", "x"], ["e\u0301", "y"]])) == [
        "a     b",
        "日本  x",
        "e\u0301     y",
    ]


def test_a_table_without_rows_has_its_headers() -> None:
    assert lines([], 80) == ["PID  State  Query"]
    assert lines([], 10) == ["PID State", "Query"]
    assert list(plain([HEADERS])) == ["PID  State  Query"]
