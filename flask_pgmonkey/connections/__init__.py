"""The connection objects that the manager returns, one class for each connection type."""

from __future__ import annotations

from .async_normal import AsyncNormalConnection
from .async_pool import AsyncPoolConnection
from .lending import borrowed_connections
from .normal import NormalConnection
from .opening import Configure
from .pool import PoolConnection

__all__ = [
    "AsyncNormalConnection",
    "AsyncPoolConnection",
    "Configure",
    "NormalConnection",
    "PoolConnection",
    "borrowed_connections",
]
