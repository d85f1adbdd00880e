"""The errors of this package. What psycopg raises passes through with its own type."""

from __future__ import annotations

import psycopg


class PGMonkeyError(Exception):
    """The base of every error that this package defines."""


class ConfigError(PGMonkeyError, ValueError):
    """A configuration that cannot be used.

    The message names the file, the dotted key and the remedy, and never shows the value of a
    secret key.
    """


class MissingConfigError(ConfigError, RuntimeError):
    """An app without any configuration; the message says what to set."""


class EnvInterpolationError(ConfigError):
    """A ``${VAR}``, ``from_env``, ``from_file`` or ``from_command`` that cannot be resolved.

    The message names the variable or path and the dotted key, never a value.
    """


class EmbeddedServerError(PGMonkeyError, RuntimeError):
    """The development server could not be started. The message names its folder."""


class FreshDatabaseError(PGMonkeyError, RuntimeError):
    """A test did not get a database of its own. The message says why, and what to do."""


class MigrationError(PGMonkeyError, RuntimeError):
    """A migration that could not be applied, or that there is no way to apply.

    The message names the file and the line, with the server's words.
    """


class RowMismatchError(PGMonkeyError, psycopg.ProgrammingError):
    """The columns of a result do not fit the class given as ``into``.

    The message names the missing, extra or doubled columns and the class. The query has run: an
    ``INSERT … RETURNING`` outside a transaction is durable by then.
    """


class NoRowError(PGMonkeyError, psycopg.ProgrammingError):
    """``fetch_exactly_one`` found no row."""


class SeveralRowsError(PGMonkeyError, psycopg.ProgrammingError):
    """``fetch_exactly_one`` found more than one row."""


class QueryTimeoutError(PGMonkeyError, psycopg.errors.QueryCanceled):
    """A query ran for longer than ``query_timeout`` or ``db.timeout()`` allow, and was cancelled.

    The connection is usable; a transaction is to be rolled back.
    """


class ServerSilentError(PGMonkeyError, psycopg.OperationalError):
    """A query ran for longer than ``query_timeout`` or ``db.timeout()`` allow, and the server did
    not answer its cancellation within a second.

    The connection is closed. Whether the query has taken effect is unknown.
    """
