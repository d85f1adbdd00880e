"""The connection objects that the manager returns, one class for each connection type.

Imported when they are asked for: an app loads what it opens, and a command that opens nothing none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .borrowed import borrowed_connections
from .server_connection_base import Configure

if TYPE_CHECKING:
    from .normal import NormalConnection
    from .normal_async import AsyncNormalConnection
    from .pool import PoolConnection
    from .pool_async import AsyncPoolConnection

__all__ = [
    "AsyncNormalConnection",
    "AsyncPoolConnection",
    "Configure",
    "NormalConnection",
    "PoolConnection",
    "borrowed_connections",
]

_MODULES = {
    "AsyncNormalConnection": "normal_async",
    "AsyncPoolConnection": "pool_async",
    "NormalConnection": "normal",
    "PoolConnection": "pool",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
