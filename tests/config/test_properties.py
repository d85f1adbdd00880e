"""Whatever is given as a config works or is a ConfigError, and no secret shows."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_pgmonkey.config import (
    CONNECTION_TYPES,
    check_config,
    load_config,
    read_config,
    redact_config,
    resolve_env_vars,
)
from flask_pgmonkey.config.values import CONNECTION_KEYS, POOL_KEYS, SECTIONS
from flask_pgmonkey.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*key postgresql:DeprecationWarning")

SECRET = "hunter2-planted"
NAMES_A_KEY = re.compile(r"the mapping: (the outdated key )?[\w.?\[\]]+[ :]")

texts = st.text(max_size=6) | st.sampled_from(
    ["${", "${X}", "${X:-1}", "$${", "on", "5", "-1", "1.5", "\0", "\ud800", "pool", "a,b"]
)
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 10**400, -(10**400)])
scalars = st.none() | st.booleans() | numbers | texts | st.binary(max_size=3)
structured = st.fixed_dictionaries({"from_env": scalars}) | st.fixed_dictionaries(
    {"from_file": scalars}
)
anything = st.recursive(
    scalars | structured,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | numbers | st.booleans() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)
planted = st.sampled_from(
    [
        SECRET,
        [SECRET],
        {"x": SECRET},
        {SECRET: 1},
        f"${{NOT_SET:-{SECRET}}}",
        f"${{{SECRET}",
        f"postgresql://u:{SECRET}@h/d",
        f"postgresql://u:x@{SECRET}@h/d",
        f"postgresql://u:x/{SECRET}@h/d",
        f"{SECRET}\0",
        f"{SECRET}\ud800",
    ]
)


def section(keys: Any) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(sorted(keys)), anything, max_size=4) | anything


configs = (
    st.fixed_dictionaries(
        {},
        optional={
            "connection_type": st.sampled_from(CONNECTION_TYPES) | anything,
            "connection_settings": st.builds(
                lambda settings, secrets: {**settings, **secrets},
                st.dictionaries(st.sampled_from(sorted(CONNECTION_KEYS)), anything, max_size=4),
                st.dictionaries(
                    st.sampled_from(["password", "uri", "sslpassword", "api_token"]), planted
                ),
            ),
            "pool_settings": section(POOL_KEYS),
            "async_pool_settings": section(POOL_KEYS),
            "sync_settings": section(["jit", "work_mem", "a.b"]),
            "async_settings": section(["jit", "lock_timeout", "host"]),
        },
    )
    | st.dictionaries(st.sampled_from([*SECTIONS, "postgresql"]) | texts, anything, max_size=3)
    | anything
)


def error_of(function: Callable[[], object]) -> ConfigError | None:
    """Call *function*; its ConfigError must keep secrets, and so must all that it hangs on."""
    try:
        function()
    except ConfigError as error:
        link: BaseException | None = error
        while link is not None:
            if SECRET in f"{link} {link!r}":
                pytest.fail(f"{type(link).__name__} shows the secret: {link}")
            link = link.__cause__ or link.__context__
        return error
    return None


@settings(max_examples=400, deadline=None)
@given(configs, st.booleans(), st.booleans())
def test_a_config_works_or_is_a_config_error_without_secrets(
    config: Any, resolve_env: bool, allow: bool
) -> None:
    def use() -> None:
        read = read_config(config, resolve_env=resolve_env, allow_sensitive_defaults=allow)
        check_config(config, resolve_env=resolve_env, allow_sensitive_defaults=allow)
        assert SECRET not in f"{read!r} {read.target} {read.key} {read.origin}"
        assert read.connect_kwargs() == read.connect_kwargs()
        assert read.is_current()

    error = error_of(use)
    if error is not None:
        assert "\n" not in str(error)
        assert not isinstance(config, dict) or NAMES_A_KEY.match(str(error))


@settings(max_examples=300, deadline=None)
@given(configs, st.booleans())
def test_resolving_and_redacting_work_or_are_config_errors(config: Any, allow: bool) -> None:
    before = repr(config)
    error_of(lambda: resolve_env_vars(config, allow))
    error_of(lambda: redact_config(config))
    assert repr(config) == before


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=40) | st.binary(max_size=40) | configs.map(lambda c: ("yaml", c)))
def test_a_file_works_or_is_a_config_error(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "db.yaml"
    if isinstance(content, tuple):
        content = yaml.safe_dump(content[1], allow_unicode=True)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    file.write_bytes(content)
    for error in (error_of(lambda: load_config(file)), error_of(lambda: read_config(file))):
        assert error is None or "db.yaml" in str(error)


@pytest.mark.parametrize("resolve_env", [False, True])
def test_a_planted_password_shows_nowhere(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    resolve_env: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SECRET", SECRET)
    sources: list[Any] = [
        f"postgresql://app:{SECRET}@db/shop",
        {"connection_settings": {"password": SECRET, "sslpassword": SECRET}},
        {"connection_settings": {"uri": f"postgresql://app:{SECRET}@db/shop", "port": 1}},
    ]
    if resolve_env:
        sources += [
            {"connection_settings": {"password": "${SECRET}"}},
            {"connection_settings": {"password": {"from_env": "SECRET"}}},
            "postgresql://app:${SECRET}@db/shop",
        ]
    file = tmp_path / "db.yaml"
    file.write_text(yaml.safe_dump(sources[1]))
    file.chmod(0o666)
    for source in (*sources, file):
        config = read_config(source, resolve_env=resolve_env)
        assert config.connect_kwargs()["password"] == SECRET
        unresolved = config.unresolved
        shown = f"{config!r} {config} {config.key} {config.target} {config.origin} {unresolved!r}"
        assert SECRET not in shown + repr(unresolved.settings("connection_settings"))
    assert caplog.text.count("chmod") == 2
    assert SECRET not in caplog.text
