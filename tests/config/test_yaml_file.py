from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.config import (
    check_config,
    load_config,
    normalize_config,
    read_config,
    redact_config,
    resolve_env_vars,
)
from flask_pgmonkey.csv_transfer import read_import_settings
from flask_pgmonkey.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.yaml"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_becomes_a_dictionary(path: Path) -> None:
    write(path, "connection_type: pool\npool_settings: {max_size: 20, timeout: 2.5}\n")
    assert load_config(path) == {
        "connection_type": "pool",
        "pool_settings": {"max_size": 20, "timeout": 2.5},
    }
    assert load_config(str(path)) == load_config(path)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0123", "0123"),
        ("1.10", "1.10"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("1e3", "1e3"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("99999999999999999999", "99999999999999999999"),
        ("off", "off"),
        ("no", "no"),
        ("=", "="),
        ("5432", 5432),
        ("-1", -1),
        ("0", 0),
        ("0.5", 0.5),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'5432'", "5432"),
    ],
)
def test_a_value_that_python_would_write_otherwise_stays_text(
    path: Path, written: str, value: Any
) -> None:
    write(path, f"connection_settings:\n  password: {written}\n")
    loaded = load_config(path)["connection_settings"]["password"]
    assert (loaded, type(loaded)) == (value, type(value))


def test_anchors_and_merges_share_sections(path: Path) -> None:
    write(
        path,
        "pool_settings: &pool {max_size: 20, timeout: 3}\n"
        "async_pool_settings:\n  <<: *pool\n  timeout: 4\n",
    )
    assert load_config(path)["async_pool_settings"] == {"max_size": 20, "timeout": 4}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("connection_settings:\n  host: a\n  host: b\n", 3),
        ("pool_settings: {}\n\npool_settings: {}\n", 3),
    ],
)
def test_a_duplicate_key_is_an_error_with_its_line(path: Path, text: str, line: int) -> None:
    message = error_of(write(path, text))
    assert f"line {line}: " in message
    assert "second time" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("connection_settings:\n  host: a\n  password: *hunter2\n", 3),
        ("connection_settings:\n  password: @hunter2\n", 2),
        ("connection_settings:\n  password: hunter2: x\n", 2),
        ("connection_settings:\n\tpassword: hunter2\n", 2),
        ('connection_settings:\n  password: "hunter2\n', 3),
        ('connection_settings:\n  password: "\\hunter2"\n', 2),
        ("connection_settings:\n  password: [hunter2\n", 3),
        ("connection_settings:\n  password: hunter2\x07\n", 2),
    ],
)
def test_a_syntax_error_names_the_line_and_quotes_nothing(path: Path, text: str, line: int) -> None:
    message = error_of(write(path, text))
    assert f", line {line}: not valid YAML" in message
    assert "hunter2" not in message


def test_a_file_that_is_a_uri_is_told_where_it_goes(path: Path) -> None:
    message = error_of(write(path, "postgresql://app:hunter2@db/shop\n"))
    assert message.endswith("not a URI; move it to connection_settings.uri.")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "value",
    [
        "!hunter2 x",
        "!!int hunter2",
        "!!int ''",
        "!!bool hunter2",
        "!!float hunter2",
        "!!timestamp hunter2",
        "!!timestamp 2001-99-99",
        "!!python/object:os.system hunter2",
        "!!python/tuple [hunter2]",
        "!!python/name:os.system",
    ],
)
def test_a_tag_is_an_error_that_says_what_it_is_and_not_which(path: Path, value: str) -> None:
    message = error_of(write(path, f"connection_settings:\n  password: {value}\n"))
    assert "line 2: what begins with ! is a tag of YAML" in message
    for shown in ("hunter2", "python", "2001"):
        assert shown not in message
    quoted = write(path, f'connection_settings:\n  password: "{value}"\n')
    assert load_config(quoted)["connection_settings"]["password"] == value


@pytest.mark.parametrize("text", ["a: 1\n--- \nb: hunter2\n", "a: 1\n---\n", "---\n---\na: 1\n"])
def test_a_second_document_is_an_error_that_says_so(path: Path, text: str) -> None:
    message = error_of(write(path, text))
    assert "holds a second YAML document" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "text",
    [
        "password: !!binary hünter2",
        "password: !!null [hunter2]",
        "password: !!omap {hunter2: 1}",
        "password: !!set [hunter2]",
        "password: *hunter2",
        "a: " + "[" * 5000,
        "? [a, {b: c}]\n: x",
        "{? {}: x}",
    ],
)
def test_what_yaml_cannot_build_is_an_error(path: Path, text: str) -> None:
    message = error_of(write(path, text))
    assert "not valid YAML" in message
    assert "line 1:" in message or "[[[" in text
    assert "hunter2" not in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_says_how_to_write_one(path: Path, text: str) -> None:
    message = error_of(write(path, text))
    assert "empty" in message
    assert "create-config" in message


@pytest.mark.parametrize("text", ["postgresql://app:hunter2@db/shop", "- hunter2", "hunter2"])
def test_a_file_that_is_no_mapping_is_an_error_that_does_not_quote_it(
    path: Path, text: str
) -> None:
    assert "hunter2" not in error_of(write(path, text))


def test_a_file_that_is_not_utf8_is_an_error_with_its_line(path: Path) -> None:
    path.write_bytes(b"connection_settings:\n  host: a\n  user: Andr\xe9\n")
    assert "line 3: not UTF-8" in error_of(path)


def test_a_byte_order_mark_does_no_harm(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfconnection_type: pool\n")
    assert load_config(path) == {"connection_type": "pool"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "it is a named pipe, not a file"),
        ("device", "it is a device, not a file"),
        ("large", "it is larger than 256 KiB"),
        ("folder", "folder|directory"),
    ],
)
def test_what_is_no_small_file_is_refused_at_once(path: Path, kind: str, reason: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(100_000_000)
    else:
        path.symlink_to("/dev/zero")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    reference = {"connection_settings": {"password": {"from_file": str(path)}}}
    with pytest.raises(ConfigError, match=reason) as caught:
        read_config(reference, resolve_env=True).connect_kwargs()
    assert "connection_settings.password" in str(caught.value)
    with pytest.raises(OSError, match=rf"(?i){reason}"):
        read_import_settings(path)
    assert time.monotonic() - start < 1


def test_a_relative_path_that_is_not_there_says_relative_to_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (lambda: load_config("db.yaml"), lambda: read_config("db.yaml")):
        with pytest.raises(ConfigError) as caught:
            read()
        assert f"relative to the current folder {tmp_path};" in str(caught.value)
    with pytest.raises(ConfigError, match="the embedded server is for the config of an app"):
        read_config("embedded")
    reference = {"connection_settings": {"password": {"from_file": "secret"}}}
    with pytest.raises(ConfigError, match=f"relative to the current folder {tmp_path}:"):
        read_config(reference, resolve_env=True).connect_kwargs()


def test_a_missing_file_and_a_folder_are_errors_with_a_remedy(path: Path, tmp_path: Path) -> None:
    assert "create-config" in error_of(path)
    assert "folder" in error_of(tmp_path)


def test_a_file_beyond_reach_is_an_error(path: Path) -> None:
    file = write(path, "connection_type: pool\n")
    assert "cannot be read" in error_of(file / "below")
    assert "cannot be read" in error_of(path.with_name("x" * 300))


def test_an_unreadable_file_is_an_error(path: Path) -> None:
    write(path, "connection_type: pool\n", 0o000)
    child = os.fork()
    if child == 0:
        # Only another user than root is refused.
        if os.geteuid() == 0:
            path.parent.chmod(0o755)
            os.chdir(path.parent)
            os.setuid(65534)
        try:
            load_config(path.name)
        except ConfigError as error:
            os._exit(0 if "may not be read by this user" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "host=db password=hunter2",
        "password = hunter2",
        "mysql://app:hunter2@db/shop",
        "postgresql:/app:hunter2@db/shop",
        "PostgreSQL://app:hunter2@db/shop",
        "postgresql+psycopg://app:hunter2@db/shop",
    ],
)
def test_another_connection_string_in_place_of_a_path_is_not_quoted(text: str) -> None:
    for load in (load_config, read_config):
        with pytest.raises(ConfigError, match="postgresql://") as caught:
            load(text)
        assert "hunter2" not in str(caught.value)


def test_the_outdated_wrapper_is_unwrapped_with_a_deprecation_warning(path: Path) -> None:
    write(path, "postgresql:\n  connection_type: pool\n")
    with pytest.warns(DeprecationWarning, match="postgresql"):
        assert load_config(path) == {"connection_type": "pool"}
    wrapped = {"postgresql": {"connection_type": "pool"}}
    with pytest.warns(DeprecationWarning, match="postgresql"):
        assert normalize_config(wrapped) == {"connection_type": "pool"}
    assert wrapped == {"postgresql": {"connection_type": "pool"}}


@pytest.mark.parametrize(
    "config", [{"postgresql": None}, {"postgresql": {}, "pool_settings": {}}, {"postgresql": "x"}]
)
def test_a_wrapper_that_hides_something_is_an_error(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="top level"):
        normalize_config(config)


@pytest.mark.parametrize(
    ("mode", "text", "advice"),
    [
        (0o600, "connection_settings: {password: hunter2}", []),
        (0o640, "connection_settings: {password: hunter2}", ["chmod 600"]),
        (0o644, "connection_settings: {password: 12345}", ["chmod 600"]),
        (0o644, "connection_settings: {uri: 'postgresql://a:hunter2@b/c'}", ["chmod 600"]),
        (0o644, "connection_settings: {uri: 'postgresql://a@b/c'}", []),
        (0o644, "connection_settings: {password: '${HUNTER2}'}", []),
        (0o644, "connection_settings: {password: {from_env: HUNTER2}}", []),
        (0o644, "connection_settings: {password: '', sslkey: /x.key}", []),
        (0o644, "connection_settings: {host: a}", []),
        (0o664, "connection_settings: {host: a}", ["chmod go-w"]),
        (0o666, "sync_settings: {app.api_token: hunter2}", ["chmod go-w", "chmod 600"]),
    ],
)
def test_a_file_that_others_may_change_or_read_secrets_from_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, text: str, advice: list[str]
) -> None:
    path = write(tmp_path / "my db.yaml", text, mode)
    load_config(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * len(advice)
    for message, command in zip(caplog.messages, advice, strict=True):
        assert f"{command} '{path}'" in message
    assert "hunter2" not in caplog.text.lower()


def test_a_file_is_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "db.yaml", "connection_settings: {password: hunter2}", 0o640)
    load_config(path)
    load_config(path)
    assert len(caplog.messages) == 1


def bomb(kind: str) -> str:
    """YAML of some hundred bytes whose aliases come to 9 ** 12 values."""
    first, written, alias = {
        "mappings": ("{x: a}", "{%s}", "k%d: *a%d"),
        "lists": ("[x]", "[%s]", "*a%.0s%d"),
        "merges": ("{x: a}", "{<<: [%s]}", "*a%.0s%d"),
    }[kind]
    lines = [f"x-0: &a0 {first}"]
    for level in range(1, 13):
        aliases = ", ".join(alias % (number, level - 1) for number in range(9))
        lines.append(f"x-{level}: &a{level} {written % aliases}")
    return "\n".join([*lines, "connection_settings: {options: *a12, password: *a12}"])


@pytest.mark.parametrize("kind", ["mappings", "lists", "merges"])
def test_a_file_whose_aliases_multiply_is_refused_at_once(path: Path, kind: str) -> None:
    write(path, bomb(kind))
    start = time.monotonic()
    for read in (load_config, read_config, check_config):
        with pytest.raises(ConfigError, match="comes to more than 100,000 values"):
            read(path)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("kind", ["mappings", "lists"])
@pytest.mark.parametrize("resolve_env", [False, True])
def test_a_mapping_whose_parts_multiply_is_refused_at_once(kind: str, resolve_env: bool) -> None:
    config = yaml.safe_load(bomb(kind))
    start = time.monotonic()
    for use in (
        lambda: read_config(config, resolve_env=resolve_env),
        lambda: check_config(config, resolve_env=resolve_env),
        lambda: resolve_env_vars(config),
        lambda: redact_config(config),
    ):
        with pytest.raises(ConfigError, match="comes to more than 100,000 values"):
            use()
    assert time.monotonic() - start < 1


def test_a_long_text_counts_as_often_as_it_stands_somewhere() -> None:
    config = {"x-long": ["${HOME}" + "x" * 1_000_000] * 1000}
    with pytest.raises(ConfigError, match="comes to more than 100,000 values"):
        resolve_env_vars(config)


@pytest.mark.parametrize("text", ["x-a: &a\n  b: *a\n", "x-a: &a [*a]", "x-a: &a {<<: *a}"])
def test_what_holds_itself_is_an_error(path: Path, text: str) -> None:
    write(path, text)
    with pytest.raises(ConfigError, match=r"db\.yaml has a part that holds itself"):
        load_config(path)


def test_a_key_that_begins_with_x_is_a_place_for_anchors(path: Path) -> None:
    write(
        path,
        """
        x-pool: &pool {max_size: 20, timeout: 2}
        x-anything: [1]
        pool_settings: *pool
        async_pool_settings: {<<: *pool, timeout: 3}
        """,
    )
    config = read_config(path)
    assert (config.pool.max_size, config.pool.timeout) == (20, 2)
    assert (config.async_pool.max_size, config.async_pool.timeout) == (20, 3)


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("x-login: {password: hunter2}", True),
        ("connection_settings: {options: -c app.token=hunter2}", True),
        ("connection_settings: {options: -c search_path=shop}", False),
    ],
)
def test_a_secret_in_an_unusual_place_counts_for_the_files_permissions(
    path: Path, caplog: pytest.LogCaptureFixture, text: str, is_secret: bool
) -> None:
    load_config(write(path, text, 0o644))
    assert ("holds a password and others may read it" in caplog.text) is is_secret
