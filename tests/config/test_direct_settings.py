"""``direct_settings``: what overrides ``connection_settings`` where a pooler cannot serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flask_pgmonkey.config import check_config, read_config, redact_config
from flask_pgmonkey.config.provenance import shown_values
from flask_pgmonkey.errors import ConfigError, EnvInterpolationError

SECRET = "hunter2-planted"
POOLED = {"host": "pooler", "port": 6432, "user": "app", "password": "pw", "dbname": "shop"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


def config_of(direct: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"connection_settings": {**POOLED, **more}, "direct_settings": direct}


def direct_kwargs(direct: dict[str, Any], **more: Any) -> dict[str, Any]:
    kwargs = read_config(config_of(direct, **more)).direct().connect_kwargs()
    return {key: kwargs.get(key) for key in ("host", "hostaddr", "port", "user", "password")}


@pytest.mark.parametrize(
    ("direct", "more", "expected"),
    [
        ({"host": "db", "port": "5432"}, {}, {"host": "db", "port": "5432"}),
        ({"host": "db"}, {"hostaddr": "10.0.0.1"}, {"host": "db"}),
        ({"user": "owner", "password": "own"}, {}, {"user": "owner", "password": "own"}),
        (
            {"uri": "postgresql://owner:own@db/shop"},
            {"hostaddr": "10.0.0.1"},
            {"host": "db", "port": None, "user": "owner", "password": "own"},
        ),
        ({"uri": "postgresql://db/shop", "port": 7}, {}, {"host": "db", "port": "7"}),
    ],
)
def test_they_override_the_connection_settings_and_name_a_server_whole(
    direct: dict[str, Any], more: dict[str, Any], expected: dict[str, Any]
) -> None:
    unchanged = {"host": "pooler", "hostaddr": None, "port": "6432", "user": "app"}
    assert direct_kwargs(direct, **more) == {**unchanged, "password": "pw", **expected}


def test_a_host_of_theirs_stands_alone_beside_a_uri_with_several_hosts() -> None:
    pooled = {"uri": "postgresql://app@a,b/shop"}
    config = read_config({"connection_settings": pooled, "direct_settings": {"host": "db"}})
    assert config.direct().target == "app@db:5432/shop"


def test_a_service_of_theirs_is_not_overridden_by_the_server_of_the_connection_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text("[owner]\nhost=db\nport=5433\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    config = read_config(config_of({"service": "owner"}))
    assert config.direct().target == "app@db:5433/shop"


def test_keys_of_psycopg_override_too() -> None:
    config = read_config(config_of({"prepare_threshold": 5}, prepare_threshold="off"))
    assert config.connect_kwargs()["prepare_threshold"] is None
    assert config.direct().connect_kwargs()["prepare_threshold"] == 5
    assert read_config(config_of({"autocommit": False}, autocommit=True)).direct().autocommit is (
        False
    )
    assert read_config(config_of({"host": "db"}, autocommit=True)).direct().autocommit


def test_without_any_the_config_is_its_own_direct_one() -> None:
    config = read_config({"connection_settings": POOLED, "direct_settings": None})
    assert config.direct() is config
    direct = read_config(config_of({"host": "db"})).direct()
    assert direct.direct() is direct


def test_they_count_in_the_key_of_the_direct_config_alone() -> None:
    plain = read_config({"connection_settings": POOLED})
    one, other = read_config(config_of({"host": "a"})), read_config(config_of({"host": "b"}))
    assert plain.key == one.key == other.key
    assert len({plain.key, one.direct().key, other.direct().key}) == 3
    assert one.direct().key == read_config(config_of({"host": "a"})).direct().key


@pytest.mark.parametrize(
    ("direct", "problem"),
    [
        ({"hots": "db"}, "direct_settings.hots is not a known key; did you mean host?"),
        ({"port": "many"}, "direct_settings.port must be a port"),
        ({"statement_timeout": "3s"}, "settings of the server belong in sync_settings"),
        ({"host": f"postgresql://a:{SECRET}@db"}, "move it to direct_settings.uri"),
        ({"host": "a,b,c", "port": "1,2"}, "direct_settings"),
        ({"sslmode": "perhaps"}, 'direct_settings.sslmode: invalid sslmode value: "perhaps"'),
        ({"uri": f"postgresql://a:{SECRET}@db/x?schema=y"}, "direct_settings.uri has a parameter"),
        ({"password": {"from_env": "X"}}, "direct_settings.password"),
        ({"password": {"from_command": ["x"]}}, "direct_settings.password"),
    ],
)
def test_they_are_checked_like_the_connection_settings(
    direct: dict[str, Any], problem: str
) -> None:
    for check in (read_config, check_config):
        with pytest.raises(ConfigError) as caught:
            check(config_of(direct))
        assert problem in str(caught.value)
        assert SECRET not in str(caught.value)


def test_their_references_are_resolved_when_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direct = {"user": "owner", "password": {"from_env": "OWNER_PASSWORD"}, "host": "${OWNER_HOST}"}
    config = read_config(config_of(direct), resolve_env=True)
    assert config.connect_kwargs()["user"] == "app"
    with pytest.raises(EnvInterpolationError, match=r"direct_settings\.\w+.*OWNER_"):
        config.direct()
    monkeypatch.setenv("OWNER_PASSWORD", SECRET)
    monkeypatch.setenv("OWNER_HOST", "db")
    kwargs = config.direct().connect_kwargs()
    assert (kwargs["user"], kwargs["password"], kwargs["host"]) == ("owner", SECRET, "db")


def test_a_password_of_theirs_wins_over_what_gives_the_others_and_may_be_given_too() -> None:
    direct = {"user": "owner", "password": "own"}
    config = read_config(config_of(direct, password=lambda: "of the app"))
    assert config.connect_kwargs()["password"] == "of the app"
    assert config.direct().connect_kwargs()["password"] == "own"
    config = read_config(config_of({"password": lambda: "asked"}))
    assert config.connect_kwargs()["password"] == "pw"
    assert config.direct().connect_kwargs()["password"] == "asked"
    inherited = read_config(config_of({"host": "db"}, password=lambda: "of the app")).direct()
    assert inherited.connect_kwargs()["password"] == "of the app"


def test_nothing_shows_their_secrets() -> None:
    content = config_of({"uri": f"postgresql://own:{SECRET}@db/x", "password": SECRET, "port": 7})
    assert SECRET not in str(redact_config(content))
    config = read_config(content)
    shown = {value.key: (value.value, value.origin) for value in shown_values(config)}
    assert SECRET not in f"{config!r} {config.direct()!r} {shown}"
    assert shown["direct_settings.password"] == ("***REDACTED***", "mapping")
    assert shown["direct_settings.uri"] == ("***REDACTED***", "mapping")
    assert shown["direct_settings.host"] == ("db", "URI")
    assert shown["direct_settings.port"] == (7, "mapping")
    assert shown["connection_settings.host"] == ("pooler", "mapping")
    assert "direct_settings.dbname" in shown
