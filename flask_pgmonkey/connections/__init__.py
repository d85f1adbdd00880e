"""The connection objects that the manager returns, one class for each connection type."""

from __future__ import annotations

from .borrowed import borrowed_connections
from .normal import NormalConnection
from .normal_async import AsyncNormalConnection
from .pool import PoolConnection
from .pool_async import AsyncPoolConnection
from .server_connection_base import Configure

__all__ = [
    "AsyncNormalConnection",
    "AsyncPoolConnection",
    "Configure",
    "NormalConnection",
    "PoolConnection",
    "borrowed_connections",
]
