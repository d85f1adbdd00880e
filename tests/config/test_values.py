from __future__ import annotations

import inspect
from typing import Any

import psycopg_pool
import pytest

from flask_pgmonkey.config import Config, PoolSettings, read_config
from flask_pgmonkey.config.libpq import KEYWORDS
from flask_pgmonkey.config.values import POOL_KEYS
from flask_pgmonkey.errors import ConfigError

OURS = {"check_on_checkout", "reset_on_return", "leak_threshold", "query_timeout"}


def error_of(config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(config)
    message = str(caught.value)
    assert message.startswith("the mapping: ")
    assert "\n" not in message
    return message


def connection(**settings: Any) -> Config:
    return read_config({"connection_settings": settings})


def test_the_pool_keys_are_arguments_of_psycopg_pool_or_ours() -> None:
    arguments = set(PoolSettings().of_psycopg_pool())
    assert tuple(POOL_KEYS) == PoolSettings._fields
    assert arguments == set(POOL_KEYS) - OURS
    for pool in (psycopg_pool.ConnectionPool, psycopg_pool.AsyncConnectionPool):
        assert arguments <= set(inspect.signature(pool).parameters)


def test_every_keyword_of_libpq_is_accepted() -> None:
    valid = {
        "port": "5432",
        "sslmode": "require",
        "channel_binding": "disable",
        "sslnegotiation": "postgres",
        "sslcertmode": "allow",
        "require_auth": "password",
        "ssl_min_protocol_version": "TLSv1.2",
        "ssl_max_protocol_version": "TLSv1.3",
        "gssencmode": "disable",
        "gsslib": "gssapi",
        "target_session_attrs": "any",
        "load_balance_hosts": "random",
        "min_protocol_version": "3.0",
        "max_protocol_version": "latest",
        "scram_client_key": "A" * 43 + "=",
        "scram_server_key": "A" * 43 + "=",
    }
    for keyword in KEYWORDS - {"service"}:
        value = valid.get(keyword, "1")
        assert connection(**{keyword: value}).connect_kwargs()[keyword] == value


def test_none_is_dropped_and_empty_and_zero_are_kept() -> None:
    kwargs = connection(host=None, sslcert="", keepalives=0, application_name="").connect_kwargs()
    assert kwargs == {
        "sslcert": "",
        "keepalives": "0",
        "application_name": "",
        "connect_timeout": "3",
    }


@pytest.mark.parametrize("section", [None, {}])
def test_an_empty_section_is_no_section(section: Any) -> None:
    names = ("connection_settings", "pool_settings", "async_pool_settings", "sync_settings")
    config = read_config(dict.fromkeys(names, section))
    assert config.key == read_config({}).key


@pytest.mark.parametrize(
    ("written", "passed"),
    [
        ({"port": 5432}, {"port": "5432"}),
        ({"port": "5432,5433", "host": "a,b"}, {"port": "5432,5433"}),
        ({"port": ",5433", "host": "a,b"}, {"port": ",5433"}),
        ({"port": 5433, "host": "a,b"}, {"port": "5433"}),
        ({"port": ""}, {"port": ""}),
        ({"password": 12345}, {"password": "12345"}),
        ({"application_name": 1.5}, {"application_name": "1.5"}),
        ({"keepalives": True, "sslsni": False}, {"keepalives": "1", "sslsni": "0"}),
        ({"connect_timeout": " 10 "}, {"connect_timeout": "10"}),
        ({"connect_timeout": 0}, {"connect_timeout": "0"}),
        ({"prepare_threshold": "0"}, {"prepare_threshold": 0}),
        ({"prepare_threshold": "off"}, {"prepare_threshold": None}),
        ({"prepare_threshold": False}, {"prepare_threshold": None}),
        ({"options": "-c search_path=a,b"}, {"options": "-c search_path=a,b"}),
    ],
)
def test_connection_values_arrive_as_libpq_takes_them(
    written: dict[str, Any], passed: dict[str, Any]
) -> None:
    kwargs = connection(**written).connect_kwargs()
    assert {name: kwargs[name] for name in passed} == passed


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"port": 0}, "port must be a port from 1 to 65535"),
        ({"port": 65536}, "not 65536"),
        ({"port": "x"}, "not 'x'"),
        ({"port": "1,2,3", "host": "a,b"}, "connection_settings.port: could not match"),
        ({"port": True}, "port must be a port from 1 to 65535"),
        ({"user": False}, "user must be text; put the value in quotes"),
        ({"host": ["a", "b"]}, "host must be text or a number, not a list"),
        ({"host": {"a": 1}}, "host must be text or a number, not a mapping"),
        ({"host": b"x"}, "host must be"),
        ({"dbname": 10**5000}, "dbname must be"),
        ({"application_name": "a\0b"}, "application_name contains a NUL"),
        ({"application_name": "a\ud800b"}, "application_name contains characters"),
        ({"connect_timeout": "1.5"}, "connect_timeout must be a whole number, not '1.5'"),
        ({"connect_timeout": ""}, "connect_timeout must be a whole number"),
        ({"keepalives_idle": "1min"}, "keepalives_idle must be a whole number"),
        ({"tcp_user_timeout": 10**400}, "tcp_user_timeout must be a whole number"),
        ({"sslmode": "requier"}, 'connection_settings.sslmode: invalid sslmode value: "requier"'),
        ({"sslmode": ""}, "connection_settings.sslmode: invalid"),
        ({"target_session_attrs": "master"}, "connection_settings.target_session_attrs: invalid"),
        ({"load_balance_hosts": "yes"}, "connection_settings.load_balance_hosts"),
        ({"channel_binding": "maybe"}, "connection_settings.channel_binding: invalid"),
        ({"service": "no-such-service"}, "connection_settings.service: "),
        ({"autocommit": "perhaps"}, "autocommit must be true or false, not 'perhaps'"),
        ({"autocommit": 2}, "autocommit must be true or false"),
        ({"autocommit": 10**5000}, "autocommit must be true or false"),
        (
            {"prepare_threshold": True},
            "prepare_threshold must be a whole number of at least 0, or off",
        ),
        ({"prepared_max": 0}, "prepared_max must be a whole number of at least 1, not 0"),
        ({"prepared_max": "off"}, "prepared_max must be a whole number of at least 1, not 'off'"),
        ({"prepare_threshold": -1}, "prepare_threshold must be a whole number of at least 0"),
        ({"dbname": "postgresql://a:hunter2@b/c"}, "dbname holds a URI"),
        ({"host": "postgres://a:hunter2@b/c"}, "host holds a URI"),
        ({"host": " postgresql://a:hunter2@b/c"}, "host holds a URI"),
        ({"host": "postgresql+psycopg://a:hunter2@b/c"}, "host holds a connection string"),
        ({"host": "a:hunter2@b"}, "host holds a connection string"),
        ({"hostaddr": "mysql://a:hunter2@b"}, "hostaddr holds a connection string"),
        ({"user": "a:hunter2@b"}, "user holds a connection string"),
        ({"dbname": "host=b password=hunter2"}, "dbname holds a connection string"),
        ({"dbname": "sslpassword = hunter2"}, "connection_settings.uri"),
    ],
)
def test_a_connection_value_that_cannot_work_is_an_error(
    settings: dict[str, Any], problem: str
) -> None:
    message = error_of({"connection_settings": settings})
    assert problem in message
    assert "connection_settings" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"pool": {}}, "pool is not a known key"),
        ({"conection_settings": {}}, "did you mean connection_settings?"),
        ({"connection_type ": "pool"}, "not a name"),
        ({"host": "a"}, "host does not belong here; move it to connection_settings"),
        ({"max_size": 5}, "max_size does not belong here; move it to pool_settings"),
        (
            {"connection_settings": {"max_size": 5}},
            "connection_settings.max_size does not belong here; move it to pool_settings",
        ),
        (
            {"async_pool_settings": {"sslmode": "require"}},
            "async_pool_settings.sslmode does not belong here; move it to connection_settings",
        ),
        (
            {"sync_settings": {"connect_timeout": 5}},
            "sync_settings.connect_timeout does not belong here; move it to connection_settings",
        ),
        ({"async_settings": {"min_size": 5}}, "move it to pool_settings"),
        ({"connection_settings": {"passwrod": "hunter2"}}, "did you mean password?"),
        ({"connection_settings": {"database": "x"}}, "did you mean dbname?"),
        ({"connection_settings": {"Host": "x"}}, "did you mean host?"),
        ({"connection_settings": {"statement_timeout": 5}}, "belong in sync_settings"),
        ({"pool_settings": {"maxsize": 5}}, "did you mean max_size?"),
        ({"pool_settings": {"zzz": 5}}, "known are min_size"),
        ({"common": {}}, "known are connection_type, connection_settings"),
        ({"common": {}}, "any that begins with x-, for YAML anchors"),
        ({"sync_settings": {"a; DROP TABLE b": 1}}, "not a name"),
        ({"sync_settings": {"": 1}}, "not a name"),
        ({5: 1}, "not a name"),
        ({10**5000: 1}, "not a name"),
        ({None: 1}, "not a name"),
        ({"connection_settings": {True: 1}}, "connection_settings.?: this key is not a name"),
        ({"connection_settings": {"password:hunter2": None}}, "connection_settings.?: "),
        ({"connection_settings": {"postgresql://a:hunter2@b/c": None}}, "not a name"),
        ({"connection_settings": "hunter2"}, "connection_settings must be a mapping"),
        (
            {"connection_settings": "postgresql://app:hunter2@db"},
            "not a URI; move it to connection_settings.uri.",
        ),
        (
            {"direct_settings": "postgres://app:hunter2@db"},
            "not a URI; move it to direct_settings.uri.",
        ),
        (
            {"pool_settings": "postgresql://app:hunter2@db"},
            "not a URI; move it to connection_settings.uri.",
        ),
        (
            {"connection_settings": "host=db password=hunter2"},
            "not a connection string; write each of its parts under its own key.",
        ),
        ({"sync_settings": "host=db password=hunter2"}, "not a connection string."),
        (
            {"connection_settings": "${DATABASE_URL}"},
            "not a reference; move it to connection_settings.uri if it is of one.",
        ),
        ({"pool_settings": "${POOL}"}, "names and values, not a reference."),
        ({"pool_settings": [1]}, "pool_settings must be a mapping of names and values, not a list"),
        ({"connection_type": "asyncpool"}, "one of normal, pool, async, async_pool"),
        ({"connection_type": ["pool"]}, "connection_type must be one of"),
        ({"connection_type": 7}, "connection_type must be one of"),
    ],
)
def test_an_unknown_or_misplaced_key_is_an_error_that_helps(config: Any, problem: str) -> None:
    message = error_of(config)
    assert problem in message
    assert "hunter2" not in message


def test_a_pool_has_defaults_for_the_web() -> None:
    assert read_config({}).pool == PoolSettings(
        min_size=1,
        max_size=10,
        timeout=5.0,
        max_waiting=0,
        max_lifetime=3600.0,
        max_idle=600.0,
        reconnect_timeout=2.0,
        num_workers=3,
        check_on_checkout=False,
        reset_on_return="auto",
        leak_threshold=0.0,
        query_timeout=0.0,
    )
    assert read_config({"pool_settings": {"min_size": 25}}).pool.max_size == 25


def test_numbers_and_switches_in_quotes_convert() -> None:
    pool = read_config(
        {
            "async_pool_settings": {
                "min_size": "5",
                "max_size": " 20 ",
                "timeout": "2.5",
                "max_idle": "300",
                "reconnect_timeout": 0,
                "check_on_checkout": "False",
                "reset_on_return": "on",
            }
        }
    ).async_pool
    assert pool == PoolSettings(
        min_size=5,
        max_size=20,
        timeout=2.5,
        max_idle=300.0,
        reconnect_timeout=0.0,
        reset_on_return=True,
    )
    assert type(pool.timeout) is type(pool.max_idle) is float


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        *((word, True) for word in (True, 1, "1", "true", "TRUE", "on", "yes")),
        *((word, False) for word in (False, 0, "0", "false", "off", "no")),
    ],
)
def test_switches(value: Any, meaning: bool) -> None:
    assert connection(autocommit=value).autocommit is meaning
    assert read_config({"pool_settings": {"check_on_checkout": value}}).pool.check_on_checkout is (
        meaning
    )


@pytest.mark.parametrize(
    ("value", "meaning"),
    [("auto", "auto"), (" Auto ", "auto"), ("on", True), (True, True), ("no", False), (0, False)],
)
def test_a_reset_is_automatic_or_switched(value: Any, meaning: Any) -> None:
    pool = read_config({"pool_settings": {"reset_on_return": value}}).pool
    assert pool.reset_on_return == meaning
    assert type(pool.reset_on_return) is type(meaning)


@pytest.mark.parametrize(
    ("pool", "problem"),
    [
        ({"min_size": 5, "max_size": 4}, "min_size must not be larger than pool_settings.max_size"),
        ({"min_size": 0, "max_size": 0}, "max_size must be a whole number of at least 1, not 0"),
        ({"min_size": -1}, "min_size must be a whole number of at least 0"),
        ({"min_size": True}, "min_size must be"),
        ({"min_size": 1.5}, "min_size must be a whole number of at least 0, not 1.5"),
        ({"min_size": "five"}, "not 'five'"),
        ({"max_size": 10**5000}, "max_size must be"),
        ({"max_size": "9" * 5000}, "max_size must be"),
        ({"max_waiting": -1}, "max_waiting must be"),
        ({"num_workers": 0}, "num_workers must be a whole number of at least 1"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, not 0"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": True}, "timeout must be"),
        ({"timeout": "5s"}, "timeout must be a number of seconds above 0, not '5s'"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds, at most 9223372036"),
        (
            {"timeout": ".inf"},
            "timeout must be a number of seconds, at most 9223372036, not '.inf'",
        ),
        ({"timeout": 10**400}, "timeout must be a number of seconds, at most 9223372036."),
        (
            {"timeout": "9" * 30},
            "timeout must be a number of seconds, at most 9223372036, not '999",
        ),
        ({"timeout": "1e12"}, "timeout must be a number without an exponent, not '1e12'"),
        ({"max_size": "1e3"}, "max_size must be a number without an exponent, not '1e3'"),
        (
            {"max_size": 3 * 10**9},
            "max_size must be a whole number of at most 2147483647, not 3000",
        ),
        ({"max_size": ".inf"}, "max_size must be a whole number of at least 1, not '.inf'"),
        ({"timeout": [5]}, "timeout must be a number of seconds above 0, not a list"),
        ({"max_lifetime": 0}, "max_lifetime must be"),
        ({"max_idle": "-1"}, "max_idle must be"),
        ({"reconnect_timeout": -1}, "reconnect_timeout must be a number of seconds, 0 or more"),
        ({"leak_threshold": -0.5}, "leak_threshold must be a number of seconds, 0 or more"),
        ({"check_on_checkout": "maybe"}, "check_on_checkout must be true or false, not 'maybe'"),
        ({"reset_on_return": "often"}, "must be true, false or auto, not 'often'"),
        ({"reset_on_return": []}, "reset_on_return must be true, false or auto, not a list"),
    ],
)
def test_a_pool_that_cannot_work_is_an_error(pool: dict[str, Any], problem: str) -> None:
    assert problem in error_of({"pool_settings": pool})
    assert "async_pool_settings." in error_of({"async_pool_settings": pool})


def test_a_minimum_of_no_connections_is_possible() -> None:
    assert read_config({"pool_settings": {"min_size": 0, "max_size": 1}}).pool.min_size == 0


def test_server_settings_become_text() -> None:
    config = read_config(
        {
            "sync_settings": {
                "statement_timeout": 5000,
                "jit": False,
                "my.app.flag": True,
                "seq_page_cost": 1.5,
                "search_path": "",
                "work_mem": None,
                "application_name": "x",
            },
            "async_settings": {"Lock_Timeout": "10s"},
        }
    )
    assert dict(config.sync_settings) == {
        "statement_timeout": "5000",
        "jit": "off",
        "my.app.flag": "on",
        "seq_page_cost": "1.5",
        "search_path": "",
        "application_name": "x",
    }
    assert dict(config.async_settings) == {"Lock_Timeout": "10s"}


@pytest.mark.parametrize("value", [["a"], {"a": "b"}, "a\0b", "\ud800", b"x"])
def test_a_server_setting_of_the_wrong_type_is_an_error(value: Any) -> None:
    assert "sync_settings.search_path " in error_of({"sync_settings": {"search_path": value}})
