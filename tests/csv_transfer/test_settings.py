from __future__ import annotations

from pathlib import Path

import pytest

from flask_pgmonkey import ConfigError
from flask_pgmonkey.csv_transfer import (
    NO_QUOTE,
    ImportSettings,
    read_import_settings,
    settings_path,
    write_import_settings,
)

WRITTEN_BY_PGMONKEY = """\
auto_create_table: true
delimiter: ;
encoding: utf-8
enforce_lowercase: true
has_headers: false
quotechar: '"'

    # Import configuration options:
    #
    # has_headers: Boolean - True if the first row has names.
"""


@pytest.mark.parametrize("name", ["orders.csv", "orders.csv.gz", "orders.csv.zst", "orders"])
def test_the_settings_stand_beside_the_file(name: str) -> None:
    assert settings_path(f"/data/{name}") == Path("/data/orders.yaml")


def test_a_file_of_pgmonkey_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text(WRITTEN_BY_PGMONKEY)
    assert read_import_settings(path) == ImportSettings(False, True, True, ";", '"', "utf-8")


def test_a_tab_may_be_written_with_a_backslash(tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text("delimiter: \\t\n")
    assert read_import_settings(path).delimiter == "\t"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    settings = ImportSettings(True, False, True, "\t", "'", "utf-16", "\\")
    write_import_settings(path, settings)
    assert read_import_settings(path) == settings


def test_quotes_that_are_plain_characters_are_kept_as_a_word(tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    write_import_settings(path, ImportSettings(quotechar=NO_QUOTE))
    assert "quotechar: none\n" in path.read_text()
    assert read_import_settings(path).quotechar == NO_QUOTE


@pytest.mark.parametrize("text", ["", "# encoding: utf-8\n"])
def test_an_empty_file_and_none_say_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text(text)
    assert read_import_settings(path) == ImportSettings()
    assert read_import_settings(tmp_path / "none.yaml") == ImportSettings()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{}", ": no import settings"),
        (b"- a list", ": no import settings"),
        (b"connection_settings: {host: x}\n", ": 'connection_settings' is no import setting"),
        (b"foo: 1\n", ": 'foo' is no import setting; known are has_headers, "),
        (b"a: b\npassword: 'hunter2\n", ", line 3: not YAML"),
        (b"name: \xff\n", ": not YAML"),
    ],
)
def test_a_file_of_another_program_is_refused_with_the_remedy(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "orders.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_import_settings(path)
    assert str(caught.value).startswith(f"file {path}{told}")
    assert str(caught.value).endswith("rename one of the two")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("delimiter: ','\nhas_header: true\n", "'has_header' is no import.*'has_headers'"),
        ("has_header: true\n", "did you mean 'has_headers'"),
        ("has_headers: 1\n", "has_headers must be true or false, not a number"),
        ("delimiter: [1]\n", "delimiter must be text, not a list"),
        ("delimiter: ab\n", "delimiter must be one ASCII character"),
        ("quotechar: ''\n", "quotechar must be one ASCII character"),
        ("encoding: nope\n", "encoding must be the name of an encoding"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)orders\.yaml: .*{told}"):
        read_import_settings(path)


@pytest.mark.parametrize(
    "text",
    [
        "encoding: {password: hunter2}\n",
        "encoding: hunter2\n",
        "delimiter: hunter2\n",
        "has_headers: hunter2\n",
        "has_headers: !!bool hunter2\n",
        "'password=hunter2': 1\n",
        "password: hunter2 \xff\n",
        "a: hunter2\n---\nb: 1\n",
        "a: hunter2\na: hunter2\n",
        "a: &a [*a, hunter2]\n",
    ],
)
def test_no_error_shows_a_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        read_import_settings(path)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_settings_take_the_place_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "treasure").write_text("ours")
    (tmp_path / "items.yaml").symlink_to("treasure")
    write_import_settings(tmp_path / "items.yaml", ImportSettings(delimiter=";"))
    assert (tmp_path / "treasure").read_text() == "ours"
    assert read_import_settings(tmp_path / "items.yaml").delimiter == ";"
