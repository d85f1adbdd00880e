from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
import pytest
import yaml

from flask_pgmonkey.config import ConfigSource, PoolSettings, check_config, read_config
from flask_pgmonkey.config.libpq import KEYWORDS
from flask_pgmonkey.config.values import TCP_DEFAULTS
from flask_pgmonkey.errors import ConfigError, EnvInterpolationError

from ..servers import PrivateServer


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    path.chmod(0o600)
    return path


def test_the_source_is_a_file_a_mapping_or_a_uri(folder: Path) -> None:
    settings = {"user": "app", "password": "pw", "host": "db", "port": 77, "dbname": "shop"}
    file = write(folder / "db.yaml", {"connection_settings": settings})
    sources: list[ConfigSource] = [
        file,
        str(file),
        {"connection_settings": settings},
        MappingProxyType({"connection_settings": MappingProxyType(settings)}),
        "postgresql://app:pw@db:77/shop",
        "postgres://app:pw@db:77/shop",
    ]
    configs = [read_config(source) for source in sources]
    for config in configs:
        assert config.connect_kwargs() == {
            "user": "app",
            "password": "pw",
            "host": "db",
            "port": "77",
            "dbname": "shop",
            "connect_timeout": "3",
            **TCP_DEFAULTS,
        }
        assert config.target == "app@db:77/shop"
        assert config.connection_type == "normal"
        assert config.autocommit is False
    assert len({config.key for config in configs}) == 1
    assert [config.origin for config in configs] == [
        f"file {file}",
        f"file {file}",
        "the mapping",
        "the mapping",
        "the URI",
        "the URI",
    ]


@pytest.mark.parametrize("source", [None, 5, [], b"db.yaml"])
def test_any_other_source_is_an_error(source: Any) -> None:
    with pytest.raises(ConfigError, match="PGMONKEY_CONFIG must be the path of a YAML file"):
        read_config(source, origin="PGMONKEY_CONFIG")


def test_the_origin_given_names_the_place_in_errors(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r'^PGMONKEY_BINDS\["a"\]: zzz '):
        read_config({"zzz": 1}, origin='PGMONKEY_BINDS["a"]')
    file = write(folder / "db.yaml", {"zzz": 1})
    with pytest.raises(ConfigError, match=r"^PGMONKEY_CONFIG, file .*db\.yaml: zzz "):
        read_config(file, origin="PGMONKEY_CONFIG")


def test_the_other_keys_override_the_uri() -> None:
    config = read_config(
        {
            "connection_settings": {
                "uri": "postgresql://app:pw@db:77/shop?connect_timeout=9",
                "port": 78,
                "application_name": "x",
                "dbname": None,
            }
        }
    )
    assert config.target == "app@db:78/shop"
    kwargs = config.connect_kwargs()
    assert kwargs["application_name"] == "x"
    assert kwargs["connect_timeout"] == "9"
    assert "uri" not in kwargs


def test_another_host_overrides_the_hosts_of_a_uri_without_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"uri": "postgresql://app@h1,h2/shop", "host": "x"}
    config = read_config({"connection_settings": settings})
    assert config.target == "app@x:5432/shop"
    monkeypatch.setenv("DATABASE_URL", "postgresql://app@h1,h2/shop")
    settings["uri"] = "${DATABASE_URL}"
    config = read_config({"connection_settings": settings}, resolve_env=True)
    assert config.connect_kwargs() == {
        "user": "app",
        "host": "x",
        "dbname": "shop",
        "connect_timeout": "3",
        **TCP_DEFAULTS,
    }
    settings.pop("host")
    config = read_config({"connection_settings": settings}, resolve_env=True)
    assert config.target == "app@h1,h2/shop"


def test_the_arguments_are_fresh_at_each_call_and_leave_out_what_is_none() -> None:
    config = read_config(
        {"connection_settings": {"autocommit": "on", "prepare_threshold": "7", "prepared_max": "9"}}
    )
    kwargs = config.connect_kwargs()
    assert kwargs == {"prepare_threshold": 7, "connect_timeout": "3"}
    kwargs.clear()
    assert config.connect_kwargs() == {"prepare_threshold": 7, "connect_timeout": "3"}
    assert config.autocommit is True
    assert config.prepared_max == 9


def test_the_default_timeout_gives_way_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_config({}).connect_kwargs() == {"connect_timeout": "3"}
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    assert read_config({}).connect_kwargs() == {}
    assert read_config({"connection_settings": {"connect_timeout": 4}}).connect_kwargs() == {
        "connect_timeout": "4"
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "db"},
        {"host": "/run/pg,db"},
        {"hostaddr": "::1"},
        {"host": "/run/pg", "hostaddr": "127.0.0.1"},
        {"uri": "postgresql://db/shop"},
    ],
)
def test_over_tcp_a_dead_server_is_noticed(settings: dict[str, Any]) -> None:
    kwargs = read_config({"connection_settings": settings}).connect_kwargs()
    assert {keyword: kwargs[keyword] for keyword in TCP_DEFAULTS} == {
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }
    own = dict.fromkeys(TCP_DEFAULTS, 0)
    kwargs = read_config({"connection_settings": {**settings, **own}}).connect_kwargs()
    assert {kwargs[keyword] for keyword in TCP_DEFAULTS} == {"0"}


@pytest.mark.parametrize("settings", [{}, {"host": "/run/pg"}, {"host": "@abstract,/run/pg"}])
def test_a_socket_has_no_defaults_of_tcp(settings: dict[str, Any]) -> None:
    kwargs = read_config({"connection_settings": settings}).connect_kwargs()
    assert kwargs.keys().isdisjoint(TCP_DEFAULTS)


def test_the_environment_may_lead_to_tcp_and_away_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db")
    assert read_config({}).connect_kwargs().keys() > TCP_DEFAULTS.keys()
    monkeypatch.setenv("PGHOST", "/run/pg")
    assert read_config({}).connect_kwargs().keys().isdisjoint(TCP_DEFAULTS)


def test_the_defaults_of_tcp_arrive_at_the_socket(private_server: PrivateServer) -> None:
    config = read_config({"connection_settings": private_server.settings()})
    with psycopg.connect(**config.connect_kwargs()) as connection:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as own:
            options = {
                name: own.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
                if hasattr(socket, name)
            }
    expected = {
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 30000,
    }
    assert options == {name: expected[name] for name in options}
    assert options


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({"user": "u", "host": "a,b", "port": 1, "dbname": "d"}, "u@a:1,b:1/d"),
        ({"user": "u", "host": "a,b", "port": "1,2", "dbname": "d"}, "u@a:1,b:2/d"),
        ({"user": "u", "host": "/run/pg", "dbname": "d"}, "u@/run/pg:5432/d"),
        ({"user": "u", "hostaddr": "::1"}, "u@[::1]:5432/u"),
        ({"user": "u", "host": "/run/a:b,::1", "port": "1,2"}, "u@/run/a:b:1,[::1]:2/u"),
        ({"user": "a@b", "host": "@abstract"}, "a@b@@abstract:5432/a@b"),
        ({"user": "u"}, "u@[local]:5432/u"),
    ],
)
def test_the_target_names_every_server(settings: dict[str, Any], target: str) -> None:
    config = read_config({"connection_settings": settings})
    assert config.target == target
    assert repr(config) == f"<Config {target} from the mapping>"


def test_the_target_fills_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOST", "db"), ("PORT", "77"), ("USER", "app"), ("DATABASE", "shop")):
        monkeypatch.setenv(f"PG{name}", value)
    assert read_config({}).target == "app@db:77/shop"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGDATABASE", "host=x password=hunter2"),
        ("PGHOST", " postgresql://u:hunter2@h/d"),
        ("PGHOST", "postgresql://u:hun,ter2@h/d"),
        ("PGUSER", "user=u password=hunter2"),
    ],
)
def test_the_target_shows_no_secret_that_strayed_into_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    target = read_config({}).target
    assert "ter2" not in target
    assert "REDACTED" in target


def test_the_async_types_use_their_own_sections() -> None:
    config = read_config(
        {
            "connection_type": "async_pool",
            "pool_settings": {"max_size": 20},
            "async_pool_settings": {"max_size": 30},
            "sync_settings": {"lock_timeout": 1},
            "async_settings": {"lock_timeout": 2},
        }
    )
    assert config.connection_type == "async_pool"
    for name, size, timeout in (
        ("normal", 20, "1"),
        ("pool", 20, "1"),
        ("async", 30, "2"),
        ("async_pool", 30, "2"),
    ):
        assert config.pool_settings(name).max_size == size
        assert dict(config.server_settings(name)) == {"lock_timeout": timeout}


def test_a_config_cannot_be_changed() -> None:
    config = read_config({"sync_settings": {"lock_timeout": 1}})
    for name in ("key", "pool", "unresolved"):
        with pytest.raises(AttributeError):
            setattr(config, name, None)
    with pytest.raises(TypeError):
        config.sync_settings["lock_timeout"] = "2"  # type: ignore[index]


EQUAL: list[tuple[Any, Any]] = [
    ({}, {"connection_type": "normal", "pool_settings": None}),
    ({"pool_settings": {"min_size": 1}}, {"pool_settings": {"min_size": "1", "timeout": 5}}),
    ({"connection_settings": {"port": 1}}, {"connection_settings": {"port": "1", "host": None}}),
    (
        {"connection_settings": {"host": "a", "user": "b"}},
        {"connection_settings": {"user": "b", "host": "a"}},
    ),
    (
        {"connection_settings": {"uri": "postgresql://b@a", "port": 1}},
        {"connection_settings": {"user": "b", "host": "a", "port": 1}},
    ),
    ({"sync_settings": {"jit": False}}, {"sync_settings": {"jit": "off"}}),
]
DIFFERENT: list[Any] = [
    {},
    {"connection_type": "pool"},
    {"connection_settings": {"host": ""}},
    {"connection_settings": {"host": "a"}},
    {"connection_settings": {"password": "a"}},
    {"connection_settings": {"password": "b"}},
    {"connection_settings": {"autocommit": True}},
    {"connection_settings": {"prepare_threshold": 1}},
    {"connection_settings": {"prepared_max": 1}},
    {"pool_settings": {"max_size": 11}},
    {"async_pool_settings": {"max_size": 11}},
    {"sync_settings": {"jit": "off"}},
    {"async_settings": {"jit": "off"}},
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_content_has_an_equal_key(one: Any, other: Any) -> None:
    assert read_config(one).key == read_config(other).key


def test_different_content_has_different_keys() -> None:
    keys = [read_config(config).key for config in DIFFERENT]
    assert len(set(keys)) == len(keys)


def test_a_reference_is_an_error_or_a_warning_while_resolving_is_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for reference in ({"from_env": "HUNTER2"}, {"from_file": "hunter2"}):
        with pytest.raises(ConfigError, match="password is a reference; switch on resolve_env"):
            read_config({"connection_settings": {"password": reference}})
    config = read_config(
        {"connection_settings": {"user": "${USER}x", "host": "$${", "options": "$HOME"}}
    )
    assert config.connect_kwargs()["user"] == "${USER}x"
    assert config.connect_kwargs()["host"] == "$${"
    assert [(r.name, r.levelno) for r in caplog.records] == [("flask_pgmonkey", logging.WARNING)]
    assert "the mapping: connection_settings.user looks like a reference" in caplog.text
    assert "--resolve-env" in caplog.text
    assert "USER" not in caplog.text


@pytest.mark.parametrize("check", [read_config, check_config])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("connection_settings.password", "${HUNTER2}"),
        ("connection_settings.password", "a${HUNTER2:-hunter2}"),
        ("connection_settings.sslkey", "${HUNTER2}/key"),
        ("connection_settings.uri", "postgresql://app:${HUNTER2}@db/shop"),
        ("connection_settings.options", "-c app.token=${HUNTER2}"),
        ("direct_settings.password", "${HUNTER2}"),
        ("sync_settings.app.token", "${HUNTER2}"),
        ("async_settings.app.secret", "${HUNTER2}"),
    ],
)
def test_a_secret_that_looks_like_a_reference_is_never_sent_as_it_is(
    check: Callable[..., object], place: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    section, _, key = place.partition(".")
    written = {section: {key: value}}
    with pytest.raises(ConfigError) as caught:
        check(written)
    assert str(caught.value) == (
        f"the mapping: {place} looks like a reference to an environment variable; switch on"
        " resolve_env (PGMONKEY_RESOLVE_ENV, --resolve-env) to resolve it, and write $${ for the"
        " characters themselves."
    )
    assert not caplog.records
    # What it says to write is the text itself.
    literal = read_config({section: {key: value.replace("${", "$${")}}, resolve_env=True)
    if section == "connection_settings" and key != "uri":
        assert literal.connect_kwargs()[key] == value


def test_references_convert_like_values_in_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYPE", "pool")
    monkeypatch.setenv("CHECK", "on")
    config = read_config(
        {
            "connection_type": "${TYPE}",
            "connection_settings": {"port": "${NO_PORT:-5433}", "user": "a$${b}"},
            "pool_settings": {
                "max_size": "${NO_SIZE:-20}",
                "check_on_checkout": {"from_env": "CHECK"},
            },
            "sync_settings": {"statement_timeout": "${NO_TIMEOUT:-5}s"},
        },
        resolve_env=True,
    )
    assert config.connection_type == "pool"
    assert config.connect_kwargs()["port"] == "5433"
    assert config.connect_kwargs()["user"] == "a${b}"
    assert config.pool.max_size == 20
    assert config.pool.check_on_checkout is True
    assert config.sync_settings["statement_timeout"] == "5s"


@pytest.mark.parametrize(
    "config",
    [
        {"connection_settings": {"port": "${HUNTER}"}},
        {"connection_settings": {"sslmode": "${HUNTER}"}},
        {"connection_settings": {"sslmode": {"from_env": "HUNTER"}}},
        {"connection_settings": {"connect_timeout": "${HUNTER}"}},
        {"connection_settings": {"autocommit": "${HUNTER}"}},
        {"connection_settings": {"uri": "${HUNTER}"}},
        {"connection_settings": {"uri": "postgresql://a:${HUNTER}@b?sslmode=${HUNTER}"}},
        {"connection_settings": {"service": "${HUNTER}"}},
        {"connection_settings": {"password": {"x": "${HUNTER}"}}},
        {"pool_settings": {"max_size": "${HUNTER}"}},
        {"pool_settings": {"timeout": "${HUNTER}"}},
        {"connection_type": "${HUNTER}"},
    ],
)
def test_no_error_shows_what_a_reference_resolved_to(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    monkeypatch.setenv("HUNTER", "hunter2")
    with pytest.raises(ConfigError) as caught:
        read_config(config, resolve_env=True)
    assert "hunter2" not in str(caught.value)
    assert next(iter(config)) in str(caught.value)


def test_the_outdated_wrapper_is_unwrapped(folder: Path) -> None:
    wrapped = {"postgresql": {"connection_type": "pool"}}
    with pytest.warns(DeprecationWarning, match="the mapping: the key postgresql") as warned:
        assert read_config(wrapped).connection_type == "pool"
    assert warned[0].filename == __file__
    file = write(folder / "db.yaml", {**wrapped, "pool_settings": {}})
    with pytest.raises(ConfigError, match=r"^file .*db\.yaml: the outdated key postgresql"):
        read_config(file)


def test_a_rotated_secret_serves_the_next_connection_and_keeps_the_key(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    secret = write(folder / "conf" / "secret", "one\n")
    monkeypatch.setenv("APP_TOKEN", "first")
    file = write(
        folder / "conf" / "db.yaml",
        {
            "connection_settings": {"password": {"from_file": "secret"}},
            "sync_settings": {"app.token": "${APP_TOKEN}"},
        },
    )
    config = read_config(file, resolve_env=True)
    assert config.connect_kwargs()["password"] == "one"
    secret.write_text("two\n")
    monkeypatch.setenv("APP_TOKEN", "second")
    assert config.connect_kwargs() == {"password": "two", "connect_timeout": "3"}
    assert config.server_settings("normal")["app.token"] == "second"
    assert config.is_current()
    assert read_config(file, resolve_env=True).key == config.key
    secret.unlink()
    with pytest.raises(EnvInterpolationError, match=r"connection_settings\.password"):
        config.connect_kwargs()


def test_another_host_in_the_environment_is_another_config(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"connection_settings": {"host": "${DB_HOST:-a}", "user": {"from_env": "DB_USER"}}}
    monkeypatch.setenv("DB_USER", "app")
    config = read_config(written, resolve_env=True)
    assert config.is_current()
    monkeypatch.setenv("DB_HOST", "b")
    assert not config.is_current()
    assert read_config(written, resolve_env=True).key != config.key
    assert read_config({"connection_settings": {"host": "a", "user": "app"}}).key == config.key
    monkeypatch.delenv("DB_HOST")
    assert config.is_current()
    monkeypatch.delenv("DB_USER")
    assert not config.is_current()


def test_different_references_are_different_content(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("ONE", "pw")
    monkeypatch.setenv("TWO", "pw")
    for name in ("a", "b"):
        write(folder / name / "secret", "pw")
        write(
            folder / name / "db.yaml",
            {"connection_settings": {"password": {"from_file": "secret"}}},
        )
    sources: list[Any] = [
        folder / "a" / "db.yaml",
        folder / "b" / "db.yaml",
        *(
            {"connection_settings": {"password": password}}
            for password in ("${ONE}", "${TWO}", {"from_env": "ONE"}, "pw")
        ),
        {"connection_settings": {"uri": "postgresql://a:${ONE}@b"}},
        {"connection_settings": {"uri": "postgresql://a:${TWO}@b"}},
    ]
    keys = [read_config(source, resolve_env=True).key for source in sources]
    assert len(set(keys)) == len(keys)
    again = {"connection_settings": {"password": {"from_file": str(folder / "a" / "secret")}}}
    assert read_config(again, resolve_env=True).key == keys[0]


def test_a_uri_may_end_with_a_line_break() -> None:
    config = read_config("postgresql://app@db/shop\n")
    assert config.connect_kwargs()["dbname"] == "shop"


def test_a_uri_may_contain_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "one")
    uri = "postgresql://app:${DB_PASSWORD}@db/shop?connect_timeout=9"
    config = read_config(uri, resolve_env=True)
    monkeypatch.setenv("DB_PASSWORD", "two")
    kwargs = config.connect_kwargs()
    assert (kwargs["password"], kwargs["connect_timeout"]) == ("two", "9")
    assert config.is_current()


def test_a_secret_file_that_others_may_read_is_logged(
    caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    secret = write(folder / "secret", "hunter2")
    written = {"connection_settings": {"password": {"from_file": "secret"}}}
    read_config(written, resolve_env=True)
    assert caplog.text == ""
    secret.chmod(0o640)
    config = read_config(written, resolve_env=True)
    config.connect_kwargs()
    assert caplog.text.count("chmod go-r secret") == 1
    assert "hunter2" not in caplog.text


def test_a_config_can_be_checked_before_its_references_can_be_resolved() -> None:
    written = {
        "connection_type": "${NOT_SET}",
        "connection_settings": {"password": {"from_env": "NOT_SET"}, "host": "${NOT_SET}"},
        "pool_settings": {"max_size": "${NOT_SET:-x}", "min_size": 50},
    }
    check_config(written, resolve_env=True)
    check_config({"connection_settings": {"host": "${NOT_SET}", "port": "1,2"}}, resolve_env=True)
    for wrong in (
        {"pool_settings": {"timeout": 0}},
        {"connection_settings": {"host": "${NOT_SET"}},
        {"connection_settings": {"password": "${NOT_SET:-hunter2}"}},
        {"connection_settings": {"password": {"from_file": ""}}},
        {"connection_settings": {"password": {"from_file": "${"}}},
        {"connection_settings": {"password": {"from_env": 1}}},
        {"zzz": "${NOT_SET}"},
    ):
        with pytest.raises(ConfigError):
            check_config({**written, **wrong}, resolve_env=True)
    with pytest.raises(ConfigError, match=r"connection_type .*resolve_env .*is off"):
        check_config(written)


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({"sslnegotiation": "direct", "sslmode": "${MODE}"}, {}),
        ({"sslnegotiation": "direct", "uri": "${DATABASE_URL}"}, {}),
        ({"sslrootcert": "system", "sslmode": "${MODE}"}, {"PGSSLMODE": "prefer"}),
        ({"ssl_max_protocol_version": "TLSv1.1", "ssl_min_protocol_version": "${VERSION}"}, {}),
        ({"host": "${HOSTS}"}, {"PGPORT": "1,2"}),
    ],
)
def test_what_is_right_with_its_references_is_right_without_them(
    settings: dict[str, str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not settings.keys() <= KEYWORDS | {"uri"}:
        settings = {"sslmode": "${MODE}"}  # This libpq knows less.
    environment = {
        **environment,
        "MODE": "verify-full",
        "DATABASE_URL": "postgresql://u@h/db?sslmode=require",
        "VERSION": "TLSv1",
        "HOSTS": "h1,h2",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    read_config({"connection_settings": settings}, resolve_env=True)
    check_config({"connection_settings": settings}, resolve_env=True)


def test_a_password_that_is_a_reference_leaves_the_rest_to_libpqs_judgement() -> None:
    settings = {"password": "${NOT_SET}", "dbname": "${NOT_SET}", "sslmode": "requier"}
    with pytest.raises(ConfigError, match=r"connection_settings\.sslmode"):
        check_config({"connection_settings": settings}, resolve_env=True)


def test_a_secret_beside_the_config_file_stays_within_reach_in_another_folder(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    write(folder / "conf" / "secret", "pw")
    write(
        folder / "conf" / "db.yaml", {"connection_settings": {"password": {"from_file": "secret"}}}
    )
    (folder / "elsewhere").mkdir()
    config = read_config("conf/db.yaml", resolve_env=True)
    monkeypatch.chdir("elsewhere")
    assert config.connect_kwargs()["password"] == "pw"
    again = read_config("../conf/db.yaml", resolve_env=True)
    assert again.connect_kwargs()["password"] == "pw"


@pytest.mark.parametrize("defaults", [{"connection_settings": {"password": "${NOT_SET:-pw}"}}])
def test_defaults_of_secrets_have_to_be_allowed(defaults: dict[str, Any]) -> None:
    with pytest.raises(EnvInterpolationError, match="allow_sensitive_defaults"):
        read_config(defaults, resolve_env=True)
    config = read_config(defaults, resolve_env=True, allow_sensitive_defaults=True)
    assert config.connect_kwargs()["password"] == "pw"


FULL_FILE = """
connection_type: 'normal'

connection_settings:
  user: '{user}'
  password: '{password}'
  host: '{host}'
  port: '{port}'
  dbname: '{dbname}'
  sslmode: 'prefer'
  sslcert: ''
  sslkey: ''
  sslrootcert: ''
  connect_timeout: '10'
  application_name: 'myapp'
  keepalives: '1'
  keepalives_idle: '60'
  keepalives_interval: '15'
  keepalives_count: '5'
  # autocommit: false

sync_settings:
  # statement_timeout: '30000'

pool_settings:
  min_size: 5
  max_size: 20
  timeout: 30
  max_idle: 300
  max_lifetime: 3600
  check_on_checkout: false
  # max_waiting: 0

async_settings:
  idle_in_transaction_session_timeout: '5000'
  statement_timeout: '30000'
  lock_timeout: '10000'
  # work_mem: '256MB'

async_pool_settings:
  min_size: 5
  max_size: 20
  timeout: 30
  max_idle: 300
  max_lifetime: 3600
  check_on_checkout: false
  reconnect_timeout: 300
  num_workers: 3
"""

SHORT_FILE = """
connection_type: 'normal'
connection_settings:
  user: '{user}'
  password: '{password}'
  host: '{host}'
  port: {port}
  dbname: '{dbname}'
"""

REFERENCES_FILE = """
connection_type: 'normal'

connection_settings:
  user: '${{T_USER:-{user}}}'
  password: '${{T_PASSWORD}}'
  host: '${{T_HOST:-{host}}}'
  port: '${{T_PORT:-{port}}}'
  dbname: '${{T_DATABASE:-{dbname}}}'
"""

SECRETS_FILE = """
connection_settings:
  user: '{user}'
  password:
    from_file: secret
  host: '${{T_HOST:-{host}}}'
  port:
    from_env: T_PORT
  dbname: '{dbname}'
"""


@pytest.mark.parametrize("text", [FULL_FILE, SHORT_FILE, REFERENCES_FILE, SECRETS_FILE])
def test_the_files_of_users_who_come_from_pgmonkey_load_and_connect(
    text: str, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("T_PASSWORD", str(database.get("password", "")))
    monkeypatch.setenv("T_PORT", str(database["port"]))
    write(folder / "secret", f"{database.get('password', '')}\n")
    file = write(folder / "db.yaml", text.format(**{"password": "", **database}))
    config = read_config(file, resolve_env="${" in text)
    with psycopg.connect(**config.connect_kwargs()) as connection:
        assert connection.info.dbname == database["dbname"]
        for name, value in config.server_settings("async").items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    async def connect() -> str:
        async with await psycopg.AsyncConnection.connect(**config.connect_kwargs()) as connection:
            return connection.info.dbname

    assert asyncio.run(connect()) == database["dbname"]
    if text is FULL_FILE:
        assert config.pool == PoolSettings(
            min_size=5, max_size=20, timeout=30.0, max_idle=300.0, max_lifetime=3600.0
        )
        assert config.async_pool.reconnect_timeout == 300
        assert dict(config.sync_settings) == {}
        assert config.async_settings["statement_timeout"] == "30000"
