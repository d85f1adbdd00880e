"""PostgreSQL for Flask through psycopg 3."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import_module("psycopg")
except ImportError as _error:
    raise ImportError(
        f"{_error}\n\nflask_pgmonkey needs psycopg with libpq, the PostgreSQL client library."
        ' Install both with: pip install "flask-pgmonkey[binary]"'
    ) from _error

from .config import load_config, normalize_config, redact_config, resolve_env_vars
from .database import Database
from .errors import ConfigError, EnvInterpolationError, PGMonkeyError
from .extension import PGMonkey
from .manager import PGConnectionManager
from .printable import guard_log as _guard_log

if TYPE_CHECKING:
    from .database_async import AsyncDatabase

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

_guard_log()


def __getattr__(name: str) -> Any:
    if name == "AsyncDatabase":  # loaded by those who use it
        from .database_async import AsyncDatabase

        return AsyncDatabase
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
