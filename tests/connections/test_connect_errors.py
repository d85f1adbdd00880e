"""Which connection errors are tried again, in the words of libpq and of the server."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flask_pgmonkey import ConfigError
from flask_pgmonkey.connections.connect_errors import can_pass, copy_for_waiter

PREFIX = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    "words",
    [
        "Connection refused\n\tIs the server running on that host and accepting connections?",
        "No route to host",
        "server closed the connection unexpectedly",
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is in recovery mode",
        "FATAL:  the database system is not yet accepting connections",
        "FATAL:  sorry, too many clients already",
        'FATAL:  too many connections for role "app"',
        'FATAL:  too many connections for database "app"',
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "FATAL:  terminating connection due to administrator command",
        "FATAL:  no more connections allowed (max_client_conn)",
        "SSL SYSCALL error: EOF detected",
        "SSL SYSCALL error: Connection reset by peer",
        "SSL error: unexpected eof while reading",
        "connection timeout expired",
        "failed to resolve host 'db': [Errno -3] Temporary failure in name resolution",
    ],
)
def test_what_time_may_mend_is_tried_again(words: str) -> None:
    assert can_pass(psycopg.OperationalError(PREFIX + words))


@pytest.mark.parametrize(
    "words",
    [
        'FATAL:  password authentication failed for user "app"',
        'FATAL:  database "nowhere" does not exist',
        'FATAL:  role "nobody" does not exist',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app", database "app"',
        'FATAL:  permission denied for database "app"',
        "fe_sendauth: no password supplied",
        "server does not support SSL, but SSL was required",
        "SSL error: certificate verify failed",
        'root certificate file "/root/.postgresql/root.crt" does not exist',
    ],
)
def test_what_time_does_not_mend_fails_at_once(words: str) -> None:
    assert not can_pass(psycopg.OperationalError(PREFIX + words))


def test_errors_of_our_own_fail_at_once() -> None:
    assert not can_pass(ConfigError("sync_settings.work_mem: the server refuses it"))


def test_each_waiter_gets_an_error_of_its_own() -> None:
    error = psycopg.errors.ConnectionTimeout("connection timeout expired")
    error.__cause__ = OSError("cause")
    copy = copy_for_waiter(error)
    assert copy is not error
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__cause__ is error.__cause__


def test_what_each_waiter_gets_has_what_the_server_said(database: dict[str, Any]) -> None:
    with psycopg.connect(**database) as conn, pytest.raises(psycopg.Error) as raised:
        conn.execute("SELECT nothing")
    copy = copy_for_waiter(raised.value)
    assert isinstance(copy, psycopg.errors.UndefinedColumn)
    assert copy.diag.message_primary == raised.value.diag.message_primary is not None


def test_each_waiter_gets_an_error_of_ours_of_its_own() -> None:
    error = ConfigError("sync_settings.work_mem: the server refuses it")
    error.__cause__ = OSError("cause")
    copy = copy_for_waiter(error)
    assert copy is not error
    assert type(copy) is ConfigError
    assert str(copy) == str(error)
    assert copy.__cause__ is error.__cause__
