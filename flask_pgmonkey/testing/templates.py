"""What fills a database, and the template that is made with it once and kept between runs."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Union

import click
import psycopg
from psycopg.rows import scalar_row

from ..errors import FreshDatabaseError
from ..migrations import in_transaction, note_applied, up_block

Schema = Union[Callable[[], Any], str, "os.PathLike[str]"]
"""A function to be called in an app context, or the path of a SQL file or of a folder of them."""

_PASSED_OVER = {"__pycache__", "node_modules", "static", "venv", "instance", "site-packages"}
_LARGEST_READ = 1 << 20


def resolve(schema: Schema | None, project: Path) -> Schema | None:
    """What a project means by *schema*: a relative path from its folder, wherever the tests are
    called, and of a command of the app's the function."""
    if isinstance(schema, click.Command) and schema.callback is not None:
        # Without what finds the app of the command line.
        function: Callable[..., Any] = inspect.unwrap(schema.callback)
        return function
    return schema if schema is None or callable(schema) else project / schema


def fingerprint(schema: Schema | None) -> str:
    """A digest of what makes the template: it changes when that does.

    Of a function it is every file of the package that it is from, because it may read any; of a
    module outside of packages, the files of its folder. Large files count by size and time.
    """
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for name, content in _sources(schema):
        digest.update(b"%s\0%d\0" % (os.fsencode(name), len(content)))
        digest.update(content)
    return digest.hexdigest()


def _sources(schema: Schema | None) -> Iterator[tuple[str, bytes]]:
    if schema is None:
        return
    if not callable(schema):
        for file in sql_files(schema):
            yield file.name, file.read_bytes()
        return
    function = inspect.unwrap(schema)
    function = getattr(function, "func", function)  # of a partial
    yield repr(getattr(schema, "args", "")) + repr(getattr(schema, "keywords", "")), b""
    yield getattr(function, "__qualname__", type(function).__qualname__), b""
    code = getattr(function, "__code__", None)
    if code is None:
        yield repr(os.urandom(16)), b""  # nobody knows where it comes from: never the same
        return
    home = Path(code.co_filename).resolve().parent
    is_package = (home / "__init__.py").exists()
    while (home.parent / "__init__.py").exists():
        home = home.parent
    for folder, folders, names in os.walk(home):
        folders[:] = sorted(
            name
            for name in folders
            if is_package and name not in _PASSED_OVER and not name.startswith(".")
        )
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                status = file.stat()
                is_large = status.st_size > _LARGEST_READ
                content = b"%d" % status.st_mtime_ns if is_large else file.read_bytes()
                yield str(file.relative_to(home)), content


def sql_files(path: str | os.PathLike[str]) -> list[Path]:
    """The SQL file, or those of a folder in the order of their names.

    :raises FreshDatabaseError: where there is none.
    """
    place = Path(path)
    files = sorted(place.glob("*.sql")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise FreshDatabaseError(
            f"pgmonkey_schema gives the path {place}, where there is no SQL file: give a function,"
            " the path of a file, or that of a folder with files that end with .sql."
        )
    return files


def run_sql_files(path: str | os.PathLike[str], conn: psycopg.Connection[Any]) -> None:
    """Run them, each in a transaction, and of a migration the part under ``-- migrate:up``.

    Migrations are noted as applied, so that an app finds none pending.

    :raises FreshDatabaseError: with the file that the server refuses, and its words.
    """
    files = sql_files(path)
    look = conn.cursor(row_factory=scalar_row)
    # Now: what pg_dump writes leaves the session without a search_path.
    schema: str = look.execute("SELECT coalesce(current_schema(), 'public')").fetchall()[0]
    for file in files:
        script = up_block(file).encode()
        try:
            with conn.transaction() if in_transaction(file, "up") else nullcontext():
                conn.execute(script, prepare=False)
        except psycopg.Error as error:
            raise FreshDatabaseError(f"{file}: {str(error).strip()}") from error
    note_applied(files, schema, conn)
