"""Where each value of a config comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import EnvInterpolationError
from .interpolation import KeyPath, dotted
from .libpq import COMPILED_DEFAULTS, ENVIRONMENT_VARIABLES, effective_options
from .redaction import REDACTED, redacted_value
from .validated import Config
from .values import PSYCOPG_KEYS, uri_options


class ShownValue(NamedTuple):
    """One value of a config as it may be shown.

    :param key: the dotted key.
    :param value: the value in use, redacted if it is a secret.
    :param origin: ``file``, ``mapping``, ``URI``, ``embedded``, ``environment NAME``,
        ``file PATH``, ``command``, ``callable``, ``app``, ``service NAME``, ``default`` (ours),
        ``libpq default``, or ``libpq, with service NAME`` where libpq does not tell which of the
        two it was; ``unresolved: WHY`` for a reference of ``direct_settings`` as it is written.
    """

    key: str
    value: Any
    origin: str


def shown_values(config: Config) -> list[ShownValue]:
    """Every value in use, also those that libpq takes from elsewhere, without secrets."""
    values = (
        (("connection_type",), config.connection_type, _origin(config, ("connection_type",))),
        *_connection_values(config),
        *_direct_values(config),
        *_pool_values(config, "pool_settings"),
        *_pool_values(config, "async_pool_settings"),
        *_server_values(config, "sync_settings"),
        *_server_values(config, "async_settings"),
        *_types(config),
    )
    return [
        ShownValue(dotted(path), redacted_value(path[-1], value), origin)
        for path, value, origin in values
    ]


def _connection_values(config: Config) -> Iterator[tuple[KeyPath, Any, str]]:
    section = "connection_settings"
    settings = config.unresolved.settings(section)
    in_uri = uri_options(settings["uri"]) if "uri" in settings else {}
    if config.login is not None:
        yield (section, "password"), REDACTED, config.login.kind
    for name in ("uri", *PSYCOPG_KEYS):
        if name in settings:
            yield (section, name), settings[name].value, _origin(config, (section, name))
    kwargs = {k: v for k, v in config.settings_kwargs().items() if k not in PSYCOPG_KEYS}
    effective, _ = effective_options(kwargs)
    environment = {
        keyword: os.environ[variable]
        for keyword, variable in ENVIRONMENT_VARIABLES.items()
        if variable in os.environ
    }
    if config.login is not None:
        environment.pop("password", None)
        kwargs.pop("password", None)
    in_use = {**COMPILED_DEFAULTS, **environment, **effective, **kwargs}
    for keyword in sorted(
        keyword for keyword, value in in_use.items() if value or keyword in kwargs
    ):
        path = (section, keyword)
        if keyword in settings:
            origin = _origin(config, path)
        elif keyword in kwargs:
            origin = "URI" if keyword in in_uri else "default"
        elif environment.get(keyword) == in_use[keyword]:
            origin = f"environment {ENVIRONMENT_VARIABLES[keyword]}"
        else:
            origin = _origin_in_libpq(keyword, in_use, kwargs)
        yield path, in_use[keyword], origin


def _direct_values(config: Config) -> Iterator[tuple[KeyPath, Any, str]]:
    """What ``direct_settings`` say; for all else ``connection_settings`` hold.

    The owner's password need not be where the app is, so what cannot be resolved is no error.
    """
    section = "direct_settings"
    unresolved = config.unresolved
    if section in unresolved.logins:
        yield (section, "password"), REDACTED, unresolved.logins[section].kind
    in_uri: dict[str, str] = {}
    for name, value in unresolved.sections[section].items():
        path = (section, name)
        try:
            setting = unresolved.setting(section, name)
        except EnvInterpolationError as error:
            why = str(error).removeprefix(f"{config.origin}: {dotted(path)}: ").rstrip(".")
            yield path, value, f"unresolved: {why}"
            continue
        yield path, setting.value, _origin(config, path)
        if name == "uri":
            in_uri = uri_options(setting)
    for name in sorted(in_uri.keys() - unresolved.sections[section].keys()):
        yield (section, name), in_uri[name], "URI"


def _origin_in_libpq(keyword: str, in_use: dict[str, Any], kwargs: dict[str, Any]) -> str:
    if in_use[keyword] == COMPILED_DEFAULTS.get(keyword) or "service" not in in_use:
        return "libpq default"
    if "service" not in kwargs:
        return f"libpq, with service {in_use['service']}"
    without_service, _ = effective_options({k: v for k, v in kwargs.items() if k != "service"})
    if without_service.get(keyword) == in_use[keyword]:
        return "libpq default"
    return f"service {in_use['service']}"


def _pool_values(config: Config, section: str) -> Iterator[tuple[KeyPath, Any, str]]:
    pool = config.pool if section == "pool_settings" else config.async_pool
    for name, value in pool._asdict().items():
        yield (section, name), value, _origin(config, (section, name))


def _server_values(config: Config, section: str) -> Iterator[tuple[KeyPath, Any, str]]:
    settings = config.sync_settings if section == "sync_settings" else config.async_settings
    for name, value in settings.items():
        yield (section, name), value, _origin(config, (section, name))


def _types(config: Config) -> Iterator[tuple[KeyPath, Any, str]]:
    if config.types:
        yield ("types",), ", ".join(map(str, config.types)), _kind(config)


def _origin(config: Config, path: KeyPath) -> str:
    unresolved = config.unresolved
    value = dict(unresolved.values()).get(path)
    if value is None:
        return "default"
    if unresolved.references is not None and unresolved.is_resolved(value):
        if (file := unresolved.references.file_of(value, path)) is not None:
            return f"file {file}"
        variables = sorted(unresolved.references.variables(value, path) & os.environ.keys())
        if variables:
            return f"environment {', '.join(variables)}"
    return _kind(config)


def _kind(config: Config) -> str:
    return "embedded" if config.find_server is not None else config.unresolved.kind
