"""Changing the schema by plain SQL files, which dbmate runs in the order of their names."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from shutil import which
from typing import IO, Any, Literal
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from .config import Config
from .contexts import current_app
from .errors import ConfigError, MigrationError
from .extension import DEFAULT, BoundDatabase
from .printable import one_line
from .programs import environment_for, find_program, options_in_use, settings_for

#: Seconds that a statement of a migration waits for a lock, and everybody behind it for that one.
LOCK_TIMEOUT = 5
#: How often a file is tried that does not get its locks.
ATTEMPTS = 10

_SECONDS_BETWEEN_ATTEMPTS = 2.0
_LONGEST_WAIT_FOR_OTHERS = "1h0m0s"
_NOT_GOT = ("(55P03)", "(40P01)")  # lock_not_available, deadlock_detected
_TABLE = "schema_migrations"
_FILE = re.compile(r"(\d+).*\.sql")
_ENDED = re.compile(r"(?:Applied|Rolled back): (.+) in \S+")
_BEGUN = re.compile(r"(?:Applying|Rolling back): (.+)")
_LINE = re.compile(r"line: (\d+), column: \d+, position: \d+: ")
_POSITION = re.compile(r" at position \d+:\d+(?= \(\w{5}\)$)")
# What the driver of dbmate understands; other names it would give to the server.
_OF_DRIVER = (
    "application_name",
    "connect_timeout",
    "sslcert",
    "sslkey",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
)
_TEMPLATE = "-- migrate:up\n\n\n-- migrate:down\n\n"


@dataclass(frozen=True)
class Migration:
    """A migration: its file, what the database says of it, or both.

    :ivar version: the digits that the name of the file begins with.
    :ivar name: of the file; the version where that is missing.
    :ivar state: ``applied``, ``pending``, or ``missing`` where it was applied and has no file.
    """

    version: str
    name: str
    state: Literal["applied", "pending", "missing"]


class Migrations:
    """The migrations of one database.

    :param config: leads to it; by its ``direct_settings``, if it has some.
    :param folder: where the SQL files are.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder: Path = folder
        self._config = config

    def __repr__(self) -> str:
        return f"<Migrations {self.folder} of {self._config.target}>"

    def status(self) -> list[Migration]:
        """All migrations in the order of their names."""
        files = files_in(self.folder)
        with self._reached() as server:
            return _compared(files, server.applied())

    def pending(self) -> list[str]:
        """The names of the files that are not applied yet, in their order."""
        return [migration.name for migration in self.status() if migration.state == "pending"]

    def up(self, report: Callable[[str], None] | None = None) -> list[str]:
        """Apply what is pending, and give the names of the files that were applied.

        Blocks while another process migrates, for up to an hour. Each file is a transaction, but
        where it says ``transaction:false``. A statement waits for its locks for 5 seconds, and
        then its file is tried again, 10 times in all.

        :param report: is told of each file as it begins and ends.
        :raises MigrationError: with the server's words, the file and the line.
        """
        files = files_in(self.folder)
        with self._reached() as server:
            compared = _compared(files, server.applied())
            server.prepare_for_changes(self._config)
        pending = [files[m.version] for m in compared if m.state == "pending"]
        applied: list[str] = []
        for is_whole, group in groupby(pending, lambda path: in_transaction(path, "up")):
            applied += self._run("migrate", list(group), is_whole, server, report)
        return applied

    def down(self, report: Callable[[str], None] | None = None) -> list[str]:
        """Roll the last migration back, and give the name of its file; nothing if there is none.

        :raises MigrationError: with the server's words, the file and the line.
        """
        files = files_in(self.folder)
        with self._reached() as server:
            applied = server.applied()
            server.prepare_for_changes(self._config)
        if not applied:
            return []
        last = max(applied)
        if last not in files:
            raise MigrationError(
                f"The last migration is {last}, and {self.folder} has no file of it: it was applied"
                " by another version of the app, which has to roll it back."
            )
        path = files[last]
        return self._run("rollback", [path], in_transaction(path, "down"), server, report)

    def dump(self, target: Path) -> None:
        """Write the schema to *target*, with a ``pg_dump`` that fits the server.

        :raises MigrationError: where there is none, or for what it says.
        """
        with self._reached() as server:
            pass
        program = _pg_dump_for(server.version)
        target.parent.mkdir(parents=True, exist_ok=True)
        command = ["--schema-file", str(target), "dump"]
        with self._started(command, self.folder, server, "", program.parent) as process:
            _follow(process, [], None)
            words = _words_of(process)
        if process.returncode:
            raise MigrationError(words)

    @contextmanager
    def _reached(self) -> Iterator[_Server]:
        """The server that takes writes, until the end of the block."""
        settings = settings_for(self._config)
        options = options_in_use(settings)
        several = "," in options.get("host", "") + options.get("hostaddr", "")
        wanted = {
            "target_session_attrs": "read-write" if several else "any",
            "client_encoding": "UTF8",  # as dbmate's driver does; with SQL_ASCII, text is bytes
        }
        connect: Any = psycopg.connect  # whose options have types of their own, for type checkers
        with connect(**{**settings, **wanted}, autocommit=True) as conn:
            yield _Server(conn, settings)

    def _run(
        self,
        command: str,
        paths: Sequence[Path],
        is_whole: bool,
        server: _Server,
        report: Callable[[str], None] | None,
    ) -> list[str]:
        """Have dbmate run *command* on *paths*.

        :param is_whole: whether each of them is a transaction. Outside of one, ``CREATE INDEX
            CONCURRENTLY`` waits for the transactions of others, and would leave an invalid index.
        """
        lock_timeout = f"{LOCK_TIMEOUT}s" if is_whole else "0"
        done: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            with tempfile.TemporaryDirectory(prefix="flask-pgmonkey-migrations-") as folder:
                for path in paths:
                    Path(folder, path.name).write_bytes(path.read_bytes())
                arguments = ["--migration-lock-timeout", _LONGEST_WAIT_FOR_OTHERS, command]
                with self._started(arguments, Path(folder), server, lock_timeout) as process:
                    begun = _follow(process, done, report)
                    words = _words_of(process)
            if process.returncode == 0:
                return done
            at_hand = next((path for path in paths if path.name == begun), None)
            is_locked_out = is_whole and at_hand is not None and words.endswith(_NOT_GOT)
            if not is_locked_out or attempt == ATTEMPTS:
                raise MigrationError(_what_is_wrong(words, at_hand, command, is_whole))
            if report is not None:
                report(
                    f"Others hold what {begun} needs: it is tried again"
                    f" ({attempt + 1} of {ATTEMPTS})"
                )
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        return done

    @contextmanager
    def _started(
        self,
        arguments: Sequence[str],
        folder: Path,
        server: _Server,
        lock_timeout: str,
        programs: Path | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """dbmate at work on *folder*, until the end of the block, and no longer."""
        with environment_for(server.settings) as (environment, inherited):
            passfile = environment.get("PGPASSFILE")
            # Its driver takes no PG… variable that it does not know, and it has its own.
            environment = {
                name: value
                for name, value in environment.items()
                if not name.startswith(("PG", "DBMATE_"))
            }
            if passfile is not None:
                environment["PGPASSFILE"] = passfile
            # Not in the URL, which dbmate shows to all when it runs pg_dump: they may hold secrets.
            environment["PGOPTIONS"] = server.options(lock_timeout)
            if programs is not None:
                path = environment.get("PATH", os.defpath)
                environment["PATH"] = os.pathsep.join([str(programs), path])
            environment["DATABASE_URL"] = server.url()
            process = subprocess.Popen(
                [
                    *(_find_dbmate(), "--env-file", os.devnull, "--migrations-dir", str(folder)),
                    *("--no-dump-schema", "--migration-lock", *arguments),
                ],
                env=environment,
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            with process:
                try:
                    yield process
                finally:
                    if process.returncode is None:
                        _end(process)


class _Server:
    """The server that was reached, and the way to it."""

    def __init__(self, conn: psycopg.Connection[Any], settings: Mapping[str, str]) -> None:
        self._conn = conn
        self.version: int = conn.info.server_version
        host, port, address = conn.info.host, conn.info.port, conn.info.hostaddr
        is_local = host[:1] in ("/", "@")
        # Of several hosts the one that answered, and of the addresses of a name that one too.
        self.settings: dict[str, str] = {
            **{k: v for k, v in settings.items() if k != "target_session_attrs"},
            **{"host": host, "port": str(port), "hostaddr": "" if is_local else address},
        }
        self._has_tls = conn.pgconn.ssl_in_use
        self._noticing = ""

    def options(self, lock_timeout: str) -> str:
        """The settings of dbmate's sessions.

        :param lock_timeout: how long its statements wait for locks; as the server says without it.
        """
        own = options_in_use(self.settings).get("options", "")
        ours = f" -c lock_timeout={lock_timeout}" if lock_timeout else ""
        return f"{own}{ours}{self._noticing}".strip()

    def url(self) -> str:
        """What dbmate connects by. Its driver knows a part of libpq's keywords."""
        options = options_in_use(self.settings)
        query = {"application_name": "flask pgmonkey migrate"}
        query |= {key: options[key] for key in _OF_DRIVER if key in options}
        # Otherwise what is compiled in, which ours leave out.
        sslmode = options.get("sslmode", "prefer")
        if sslmode in ("prefer", "allow"):
            sslmode = "require" if self._has_tls else "disable"
        query["sslmode"] = sslmode
        query |= {"host": self.settings["host"], "port": self.settings["port"]}
        if self.settings["hostaddr"]:
            query["hostaddr"] = self.settings["hostaddr"]
        user, name = quote(options["user"], safe=""), quote(options["dbname"], safe="")
        return f"postgresql://{user}@/{name}?{urlencode(query, quote_via=quote)}"

    def _how_it_notices_our_end(self) -> str:
        """What keeps a statement from going on, with its locks, whose dbmate was killed.

        From PostgreSQL 14 on, where the server's system can tell.
        """
        setting = "client_connection_check_interval"
        try:
            self._conn.execute(sql.SQL("SET {} TO '1s'").format(sql.Identifier(setting)))
        except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue):
            return ""
        return f" -c {setting}=1s"

    def applied(self) -> list[str]:
        """The versions that this database has."""
        found = self._conn.execute(
            "SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
            " ON n.oid = c.relnamespace"
            " WHERE c.relname = %s AND n.nspname = coalesce(current_schema(), 'public')",
            [_TABLE],
        ).fetchone()
        if found is None:
            return []
        table = sql.Identifier(found[0], _TABLE)
        rows = self._conn.execute(sql.SQL("SELECT version FROM {}").format(table)).fetchall()
        return [version for (version,) in rows]

    def prepare_for_changes(self, config: Config) -> None:
        """Refuse a pooler, behind which dbmate's lock would be anybody's, and see what the server
        can do for us.

        :raises MigrationError: where another process answers than the one that let us in.
        """
        row = self._conn.execute("SELECT pg_backend_pid()").fetchone()
        if row is not None and row[0] != self._conn.info.backend_pid:
            raise MigrationError(
                f"Between here and {config.direct().target} stands a pooler such as PgBouncer,"
                " through which no migration can hold its lock: name the server itself in"
                " direct_settings."
            )
        self._noticing = self._how_it_notices_our_end()


def pending(db: BoundDatabase[Any]) -> list[str]:
    """The names of the migrations that the database does not have yet, in their order.

    For a look at start-up, in an app context. Needs no dbmate.

    :param db: the app's :class:`~flask_pgmonkey.PGMonkey`, or ``db.bind(name)``.
    :raises MigrationError: where the app has no folder with migrations.
    """
    return migrations_of(db).pending()


def upgrade(db: BoundDatabase[Any]) -> list[str]:
    """Apply what is pending, as ``flask pgmonkey migrate`` does, and give the names of the files.

    For tests and start-up, in an app context, whose connection goes back. The types that the app
    names are looked for again where something was applied.

    :param db: the app's :class:`~flask_pgmonkey.PGMonkey`, or ``db.bind(name)``.
    :raises MigrationError: with the server's words, the file and the line.
    :raises psycopg.ProgrammingError: within a transaction, to which migrations do not belong.
    """
    db.release()
    applied = migrations_of(db).up()
    if applied:
        db.refresh_types()
    return applied


def migrations_of(db: BoundDatabase[Any]) -> Migrations:
    """The migrations of a database of the current app, as ``PGMONKEY_MIGRATIONS`` names them."""
    return Migrations(db._db.get_config(db.name), folder_of(db))


def folder_of(db: BoundDatabase[Any]) -> Path:
    """The folder with the migrations of a database of the current app.

    :raises ConfigError: where ``PGMONKEY_MIGRATIONS`` names none for it.
    """
    app = current_app()
    key = "PGMONKEY_MIGRATIONS"
    folders = app.config.get(key) or "migrations"
    if not isinstance(folders, Mapping):
        folders = {DEFAULT: folders}
    folder = folders.get(db.name)
    if folder is None:
        raise ConfigError(
            f"{key} names no folder for the bind {db.name!r}: set it to a mapping, such as"
            f" {{'{DEFAULT}': 'migrations', '{db.name}': 'migrations_{db.name}'}}."
        )
    if not isinstance(folder, (str, os.PathLike)):
        raise ConfigError(f"{key} must be a path or a mapping of binds to paths.")
    return Path(app.root_path, folder)


def new_migration(folder: Path, name: str) -> Path:
    """Make an empty file for the next migration, and its folder if need be."""
    words = re.sub(r"\s+", "_", name.strip())
    if not re.fullmatch(r"\w[\w-]*", words):
        raise MigrationError(
            "The name of a migration is of letters, digits, - and _, such as add_orders."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(timezone.utc):%Y%m%d%H%M%S}_{words}.sql"
    with path.open("x", encoding="utf-8") as file:
        file.write(_TEMPLATE)
    return path


def files_in(folder: Path) -> dict[str, Path]:
    """The SQL files of migrations by version, in their order.

    :raises MigrationError: where there is no folder, or two files have the same version.
    """
    if not folder.is_dir():
        raise MigrationError(
            f"There is no folder {folder} with migrations:"
            " 'flask pgmonkey migrate new NAME' makes it, with the first file."
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        other = files.setdefault(match[1], path)
        if other is not path:
            raise MigrationError(
                f"{other} and {path.name} have the same version, and only the first would be"
                " applied: give one of them another."
            )
    return files


def _compared(files: Mapping[str, Path], applied: Sequence[str]) -> list[Migration]:
    found = [
        Migration(version, path.name, "applied" if version in applied else "pending")
        for version, path in files.items()
    ]
    found += [Migration(version, version, "missing") for version in set(applied) - files.keys()]
    return sorted(found, key=lambda migration: migration.name)


def in_transaction(path: Path, block: str) -> bool:
    """Whether the block ``up`` or ``down`` of a migration is a transaction."""
    match = _begin_of(block, _text_of(path))
    return match is None or "transaction:false" not in match[1].split()


def up_block(path: Path) -> str:
    """What a migration does, from the first line of its file on."""
    text = _text_of(path)
    down = _begin_of("down", text)
    return text[: down.start()] if down is not None else text


def note_applied(files: Sequence[Path], schema: str, conn: psycopg.Connection[Any]) -> None:
    """Note which migrations are among *files* that something else has run, as dbmate does."""
    versions = [
        match[1]
        for file in files
        if (match := _FILE.fullmatch(file.name)) and _begin_of("up", _text_of(file))
    ]
    if not versions:
        return
    create = "CREATE TABLE IF NOT EXISTS {} (version varchar PRIMARY KEY)"
    note = "INSERT INTO {} SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
    table = sql.Identifier(schema, _TABLE)
    with conn.transaction():
        conn.execute(sql.SQL(create).format(table))
        conn.execute(sql.SQL(note).format(table), [versions])


def find_tool(name: str) -> str | None:
    """A program that a package from PyPI brings, or one on the PATH."""
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    return which(name, path=os.pathsep.join(folders))


def _begin_of(block: str, text: str) -> re.Match[str] | None:
    return re.search(rf"^--\s*migrate:{block}\b(.*)$", text, re.MULTILINE)


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _find_dbmate() -> str:
    program = find_tool("dbmate")
    if program is None:
        raise MigrationError(
            'Migrations need the program dbmate: pip install "flask-pgmonkey[migrations]"'
        )
    return program


def _follow(
    process: subprocess.Popen[bytes], done: list[str], report: Callable[[str], None] | None
) -> str:
    """Add to *done* what dbmate has done, to the end, and give the file that it was at then."""
    begun = ""
    lines: IO[bytes] | list[bytes] = process.stdout or []
    for raw in lines:
        line = raw.decode(errors="replace").rstrip()
        if ended := _ENDED.fullmatch(line):
            done.append(ended[1])
            begun = ""
        elif match := _BEGUN.fullmatch(line):
            begun = match[1]
        if report is not None and line:
            report(line)
    process.wait()
    return begun


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()


def _words_of(process: subprocess.Popen[bytes]) -> str:
    """What dbmate said went wrong, in one line."""
    errors = process.stderr.read() if process.stderr is not None else b""
    words = errors.decode(errors="replace").strip().removeprefix("Error: ")
    return one_line(words or f"dbmate ended with exit code {process.returncode}")


def _what_is_wrong(words: str, path: Path | None, command: str, is_whole: bool) -> str:
    """The sentences for what dbmate said while it was at the file *path*."""
    if path is None:
        return f"dbmate: {words}"
    place = str(path)
    problem = words
    if line := _LINE.match(words):
        # dbmate counts from the line that begins the block.
        block = "up" if command == "migrate" else "down"
        text = _text_of(path)
        start = _begin_of(block, text)
        before = text.count("\n", 0, start.start()) if start is not None else 0
        place += f", line {before + int(line[1])}"
        problem = words[line.end() :]
    problem = _POSITION.sub("", problem.removeprefix("pq: "))
    if not is_whole:
        return (
            f"{place}: {problem}. It says transaction:false, so that a part of it may be done:"
            " see what is there before you run it again."
        )
    if words.endswith(_NOT_GOT):
        problem += f". It was tried {ATTEMPTS} times, with {LOCK_TIMEOUT} s for each lock"
    return f"{place}: {problem}. Nothing of this file was done; what came before it stays."


def _pg_dump_for(server_version: int) -> Path:
    """A ``pg_dump`` that is as new as the server, or newer.

    :raises MigrationError: where there is none.
    """
    wanted = server_version // 10000
    found = []
    for program in (which("pg_dump"), find_program("pg_dump")):
        if program is not None:
            found.append((_major_version(program), Path(program)))
    fitting = [(version, path) for version, path in found if version >= wanted]
    if fitting:
        # As near to the server as there is; of equals that on the PATH.
        return min(fitting, key=lambda each: each[0])[1]
    here = f"here is only that of {max(found)[0]}" if found else "there is none here"
    raise MigrationError(
        f"A dump of PostgreSQL {wanted} needs the pg_dump of that version, and {here}: install"
        f" postgresql-client-{wanted} (Debian, Ubuntu) or its like."
    )


def _major_version(program: str) -> int:
    shown = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"\) (\d+)", shown)
    return int(match[1]) if match else 0
