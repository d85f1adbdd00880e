"""SQL on the page: escaped, without secrets, and with every character that it has."""

from __future__ import annotations

from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_pgmonkey.monitor.sql_text import full_sql, short_sql, without_secrets
from flask_pgmonkey.printable import printable


def plain(markup: str) -> str:
    """The text of what is shown, if its only tags are ours."""
    for kind in ("keyword", "string", "parameter", "comment"):
        markup = markup.replace(f'<span class="{kind}">', "")
    markup = markup.replace("</span>", "")
    assert "<" not in markup
    return unescape(markup)


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("'\"$%<>&-*/\\E()s\n")))
def test_no_text_becomes_a_tag_and_none_is_lost(sql: str) -> None:
    expected = "\n".join(
        printable(line) for line in without_secrets(sql).expandtabs(4).strip("\r\n").split("\n")
    )
    assert plain(full_sql(sql)) == expected
    plain(short_sql(sql))


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("ALTER ROLE me PASSWORD 'hunter2'", "ALTER ROLE me PASSWORD '***REDACTED***'"),
        ("SELECT crypt('hunter2', salt)", "SELECT crypt('***REDACTED***', salt)"),
        ("SET my.token = E'hun\\'ter2'", "SET my.token = '***REDACTED***'"),
        ("SELECT $$hunter2$$, secret", "SELECT '***REDACTED***', secret"),
        ("SELECT $a$hunter2$a$, secret", "SELECT '***REDACTED***', secret"),
        ("SELECT 1 WHERE password = 'hunt", "SELECT 1 WHERE password = '***REDACTED***'"),
        ("SELECT dblink('postgresql://me:hunter2@db/x')", "SELECT dblink('***REDACTED***')"),
        ("SELECT name FROM users WHERE name = 'Ada'", "SELECT name FROM users WHERE name = 'Ada'"),
    ],
)  # fmt: skip
def test_literals_that_may_be_secrets_do_not_show(sql: str, shown: str) -> None:
    assert without_secrets(sql) == shown


def test_what_would_reorder_or_hide_text_is_shown_as_an_escape() -> None:
    assert plain(full_sql("SELECT 1 \u202e -- \x1b[2J")) == "SELECT 1 \\u202e -- \\x1b[2J"


def test_keywords_strings_parameters_and_comments_are_told_apart() -> None:
    assert str(full_sql("select 'a' -- b\n where x = %(y)s")) == (
        '<span class="keyword">select</span> <span class="string">&#39;a&#39;</span>'
        ' <span class="comment">-- b</span>\n <span class="keyword">where</span> x ='
        ' <span class="parameter">%(y)s</span>'
    )


def test_a_long_text_is_cut_in_a_list() -> None:
    assert len(plain(short_sql("SELECT " + "x, " * 10_000))) < 500
