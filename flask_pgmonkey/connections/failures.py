"""Which connection errors waiting can mend, and how one error reaches many waiters."""

from __future__ import annotations

import re

import psycopg

# libpq gives no SQLSTATE for a failed connection, only the server's words (PQerrorMessage).
_PASSES_BY_ITSELF = re.compile(
    r"starting up|shutting down|in recovery|not (?:yet )?accepting connections"
    r"|too many clients|too many connections|connection slots"
    r"|terminating connection|cannot connect to server|server login",
    re.IGNORECASE,
)
_SPOKEN_BY_SERVER_OR_TLS = re.compile(
    r"\bFATAL\b|\bSSL\b|certificate|no password supplied|authentication method", re.IGNORECASE
)


def can_pass(error: BaseException) -> bool:
    """Whether connecting again later may succeed without anybody changing a setting.

    Refused, unreachable, timed out, starting up and out of connections may pass. A wrong password,
    an unknown database, TLS that does not come about and every error of our own do not.
    """
    if not isinstance(error, psycopg.OperationalError):
        return False
    words = str(error)
    return bool(_PASSES_BY_ITSELF.search(words)) or not _SPOKEN_BY_SERVER_OR_TLS.search(words)


def copy_for_waiter(error: Exception) -> Exception:
    """The same error as an object of its own, so that threads do not share one traceback."""
    if not isinstance(error, psycopg.Error):
        return error
    copy = type(error)(*error.args, pgconn=error.pgconn)
    copy.__cause__ = error.__cause__
    return copy


def seconds(value: float) -> str:
    """*value* as error messages show it."""
    return f"{value:.2f} s"
