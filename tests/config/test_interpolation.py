from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from flask_pgmonkey.config import load_config, resolve_env_vars
from flask_pgmonkey.errors import ConfigError, EnvInterpolationError


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOST", "db.example")
    monkeypatch.setenv("PORT", "5433")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("REFERENCE", "${HOST}")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("${HOST}", "db.example"),
        ("${HOST}:${PORT}/${HOST}", "db.example:5433/db.example"),
        ("${UNSET:-fallback}", "fallback"),
        ("${HOST:-fallback}", "db.example"),
        ("${UNSET:-}", ""),
        ("${UNSET:-a:-b c$}", "a:-b c$"),
        ("${EMPTY:-fallback}", ""),
        ("${REFERENCE}", "${HOST}"),
        ("$${HOST}", "${HOST}"),
        ("$${", "${"),
        ("a$${b}${HOST}", "a${b}db.example"),
        ("$HOST $ {HOST} }", "$HOST $ {HOST} }"),
        (["${HOST}", [{"x": "${PORT}"}]], ["db.example", [{"x": "5433"}]]),
        ({"a": {"b": {"from_env": "HOST"}}}, {"a": {"b": "db.example"}}),
        ({"from_env": "HOST", "more": 1}, {"from_env": "HOST", "more": 1}),
        (7, 7),
        (None, None),
        (True, True),
    ],
)
def test_references_resolve_at_any_depth(written: Any, resolved: Any) -> None:
    assert resolve_env_vars({"key": written}) == {"key": resolved}


def test_resolving_leaves_the_config_as_it_was() -> None:
    config = {"a": ["${HOST}", {"b": "${HOST}"}], "c": {"from_env": "HOST"}}
    before = copy.deepcopy(config)
    resolved = resolve_env_vars(config)
    resolved["a"].append("more")
    assert config == before


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("${UNSET}", "UNSET is not set"),
        ({"from_env": "UNSET"}, "UNSET is not set"),
        ("${HOST", "${VAR}"),
        ("${}", "${VAR}"),
        ("${HOST-x}", "${VAR}"),
        ("${A B}", "${VAR}"),
        ("${UNSET:-${HOST}}", "${VAR}"),
        ({"from_env": "A=B"}, "name of an environment variable"),
        ({"from_env": 7}, "name of an environment variable"),
        ({"from_env": ["HOST"]}, "name of an environment variable"),
        ({"from_file": "missing"}, "missing"),
        ({"from_file": "."}, "directory"),
        ({"from_file": ""}, "path of a file"),
        ({"from_file": "a\0b"}, "path of a file"),
        ({"from_file": None}, "path of a file"),
        ({"from_file": "${UNSET}/x"}, "UNSET is not set"),
    ],
)
def test_a_reference_without_content_is_an_error_at_its_dotted_key(
    written: Any, problem: str
) -> None:
    with pytest.raises(EnvInterpolationError) as caught:
        resolve_env_vars({"section": {"names": ["x", written]}})
    assert "section.names[1]" in str(caught.value)
    assert problem in str(caught.value)
    assert "db.example" not in str(caught.value)


@pytest.mark.parametrize("key", ["password", "sslkey", "API_TOKEN", "uri", "client_secret"])
def test_a_secret_key_may_have_no_default(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    for value in ("${UNSET:-hunter2}", ["${UNSET:-hunter2}"], {"deep": "${UNSET:-hunter2}"}):
        with pytest.raises(EnvInterpolationError, match="allow_sensitive_defaults") as caught:
            resolve_env_vars({key: value})
        assert "UNSET" in str(caught.value)
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("UNSET", "set")
    with pytest.raises(EnvInterpolationError):
        resolve_env_vars({key: "${UNSET:-hunter2}"})
    resolved = resolve_env_vars({key: "${NEVER_SET:-hunter2}"}, allow_sensitive_defaults=True)
    assert resolved == {key: "hunter2"}


@pytest.mark.parametrize(
    ("content", "value"), [("pw\n", "pw"), ("pw\r\n", "pw"), ("pw", "pw"), (" p w \n", " p w ")]
)
def test_a_file_gives_its_content_without_the_newline_at_its_end(
    tmp_path: Path, content: str, value: str
) -> None:
    (tmp_path / "secret").write_text(content, newline="")
    assert resolve_env_vars({"password": {"from_file": "secret"}}) == {"password": value}


@pytest.mark.parametrize(
    ("content", "value"), [("pw\n", "pw"), ("pw\r\n", "pw"), (" p w ", " p w "), ("\n", "")]
)
def test_a_variable_gives_its_value_without_the_newline_at_its_end(
    monkeypatch: pytest.MonkeyPatch, content: str, value: str
) -> None:
    monkeypatch.setenv("SECRET", content)
    for written in ({"from_env": "SECRET"}, "${SECRET}"):
        assert resolve_env_vars({"password": written}) == {"password": value}
    assert resolve_env_vars({"a": "${SECRET}@${HOST}"}) == {"a": f"{value}@db.example"}


def test_a_file_is_relative_to_the_folder_of_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "secret").write_text("beside\n")
    (folder / "db.yaml").write_text(
        "connection_settings: {password: {from_file: '${UNSET:-secret}'}}"
    )
    config = load_config(folder / "db.yaml", resolve_env=True)
    assert config["connection_settings"]["password"] == "beside"
    monkeypatch.setenv("UNSET", str(folder / "elsewhere"))
    with pytest.raises(EnvInterpolationError, match=r"'\${UNSET:-secret}': No such file"):
        load_config(folder / "db.yaml", resolve_env=True)


def test_a_secret_in_the_place_of_a_file_does_not_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    with pytest.raises(EnvInterpolationError) as caught:
        resolve_env_vars({"password": {"from_file": "${DB_PASSWORD}"}})
    assert "cannot read the file '${DB_PASSWORD}'" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"hunter2\xff")
    with pytest.raises(EnvInterpolationError, match="UTF-8") as caught:
        resolve_env_vars({"password": {"from_file": "secret"}})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_config_that_contains_itself_is_an_error() -> None:
    config: dict[str, Any] = {"a": []}
    config["a"].append(config)
    with pytest.raises(ConfigError, match="the mapping has a part that holds itself"):
        resolve_env_vars(config)


def test_only_a_mapping_can_be_resolved() -> None:
    with pytest.raises(ConfigError, match="expected a mapping, not list"):
        resolve_env_vars(["${HOST}"])  # type: ignore[arg-type]
