"""PGMonkey: the databases of Flask apps, one connection for each app context that queries."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload
from weakref import WeakKeyDictionary, WeakSet, ref

import psycopg
from flask import Flask, Response, abort, has_request_context
from psycopg.rows import Row

from . import after_commit
from .config import Config, ConfigSource, check_config, read_config
from .config.libpq import is_connection_string
from .config.values import Setting, nearest_name, seconds, switch
from .connections import Configure
from .connections.local_settings import FindSettings, GivesSettings, ask
from .connections.query_timeout import block_with_timeout
from .connections.server_connection import ServerConnection
from .connections.watching import Hop, hop_of
from .contexts import (
    HeldConnection,
    OpenTransaction,
    are_repeats_allowed,
    block_with_repeats,
    current_app,
    current_request,
    current_tally,
    describe_context,
    held_connection,
    release_what_the_context_holds,
)
from .errors import ConfigError, MissingConfigError
from .manager import ConnectionType, PGConnectionManager
from .mistakes import require_row_factory
from .queries import (
    IsolationLevel,
    Transaction,
    TransactionalQueries,
    nested_transaction,
    outermost_transaction,
    refuse_options_of_nested,
)
from .signals import Origin

if TYPE_CHECKING:
    from psycopg.abc import Params, Query
    from psycopg.rows import RowFactory, TupleRow
    from typing_extensions import Unpack

    from .aio import BackgroundDatabase
    from .background import Background
    from .connections import (
        AsyncNormalConnection,
        AsyncPoolConnection,
        NormalConnection,
        PoolConnection,
    )
    from .connections.enclosing import Enclosure
    from .copying import CopyStream
    from .monitor.recording import Recording
    from .streaming import RowStream
    from .uploads import CSVOptions

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

T = TypeVar("T")
SettingsT = TypeVar("SettingsT", bound=GivesSettings)

DEFAULT = "default"
_EMBEDDED = "embedded"
_ASYNC_TYPES = ("async", "async_pool")
_KEYS = (
    "PGMONKEY_CONFIG",
    "PGMONKEY_BINDS",
    "PGMONKEY_RESOLVE_ENV",
    "PGMONKEY_ALLOW_SENSITIVE_DEFAULTS",
    "PGMONKEY_UNAVAILABLE",
    "PGMONKEY_ECHO",
    "PGMONKEY_SLOW_QUERY",
    "PGMONKEY_QUERY_TAGS",
    "PGMONKEY_MONITOR",
    "PGMONKEY_MIGRATIONS",
)


class _AppState:
    """What belongs to one app."""

    def __init__(
        self,
        manager: PGConnectionManager,
        prepare_hop: Callable[[Config, str], Hop | None],
        names: dict[str, str],
        sources: dict[str, ConfigSource],
        resolve_env: bool,
        allow_sensitive_defaults: bool,
        postgres_folder: str,
    ) -> None:
        self.manager = manager
        self.prepare_hop = prepare_hop
        self.sources = sources
        self.resolve_env = resolve_env
        self.allow_sensitive_defaults = allow_sensitive_defaults
        self.postgres_folder = postgres_folder
        self.configs: dict[tuple[int, str], Config] = {}
        self.names: dict[str, str] = names  # of binds, by the key of their config
        self.is_debugged = False
        self.recording: Recording | None = None
        self.listeners: list[object] = []  # to signals, which do not keep them alive
        self.find_pool: dict[tuple[int, str], Callable[[], PoolConnection]] = {}
        all_states.add(self)

    def forget_configs(self) -> None:
        """Have every config read anew by the next query, in each process."""
        self.configs.clear()
        self.names.clear()
        self.find_pool.clear()


all_states: WeakSet[_AppState] = WeakSet()
"""Those of every app of this process."""

read_instead: Callable[[Flask, _AppState, str], Config] | None = None
"""What gives the config of a bind in place of what the app says; ``testing`` sets it."""


class BoundDatabase(TransactionalQueries[Row]):
    """One database of an app, with the queries of :class:`PGMonkey`."""

    def __init__(self, db: PGMonkey[Row], name: str) -> None:
        self._db: PGMonkey[Row] = db
        self._name = name
        self._key = db, name

    def __repr__(self) -> str:
        return f"<BoundDatabase {self._name}>"

    @property
    def name(self) -> str:
        """The name of the bind: ``default`` for the app's own database."""
        return self._name

    @property
    def pool(self) -> PoolConnection:
        """The pool that the queries borrow from, opened if need be."""
        return self._get_pool(current_app())

    @overload
    def get_connection(
        self,
        connection_type: Literal["normal"],
        force_reload: bool = False,
        *,
        direct: bool = False,
    ) -> NormalConnection: ...
    @overload
    def get_connection(
        self, connection_type: Literal["pool"], force_reload: bool = False, *, direct: bool = False
    ) -> PoolConnection: ...
    @overload
    def get_connection(
        self, connection_type: Literal["async"], force_reload: bool = False, *, direct: bool = False
    ) -> Awaitable[AsyncNormalConnection]: ...
    @overload
    def get_connection(
        self,
        connection_type: Literal["async_pool"],
        force_reload: bool = False,
        *,
        direct: bool = False,
    ) -> Awaitable[AsyncPoolConnection]: ...
    @overload
    def get_connection(
        self,
        connection_type: ConnectionType | None = None,
        force_reload: bool = False,
        *,
        direct: bool = False,
    ) -> Any: ...
    def get_connection(
        self,
        connection_type: ConnectionType | None = None,
        force_reload: bool = False,
        *,
        direct: bool = False,
    ) -> Any:
        """The app's connection object of a type, for background work; an awaitable that gives it
        for async types. See :meth:`PGConnectionManager.get_database_connection`.

        :param direct: one that connects as ``direct_settings`` say, past a transaction pooler.
        """
        state = self._db._state()
        config = self._db.get_config(self._name)
        if direct:
            config = config.direct()
            state.names.setdefault(config.key, self._name)
        if (connection_type or config.connection_type) in _ASYNC_TYPES and has_request_context():
            _advise_against_async_in_views()
        return state.manager.connection_for(config, connection_type, force_reload)

    @property
    def aio(self) -> BackgroundDatabase[Row]:
        """The queries for async views: await them from any event loop.

        They run over one async pool, on the process's background loop.
        """
        from .aio import BackgroundDatabase, hopped_or_asked  # what many apps never use
        from .database_async import PooledAsyncQueries

        config = self._db.get_config(self._name)
        state = self._db._state()
        find_settings = self._db._find_settings
        there: PooledAsyncQueries[Row] = PooledAsyncQueries(
            state.manager,
            config,
            partial(hopped_or_asked, find_settings) if find_settings else None,
        )
        prepare_hop = partial(state.prepare_hop, config, self._name)
        return BackgroundDatabase(there, prepare_hop, find_settings)

    @property
    def connection(self) -> psycopg.Connection[Row]:
        """The app context's psycopg connection, in autocommit outside a transaction."""
        held = self._held()
        conn = held.begin_use()
        held.uses.pop()
        conn.record.is_handed_out = True
        return conn

    def cursor(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        """A cursor on :attr:`connection`; takes what :meth:`psycopg.Connection.cursor` takes."""
        return cast("psycopg.Cursor[Any]", self.connection.cursor(*args, **kwargs))

    def release(self) -> None:
        """Give the app context's connection back now, before a slow call that needs none.

        The next query borrows again. What :attr:`connection` gave is not the caller's any more.

        :raises psycopg.ProgrammingError: within a transaction, a COPY or a pipeline.
        """
        self._held().release()

    def refresh_types(self) -> None:
        """Ask the database again for the types that the config and *types* name, after a migration.

        Without a call this happens when a connection is opened, at most once a minute, if types
        are missing or a migration was noticed. The pools of this process then replace their
        connections, and this context gives its own back.

        :raises psycopg.ProgrammingError: within a transaction, a COPY or a pipeline.
        """
        self.release()
        self.pool.refresh_types()

    @contextmanager
    def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> Iterator[Transaction[Row]]:
        """A block whose queries are committed together, or rolled back on an exception.

        ``db.fetch_all(…)`` and the others join it in the same app context. Nested, it is a
        savepoint, which takes no *isolation_level* and no *read_only*.

        :param isolation_level: psycopg's, or its SQL words, such as ``"serializable"``.
        """
        held = self._held()
        conn = held.begin_use()
        try:
            is_outermost = not held.open_transactions
            if is_outermost:
                block = outermost_transaction(conn, isolation_level, read_only)
            else:
                refuse_options_of_nested(isolation_level, read_only)
                block = nested_transaction(conn)
            opened = OpenTransaction(block, current_request())
            held.open_transactions.append(opened)
        finally:
            held.uses.pop()
        try:
            with block as transaction:
                yield transaction
        finally:
            if opened in held.open_transactions:
                held.open_transactions.remove(opened)
        if is_outermost:
            after_commit.call_all(transaction._after_commit)

    @overload
    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        batch_size: int = 1000,
        row_factory: RowFactory[T],
        into: None = None,
    ) -> RowStream[T]: ...
    @overload
    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        batch_size: int = 1000,
        row_factory: None = None,
        into: type[T],
    ) -> RowStream[T]: ...
    @overload
    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        batch_size: int = 1000,
        row_factory: None = None,
        into: None = None,
    ) -> RowStream[Row]: ...
    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        batch_size: int = 1000,
        row_factory: RowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> RowStream[Any]:
        """The rows of a result of any size, fetched *batch_size* at a time as they are asked for.

        The query runs at the call. The stream takes over the context's connection, and gives it
        back when it ends, is closed or is dropped, even after the request. The next query borrows
        another connection. If :attr:`connection` or :meth:`cursor` has handed the connection out,
        or it is at work, the stream borrows its own. In a transaction, the stream ends with it.
        """
        from .streaming import RowStream

        held = self._held()
        conn, is_own = held.take_over()
        if is_own:
            give_back = conn.record.source.release
            return RowStream(
                conn, query, params, batch_size, row_factory, into, give_back=give_back
            )
        transactions = held.open_transactions
        innermost = transactions[-1] if transactions else None
        return RowStream(
            conn, query, params, batch_size, row_factory, into,
            is_welcome=lambda: innermost is None or innermost in transactions,
        )  # fmt: skip

    def json_response(self, query: Query, params: Params | None = None) -> Response:
        """A response with the JSON that :meth:`fetch_json` gives."""
        body = self.fetch_json(query, params)
        return current_app().response_class(body, mimetype="application/json")

    def stream_json(
        self, query: Query, params: Params | None = None, *, lines: bool = False
    ) -> Response:
        """A response with the rows as JSON, like :meth:`json_response`, of any size: PostgreSQL
        makes them as the client takes them, and memory does not grow.

        The query runs at the call, whose errors are the view's until the first 64 KiB are there. A
        later one breaks the body, so that no client takes it for whole. The response takes over
        the context's connection as :meth:`stream` does, and gives it back when it ends or the
        client hangs up.

        :param lines: an object on each line, as *NDJSON* has it, instead of one array.
        :raises psycopg.ProgrammingError: within a transaction, which ends before the response.
        """
        from .responses import stream_json  # what not every app uses

        return stream_json(partial(self._copy, query, params, "stream_json()"), lines)

    def csv_response(
        self,
        query: Query,
        params: Params | None = None,
        *,
        filename: str,
        safe_formulas: bool = False,
    ) -> Response:
        """A response with the rows as a CSV file of any size, with the columns' names on top, for
        the browser to save.

        It is made as :meth:`stream_json` makes its own, and ends like that.

        :param filename: what the browser is to call it. Any text will do: what no file can be
            called is replaced.
        :param safe_formulas: put an apostrophe before texts, and names of columns, that a
            spreadsheet would take for a formula. It takes a round trip more.
        :raises psycopg.ProgrammingError: within a transaction, which ends before the response.
        """
        from .responses import stream_csv  # what not every app uses

        begin_copy = partial(self._copy, query, params, "csv_response()")
        return stream_csv(begin_copy, filename, safe_formulas)

    def copy_from(
        self,
        table: str,
        stream: Any,
        *,
        columns: Sequence[str] | Mapping[str, str | None] | None = None,
        format: Literal["csv", "text", "binary"] = "csv",
        max_bytes: int | None = None,
        **options: Unpack[CSVOptions],
    ) -> int:
        """Append what a client sends to a table, all of it or nothing, and return how many rows
        that was. Memory does not grow with them.

        It is one transaction, or a part of the one that is open. A CSV file is read as
        ``flask pgmonkey import-csv`` reads it.

        :param table: ``table`` or ``schema.table``, upper and lower case as written.
        :param stream: of bytes, such as ``request.stream`` or a file of ``request.files``.
        :param columns: the table's columns in the order of the file's; or the column for each name
            in the header of a CSV file, with None for one to leave out.
        :param format: ``csv``, or COPY's ``text`` or ``binary``.
        :param max_bytes: how long it may be at most.
        :param options: how to read a CSV file where that cannot be told: ``header``, ``encoding``,
            ``delimiter``, ``quote``, ``escape``, ``null``, ``null_quoted``, ``decimal_comma``,
            ``skip`` and ``ignore_rest``, as the command has them. ``quote=""`` is its ``none``,
            ``escape=""`` its ``double``.
        :raises CSVTransferError: with the line, and the column if there is one, where a file or
            table cannot be used; see ``flask_pgmonkey.csv_transfer``.
        :raises werkzeug.exceptions.RequestEntityTooLarge: 413, for more than *max_bytes*.
        """
        from .uploads import Upload, copy_upload  # what few apps use

        upload = Upload(stream, max_bytes)
        conn = self._begin_use()
        try:
            return copy_upload(conn, table, upload, columns, format, options)
        finally:
            self._end_use(conn)

    def _copy(
        self,
        query: Query,
        params: Params | None,
        caller: str,
        enclosure: Enclosure,
        safe_formulas: bool = False,
    ) -> CopyStream:
        from .copying import CopyStream

        conn, is_own = self._held().take_over()
        if not is_own:
            raise psycopg.ProgrammingError(
                f"{caller} within a transaction, which is over before the response is sent: call it"
                " outside of the block, or use json_response() or fetch_all() within it"
            )
        give_back = conn.record.source.release
        return CopyStream(conn, query, params, enclosure, give_back, safe_formulas)

    def _begin_use(self) -> ServerConnection:
        return held_connection(self._key, self._get_pool).begin_use()

    def _end_use(self, conn: ServerConnection) -> None:
        conn.record.uses.pop()

    def _is_in_transaction(self) -> bool:
        return self._held().is_in_transaction()

    def _held(self) -> HeldConnection:
        return held_connection(self._key, self._get_pool)

    def _get_pool(self, app: Flask) -> PoolConnection:
        state = self._db._apps.get(app) or self._db._state(app)
        key = os.getpid(), self._name
        find = state.find_pool.get(key)
        pool = find() if find is not None else None
        if pool is None:
            config = self._db.get_config(self._name)
            pool = state.manager.pool_for(config)
            state.find_pool[key] = state.manager.lookup(config, "pool")
        return pool


class PGMonkey(BoundDatabase[Row]):
    """PostgreSQL for Flask apps.

    In an app context the first query borrows a connection from the pool and keeps it on ``g``; the
    end of the context gives it back. Each query is committed when it returns;
    :meth:`transaction` groups several.

    :param app: the app to register; or call :meth:`init_app`.
    :param config: the default of ``PGMONKEY_CONFIG``: the path of a YAML file relative to the
        app's root path, a mapping, a ``postgresql://`` URI, or ``"embedded"``.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection, for type adapters and the like. It
        must leave no transaction open; for async connections it may return an awaitable.
    :param types: further types of the database, as a mapping from the name of each to what it
        becomes: an Enum, a class with fields for a composite, or None for the type's own.
    """

    @overload
    def __init__(
        self: PGMonkey[TupleRow],
        app: Flask | None = None,
        *,
        config: ConfigSource | None = None,
        row_factory: None = None,
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        app: Flask | None = None,
        *,
        config: ConfigSource | None = None,
        row_factory: RowFactory[Row],
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
    ) -> None: ...
    def __init__(
        self,
        app: Flask | None = None,
        *,
        config: ConfigSource | None = None,
        row_factory: RowFactory[Any] | None = None,
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
    ) -> None:
        if row_factory is not None:
            require_row_factory(row_factory)
        super().__init__(self, DEFAULT)
        self._config = config
        self._row_factory = row_factory
        self._configure = configure
        self._types = types
        self._find_settings: FindSettings | None = None
        self._apps: WeakKeyDictionary[Flask, _AppState] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        names = ", ".join(app.name for app in self._apps)
        return f"<PGMonkey {names or 'without an app'}>"

    def init_app(self, app: Flask) -> None:
        """Register an app: read and check its configs, without connecting.

        :raises RuntimeError: where the app has no config, or is registered already.
        :raises ConfigError: for a config that cannot be used.
        """
        if "pgmonkey" in app.extensions:
            raise RuntimeError(
                f"the app {app.name!r} has a PGMonkey already: call init_app() once for each app,"
                " and use PGMONKEY_BINDS for further databases"
            )
        _warn_of_unknown_keys(app)
        resolve_env = _switch(app, "PGMONKEY_RESOLVE_ENV")
        allow_defaults = _switch(app, "PGMONKEY_ALLOW_SENSITIVE_DEFAULTS")
        with_503 = _switch(app, "PGMONKEY_UNAVAILABLE", default=True)
        echoes = _switch(app, "PGMONKEY_ECHO")
        slow = seconds(
            Setting("PGMONKEY_SLOW_QUERY", app.config.get("PGMONKEY_SLOW_QUERY") or 0, ""),
            zero=True,
        )
        sources = dict(self._sources(app))
        for name, source in sources.items():
            if source != _EMBEDDED:
                check_config(
                    source,
                    resolve_env=resolve_env,
                    allow_sensitive_defaults=allow_defaults,
                    origin=_origin(name, source),
                )
        names: dict[str, str] = {}
        find_origin = partial(_origin_of, ref(app), names)
        find_tag = _find_tag_of(app) if app.config.get("PGMONKEY_QUERY_TAGS") else None
        self._apps[app] = _AppState(
            manager=PGConnectionManager(
                configure=self._configure,
                row_factory=self._row_factory,
                describe_borrower=describe_context,
                find_origin=find_origin,
                find_tag=find_tag,
                types=self._types,
            ),
            prepare_hop=partial(hop_of, find_origin, find_tag),
            names=names,
            sources=sources,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_defaults,
            postgres_folder=os.path.join(app.instance_path, "postgres"),
        )
        app.extensions["pgmonkey"] = self
        # The first, so that whatever the app itself calls db is what `flask shell` has.
        app.shell_context_processors.insert(0, lambda: {"db": self})
        app.teardown_appcontext(release_what_the_context_holds)
        # Flask calls the last one first: whichever was registered before may still query.
        app.teardown_appcontext_funcs.insert(0, app.teardown_appcontext_funcs.pop())
        if with_503:
            from .unavailable import answer_outages

            answer_outages(app)
        if _EMBEDDED in sources.values():
            from .development import stop_with_command  # what production does not use

            stop_with_command(self._apps[app].postgres_folder)
        if echoes or slow:
            self._apps[app].listeners.append(_log_queries(app, echoes, slow))
        if _switch(app, "PGMONKEY_MONITOR"):
            self._apps[app].recording = _show_monitor(self, app)

    def _sources(self, app: Flask) -> Iterator[tuple[str, ConfigSource]]:
        config = app.config.get("PGMONKEY_CONFIG", self._config)
        if config is None or config == "":
            raise MissingConfigError(
                f"the app {app.name!r} has no database: set PGMONKEY_CONFIG to the path of a YAML"
                " file, a mapping, a postgresql:// URI or 'embedded', before PGMonkey(app) or"
                " init_app(app)"
            )
        yield DEFAULT, _located(app, "PGMONKEY_CONFIG", config)
        binds = app.config.get("PGMONKEY_BINDS") or {}
        if not isinstance(binds, Mapping):
            raise ConfigError("PGMONKEY_BINDS: expected a mapping of names to configs")
        for name, source in binds.items():
            if name == DEFAULT:
                raise ConfigError("PGMONKEY_BINDS.default: the default database is PGMONKEY_CONFIG")
            yield str(name), _located(app, f"PGMONKEY_BINDS.{name}", source)

    @overload
    def fetch_one_or_404(
        self,
        query: Query,
        params: Params | None = None,
        *,
        description: str | None = None,
        row_factory: RowFactory[T],
        into: None = None,
    ) -> T: ...
    @overload
    def fetch_one_or_404(
        self,
        query: Query,
        params: Params | None = None,
        *,
        description: str | None = None,
        row_factory: None = None,
        into: type[T],
    ) -> T: ...
    @overload
    def fetch_one_or_404(
        self,
        query: Query,
        params: Params | None = None,
        *,
        description: str | None = None,
        row_factory: None = None,
        into: None = None,
    ) -> Row: ...
    def fetch_one_or_404(
        self,
        query: Query,
        params: Params | None = None,
        *,
        description: str | None = None,
        row_factory: Any = None,
        into: Any = None,
    ) -> Any:
        """The first row of the result; the request ends with 404 Not Found if there is none.

        Parameters as for :meth:`fetch_one`.

        :param description: what the page says, instead of werkzeug's words.
        :raises werkzeug.exceptions.NotFound: if there is no row.
        """
        row = self.fetch_one(query, params, row_factory=row_factory, into=into)
        return row if row is not None else abort(404, description)

    def timeout(self, seconds: float) -> AbstractContextManager[None]:
        """A block whose queries, of every database and of :attr:`aio` too, may run for *seconds*.

        The bound is for each query, and for each batch of a stream. A ``query_timeout`` of the
        config, or a block around this one, still counts where it allows less.

        :raises QueryTimeoutError: from the query that runs longer, which is cancelled.
        :raises ServerSilentError: the same where the server does not answer any more.
        """
        if not seconds > 0:
            raise ValueError(f"timeout() takes a number of seconds above 0, not {seconds!r}")
        return block_with_timeout(seconds)

    def allow_repeats(self) -> AbstractContextManager[None]:
        """A block in which a request may run the same query any number of times.

        Elsewhere, in debug, the fifth time from the same line is a warning.
        """
        return block_with_repeats()

    def session_settings(self, function: SettingsT) -> SettingsT:
        """Have every transaction, of every database of the apps, begin with what *function* gives:
        a mapping of settings such as ``{"app.user_id": g.user_id}``, or None for none. A decorator.

        It is called in the context of who queries, before each transaction and each single query,
        which gets its settings without another round trip. They end with the transaction. Where the
        function raises, nothing is queried; what it queries itself has no settings. See
        *Row-level security and tenants* in the docs.

        :raises RuntimeError: where there is one already.
        :raises TypeError: for a coroutine function.
        """
        if iscoroutinefunction(function):
            raise TypeError(
                "session_settings() takes a plain function, which db.aio calls too, and not a"
                " coroutine function"
            )
        if self._find_settings is not None:
            raise RuntimeError(
                "this PGMonkey has a function of session_settings() already: give all settings in"
                " one mapping"
            )
        self._find_settings = partial(ask, function)
        return function

    # Binds, and what lies under them

    @property
    def bind_names(self) -> tuple[str, ...]:
        """The names of the current app's databases, ``default`` first."""
        return tuple(self._state().sources)

    def bind(self, name: str) -> BoundDatabase[Row]:
        """A further database of ``PGMONKEY_BINDS``, with the same queries.

        May be called outside an app context. Whether the app has it is checked at the first query.
        """
        return BoundDatabase(self, name)

    def get_config(self, name: str = DEFAULT) -> Config:
        """The config of a bind of the current app.

        References are resolved, and the embedded server started, the first time in each process.
        """
        state = self._state()
        key = os.getpid(), name
        config = state.configs.get(key)
        if config is None:
            # No lock: a fork while it is held would block the child for ever.
            app = current_app()
            config = state.configs.setdefault(key, _read_bind(app, state, name))
            state.names.setdefault(config.key, name)
            if app.debug and not state.is_debugged:
                state.is_debugged = True
                _watch_requests(app)
                if state.recording is not None:
                    state.recording.start()
        return config

    @property
    def manager(self) -> PGConnectionManager:
        """The current app's manager."""
        return self._state().manager

    @property
    def cache_info(self) -> dict[str, Any]:
        """:attr:`PGConnectionManager.cache_info` of the current app."""
        return self.manager.cache_info

    def clear_cache(self) -> None:
        """Close everything that the current app has open; the next query opens it again."""
        self.manager.clear_cache()

    async def clear_cache_async(self) -> None:
        """:meth:`clear_cache`, for use on an event loop."""
        await self.manager.clear_cache_async()

    # Async code

    @property
    def background(self) -> Background:
        """Runs coroutines beyond the views of the current app, on the process's background loop."""
        from .background import Background

        self._state()
        return Background(current_app().app_context)

    def _state(self, app: Flask | None = None) -> _AppState:
        if app is None:
            app = current_app()
        try:
            return self._apps[app]
        except KeyError:
            raise RuntimeError(
                f"the app {app.name!r} is not registered with this PGMonkey: did you forget to"
                " call db.init_app(app)?"
            ) from None


@cache
def _advise_against_async_in_views() -> None:
    logger.warning(
        "An async connection was asked for in a view. It closes with the event loop of that view:"
        " use 'await db.aio.fetch_all(…)' and the others, whose pool stays open."
    )


def _origin_of(
    find_app: Callable[[], Flask | None], names: Mapping[str, str], config: Config
) -> Origin | None:
    # The manager must not keep the app alive that has it.
    app = find_app()
    if app is None:
        return None
    return Origin(app, names.get(config.key), current_tally(), app.debug, are_repeats_allowed())


def _log_queries(app: Flask, echoes: bool, slow: float) -> object:
    from .query_log import QueryLog  # what many apps never use

    log = QueryLog(echoes, slow)
    log.start(app)
    return log


def _find_tag_of(app: Flask) -> Callable[[], bytes]:
    from .query_tags import find_tag_of, read_tags  # what few apps use

    return find_tag_of(app, read_tags(app.config["PGMONKEY_QUERY_TAGS"]))


def _watch_requests(app: Flask) -> None:
    from .debugging import watch_requests  # what production does not use

    watch_requests(app)


def _show_monitor(db: PGMonkey[Any], app: Flask) -> Recording:
    from .monitor import show_in_debug  # what many apps never use

    return show_in_debug(db, app)


def _warn_of_unknown_keys(app: Flask) -> None:
    for key in app.config:
        if key.startswith("PGMONKEY_") and key not in _KEYS:
            nearest = nearest_name(key, [known.lower() for known in _KEYS])
            known = f"known are {', '.join(_KEYS)}."
            remedy = f"did you mean {nearest.upper()}?" if nearest else known
            logger.warning("The app config has an unknown key, %s; %s", key, remedy)


def _switch(app: Flask, key: str, default: bool = False) -> bool:
    value = app.config.get(key)
    # From the environment comes text, such as "False".
    return default if value is None else switch(Setting(key, value or False, ""))


def _located(app: Flask, key: str, source: object) -> ConfigSource:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(
            f"{key}: expected the path of a YAML file, a mapping, a postgresql:// URI or"
            f" 'embedded', not {type(source).__name__}"
        )
    text = os.fspath(source).rstrip("\r\n")  # A variable of the environment may end with one.
    if text == _EMBEDDED or text.startswith(("postgresql://", "postgres://")):
        return text
    path = os.path.join(app.root_path, text)
    if path != text and not is_connection_string(text) and _is_missing(path):
        remedy = (
            f"did you mean {_EMBEDDED!r}?"
            if nearest_name(text, [_EMBEDDED]) and "." not in text
            else "'flask pgmonkey create-config' writes one."
        )
        raise ConfigError(
            f"{key}: there is no file {path} ({text!r} is relative to the app's root path); "
            f"{remedy}"
        )
    return path


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        pass  # reading it says what is wrong
    return False


def _origin(name: str, source: ConfigSource) -> str | None:
    if isinstance(source, (str, os.PathLike)) and "://" not in os.fspath(source):
        return None  # the path says it best
    return "PGMONKEY_CONFIG" if name == DEFAULT else f"PGMONKEY_BINDS.{name}"


def _read_bind(app: Flask, state: _AppState, name: str) -> Config:
    try:
        source = state.sources[name]
    except KeyError:
        raise RuntimeError(
            f"the app has no bind {name!r}: add it to PGMONKEY_BINDS, which has"
            f" {', '.join(sorted(set(state.sources) - {DEFAULT})) or 'none'}"
        ) from None
    if read_instead is not None:
        return read_instead(app, state, name)
    if source == _EMBEDDED:
        # The server may die, or lose the folder of its socket, before the app ends.
        start = partial(_start_embedded, state.postgres_folder)
        config = read_config({"connection_settings": start()}, origin=_EMBEDDED)
        return replace(config, find_server=start)
    return read_config(
        source,
        resolve_env=state.resolve_env,
        allow_sensitive_defaults=state.allow_sensitive_defaults,
        origin=_origin(name, source),
    )


def _start_embedded(folder: str) -> dict[str, Any]:
    from .embedded import start_embedded  # a tenth of the time of importing this package

    return start_embedded(folder)
