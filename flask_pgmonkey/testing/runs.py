"""A process's run of tests: which databases the apps find while a test runs, and none between.

The redirect stands where a bind's config is read, once for each process and app, so the request
path knows nothing of it. It answers whatever process asks: a forked child would find the real
database otherwise.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from .. import extension
from ..background import drain, is_in_background, running_jobs
from ..config import Config, normalize_config, read_config
from ..config.libpq import URI_SCHEMES, parse_uri
from ..config.yaml_file import read_file
from ..contexts import start_over_in_context
from ..errors import FreshDatabaseError
from ..per_process import PerProcess
from .checks import Look, uncounted
from .clones import Clones, connect, create, drop, live_runs, our_databases, slim
from .server import Server, choose_server
from .templates import Schema, fingerprint, resolve, run_sql_files

if TYPE_CHECKING:
    from flask import Flask

    from ..extension import PGMonkey, _AppState

SECONDS_FOR_JOBS = 5.0
TEMPLATES_KEPT = 20
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    # But for autovacuum's, which is the superuser's to end; DROP DATABASE sees to that.
    " WHERE datname = %s AND backend_type = 'client backend'"
)
_KEPT_SETTINGS = {
    "autocommit", "prepare_threshold", "prepared_max",
    "options", "application_name", "client_encoding", "connect_timeout",
}  # fmt: skip


class Run:
    """What the tests of one process share.

    :param choice: as for :func:`~flask_pgmonkey.testing.server.choose_server`.
    :param project: the project's folder.
    :ivar kept: for people, how to get into the databases that are kept.
    :ivar current: the databases of the test that runs.
    :ivar is_guarded: whether between tests no app finds a database, least of all its own.
    """

    def __init__(self, choice: str, project: Path) -> None:
        self.project = project
        self.server: Server = choose_server(choice, project)
        self.clones: Clones = Clones(self.server)
        self.kept: list[str] = []
        self._template_story: str = ""
        self.current: FreshDatabases | None = None
        self.is_guarded: bool = False
        self._settings: dict[str, Any] | None = None
        self._fingerprints: dict[Schema | None, str] = {}
        self._failures: dict[Schema | None, FreshDatabaseError] = {}
        self._templates: set[str] = set()
        self._building: _Building | None = None

    def begin(self) -> None:
        """From now on no app finds its own database."""
        if extension.read_instead is None:
            extension.read_instead = self.read_bind
            _forget_everything()

    def guard(self) -> None:
        """From now on, and between tests, no app finds its own database."""
        self.is_guarded = True
        self.begin()

    def end(self) -> None:
        """The apps find their own databases again."""
        if extension.read_instead == self.read_bind:
            extension.read_instead = None
            _forget_everything()

    def drop_templates(self) -> None:
        """Drop the templates of this project: the next test makes its own anew."""
        with connect(self.server, self.clones.run) as admin:
            for name in our_databases(admin, _prefix(self.project)):
                drop(admin, name)

    def stories(self) -> list[str]:
        """For people: the template and how long it took, the clones, and what is kept."""
        if not self._template_story:
            return []
        seconds = self.clones.seconds
        made = f"{len(seconds)} clones, {median(seconds or [0]) * 1e3:.1f} ms each in the median"
        return [self._template_story, made, *self.kept]

    def keep_running(self) -> None:
        """Leave the server running for whoever looks into a database that was kept."""
        if self.server.is_embedded:
            from ..embedded import leave_running

            self.clones.close()
            leave_running()

    def close(self) -> None:
        """Drop what this process made. The apps find their own databases again."""
        self.end()
        self.clones.close()

    def read_bind(self, app: Flask, state: _AppState, name: str) -> Config:
        """The config of an app's bind for the test that runs."""
        building = self._building
        if building is not None and building.is_asked_by_schema(app):
            dbname = building.database_for(identity(state, name))
        elif self.current is None:
            raise FreshDatabaseError(
                f"The app {app.name!r} queried its database {name!r} outside of a test that has"
                " databases of its own. In a test, ask for the fixture pgmonkey_database, or have"
                " app ask for it; what every test shall find belongs into pgmonkey_schema."
            )
        else:
            dbname = self.current._database_for(app, state, name)
        return config_for(state, name, {**self.settings(), "dbname": dbname})

    def settings(self) -> dict[str, Any]:
        """The ``connection_settings`` of the server, which is started once."""
        if self._settings is None:
            self._settings = self.server.find()
        return self._settings

    def template_for(self, app: Flask, state: _AppState, source: str, schema: Schema | None) -> str:
        """The name of the template for a database of *app*, made by *schema* if need be."""
        if schema in self._failures:
            raise self._failures[schema]
        if schema not in self._fingerprints:
            self._fingerprints[schema] = fingerprint(schema)
        # An app may have several names for one database.
        sources = sorted({identity(state, name) for name in state.sources})
        base = _digest(self.project, self._fingerprints[schema], app.import_name, *sources)
        names = {each: f"{_prefix(self.project)}{base}_{_digest(each)[:6]}" for each in sources}
        if names[source] not in self._templates:
            try:
                self._make_templates(app, state, names, partial(_fill, app, schema))
            except FreshDatabaseError as error:
                self._failures[schema] = error
                raise
        return names[source]

    def _make_templates(
        self,
        app: Flask,
        state: _AppState,
        names: Mapping[str, str],
        fill: Callable[[], None],
    ) -> None:
        start = perf_counter()
        with connect(self.server, self.clones.run) as admin:
            # One process of all makes it. The lock ends with the connection, however that ends.
            admin.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [min(names.values())])
            there = {
                name
                for (name,) in admin.execute(
                    "SELECT datname FROM pg_database WHERE NOT datallowconn AND datname = ANY(%s)",
                    [list(names.values())],
                )
            }
            if there != {*names.values()}:
                for name in names.values():
                    drop(admin, name)
                self._build(admin, app, state, names, fill)
                how = "made"
            else:
                how = "of an earlier run, found"
            self._templates.update(names.values())
            # Another run may have found one of them, and be about to clone it.
            if live_runs(admin) == {self.clones.run}:
                older = our_databases(admin, _prefix(self.project))[TEMPLATES_KEPT:]
                for name in older:
                    if name not in self._templates:
                        drop(admin, name)
        took = perf_counter() - start
        self._template_story = f"template {min(names.values())}, {how} in {took:.2f} s"

    def _build(
        self,
        admin: psycopg.Connection[Any],
        app: Flask,
        state: _AppState,
        names: Mapping[str, str],
        fill: Callable[[], None],
    ) -> None:
        building = _Building(app, admin, self.clones.run)
        self._building = building
        # Another thread of the test may query meanwhile, and is not to find what is built.
        state.configs, state.find_pool = _Forgetful(), _Forgetful()
        try:
            with uncounted():
                # A thread has no context but the one that it opens: what the caller's holds, stays.
                worker = threading.Thread(target=building.run, args=[fill], daemon=True)
                _run_to_its_end(worker)
        finally:
            self._building = None
            state.configs, state.find_pool = {}, {}
            state.manager.clear_cache()
        try:
            if isinstance(building.error, FreshDatabaseError):
                raise building.error
            if building.error is not None:
                raise FreshDatabaseError(
                    f"pgmonkey_schema failed, so that no test has a database:"
                    f" {type(building.error).__name__}: {str(building.error).strip()}"
                ) from building.error
            # Whatever was not queried is an empty database.
            for source, name in names.items():
                built = building.database_for(source)
                admin.execute(_END_SESSIONS, [built])
                slim(self.settings(), built)
                made = sql.Identifier(built)
                admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(made))
                final = sql.Identifier(name)
                admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(made, final))
        except BaseException:
            for each in building.made.values():
                drop(admin, each)
            raise


def _run_to_its_end(worker: threading.Thread) -> None:
    """Start the thread that fills the databases, and wait until it and its jobs have ended.

    :raises FreshDatabaseError: on the background loop, where what it submits would never run.
    """
    before = running_jobs()
    worker.start()
    if not is_in_background():
        worker.join()
        drain(SECONDS_FOR_JOBS, spared=before)
        return
    while worker.is_alive():
        worker.join(SECONDS_FOR_JOBS)
        if running_jobs() - before:
            raise FreshDatabaseError(
                "pgmonkey_schema waits for a background job, and the background loop for"
                " pgmonkey_schema: a job of the test was the first to query. Let the test query"
                " before it starts the job, or pgmonkey_schema do without db.aio and db.background."
            )


def _fill(app: Flask, schema: Schema | None) -> None:
    if schema is None:
        return
    with app.app_context():
        db: PGMonkey[Any] = app.extensions["pgmonkey"]
        if callable(schema):
            schema()
        else:
            # Not the context's: session_settings may have no answer outside of requests.
            conn = db.pool.borrow(autocommit=True)
            try:
                run_sql_files(schema, conn)
            finally:
                db.pool.release(conn)


class _Forgetful(dict[Any, Any]):
    """A cache that keeps nothing."""

    def setdefault(self, key: Any, default: Any = None) -> Any:
        return default

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Building:
    """Databases that a schema function is filling.

    :ivar made: the name of the database of each source that was asked for.
    """

    def __init__(self, app: Flask, admin: psycopg.Connection[Any], run: str) -> None:
        self.app = app
        self.made: dict[str, str] = {}
        self.error: BaseException | None = None
        self._admin = admin
        self._run = run
        self._lock = threading.Lock()
        self._others = set(threading.enumerate())

    def is_asked_by_schema(self, app: Flask) -> bool:
        """Whether it is the schema function that queries, or a thread or a job of its own."""
        if app is not self.app:
            return False
        return is_in_background() or threading.current_thread() not in self._others

    def database_for(self, source: str) -> str:
        with self._lock:
            if source not in self.made:
                name = f"pgmonkey_test_{self._run}_0{len(self.made)}"
                drop(self._admin, name)
                create(self._admin, name)
                self.made[source] = name
            return self.made[source]

    def run(self, fill: Callable[[], None]) -> None:
        try:
            fill()
        except BaseException as error:
            self.error = error


class FreshDatabases:
    """The databases of one test: a clone for each database that an app of it queries.

    Apps and binds that have the same config share one, as they would without the test.

    :ivar names: the names of the clones so far, by a digest of the configs.
    :ivar has_forked: whether this process has forked meanwhile.
    :ivar failure: why there is none, even if the app has caught the error.
    :ivar is_kept: whether they stay until the next run.
    """

    def __init__(self, run: Run, schema: Schema | None = None) -> None:
        self._run = run
        self._schema = resolve(schema, run.project)
        self._before: FreshDatabases | None = None
        self._id = secrets.token_hex(4)
        self.has_forked = False
        self._jobs_before = running_jobs()
        self._locks: PerProcess[threading.Lock] = PerProcess(threading.Lock)
        self._looks: list[Look[Any]] = []
        self.names: dict[str, str] = {}
        self.failure: FreshDatabaseError | None = None
        self.is_kept = False

    def database(self, app: Flask, name: str = "default") -> Look[Any]:
        """The test's own look into a database of *app*: a connection apart, and no app context.

        Its rows are those of the app.
        """
        with app.app_context():
            db: PGMonkey[Any] = app.extensions["pgmonkey"]
            config = db.get_config(name)
            arguments = db.manager._arguments(config)
        looks: Look[Any] = Look(
            {
                "connection_settings": config.connect_kwargs(),
                "types": [named.entry for named in config.types],
            },
            row_factory=arguments["row_factory"],
            configure=arguments["configure"],
            types=db._types,
        )
        self._looks.append(looks)
        return looks

    def connection_settings(self, app: Flask, name: str = "default") -> dict[str, Any]:
        """What leads another program, or another library, to a database of *app*."""
        with app.app_context():
            db: PGMonkey[Any] = app.extensions["pgmonkey"]
            return db.get_config(name).connect_kwargs()

    def begin(self) -> None:
        """Have the apps find them from now on."""
        self._run.begin()
        self._before, self._run.current = self._run.current, self
        _forget_everything()

    def end(self) -> list[str]:
        """Close what the apps have open, and drop them.

        :return: the names of background jobs that had not ended after some seconds.
        """
        left = drain(SECONDS_FOR_JOBS, spared=self._jobs_before)
        try:
            for looks in self._looks:
                looks.close()
            _forget_everything()
        finally:
            self._run.current = self._before
            if self._before is None and not self._run.is_guarded:
                self._run.end()
            for name in self.names.values():
                self._run.clones.give_back(name, self.is_kept)
        return left

    def look_for_server(self) -> None:
        """Of a test that failed: note a :attr:`failure` where the server does not answer."""
        if self.names and self.failure is None:
            try:
                connect(self._run.server, self._run.clones.run).close()
            except FreshDatabaseError as error:
                self.failure = error

    def tell_kept(self, test: str) -> None:
        """Have the end of the run say how to get into the clones; without a password."""
        settings = self._run.settings()
        user = f"{settings['user']}@" if "user" in settings else ""
        place = "&".join(f"{key}={settings[key]}" for key in ("host", "port") if key in settings)
        self._run.kept += [
            f"kept of {test}: flask pgmonkey psql --config 'postgresql://{user}/{name}?{place}'"
            for name in self.names.values()
        ]

    def _database_for(self, app: Flask, state: _AppState, name: str) -> str:
        source = identity(state, name)
        with self._locks.here():
            if source not in self.names:
                try:
                    template = self._run.template_for(app, state, source, self._schema)
                    self.names[source] = self._take(template, source)
                except FreshDatabaseError as error:
                    self.failure = error
                    raise
            return self.names[source]

    def _take(self, template: str, source: str) -> str:
        clones = self._run.clones
        if clones.are_ours() and not self.has_forked:
            return clones.take(template)
        # Parent and child do not hear of each other; both are to find the same one.
        return clones.find_or_make(template, f"{self._id}_{source}")


def _note_fork() -> None:
    for run in all_runs:
        if run.current is not None:
            run.current.has_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_note_fork)


def _forget_everything() -> None:
    start_over_in_context()
    for state in list(extension.all_states):
        if state.configs or state.find_pool:
            state.forget_configs()
            state.manager.clear_cache()


def identity(state: _AppState, name: str) -> str:
    """What stands for the database that a config leads to."""
    source = state.sources[name]
    if source == "embedded":
        return _digest(state.postgres_folder)
    if isinstance(source, Mapping):
        return _digest(*(f"{key}={source[key]!r}" for key in sorted(source, key=str)))
    return _digest(source)


def config_for(state: _AppState, name: str, settings: Mapping[str, Any]) -> Config:
    """A bind's own config, which leads to another database: pools, settings and types stay."""
    source = state.sources[name]
    raw: dict[str, Any] = {}
    if isinstance(source, Mapping):
        raw = normalize_config(source)
    elif source != "embedded":
        text = os.fspath(source)
        uri = parse_uri(text) if text.startswith(URI_SCHEMES) else None
        raw = {"connection_settings": uri} if uri else normalize_config(read_file(Path(text)))
    own = raw.get("connection_settings")
    kept = {key: own[key] for key in _KEPT_SETTINGS & {*own}} if isinstance(own, Mapping) else {}
    raw = {key: value for key, value in raw.items() if key != "direct_settings"}
    return read_config(
        {**raw, "connection_settings": {**kept, **settings}},
        resolve_env=state.resolve_env,
        allow_sensitive_defaults=state.allow_sensitive_defaults,
        origin="the test's database",
    )


all_runs: list[Run] = []
"""The one of this process, when it has begun: pytest's, or that of :func:`fresh_database`."""


@contextmanager
def fresh_database(app: Flask, schema: Schema | None = None) -> Iterator[FreshDatabases]:
    """A block in which *app*, and every other app, has databases of its own; for unittest too.

    :param schema: what fills them: a function that is called in an app context, or the path of a
        SQL file or of a folder of them. Without it, what the block around this one has.
    :raises FreshDatabaseError: where background jobs went on after the block.
    """
    plugin = sys.modules.get(f"{__package__}.plugin")
    run = this_run(**getattr(plugin, "place", {}))
    if schema is None and run.current is not None:
        schema = run.current._schema
    fresh = FreshDatabases(run, schema)
    fresh.begin()
    try:
        yield fresh
    finally:
        left = fresh.end()
    if left:
        raise FreshDatabaseError(left_jobs(left))


def this_run(choice: str = "", project: Path | None = None) -> Run:
    """The run of this process, which begins if there is none."""
    if not all_runs:
        choice = choice or os.environ.get("PGMONKEY_TEST_SERVER") or "embedded"
        all_runs.append(Run(choice, project or Path.cwd()))
        atexit.register(close)
    return all_runs[0]


def close() -> None:
    """End this process's run: drop what it made. pytest does so at its end."""
    while all_runs:
        run = all_runs.pop()
        run.close()
        if run.clones.are_ours():
            run.server.stop()


def left_jobs(names: list[str]) -> str:
    """The error of a test whose background jobs did not end."""
    return (
        f"The test left background jobs that had not ended {SECONDS_FOR_JOBS:.0f} s after it:"
        f" {', '.join(names)}. They are cancelled; wait for what db.background.submit() gives."
    )


def _prefix(project: Path) -> str:
    return f"pgmonkey_template_{_digest(project)[:8]}_"


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]
