"""The databases that a command works on, and the options that name them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
import psycopg
from click.shell_completion import CompletionItem
from flask.cli import NoAppException, ScriptInfo

from ..config import Config, ConfigSource, read_config
from ..config.libpq import URI_SCHEMES
from ..config.yaml_file import path_of
from ..connections import Configure, NormalConnection
from ..connections.server_connection import ServerConnection
from ..extension import PGMonkey
from ..manager import PGConnectionManager
from .errors import WrongUsage, without_uris

if TYPE_CHECKING:
    from flask import Flask

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """A database that a command works on."""

    name: str
    """The bind's name, or the path that ``--config`` gave; ``URI`` if that was one."""
    source: ConfigSource = field(repr=False)  # secrets included
    resolve_env: bool
    allow_sensitive_defaults: bool
    app: Flask | None = None

    @cached_property
    def config(self) -> Config:
        """Read at first use, in any thread; that starts an embedded server.

        :raises ConfigError: if it cannot be used.
        """
        if self.app is not None:
            with self.app.app_context():
                return extension_of(self.app).get_config(self.name)
        return read_config(
            self.source,
            resolve_env=self.resolve_env,
            allow_sensitive_defaults=self.allow_sensitive_defaults,
        )

    @property
    def configure(self) -> Configure | None:
        """What the app does to every new psycopg connection."""
        return extension_of(self.app)._configure if self.app is not None else None

    @property
    def classes(self) -> Mapping[str, type[Any] | None] | None:
        """What types of the database become, as the app says."""
        return extension_of(self.app)._types if self.app is not None else None

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A block with a psycopg connection of its own, with ``sync_settings``, outside autocommit.

        It speaks UTF-8: with SQL_ASCII, which the database or PGCLIENTENCODING may ask for, psycopg
        would give bytes for text. The block commits, or rolls back on an exception, and closes.
        """
        known = PGConnectionManager(types=self.classes).types_for(self.config)
        opener = NormalConnection(self.config, types=known)
        connection = ServerConnection.open(opener, None, None)
        with closing(connection):
            connection.execute("SET client_encoding TO 'UTF8'")
            connection.autocommit = False
            yield connection
            connection.commit()


def complete_binds(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The app's binds that begin so, for the shell."""
    try:
        # What the app prints is no bind.
        with ctx.scope(cleanup=False), redirect_stdout(sys.stderr):
            names = [target.name for target in find_targets(None, None)]
    except Exception:
        return []  # An app that does not load says why when a command runs.
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """That it is a file, which the shell knows how to complete."""
    return [CompletionItem(incomplete, type="file")]


def find_options(command: F) -> F:
    """Add the options that say which databases: the keyword arguments of :func:`find_targets`."""
    for option in (
        click.option(
            "--allow-sensitive-defaults",
            is_flag=True,
            help="With --resolve-env: permit ${VAR:-default} for secrets too.",
        ),
        click.option(
            "--resolve-env",
            is_flag=True,
            help="Resolve ${VAR}, from_env and from_file in the file of --config.",
        ),
        click.option(
            "--bind",
            metavar="NAME",
            shell_complete=complete_binds,
            help="The database of the app with this name.",
        ),
        click.option(
            "--config",
            "config_path",
            metavar="PATH",
            shell_complete=complete_files,
            help="Use this YAML file, or postgresql:// URI; no app is needed.",
        ),
    ):
        command = option(command)
    return command


def database_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let *command* work on one database: it is called with ``target``, a :class:`Target`.

    The options are those of :func:`find_options`; without any, it is the app's default database.
    """

    @find_options
    @wraps(command)
    def with_target(
        *args: Any,
        config_path: str | None,
        bind: str | None,
        resolve_env: bool,
        allow_sensitive_defaults: bool,
        **kwargs: Any,
    ) -> Any:
        if config_path is None and bind is None:
            bind = "default"
        (target,) = find_targets(config_path, bind, resolve_env, allow_sensitive_defaults)
        return command(*args, target=target, **kwargs)

    return with_target


def find_targets(
    config_path: str | None,
    bind: str | None,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> list[Target]:
    """The database of *config_path*, or of the app's *bind*, or of every bind if both are None.

    :raises WrongUsage: if the options contradict each other, or the app has no such database.
    :raises ConfigError: if *config_path* is neither a path nor a URI, without quoting it.
    """
    if config_path is not None:
        if bind is not None:
            raise WrongUsage("Give either --config PATH or --bind NAME, not both.")
        if allow_sensitive_defaults and not resolve_env:
            raise WrongUsage("--allow-sensitive-defaults goes with --resolve-env.")
        name = "URI" if config_path.startswith(URI_SCHEMES) else str(path_of(config_path))
        return [Target(name, config_path, resolve_env, allow_sensitive_defaults)]
    if resolve_env or allow_sensitive_defaults:
        raise WrongUsage(
            "--resolve-env and --allow-sensitive-defaults go with --config PATH;"
            " an app has PGMONKEY_RESOLVE_ENV and PGMONKEY_ALLOW_SENSITIVE_DEFAULTS."
        )
    app = load_app()
    db = extension_of(app)
    with app.app_context():
        state = db._state()
    names = list(state.sources)
    if bind is not None and bind not in names:
        raise WrongUsage(
            f"The app has no bind {without_uris(bind)!r}; its binds are: {', '.join(names)}."
        )
    return [
        Target(name, source, state.resolve_env, state.allow_sensitive_defaults, app)
        for name, source in state.sources.items()
        if bind in (None, name)
    ]


def extension_of(app: Flask) -> PGMonkey:
    if "pgmonkey" not in app.extensions:
        raise WrongUsage(
            f"The app {app.name!r} has no PGMonkey. Call PGMonkey(app) or db.init_app(app) where"
            " it is made, or name a config file with --config PATH."
        )
    db: PGMonkey = app.extensions["pgmonkey"]
    return db


def load_app() -> Flask:
    """The app of the running ``flask`` command."""
    try:
        return click.get_current_context().ensure_object(ScriptInfo).load_app()
    except NoAppException as error:
        message = f"{error.format_message()} Or name a config file with --config PATH."
        raise NoAppException(message) from error
