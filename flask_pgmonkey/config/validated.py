"""The validated content of one config, ready for connecting."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .libpq import ENVIRONMENT_VARIABLES, effective_options, uses_tcp
from .login import Login
from .redaction import redacted_value
from .unresolved import ConfigSource, UnresolvedConfig, read_unresolved
from .values import (
    CONNECTION_DEFAULTS,
    CONNECTION_SECTIONS,
    CONNECTION_TYPES,
    POOL_KEYS,
    PSYCOPG_KEYS,
    TCP_DEFAULTS,
    PoolSettings,
    connection_option,
    server_setting,
    uri_options,
)

if TYPE_CHECKING:
    from .logins import LoginSource
    from .types import NamedType

# Keys serve within one process; the salt keeps anyone from guessing passwords out of them.
_KEY_SALT = os.urandom(32)

_ASYNC_TYPES = ("async", "async_pool")


@dataclass(frozen=True, eq=False, repr=False)
class Config:
    """The content of one config, validated. :func:`read_config` makes it.

    :ivar origin: how errors name the place it came from, such as ``file /srv/shop/database.yaml``.
    :ivar connection_type: ``normal``, ``pool``, ``async`` or ``async_pool``.
    :ivar pool: settings of the type ``pool``.
    :ivar async_pool: settings of the type ``async_pool``.
    :ivar autocommit: whether each statement is a transaction of its own.
    :ivar prepared_max: how many prepared statements psycopg keeps on a connection; None is as many
        as it does by itself.
    :ivar key: equal for equal content, wherever it came from, within one process. A secret that
        is a reference counts as that reference, so its rotation leaves the key as it is, and what
        gives a login as itself.
    :ivar target: ``user@host:port/dbname`` for logs, with libpq's defaults filled in.
    :ivar unresolved: what stands in the config, secrets included.
    :ivar login: what gives the login, where that is a callable or a command.
    :ivar is_direct: whether ``direct_settings`` override ``connection_settings``.
    :ivar find_server: gives the connection settings that lead to a server which may move, or has
        to be started first; called for each new connection, and may block.
    """

    origin: str
    connection_type: str
    pool: PoolSettings
    async_pool: PoolSettings
    autocommit: bool
    prepared_max: int | None
    key: str
    target: str
    unresolved: UnresolvedConfig
    _defaults: Mapping[str, str]
    _seen_variables: tuple[tuple[str, str | None], ...]
    login: LoginSource | None = None
    is_direct: bool = False
    find_server: Callable[[], Mapping[str, Any]] | None = None

    def direct(self) -> Config:
        """The config for what a pooler cannot serve: itself where it has no ``direct_settings``.

        Only now are their references resolved: the owner's password need not be where the app is.

        :raises EnvInterpolationError: if a reference cannot be resolved.
        :raises ConfigError: for a resolved value that cannot be used.
        """
        if self.is_direct or not self.unresolved.has_direct_settings:
            return self
        return _validated(self.unresolved, is_direct=True)

    def settings_kwargs(self) -> dict[str, Any]:
        """:meth:`connect_kwargs` without what a callable or a command has to be asked for."""
        found = self.find_server() if self.find_server is not None else {}
        settings = _combined(_parts_of_connection(self.unresolved, self.is_direct))
        return {**self._defaults, **settings.kwargs(), **found}

    def connect_kwargs(self, login: Login | None = None) -> dict[str, Any]:
        """Fresh keyword arguments for :func:`psycopg.connect`, without ``autocommit``.

        (And without ``prepared_max``, which is an attribute of what it gives.) References are
        resolved anew, so that a rotated secret serves the next connection. Blocks while
        :attr:`find_server`, or what is asked for the login, does.

        :param login: what :meth:`ask_login` gave, if it was asked already.
        :raises EnvInterpolationError: if a reference can no longer be resolved.
        """
        login = login or self.ask_login()
        return {**self.settings_kwargs(), **(login.kwargs() if login is not None else {})}

    async def connect_kwargs_on_loop(self, login: Login | None = None) -> dict[str, Any]:
        """:meth:`connect_kwargs`, without blocking the running event loop."""
        if self.find_server is None and self.login is None:
            return self.connect_kwargs()
        return await asyncio.to_thread(self.connect_kwargs, login)

    def ask_login(self) -> Login | None:
        """The login for one more connection, where a callable or a command gives it. May block."""
        source = self.login
        return source.get() if source is not None else None

    async def ask_login_on_loop(self) -> Login | None:
        """:meth:`ask_login`, without blocking the running event loop."""
        if self.login is None:
            return None
        return await asyncio.to_thread(self.ask_login)

    def ask_another_login(self, refused: Login | None) -> Login | None:
        """A login in place of one that the server refused, if there is another. May block."""
        source = self.login
        if source is None or refused is None:
            return None
        return source.get_another(refused)

    async def ask_another_login_on_loop(self, refused: Login | None) -> Login | None:
        """:meth:`ask_another_login`, without blocking the running event loop."""
        if self.login is None:
            return None
        return await asyncio.to_thread(self.ask_another_login, refused)

    def is_current(self) -> bool:
        """Whether the environment variables on which :attr:`key` depends are still the same."""
        return all(os.environ.get(name) == value for name, value in self._seen_variables)

    def pool_settings(self, connection_type: str) -> PoolSettings:
        """The pool section that *connection_type* uses."""
        return self.async_pool if connection_type in _ASYNC_TYPES else self.pool

    def server_settings(self, connection_type: str) -> Mapping[str, str]:
        """The server settings for *connection_type*, their references resolved anew."""
        section = "async_settings" if connection_type in _ASYNC_TYPES else "sync_settings"
        return _server_settings(self.unresolved, section)

    @property
    def types(self) -> tuple[NamedType, ...]:
        """What connections are to know of the database's types."""
        return self.unresolved.types

    @property
    def sync_settings(self) -> Mapping[str, str]:
        """The server settings of the types ``normal`` and ``pool``."""
        return self.server_settings("normal")

    @property
    def async_settings(self) -> Mapping[str, str]:
        """The server settings of the types ``async`` and ``async_pool``."""
        return self.server_settings("async")

    def __repr__(self) -> str:
        return f"<Config {self.target} from {self.origin}>"


def read_config(
    source: ConfigSource,
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
    origin: str | None = None,
) -> Config:
    """Read and validate a config, and log warnings about files that others may read or change.

    :param source: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file``.
    :param allow_sensitive_defaults: permit ``${VAR:-default}`` for secret keys.
    :param origin: how errors name the source; by default its path, or what it is.
    :raises ConfigError: for anything unknown, of the wrong type or contradictory.
    :raises EnvInterpolationError: if a reference cannot be resolved.
    """
    unresolved = read_unresolved(source, resolve_env, allow_sensitive_defaults, origin)
    config = _validated(unresolved)
    _check_direct_settings(unresolved)
    unresolved.warn_about_lookalikes()
    unresolved.warn_about_secret_files()
    return config


def check_config(
    source: ConfigSource,
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
    origin: str | None = None,
) -> None:
    """Validate a config without resolving its references, whose values are not checked.

    Parameters and errors are those of :func:`read_config`. Where a reference could change what
    libpq thinks of the other connection settings, it is not asked.
    """
    unresolved = read_unresolved(source, resolve_env, allow_sensitive_defaults, origin)
    _validated(unresolved.without_references())
    _check_direct_settings(unresolved)


def _check_direct_settings(unresolved: UnresolvedConfig) -> None:
    if unresolved.has_direct_settings:
        _validated(unresolved.without_references(), is_direct=True)


class ConnectionSettings:
    """The section ``connection_settings`` or ``direct_settings``, resolved and checked.

    :param from_uri: the options that ``uri`` gives.
    :param own: the options that have a key of their own and override those of the URI.
    :param autocommit: None where nothing is said of it.
    :param of_psycopg: what else is given of the arguments of :func:`psycopg.connect`.
    """

    __slots__ = ("autocommit", "from_uri", "of_psycopg", "own", "prepared_max")

    def __init__(
        self,
        from_uri: dict[str, str],
        own: dict[str, str],
        autocommit: bool | None,
        prepared_max: int | None,
        of_psycopg: dict[str, Any],
    ) -> None:
        self.from_uri: dict[str, str] = from_uri
        self.own: dict[str, str] = own
        self.autocommit: bool | None = autocommit
        self.prepared_max: int | None = prepared_max
        self.of_psycopg: dict[str, Any] = of_psycopg

    def __repr__(self) -> str:
        return "<ConnectionSettings>"

    def options(self) -> dict[str, str]:
        """The options for libpq."""
        return {**self.from_uri, **self.own}

    def kwargs(self) -> dict[str, Any]:
        """The arguments for psycopg."""
        return {**self.options(), **self.of_psycopg}

    def overridden_by(self, other: ConnectionSettings) -> ConnectionSettings:
        """These settings, but for what *other* says: a server that it names is named whole."""
        said = other.options().keys()
        replaced: set[str] = set(said)
        if other.from_uri or said & {"service"}:
            replaced |= {"host", "hostaddr", "port", "service"}
        elif said & {"host", "hostaddr"}:
            replaced |= {"host", "hostaddr"}
        from_uri = {k: v for k, v in self.from_uri.items() if k not in replaced}
        if "host" in replaced and not from_uri.get("port", "").strip(","):
            from_uri.pop("port", None)  # mere commas, of a URI with several hosts
        return ConnectionSettings(
            from_uri=from_uri | other.from_uri,
            own={k: v for k, v in self.own.items() if k not in replaced} | other.own,
            autocommit=self.autocommit if other.autocommit is None else other.autocommit,
            prepared_max=other.prepared_max or self.prepared_max,
            of_psycopg={**self.of_psycopg, **other.of_psycopg},
        )


def _validated(unresolved: UnresolvedConfig, is_direct: bool = False) -> Config:
    seen = tuple((name, os.environ.get(name)) for name in sorted(unresolved.variables()))
    connection_type = _connection_type(unresolved)
    pool = _pool_settings(unresolved, "pool_settings")
    async_pool = _pool_settings(unresolved, "async_pool_settings")
    server_settings = {
        section: _server_settings(unresolved, section)
        for section in ("sync_settings", "async_settings")
    }
    parts = _parts_of_connection(unresolved, is_direct)
    connection = _combined(parts)
    login = _login_in_use(unresolved, parts)
    is_whole = unresolved.incomplete_sections.isdisjoint(parts)
    effective = _accepted_by_libpq(connection, unresolved, list(parts)) if is_whole else {}
    from_elsewhere = effective.keys() - connection.options()
    defaults = CONNECTION_DEFAULTS | (TCP_DEFAULTS if uses_tcp(effective) else {})
    content = (
        connection_type,
        connection.autocommit or False,
        connection.prepared_max,
        connection.of_psycopg,
        login and (login.kind, login.identity),
        tuple(pool),
        tuple(async_pool),
        *(_identity(unresolved, section, s.own, s.from_uri) for section, s in parts.items()),
        unresolved.types,
        *(_identity(unresolved, section, values) for section, values in server_settings.items()),
    )
    return Config(
        origin=unresolved.origin,
        connection_type=connection_type,
        pool=pool,
        async_pool=async_pool,
        autocommit=connection.autocommit or False,
        prepared_max=connection.prepared_max,
        key=blake2b(repr(content).encode(), digest_size=16, key=_KEY_SALT).hexdigest(),
        target=_target(effective),
        unresolved=unresolved,
        _defaults={k: v for k, v in defaults.items() if k not in from_elsewhere},
        _seen_variables=seen,
        login=login,
        is_direct=is_direct,
    )


def _parts_of_connection(
    unresolved: UnresolvedConfig, is_direct: bool
) -> dict[str, ConnectionSettings]:
    """The sections that say where to connect, the last of which overrides the others."""
    sections = CONNECTION_SECTIONS if is_direct else CONNECTION_SECTIONS[:1]
    return {section: _connection_settings(unresolved, section) for section in sections}


def _combined(parts: Mapping[str, ConnectionSettings]) -> ConnectionSettings:
    return reduce(ConnectionSettings.overridden_by, parts.values())


def _login_in_use(
    unresolved: UnresolvedConfig, parts: Mapping[str, ConnectionSettings]
) -> LoginSource | None:
    login = None
    for section, settings in parts.items():
        if section in unresolved.logins:
            login = unresolved.logins[section]
        elif "password" in settings.options():
            login = None
    return login


def _identity(
    unresolved: UnresolvedConfig,
    section: str,
    values: Mapping[str, str],
    from_uri: Mapping[str, str] = MappingProxyType({}),
) -> list[tuple[str, Any]]:
    """What makes two sections equal: their values, but references where those are kept."""
    references = unresolved.kept_references(section)
    identity: dict[str, Any] = {} if "uri" in references else dict(from_uri)
    return sorted({**identity, **values, **references}.items())


def _connection_type(unresolved: UnresolvedConfig) -> str:
    if unresolved.connection_type is None:
        return "normal"
    setting = unresolved.connection_type_setting()
    if setting.value not in CONNECTION_TYPES:
        raise setting.error(f"one of {', '.join(CONNECTION_TYPES)}")
    return str(setting.value)


def _pool_settings(unresolved: UnresolvedConfig, section: str) -> PoolSettings:
    settings = unresolved.settings(section)
    values = {name: POOL_KEYS[name](setting) for name, setting in settings.items()}
    values.setdefault("max_size", max(PoolSettings().max_size, values.get("min_size", 0)))
    pool = PoolSettings(**values)
    if pool.min_size > pool.max_size:
        raise ConfigError(
            f"{unresolved.origin}: {section}.min_size must not be larger than {section}.max_size."
        )
    return pool


def _server_settings(unresolved: UnresolvedConfig, section: str) -> Mapping[str, str]:
    settings = unresolved.settings(section)
    return MappingProxyType({name: server_setting(s) for name, s in settings.items()})


def _connection_settings(unresolved: UnresolvedConfig, section: str) -> ConnectionSettings:
    settings = unresolved.settings(section)
    of_psycopg = {
        name: read(settings.pop(name)) for name, read in PSYCOPG_KEYS.items() if name in settings
    }
    uri = settings.pop("uri", None)
    from_uri = uri_options(uri) if uri else {}
    own = {name: connection_option(setting, name) for name, setting in settings.items()}
    if "host" in own and not from_uri.get("port", "").strip(","):
        # For a URI with several hosts and no port, libpq writes the ports as mere commas.
        from_uri.pop("port", None)
    return ConnectionSettings(
        from_uri=from_uri,
        own=own,
        autocommit=of_psycopg.pop("autocommit", None),
        prepared_max=of_psycopg.pop("prepared_max", None),
        of_psycopg=of_psycopg,
    )


def _accepted_by_libpq(
    connection: ConnectionSettings, unresolved: UnresolvedConfig, sections: Sequence[str]
) -> dict[str, str]:
    """All options that libpq would connect with.

    :raises ConfigError: with libpq's words, if it refuses them.
    """
    options = connection.options()
    effective, objection = effective_options(options)
    if not objection:
        return effective
    if connection.from_uri or any(map(unresolved.has_references, sections)):
        objection = re.sub(r'".*"', '"…"', objection, flags=re.DOTALL)
    place = sections[-1]  # Without that one, libpq was content.
    for keyword in sorted(set(re.findall(r"\w+", objection)) & {*options, *ENVIRONMENT_VARIABLES}):
        if keyword in options:
            place = f"{sections[-1]}.{keyword}"
        elif (variable := ENVIRONMENT_VARIABLES[keyword]) in os.environ:
            place = f"the environment variable {variable}"
    raise ConfigError(f"{unresolved.origin}: {place}: {objection}.")


def _target(effective: Mapping[str, str]) -> str:
    hosts = (effective.get("host") or effective.get("hostaddr") or "[local]").split(",")
    ports = effective.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    # Brackets as in a URI: an IPv6 address has colons of its own.
    hosts = [f"[{host}]" if ":" in host and host[0] != "/" else host for host in hosts]
    servers = ",".join(
        f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=True)
    )
    # The environment and the service file may hold a connection string in the wrong place.
    user, servers, dbname = (
        redacted_value("", part)
        for part in (effective.get("user", ""), servers, effective.get("dbname", ""))
    )
    return f"{user}@{servers}/{dbname}"
