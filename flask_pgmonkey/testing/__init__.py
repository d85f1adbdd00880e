"""For the tests of apps: every test on a real database of its own, a clone of a template.

The pytest plugin loads this package at every start of pytest, so nothing is imported until it is
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..errors import FreshDatabaseError
    from .checks import assert_no_connection_leaks, count_queries
    from .runs import FreshDatabases, fresh_database

__all__ = [
    "FreshDatabaseError",
    "FreshDatabases",
    "assert_no_connection_leaks",
    "count_queries",
    "fresh_database",
]

_HOMES = {"FreshDatabases": "runs", "fresh_database": "runs"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = "..errors" if name == "FreshDatabaseError" else f".{_HOMES.get(name, 'checks')}"
    found: object = getattr(import_module(home, __name__), name)
    return found
