"""Which connection errors waiting can mend, and how one error reaches many waiters."""

from __future__ import annotations

import math
import re
from copy import copy
from time import monotonic

import psycopg

from ..errors import PGMonkeyError

# libpq gives no SQLSTATE for a failed connection, only the server's words (PQerrorMessage).
# Compiled when the first connection fails, for the sake of the import.
_OUT_OF_CONNECTIONS = (
    r"too many clients|too many connections|connection slots|no more connections allowed"
)
_PASSES_BY_ITSELF = (
    r"starting up|shutting down|in recovery|not (?:yet )?accepting connections"
    rf"|{_OUT_OF_CONNECTIONS}"
    r"|terminating connection|cannot connect to server|server login"
    r"|SSL SYSCALL error|unexpected eof"
)
_FORGOTTEN_AFTER = 60.0
_SPOKEN_BY_SERVER_OR_TLS = (
    r"\bFATAL\b|\bSSL\b|certificate|no password supplied|authentication method"
)

_LOGIN_REFUSED = r'authentication failed|\b28P01\b|wrong password|role ".{0,63}" does not exist'


def is_login_refused(error: BaseException) -> bool:
    """Whether the server refused the user or the password, as with SQLSTATE 28P01."""
    return isinstance(error, psycopg.OperationalError) and _is_found(_LOGIN_REFUSED, error)


def is_out_of_connections(error: BaseException) -> bool:
    """Whether the server, or a pooler before it, serves as many as it may, as with SQLSTATE
    53300."""
    return isinstance(error, psycopg.OperationalError) and _is_found(_OUT_OF_CONNECTIONS, error)


def can_pass(error: BaseException) -> bool:
    """Whether connecting again later may succeed without anybody changing a setting.

    Refused, unreachable, timed out, starting up and out of connections may pass. A wrong password,
    an unknown database, TLS that does not come about and every error of our own do not.
    """
    if not isinstance(error, psycopg.OperationalError):
        return False
    return _is_found(_PASSES_BY_ITSELF, error) or not _is_found(_SPOKEN_BY_SERVER_OR_TLS, error)


def _is_found(pattern: str, error: BaseException) -> bool:
    return re.search(pattern, str(error), re.IGNORECASE) is not None


def copy_for_waiter(error: Exception) -> Exception:
    """The same error as an object of its own, so that threads do not share one traceback."""
    own: Exception
    if isinstance(error, psycopg.Error):
        own = type(error)(*error.args, info=error.pgresult, pgconn=error.pgconn)
    elif isinstance(error, PGMonkeyError):
        own = copy(error)
    else:
        return error  # nobody knows how to make a second one
    own.__cause__ = error.__cause__
    if notes := notes_of(error):
        vars(own)["__notes__"] = notes
    return own


def notes_of(error: BaseException) -> list[str]:
    """The notes on *error* (PEP 678), which Python 3.10 keeps and does not show."""
    return [str(note) for note in getattr(error, "__notes__", ())]


def with_notes(error: BaseException) -> str:
    """The text of *error* and its notes."""
    return " ".join([str(error), *notes_of(error)])


class Failures:
    """The failures to connect of one pool or connection object, until an attempt succeeds.

    Once somebody has waited in vain for as long as the config's ``timeout``, the outage is known:
    the others hear of it at once.

    :ivar error: the last failure.
    :ivar at: when that was, by ``time.monotonic``.
    :ivar known_at: since when the outage is known; infinity while it is not.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.at: float = 0.0
        self.known_at: float = math.inf
        self._of_the_first: Exception | None = None
        self._asked_at = 0.0

    def note(self, error: Exception) -> None:
        """Remember *error* as the last one."""
        self.error = error
        self.at = monotonic()

    def end(self) -> None:
        """Note that an attempt has succeeded."""
        self.error = self._of_the_first = None
        self.known_at = math.inf

    def since(self, start: float) -> Exception | None:
        """The last failure if it came after *start* (by ``time.monotonic``)."""
        return self.error if self.at >= start else None

    def make_known(self, error: Exception) -> bool:
        """Note that somebody got *error* who had waited for the usual time; whether that is new."""
        is_new = self.known_at == math.inf
        self.known_at = self._asked_at = monotonic()
        self._of_the_first = error
        return is_new

    def at_once(self) -> Exception | None:
        """What they hear at once who come while the outage is known; None if it is not."""
        if self._of_the_first is None:
            return None
        self._asked_at = monotonic()
        return copy_for_waiter(self.error or self._of_the_first)

    def is_of_interest(self) -> bool:
        """Whether the outage is known, and somebody has asked for a connection lately."""
        return self.known_at < monotonic() < self._asked_at + _FORGOTTEN_AFTER


def exit_in_configure(error: SystemExit) -> RuntimeError:
    """What takes the place of a SystemExit where a pool opens a connection.

    That would end the worker, and whoever waits for a connection would not hear of it.
    """
    return RuntimeError(f"'configure' raised {error!r} where the pool opens a connection")


def seconds(value: float) -> str:
    """*value* as error messages show it."""
    return f"{value:.2f} s"
