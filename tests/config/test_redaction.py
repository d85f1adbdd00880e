from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_pgmonkey.cli.errors import without_uris
from flask_pgmonkey.config import check_config, is_secret_key, redact_config, resolve_env_vars
from flask_pgmonkey.config.libpq import KEYWORDS, PASSWORD_KEYWORDS, is_connection_string
from flask_pgmonkey.errors import ConfigError

SECRET_KEYS = [
    "password",
    "sslpassword",
    "PGPASSWORD",
    "passwd_of_app",
    "sslkey",
    "sslcert",
    "sslrootcert",
    "sslkeylogfile",
    "scram_client_key",
    "scram_server_key",
    "oauth_client_secret",
    "uri",
    "api_token",
    "Credentials",
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_secret_key_is_redacted_whatever_it_holds(key: str) -> None:
    assert is_secret_key(key)
    for value in ("hunter2", 5, 0, False, ["hunter2"], {"from_env": "HUNTER2"}, {"a": {"b": "x"}}):
        assert redact_config({"section": {key: value}}) == {"section": {key: "***REDACTED***"}}


def test_what_libpq_marks_as_a_password_is_secret() -> None:
    assert {"password", "sslpassword"} <= PASSWORD_KEYWORDS
    assert all(is_secret_key(keyword) for keyword in PASSWORD_KEYWORDS)


def test_other_keywords_are_not_secret() -> None:
    shown = {"user", "host", "port", "dbname", "passfile", "sslmode", "options", "service"}
    assert shown < KEYWORDS
    assert not any(is_secret_key(keyword) for keyword in shown)


def test_empty_values_stay() -> None:
    config: dict[str, Any] = {"password": "", "uri": None, "token": [], "secret": {}, "host": ""}
    assert redact_config(config) == config


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app:hunter2@db/shop",
        "see http://a/b and postgresql://app:hunter2@db",
        "postgresql://app:hun/ter2@hunter2",
        "a://b:hunter2://c@d",
        "host=db password=hunter2",
        "x passwd = hunter2",
        "PGPASSWORD=hunter2",
        "a=b;passwd=hunter2",
    ],
)
def test_a_connection_string_is_redacted_under_any_key(text: str) -> None:
    config = {"connection_settings": {"application_name": text}, "list": [text]}
    assert "hunter2" not in json.dumps(redact_config(config))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("-c search_path=shop -c lock_timeout=5s", None),
        ("-c app.token=hunter2", "-c app.token=***REDACTED***"),
        ("-capp.token=hunter2 -c a=b", "-capp.token=***REDACTED*** -c a=b"),
        ("--app.api-token=hunter2", "--app.api-token=***REDACTED***"),
        (r"-c app.token=hun\ ter2 -c a=b", "-c app.token=***REDACTED*** -c a=b"),
        (r"-c app.to\ken=hunter2", "-c app.token=***REDACTED***"),
        ("-c app.token=hun\u00a0ter2", "-c app.token=***REDACTED***"),
        ("-c app.dsn=postgresql://u:hunter2@h/d", "***REDACTED***"),
        ("-c app.token", None),
        ("\\", None),
    ],
)
def test_options_show_without_the_settings_that_are_secret(options: str, shown: str | None) -> None:
    config = {"connection_settings": {"options": options}}
    assert redact_config(config) == {"connection_settings": {"options": shown or options}}


@pytest.mark.parametrize(
    "text",
    [
        "passw" * 100_000,
        "passw " * 100_000,
        "a" * 500_000 + " =",
        "://:" * 100_000,
        "://a:" * 100_000 + "/",
        "://" * 100_000 + "@",
        "a:" * 200_000,
        "=" * 500_000,
        "\\" * 500_000,
        "-c a=" * 100_000,
        " " * 500_000,
        "://" + "'" * 500_000 + "x",
    ],
)
def test_looking_for_secrets_takes_time_in_proportion(text: str) -> None:
    start = time.monotonic()
    redact_config({"host": text, "options": text})
    is_connection_string(text)
    without_uris(text)
    check_config({"x-a": text})
    for key in ("host", "password", "uri", "options"):
        with suppress(ConfigError):
            check_config({"connection_settings": {key: text}})
    with suppress(ConfigError):
        resolve_env_vars({"a": text, "password": text})
    assert time.monotonic() - start < 4


def test_the_copy_is_deep() -> None:
    config: dict[str, Any] = {"a": {"b": [1, {"c": 2}]}}
    copied = redact_config(config)
    assert copied == config
    copied["a"]["b"][1]["c"] = 3
    assert config["a"]["b"][1]["c"] == 2


def test_a_config_that_contains_itself_is_an_error() -> None:
    config: dict[str, Any] = {}
    config["a"] = config
    with pytest.raises(ConfigError, match="has a part that holds itself"):
        redact_config(config)
    for _ in range(101):
        config = {"a": config}
    with pytest.raises(ConfigError):
        redact_config(config)
    with pytest.raises(ConfigError, match="must be a mapping"):
        redact_config(None)  # type: ignore[arg-type]


SECRET = "hunter2-planted"
keys = st.sampled_from(["host", "a", "section", "x.y"]) | st.text(max_size=5) | st.integers()
plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
with_secrets = st.recursive(
    plain,
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(keys, children, max_size=3)
        | st.builds(
            lambda key, tree, inner: {key: tree, **inner},
            st.sampled_from(SECRET_KEYS)
            | st.text(max_size=3).map(lambda text: text + "toKen" + text),
            st.sampled_from([SECRET, [SECRET], {"a": SECRET}, [{"b": [SECRET]}], {SECRET: SECRET}]),
            st.dictionaries(keys, children, max_size=2),
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, with_secrets, max_size=4))
def test_no_value_of_a_secret_key_gets_through(config: dict[Any, Any]) -> None:
    before = repr(config)
    assert SECRET not in repr(redact_config(config))
    assert repr(config) == before
