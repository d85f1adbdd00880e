"""The manager: one connection object for each config and connection type, kept in a cache."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache, partial
from time import monotonic
from typing import Any, Literal, TypeAlias, cast, overload
from weakref import WeakSet

from .config import CONNECTION_TYPES, Config, read_config
from .connections import (
    AsyncNormalConnection,
    AsyncPoolConnection,
    Configure,
    NormalConnection,
    PoolConnection,
    loops,
)
from .connections.racing import AsyncRacers, Racers
from .errors import ConfigError

SyncConnection: TypeAlias = "NormalConnection | PoolConnection"
AsyncConnection: TypeAlias = "AsyncNormalConnection | AsyncPoolConnection"
ConfigPath: TypeAlias = "str | os.PathLike[str]"
_Key: TypeAlias = "tuple[str, str, asyncio.AbstractEventLoop | None]"

_SECONDS_FOR_EXIT = 5.0
_SECONDS_FOR_CLEARING = 2.0
_ASYNC_TYPES = ("async", "async_pool")

_sync_connections: WeakSet[SyncConnection] = WeakSet()


class _ProcessState:
    """What a manager has in one process: after a fork the child starts with an empty cache."""

    def __init__(self) -> None:
        self.cached: dict[_Key, SyncConnection | AsyncConnection] = {}
        self.replacing = threading.Lock()
        self.racers: Racers[SyncConnection] = Racers()
        self.async_racers: AsyncRacers[AsyncConnection] = AsyncRacers()


class PGConnectionManager:
    """Opens connection objects and caches them by the content of their config.

    Same content and type, same object: from any thread, whichever path or mapping it came from.
    Callers that race for one open it once. Async objects are cached for each running event loop.
    What is open at exit is closed, within 5 seconds in all.

    :param configure: called with every new psycopg connection, for type adapters and the like; for
        async types it may return an awaitable. It must leave no transaction open.
    :param row_factory: how connections make rows; tuples without it.
    :param describe_borrower: names who borrows from a pool, for the log lines of
        ``leak_threshold``.
    """

    def __init__(
        self,
        *,
        configure: Configure | None = None,
        row_factory: Any = None,
        describe_borrower: Callable[[], str] | None = None,
    ) -> None:
        self._configure = configure
        self._row_factory = row_factory
        self._describe_borrower = describe_borrower
        self._files: dict[tuple[ConfigPath, bool, bool], tuple[tuple[int, ...], Config]] = {}
        self._states: dict[int, _ProcessState] = {}

    def __repr__(self) -> str:
        return f"<PGConnectionManager {len(self._state().cached)} cached>"

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
        connection_type: str | None = ...,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Any: ...
    def get_database_connection(
        self,
        config_file_path: ConfigPath,
        connection_type: str | None = None,
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
        connection_type: str | None = ...,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Any: ...
    def get_database_connection_from_dict(
        self,
        config_data_dictionary: Mapping[str, Any],
        connection_type: str | None = None,
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
        """The connection object for a config that was read already."""
        connection_type = connection_type or config.connection_type
        if connection_type in _ASYNC_TYPES:
            return self._get_async(config, connection_type, force_reload)
        state = self._state()
        key = config.key, connection_type, None
        cached = state.cached.get(key)
        if cached is not None and not force_reload:
            return cached
        if connection_type not in CONNECTION_TYPES:
            raise ConfigError(
                f"there is no connection type {connection_type!r}:"
                f" use one of {', '.join(CONNECTION_TYPES)}"
            )
        return state.racers.run(
            (key, force_reload), lambda: self._open(state, config, key, force_reload)
        )

    def lookup(self, config: Config, connection_type: str) -> Callable[[], Any]:
        """What gives the sync connection object that this process has in the cache, or None: in
        fewer steps than :meth:`connection_for`, because each request comes here."""
        return partial(self._state().cached.get, (config.key, connection_type, None))

    def cached_connection(self, config: Config, connection_type: str) -> Any:
        """What :meth:`connection_for` has in its cache, on the running loop for async types; None
        where it would open a new one."""
        loop = asyncio.get_running_loop() if connection_type in _ASYNC_TYPES else None
        return self._state().cached.get((config.key, connection_type, loop))

    def _open(
        self, state: _ProcessState, config: Config, key: _Key, force_reload: bool
    ) -> SyncConnection:
        cached = state.cached.get(key)
        if cached is not None and not force_reload:
            return cast("SyncConnection", cached)
        new: Any
        if key[1] == "pool":
            new = PoolConnection(
                config,
                configure=self._configure,
                row_factory=self._row_factory,
                describe_borrower=self._describe_borrower,
            )
        else:
            new = NormalConnection(config, configure=self._configure, row_factory=self._row_factory)
        new.connect()
        close_all_at_exit()
        _sync_connections.add(new)
        # Only now: a call with the other force_reload may have opened one at the same time.
        with state.replacing:
            old, state.cached[key] = state.cached.get(key), new
        if old is not None:
            cast(Any, old).retire(new)
        return cast("SyncConnection", new)

    async def _get_async(
        self, config: Config, connection_type: str, force_reload: bool
    ) -> AsyncConnection:
        state = self._state()
        key = config.key, connection_type, asyncio.get_running_loop()
        cached = state.cached.get(key)
        if cached is not None and not force_reload:
            return cast("AsyncConnection", cached)
        self._forget_closed_loops()
        return await state.async_racers.run(
            (key, force_reload), lambda: self._open_async(state, config, key, force_reload)
        )

    async def _open_async(
        self, state: _ProcessState, config: Config, key: _Key, force_reload: bool
    ) -> AsyncConnection:
        cached = state.cached.get(key)
        if cached is not None and not force_reload:
            return cast("AsyncConnection", cached)
        new: Any
        if key[1] == "async_pool":
            new = AsyncPoolConnection(
                config,
                configure=self._configure,
                row_factory=self._row_factory,
                describe_borrower=self._describe_borrower,
            )
        else:
            new = AsyncNormalConnection(
                config, configure=self._configure, row_factory=self._row_factory
            )
        await new.connect()
        close_all_at_exit()
        old, state.cached[key] = state.cached.get(key), new
        if old is not None:
            await cast(Any, old).retire(new)
        return cast("AsyncConnection", new)

    @property
    def cache_info(self) -> dict[str, Any]:
        """``{"size": n, "connection_types": {short key: connection type}}``."""
        self._forget_closed_loops()
        cached = list(self._state().cached)
        return {
            "size": len(cached),
            "connection_types": {_short(key): key[1] for key in cached},
        }

    def clear_cache(self) -> None:
        """Close all cached objects and forget them; for sync code.

        :raises RuntimeError: on an event loop that has objects in the cache; use
            :meth:`clear_cache_async` there.
        """
        state = self._state()
        running = _running_loop()
        if any(loop is running for _, _, loop in state.cached if loop is not None):
            raise RuntimeError(
                "clear_cache() would block the running event loop:"
                " use await manager.clear_cache_async()"
            )
        deadline = monotonic() + _SECONDS_FOR_CLEARING
        for loop, cached in self._take_all(state):
            if loop is None:
                cast("SyncConnection", cached).disconnect()
            else:
                loops.close_from_outside(cast("AsyncConnection", cached), loop, deadline)

    async def clear_cache_async(self) -> None:
        """Close all cached objects and forget them; for use on an event loop."""
        deadline = monotonic() + _SECONDS_FOR_CLEARING
        for loop, cached in self._take_all(self._state()):
            if loop is asyncio.get_running_loop():
                await cast("AsyncConnection", cached).disconnect()
            elif loop is not None:
                await asyncio.to_thread(
                    loops.close_from_outside, cast("AsyncConnection", cached), loop, deadline
                )
            else:
                await asyncio.to_thread(cast("SyncConnection", cached).disconnect)

    def _take_all(
        self, state: _ProcessState
    ) -> Iterator[tuple[asyncio.AbstractEventLoop | None, SyncConnection | AsyncConnection]]:
        # One after the other: what a caller that is cancelled did not close, it did not forget.
        for key in list(state.cached):
            cached = state.cached.pop(key, None)
            if cached is not None:
                yield key[2], cached

    def _forget_closed_loops(self) -> None:
        loops.finish_closed_loops()
        cached = self._state().cached
        for key in list(cached):
            if key[2] is not None and loops.has_ended(key[2]):
                cached.pop(key, None)

    def _state(self) -> _ProcessState:
        try:
            return self._states[os.getpid()]
        except KeyError:
            return self._states.setdefault(os.getpid(), _ProcessState())

    def _read_file(
        self, path: ConfigPath, resolve_env: bool, allow_sensitive_defaults: bool
    ) -> Config:
        try:
            found = os.stat(path)
            signature = found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev, found.st_mode
        except OSError:
            signature = None  # read_config says what is wrong
        key = path, resolve_env, allow_sensitive_defaults
        seen = self._files.get(key)
        if seen is not None and seen[0] == signature and seen[1].is_current():
            return seen[1]
        config = read_config(
            path, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults
        )
        if signature is not None:
            self._files[key] = signature, config
        return config


def _short(key: _Key) -> str:
    config_key, connection_type, loop = key
    name = f"{config_key[:8]}:{connection_type}"
    return name if loop is None else f"{name}:{id(loop):x}"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


before_closing_at_exit: list[Callable[[float], None]] = []
"""Called at exit with the deadline (by ``time.monotonic``), before anything is closed."""


def close_all_at_exit() -> None:
    """Have everything closed when the process exits.

    To be called when something opens: exit handlers run in reverse, so what registered at import,
    as the end of the embedded server did, still runs after this.
    """
    _register_in(os.getpid())


@cache
def _register_in(pid: int) -> None:
    # In a forked child again: multiprocessing begins there without exit handlers.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    deadline = monotonic() + _SECONDS_FOR_EXIT
    for prepare in before_closing_at_exit:
        prepare(deadline)
    for connection in list(_sync_connections):
        connection.close_at_exit(deadline)
    loops.close_at_exit(deadline)
