from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flask_pgmonkey.config import read_config
from flask_pgmonkey.config.libpq import effective_options, parse_uri
from flask_pgmonkey.errors import ConfigError


def test_a_uri_is_split_into_its_options() -> None:
    uri = "postgresql://app:p%40ss@h1:1,h2:2/shop?sslmode=require&application_name=a@b"
    assert parse_uri(uri) == {
        "user": "app",
        "password": "p@ss",
        "host": "h1,h2",
        "port": "1,2",
        "dbname": "shop",
        "sslmode": "require",
        "application_name": "a@b",
    }
    assert parse_uri("postgres://") == {}
    assert parse_uri("postgresql:///shop?host=/run/pg&port=1") == {
        "dbname": "shop",
        "host": "/run/pg",
        "port": "1",
    }


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://app:hun@ter2@db/shop",
        "postgresql://app:hun/ter2@db/shop",
        "postgresql://app:12/ter2@db/shop",
        "postgresql://app:hun?ter2@db/shop",
        "postgresql://app:hun%ter2@db/shop",
        "postgresql://app:hun%00ter2@db/shop",
        "postgresql://app:hun@1/ter2@db/shop",
        "postgresql://db?password=hun@ter2",
        "postgresql://app:ter2@[::1/shop",
        "postgresql://app:ter2@db/shop?nonsense=1",
        "postgresql://app:ter2@db:port/shop",
        "postgresql://app:ter2@db/shop?sslmode=ter2",
        "postgresql://app:\ud800ter2@db/shop",
        "postgresql://app:ter2\0@db/shop",
        "postgresql+psycopg://app:ter2@db/shop",
    ],
)
def test_no_error_about_a_uri_quotes_it(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"connection_settings": {"uri": uri}})
    assert "connection_settings" in str(caught.value)
    assert "ter2" not in str(caught.value)
    assert "hun" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_uri_that_libpq_cannot_read_says_to_percent_encode() -> None:
    with pytest.raises(ConfigError, match=r"percent-encode .*@ as %40"):
        read_config("postgresql://app:hun@ter2@db/shop")


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("schema=ter2", "schema; remove it"),
        ("sslmode=require&pgbouncer=ter2", "pgbouncer; remove it"),
        ("ssl=true&schema=ter2", "schema; remove it"),
        ("ssl=ter2", "ssl; did you mean sslmode"),
        ("sslmod=ter2", "sslmod; did you mean sslmode"),
        ("pool_size=5", "pool_size; remove it"),
    ],
)
def test_a_parameter_that_libpq_does_not_know_is_named(parameter: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(f"postgresql://app:hunter2@db/shop?{parameter}")
    assert f"uri has a parameter that libpq does not know, {words}" in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://app:hun?ter2=a@db/shop",
        "postgresql://app:hun?a&ter2&b@db/shop",
        "postgresql://db?password=hun&ter2=a",
    ],
)
def test_a_piece_of_a_password_is_not_taken_for_a_parameter(uri: str) -> None:
    with pytest.raises(ConfigError, match="percent-encode") as caught:
        read_config(uri)
    assert "ter2" not in str(caught.value)


def config_or_error(uri: str) -> str:
    try:
        return repr(read_config(uri))
    except ConfigError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(st.text("ab1:/@?#%&=,[]", min_size=1, max_size=8), st.sampled_from(["db", "db:77", "[::1]"]))
def test_a_password_that_is_not_encoded_shows_nowhere(password: str, server: str) -> None:
    secret = f"Q{password}Q"
    assume(not set(secret) < {"Q", ":"})
    shown = config_or_error(f"postgresql://app:{secret}@{server}/shop")
    assert "Q" not in shown
    assert shown.startswith(("<Config app@", "the URI: connection_settings"))


def test_the_environment_and_the_service_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services = tmp_path / "services.conf"
    services.write_text("[shop]\nhost=db.example\nport=77\nconnect_timeout=9\ntcp_user_timeout=8\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGDATABASE", "orders")
    effective, objection = effective_options({"service": "shop", "port": "78", "user": "app"})
    assert objection == ""
    assert effective["host"] == "db.example"
    assert effective["port"] == "78"
    assert effective["dbname"] == "orders"
    config = read_config({"connection_settings": {"service": "shop", "user": "app"}})
    assert config.target == "app@db.example:77/orders"
    assert "connect_timeout" not in config.connect_kwargs()
    assert "tcp_user_timeout" not in config.connect_kwargs()
    assert config.connect_kwargs()["keepalives_idle"] == "30"


def test_a_bad_value_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "requier")
    with pytest.raises(ConfigError, match="the environment variable PGSSLMODE: "):
        read_config({})


def test_the_password_never_reaches_what_libpq_says() -> None:
    effective, objection = effective_options({"password": "hunter2", "sslmode": "x"})
    assert "hunter2" not in objection + repr(effective)
    assert "password" not in effective


def test_a_password_file_is_not_looked_at(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:hunter2\n")
    passfile.chmod(0o644)
    effective, _ = effective_options({"passfile": str(passfile)})
    assert "hunter2" not in repr(effective)
    assert capfd.readouterr().err == ""
