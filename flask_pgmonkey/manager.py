"""The manager: one connection object for each config and connection type, kept in a cache."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, overload

from . import connections
from .config import CONNECTION_TYPES, Config, read_config
from .connections import Configure, loops
from .connections.at_exit import close_at_exit
from .connections.single_flight import AsyncSingleFlight, SingleFlight
from .errors import ConfigError
from .mistakes import require_row_factory
from .per_process import PerProcess
from .signals import FindOrigin

if TYPE_CHECKING:
    from .connections import (
        AsyncNormalConnection,
        AsyncPoolConnection,
        NormalConnection,
        PoolConnection,
    )
    from .connections.known_types import KnownTypes
    from .connections.protocols import Timer

SyncConnection: TypeAlias = "NormalConnection | PoolConnection"
AsyncConnection: TypeAlias = "AsyncNormalConnection | AsyncPoolConnection"
ConfigPath: TypeAlias = "str | os.PathLike[str]"
ConnectionType: TypeAlias = Literal["normal", "pool", "async", "async_pool"]
K = TypeVar("K")
V = TypeVar("V", bound="SyncConnection | AsyncConnection")
_Key: TypeAlias = tuple[str, str]
_KeyOnLoop: TypeAlias = "tuple[str, str, asyncio.AbstractEventLoop]"

_SECONDS_FOR_CLEARING = 2.0

_SYNC_TYPES = {"normal": "NormalConnection", "pool": "PoolConnection"}
_ASYNC_TYPES = {"async": "AsyncNormalConnection", "async_pool": "AsyncPoolConnection"}


class _Cache:
    """What a manager has in one process: after a fork the child starts with an empty cache.

    :ivar cached: the sync connection objects, by config and type.
    :ivar on_loops: the async ones, by config, type and event loop.
    """

    def __init__(self) -> None:
        self.cached: dict[_Key, SyncConnection] = {}
        self.replacing = threading.Lock()
        self.on_loops: dict[_KeyOnLoop, AsyncConnection] = {}
        self.openings: SingleFlight[SyncConnection] = SingleFlight()
        self.openings_on_loops: AsyncSingleFlight[AsyncConnection] = AsyncSingleFlight()


class PGConnectionManager:
    """Opens connection objects and caches them by the content of their config.

    Same content and type, same object: from any thread, whichever path or mapping it came from.
    Callers that race for one open it once. Async objects are cached for each running event loop.
    What is open at exit is closed, within 5 seconds in all.

    :param configure: called with every new psycopg connection, and again after each reset of its
        session, for type adapters and the like; for async types it may return an awaitable. It runs
        in an empty context (:mod:`contextvars`), so without an app, and must leave no transaction
        open.
    :param row_factory: how connections make rows; tuples without it.
    :param describe_borrower: names who borrows from a pool, for the log lines of
        ``leak_threshold``.
    :param find_origin: says whose the events of :mod:`flask_pgmonkey.signals` are; the connection
        objects' own without it.
    :param find_tag: gives a comment in which each statement ends, ``/*`` and ``*/`` included.
    :param types: further types of the database, as a mapping from the name of each to what it
        becomes: an Enum, a class with fields for a composite, or None for the type's own.
    :ivar timers: hear how long the connections of its pools took to open and to borrow, and were
        used; what is added is heard of pools that are open too.
    """

    def __init__(
        self,
        *,
        configure: Configure | None = None,
        row_factory: Any = None,
        describe_borrower: Callable[[], str] | None = None,
        find_origin: FindOrigin | None = None,
        find_tag: Callable[[], bytes] | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
    ) -> None:
        self._configure = configure
        if row_factory is not None:
            require_row_factory(row_factory)
        self._row_factory = row_factory
        self._describe_borrower = describe_borrower
        self._find_origin = find_origin
        self._find_tag = find_tag
        self._classes = types or {}
        if types:
            from .connections.known_types import require_classes  # few have some

            require_classes(types)
        self._known_types: dict[str, KnownTypes] = {}
        self.timers: list[Timer] = []
        self._files: dict[tuple[ConfigPath, bool, bool], tuple[tuple[int, ...], Config]] = {}
        self._caches: PerProcess[_Cache] = PerProcess(_Cache)

    def __repr__(self) -> str:
        cache = self._caches.here()
        return f"<PGConnectionManager {len(cache.cached) + len(cache.on_loops)} cached>"

    @overload
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: Literal["normal"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> NormalConnection: ...
    @overload
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: Literal["pool"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> PoolConnection: ...
    @overload
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: Literal["async"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Awaitable[AsyncNormalConnection]: ...
    @overload
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: Literal["async_pool"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Awaitable[AsyncPoolConnection]: ...
    @overload
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: ConnectionType | None = ...,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Any: ...
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: ConnectionType | None = None,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> Any:
        """The connection object for a YAML config file, open.

        The file is parsed again only when it has changed on the disk.

        :param connection_type: ``normal``, ``pool``, ``async`` or ``async_pool``; the file's
            ``connection_type`` without it.
        :param force_reload: open a new object, which takes the place of the cached one. Borrowers
            of the old one are not disturbed; its connections close when they come back.
        :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the file.
        :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
        :return: the object; for async types an awaitable that gives it.
        :raises ConfigError: for a file that cannot be used.
        :raises psycopg.OperationalError: where no connection can be opened.
        """
        config = self._read_file(config_file_path, resolve_env, allow_sensitive_defaults)
        return self.connection_for(config, connection_type, force_reload)

    @overload
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: Literal["normal"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> NormalConnection: ...
    @overload
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: Literal["pool"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> PoolConnection: ...
    @overload
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: Literal["async"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Awaitable[AsyncNormalConnection]: ...
    @overload
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: Literal["async_pool"],
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Awaitable[AsyncPoolConnection]: ...
    @overload
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: ConnectionType | None = ...,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Any: ...
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: ConnectionType | None = None,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> Any:
        """The connection object for a config mapping, open.

        Parameters, result and errors are those of :meth:`get_database_connection`.
        """
        config = read_config(
            config_data_dictionary,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
        )
        return self.connection_for(config, connection_type, force_reload)

    def connection_for(
        self, config: Config, connection_type: str | None = None, force_reload: bool = False
    ) -> Any:
        """The connection object for a config that was read already; an awaitable that gives it for
        async types."""
        connection_type = connection_type or config.connection_type
        if connection_type in _ASYNC_TYPES:
            return self._get_async(config, connection_type, force_reload)
        if connection_type not in _SYNC_TYPES:
            raise ConfigError(
                f"there is no connection type {connection_type!r}:"
                f" use one of {', '.join(CONNECTION_TYPES)}"
            )
        return self._get(config, connection_type, force_reload)

    def pool_for(self, config: Config) -> PoolConnection:
        """The object of type ``pool`` for a config that was read already.

        A new one opens when somebody borrows from it, which waits for a server that may come.
        """
        cached = self._caches.here().cached
        pool = cached.get((config.key, "pool"))
        if pool is None:
            pool = connections.PoolConnection(config, **self._arguments(config))
            close_at_exit(pool)
            pool = cached.setdefault((config.key, "pool"), pool)
        return cast("PoolConnection", pool)

    async def async_pool_for(self, config: Config) -> AsyncPoolConnection:
        """The object of type ``async_pool`` for the running loop; opens as :meth:`pool_for`'s."""
        on_loops = self._caches.here().on_loops
        key = config.key, "async_pool", asyncio.get_running_loop()
        pool = on_loops.get(key)
        if pool is None:
            self._forget_closed_loops()
            close_at_exit()
            pool = on_loops[key] = connections.AsyncPoolConnection(
                config, **self._arguments(config)
            )
        return cast("AsyncPoolConnection", pool)

    def lookup(self, config: Config, connection_type: str) -> Callable[[], Any]:
        """What gives the sync connection object that this process has in the cache, or None: in
        fewer steps than :meth:`connection_for`, because each request comes here."""
        return partial(self._caches.here().cached.get, (config.key, connection_type))

    def cached_async_pool(self, config: Config) -> AsyncPoolConnection | None:
        """The object of type ``async_pool`` that is in the cache for the running loop."""
        key = config.key, "async_pool", asyncio.get_running_loop()
        pool: Any = self._caches.here().on_loops.get(key)
        return cast("AsyncPoolConnection | None", pool)

    def pools(self) -> list[PoolConnection | AsyncPoolConnection]:
        """The objects of types ``pool`` and ``async_pool`` that this process has in the cache, of
        every loop."""
        cache = self._caches.here()
        kept: list[Any] = [
            *(each for (_, type_), each in list(cache.cached.items()) if type_ == "pool"),
            *(
                each
                for (_, type_, loop), each in list(cache.on_loops.items())
                if type_ == "async_pool" and not loops.is_over(loop)
            ),
        ]
        return kept

    def _get(self, config: Config, connection_type: str, force_reload: bool) -> SyncConnection:
        cache = self._caches[os.getpid()]
        key = config.key, connection_type
        cached = cache.cached.get(key)
        if cached is not None and not force_reload:
            return cached
        return cache.openings.run(
            (key, force_reload), lambda: self._open(cache, config, key, force_reload)
        )

    def _open(self, cache: _Cache, config: Config, key: _Key, force_reload: bool) -> SyncConnection:
        cached = cache.cached.get(key)
        if cached is not None and not force_reload:
            return cached
        make: type[SyncConnection] = getattr(connections, _SYNC_TYPES[key[1]])
        new = make(config, **self._arguments(config))
        new.connect()
        close_at_exit(new)
        # Only now: a call with the other force_reload may have opened one at the same time.
        with cache.replacing:
            old, cache.cached[key] = cache.cached.get(key), new
        if old is not None:
            old.retire(new)  # type: ignore[arg-type]  # of the same type, by the key
        return new

    async def _get_async(
        self, config: Config, connection_type: str, force_reload: bool
    ) -> AsyncConnection:
        cache = self._caches[os.getpid()]
        key = config.key, connection_type, asyncio.get_running_loop()
        cached = cache.on_loops.get(key)
        if cached is not None and not force_reload:
            return cached
        self._forget_closed_loops()
        return await cache.openings_on_loops.run(
            (key, force_reload), lambda: self._open_async(cache, config, key, force_reload)
        )

    async def _open_async(
        self, cache: _Cache, config: Config, key: _KeyOnLoop, force_reload: bool
    ) -> AsyncConnection:
        cached = cache.on_loops.get(key)
        if cached is not None and not force_reload:
            return cached
        make: type[AsyncConnection] = getattr(connections, _ASYNC_TYPES[key[1]])
        new = make(config, **self._arguments(config))
        await new.connect()
        close_at_exit()
        old, cache.on_loops[key] = cache.on_loops.get(key), new
        if old is not None:
            await old.retire(new)  # type: ignore[arg-type]  # of the same type, by the key
        return new

    def _arguments(self, config: Config) -> dict[str, Any]:
        return {
            "configure": self._configure,
            "row_factory": self._row_factory,
            "describe_borrower": self._describe_borrower,
            "find_origin": self._find_origin,
            "find_tag": self._find_tag,
            "types": self.types_for(config),
            "timers": self.timers,
        }

    def types_for(self, config: Config) -> KnownTypes | None:
        """What the connections of *config* know of its database's types; None without any."""
        if not config.types and not self._classes:
            return None
        known = self._known_types.get(config.key)
        if known is None:
            from .connections.known_types import KnownTypes  # few have some

            made = KnownTypes(config.target, config.types, self._classes)
            known = self._known_types.setdefault(config.key, made)
        return known

    @property
    def cache_info(self) -> dict[str, Any]:
        """``{"size": n, "connection_types": {short key: connection type}}``."""
        self._forget_closed_loops()
        cache = self._caches.here()
        types = {f"{config_key[:8]}:{type_}": type_ for config_key, type_ in list(cache.cached)}
        for config_key, type_, loop in list(cache.on_loops):
            types[f"{config_key[:8]}:{type_}:{id(loop):x}"] = type_
        return {"size": len(types), "connection_types": types}

    def clear_cache(self) -> None:
        """Close all cached objects and forget them; for sync code.

        :raises RuntimeError: on an event loop that has objects in the cache; use
            :meth:`clear_cache_async` there.
        """
        cache = self._caches.here()
        if any(loop is _running_loop() for _, _, loop in cache.on_loops):
            raise RuntimeError(
                "clear_cache() would block the running event loop:"
                " use await manager.clear_cache_async()"
            )
        deadline = monotonic() + _SECONDS_FOR_CLEARING
        for _, cached in _take_all(cache.cached):
            cached.disconnect()
        for (*_, loop), on_loop in _take_all(cache.on_loops):
            loops.close_from_outside(on_loop, loop, deadline)

    async def clear_cache_async(self) -> None:
        """Close all cached objects and forget them; for use on an event loop."""
        cache = self._caches.here()
        deadline = monotonic() + _SECONDS_FOR_CLEARING
        for (*_, loop), on_loop in _take_all(cache.on_loops):
            if loop is asyncio.get_running_loop():
                await on_loop.disconnect()
            else:
                await asyncio.to_thread(loops.close_from_outside, on_loop, loop, deadline)
        for _, cached in _take_all(cache.cached):
            await asyncio.to_thread(cached.disconnect)

    def _forget_closed_loops(self) -> None:
        loops.finish_closed_loops()
        on_loops = self._caches.here().on_loops
        for key in list(on_loops):
            if loops.is_over(key[2]):
                _take(on_loops, key)

    def _read_file(
        self, path: ConfigPath, resolve_env: bool, allow_sensitive_defaults: bool
    ) -> Config:
        read = partial(
            read_config,
            path,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
        )
        try:
            found = os.stat(path)
        except (OSError, TypeError, ValueError):
            if isinstance(path, Mapping):
                raise ConfigError(
                    "get_database_connection takes the path of a YAML file; give the mapping to"
                    " get_database_connection_from_dict."
                ) from None
            return read()  # a URI, or it says what is wrong
        signature = found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev, found.st_mode
        key = path, resolve_env, allow_sensitive_defaults
        seen = self._files.get(key)
        if seen is not None and seen[0] == signature and seen[1].is_current():
            return seen[1]
        config = read()
        self._files[key] = signature, config
        return config


def _take_all(cached: dict[K, V]) -> Iterator[tuple[K, V]]:
    # One after the other: what a caller that is cancelled did not close, it did not forget.
    for key in list(cached):
        taken = _take(cached, key)
        if taken is not None:
            yield key, taken


def _take(cached: dict[K, V], key: K) -> V | None:
    """What is *cached*, taken out. If it opens again, it comes back or gives way to another one."""
    taken = cached.pop(key, None)
    if taken is not None:
        taken.let_go(partial(cached.setdefault, key))
    return taken


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
