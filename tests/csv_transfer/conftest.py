from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def connection(database: dict[str, Any]) -> Iterator[Connection]:
    """To an empty database, outside autocommit, as the command line connects."""
    with psycopg.connect(**database) as connection:
        yield connection


@pytest.fixture
def items(connection: Connection) -> Connection:
    """The connection, and a table ``items`` with one row."""
    connection.execute(
        "CREATE TABLE items (id integer PRIMARY KEY, name text NOT NULL DEFAULT 'unnamed',"
        " price numeric CHECK (price >= 0))"
    )
    connection.execute("INSERT INTO items VALUES (0, 'old', 1)")
    connection.commit()
    return connection


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes ``items.csv``."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "items.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def rows_of(database: dict[str, Any]) -> Callable[[str], list[tuple[Any, ...]]]:
    """The rows of a table, in the order of its first column, as another session sees them."""

    def read(table: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(**database) as other:
            return other.execute(f"SELECT * FROM {table} ORDER BY 1".encode()).fetchall()

    return read
