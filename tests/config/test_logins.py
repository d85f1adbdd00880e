"""Passwords that a callable or a program gives."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.config import (
    check_config,
    load_config,
    login_answers,
    read_config,
    redact_config,
)
from flask_pgmonkey.config.logins import LoginSource
from flask_pgmonkey.config.provenance import shown_values
from flask_pgmonkey.errors import ConfigError, EnvInterpolationError

SECRET = "hunter2-planted"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


def config_of(password: object, **more: Any) -> dict[str, Any]:
    return {"connection_settings": {"host": "db", "user": "app", "password": password, **more}}


def command(program: str, **more: Any) -> dict[str, Any]:
    """What has Python run *program*."""
    return {"from_command": [sys.executable, "-c", program], **more}


def ask(password: object) -> dict[str, Any]:
    return read_config(config_of(password), resolve_env=True).connect_kwargs()


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        function()
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.__context__!r}"
    assert "connection_settings.password" in str(caught.value)
    return str(caught.value)


# What is asked


def test_a_callable_is_called_for_each_connection() -> None:
    answers = iter(["one", "two", "three"])
    config = read_config(config_of(lambda: next(answers)))
    assert [config.connect_kwargs()["password"] for _ in range(3)] == ["one", "two", "three"]


def test_reading_and_checking_a_config_ask_nothing() -> None:
    def never() -> str:
        raise AssertionError("asked")

    for password in (never, command("raise SystemExit(1)")):
        check_config(config_of(password), resolve_env=True)
        config = read_config(config_of(password), resolve_env=True)
        shown = {value.key: value for value in shown_values(config)}
        assert shown["connection_settings.password"].value == "***REDACTED***"


def test_a_command_gives_what_it_writes_without_the_line_break_at_its_end() -> None:
    assert ask(command("print(' p w ')"))["password"] == " p w "


def test_no_shell_runs_a_command() -> None:
    words = ["echo", "$HOME; `id`", "*"]
    assert ask({"from_command": words})["password"] == "$HOME; `id` *"


def test_a_command_runs_in_the_folder_of_its_config(tmp_path: Path) -> None:
    program = tmp_path / "conf" / "password.sh"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s-%s" "$1" "$(basename "$PWD")"\n')
    program.chmod(0o700)
    file = program.with_name("db.yaml")
    file.write_text(yaml.safe_dump(config_of({"from_command": ["./password.sh", 7]})))
    file.chmod(0o600)
    assert read_config(file, resolve_env=True).connect_kwargs()["password"] == "7-conf"


def test_the_words_of_a_command_may_be_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_HOST", "one")
    password = {"from_command": ["echo", "${DB_HOST}", "${NOT_SET:-eu}", "$${"]}
    config = read_config(config_of(password), resolve_env=True)
    assert config.connect_kwargs()["password"] == "one eu ${"
    monkeypatch.setenv("DB_HOST", "two")
    assert config.connect_kwargs()["password"] == "two eu ${"
    assert config.is_current()
    with pytest.raises(EnvInterpolationError, match="does not begin a reference"):
        check_config(config_of({"from_command": ["echo", "${"]}), resolve_env=True)


def test_a_loaded_config_keeps_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "pw")
    file = tmp_path / "db.yaml"
    file.write_text(yaml.safe_dump(config_of({"from_command": ["echo", "${WORD}"], "ttl": 5})))
    loaded = load_config(file, resolve_env=True)
    assert loaded["connection_settings"]["password"] == {"from_command": ["echo", "pw"], "ttl": 5}
    assert "echo" not in str(redact_config(loaded))


@pytest.mark.parametrize("as_json", [False, True])
def test_user_password_and_expiry_may_come_together(as_json: bool) -> None:
    answer = '{"username": "temp", "password": "pw", "expiry": "2099-01-31T12:00:00.5Z", "more": 1}'
    password = command(f"print({answer!r})") if as_json else partial(yaml.safe_load, answer)
    config = read_config(config_of(password), resolve_env=True)
    kwargs = config.connect_kwargs()
    assert (kwargs["user"], kwargs["password"], kwargs["host"]) == ("temp", "pw", "db")
    login = config.ask_login()
    assert login is not None
    assert login.expiry == datetime(2099, 1, 31, 12, tzinfo=timezone.utc).timestamp()
    assert "pw" not in repr(login)


@pytest.mark.parametrize(
    "expiry",
    [
        4_000_000_000,
        4_000_000_000.0,
        "2096-10-02T07:06:40+00:00",
        "2096-10-02 09:06:40+02:00",
        datetime(2096, 10, 2, 7, 6, 40, tzinfo=timezone.utc),
    ],
)
def test_an_expiry_has_many_forms(expiry: object) -> None:
    login = login_answers.read_login({"password": "pw", "expiry": expiry}, "here")
    assert login.expiry == 4_000_000_000


def test_a_password_in_braces_is_a_password() -> None:
    assert ask(command("print('{hun,ter2}')"))["password"] == "{hun,ter2}"


# What is kept


def test_an_answer_serves_for_its_ttl(tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'asked')!r}, 'a').write('x'); print('pw')"
    config = read_config(config_of(command(count, ttl=0.5)), resolve_env=True)
    for _ in range(5):
        config.connect_kwargs()
    assert (tmp_path / "asked").read_text() == "x"
    time.sleep(0.5)
    config.connect_kwargs()
    assert (tmp_path / "asked").read_text() == "xx"


def test_an_answer_serves_no_longer_than_most_of_its_life() -> None:
    asked: list[float] = []

    def answer() -> dict[str, Any]:
        asked.append(time.time())
        return {"password": "pw", "expiry": asked[-1] + 1}

    source = LoginSource("callable", answer, "here", (), ttl=3600)
    for _ in range(3):
        source.get()
    assert len(asked) == 1
    time.sleep(0.85)
    source.get()
    assert len(asked) == 2


def test_a_refused_login_is_dropped_and_asked_for_once() -> None:
    answers = ["old", "new", "new"]
    source = LoginSource("callable", lambda: answers.pop(0), "here", (), ttl=3600)
    refused = source.get()
    another = source.get_another(refused)
    assert another is not None
    assert (refused.password, another.password) == ("old", "new")
    assert source.get_another(refused) is another  # somebody else's is not dropped
    assert source.get_another(another) is None  # the same again
    assert answers == []


def test_the_key_is_that_of_the_source(tmp_path: Path) -> None:
    class Vault:
        def password(self) -> str:
            return "pw"

    vault, other = Vault(), Vault()
    key = partial(lambda password: read_config(config_of(password), resolve_env=True).key)
    assert key(vault.password) == key(vault.password)
    assert key(command("1", ttl=5)) == key(command("1", ttl=5))
    kinds: list[Any] = [vault.password, other.password, vault, other, "pw", {"from_env": "PATH"}]
    kinds = [*kinds[:2], *kinds[4:], command("1"), command("2"), command("1", ttl=5)]
    assert len({key(kind) for kind in kinds}) == len(kinds)


# What goes wrong


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ({"from_command": f"echo {SECRET}"}, "must be a list with the program and its arguments"),
        ({"from_command": []}, "must be a list"),
        ({"from_command": None}, "must be a list"),
        ({"from_command": ["echo", [SECRET]]}, "each of its words, must be text or a number"),
        ({"from_command": ["echo", f"{SECRET}\0"]}, "NUL character"),
        ({"from_command": ["echo"], "ttl": SECRET}, "password.ttl must be a number of seconds"),
        ({"from_command": ["echo"], "ttl": -1}, "password.ttl must be a number of seconds"),
        ({"from_command": ["echo"], SECRET: 1}, "goes with ttl, and with nothing else"),
        ({"from_command": ["echo"], "from_env": SECRET}, "goes with ttl, and with nothing else"),
    ],
)
def test_a_command_that_cannot_be_one_is_an_error_at_once(password: Any, problem: str) -> None:
    for function in (check_config, read_config):
        assert problem in error_of(partial(function, config_of(password), resolve_env=True))


def test_a_command_needs_resolve_env() -> None:
    message = error_of(lambda: check_config(config_of({"from_command": ["echo", SECRET]})))
    assert "is a reference; switch on resolve_env" in message


async def coroutine_function() -> str:
    return SECRET


def test_a_coroutine_function_is_refused() -> None:
    assert "give a plain one" in error_of(lambda: read_config(config_of(coroutine_function)))


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (f"print('{SECRET}'); raise SystemExit(3)", "ended with exit code 3"),
        (f"import sys; sys.stderr.write('{SECRET}'); raise SystemExit(1)", "exit code 1"),
        ("", "wrote nothing"),
        ("print()", "wrote nothing"),
        (f"import os; os.write(1, b'{SECRET} \\xff')", "wrote what is not UTF-8 text"),
        (f'print(\'{{"secret": "{SECRET}"}}\')', "the password in the answer must be text, not"),
        (f"print('{SECRET}\\0')", "NUL character"),
    ],
)
def test_a_command_that_fails_is_an_error_without_its_words(program: str, problem: str) -> None:
    assert problem in error_of(lambda: ask(command(program)))


def test_a_program_that_is_not_there_is_an_error_that_does_not_name_it() -> None:
    assert "is not there" in error_of(lambda: ask({"from_command": [SECRET]}))
    assert "Permission denied" in error_of(lambda: ask({"from_command": ["/etc/passwd", SECRET]}))


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(login_answers, "COMMAND_TIMEOUT", 0.5)
    pid_file = tmp_path / "pid"
    program = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '100']);"
        f" open({str(pid_file)!r}, 'w').write(str(child.pid)); print('{SECRET}', flush=True);"
        " time.sleep(100)"
    )
    start = time.monotonic()
    assert "did not end within 0.5 s" in error_of(lambda: ask(command(program)))
    assert time.monotonic() - start < 5
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid_file.read_text()}/cmdline").exists():
        state = Path(f"/proc/{pid_file.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # ended, and nobody's to wait for but init's
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "the answer must be text, not nothing"),
        ("", "the answer must be text, not an empty text"),
        (7, "the answer must be text, not a number"),
        ([SECRET], "the answer must be text, not a list"),
        (SECRET.encode(), "the answer must be text, not a value of type bytes"),
        ({"user": SECRET}, "the password in the answer must be text, not nothing"),
        ({"password": "x", "user": [SECRET]}, "the user in the answer must be text, not a list"),
        ({"password": "x", "expiry": SECRET}, "the expiry in the answer must be a date and time"),
        ({"password": "x", "expiry": "2099-01-01T00:00:00"}, "with its time zone"),
        ({"password": "x", "expiry": datetime(2099, 1, 1)}, "with its time zone"),
        ({"password": "x", "expiry": timedelta(1)}, "with its time zone"),
        ({"password": "x", "expiry": True}, "with its time zone"),
        ({"password": "x", "expiry": float("nan")}, "with its time zone"),
        ({"password": "x", "expiry": 1_800_000_000_000}, "seconds since 1970"),
    ],
)
def test_an_answer_that_is_no_login_is_an_error_that_names_types(answer: Any, problem: str) -> None:
    assert problem in error_of(lambda: ask(lambda: answer))


def test_an_exception_of_a_callable_is_its_own() -> None:
    def fail() -> str:
        raise LookupError("no vault")

    with pytest.raises(LookupError, match="no vault"):
        ask(fail)


def test_nothing_of_a_config_shows_what_a_source_gave() -> None:
    for password in (lambda: SECRET, command(f"print('{SECRET}')", ttl=60)):
        config = read_config(config_of(password), resolve_env=True)
        assert config.connect_kwargs()["password"] == SECRET
        unresolved = config.unresolved
        shown = f"{config!r} {unresolved!r} {config.login!r} {config.ask_login()!r}"
        shown += f"{config.target} {config.key} {shown_values(config)}"
        assert SECRET not in shown
