"""PostgreSQL for Flask through psycopg 3."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .printable import guard_log as _guard_log

if TYPE_CHECKING:
    from .config import load_config, normalize_config, redact_config, resolve_env_vars
    from .database import Database
    from .database_async import AsyncDatabase
    from .errors import ConfigError, EnvInterpolationError, PGMonkeyError
    from .extension import PGMonkey
    from .manager import PGConnectionManager

__all__ = [
    "AsyncDatabase",
    "ConfigError",
    "Database",
    "EnvInterpolationError",
    "PGConnectionManager",
    "PGMonkey",
    "PGMonkeyError",
    "load_config",
    "normalize_config",
    "redact_config",
    "resolve_env_vars",
]

_MODULES = {
    "AsyncDatabase": "database_async",
    "ConfigError": "errors",
    "Database": "database",
    "EnvInterpolationError": "errors",
    "PGConnectionManager": "manager",
    "PGMonkey": "extension",
    "PGMonkeyError": "errors",
    "load_config": "config",
    "normalize_config": "config",
    "redact_config": "config",
    "resolve_env_vars": "config",
}

_guard_log()


def __getattr__(name: str) -> Any:
    # The pytest plugin lies in this package and is loaded by every pytest of the environment,
    # which is not to pay for Flask and psycopg where nothing uses them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import_module("psycopg")
    except ImportError as error:
        raise ImportError(
            f"{error}\n\nflask_pgmonkey needs psycopg with libpq, the PostgreSQL client library."
            ' Install both with: pip install "flask-pgmonkey[binary]"'
        ) from error
    found = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
