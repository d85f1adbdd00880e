"""What people write by mistake is an error at the call that says what to write instead."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from flask import Flask
from psycopg.adapt import Dumper
from psycopg.rows import dict_row, namedtuple_row

from flask_pgmonkey import AsyncDatabase, Database, PGConnectionManager, PGMonkey
from flask_pgmonkey.errors import RowMismatchError


@dataclasses.dataclass
class Point:
    x: int
    y: int


class RowMaker:
    """A class that is a row factory, as psycopg's documentation has it."""

    def __init__(self, cursor: Any) -> None:
        pass

    def __call__(self, values: Any) -> list[Any]:
        return list(values)


async def anyhow(outcome: Any) -> Any:
    """What a sync or an async method gives."""
    return await outcome if inspect.isawaitable(outcome) else outcome


@asynccontextmanager
async def anyhow_entered(block: Any) -> AsyncIterator[Any]:
    """A sync or an async block."""
    if hasattr(block, "__aenter__"):
        async with block as given:
            yield given
    else:
        with block as given:
            yield given


Everywhere = Callable[[Callable[[Any], Any]], None]


@pytest.fixture
def everywhere(database: dict[str, Any]) -> Everywhere:
    """A function that runs a check with each object that has the queries."""
    config = {"connection_settings": database}

    def run(check: Callable[[Any], Any]) -> None:
        app = Flask("tests")
        db = PGMonkey(app, config=config)
        with app.app_context():
            asyncio.run(anyhow(check(db)))
            with db.transaction() as tx:
                asyncio.run(anyhow(check(tx)))
            asyncio.run(anyhow(check(db.aio)))
            asyncio.run(in_transaction_of(db.aio, check))
            asyncio.run(db.aio.disconnect())
            db.clear_cache()
        database = Database(config)
        asyncio.run(anyhow(check(database)))
        database.close()
        asyncio.run(with_async_database(check))

    async def with_async_database(check: Callable[[Any], Any]) -> None:
        async_database = AsyncDatabase(config)
        await anyhow(check(async_database))
        await in_transaction_of(async_database, check)
        await async_database.disconnect()

    async def in_transaction_of(db: Any, check: Callable[[Any], Any]) -> None:
        async with db.transaction() as tx:
            await anyhow(check(tx))

    return run


# Row factories


@pytest.mark.parametrize(
    ("row_factory", "remedy"),
    [
        (dict, "psycopg.rows.dict_row"),
        (tuple, "psycopg.rows.tuple_row"),
        (list, "psycopg.rows.tuple_row, and list(row)"),
        (Point, "into=Point"),
        ("dict", "such as dict_row"),
    ],
)
def test_what_is_no_row_factory_names_what_serves(
    everywhere: Everywhere, row_factory: Any, remedy: str
) -> None:
    async def check(db: Any) -> None:
        for fetch in (db.fetch_one, db.fetch_all, db.fetch_value, db.fetch_exactly_one):
            with pytest.raises(TypeError) as caught:
                await anyhow(fetch("SELECT 1 AS x, 2 AS y", row_factory=row_factory))
            assert remedy in str(caught.value)
        if isinstance(db, PGMonkey):
            with pytest.raises(TypeError, match="makes no rows"):
                db.stream("SELECT 1", row_factory=row_factory)
        assert await anyhow(db.fetch_one("SELECT 1 AS x", row_factory=dict_row)) == {"x": 1}
        assert await anyhow(db.fetch_one("SELECT 1, 2", row_factory=RowMaker)) == [1, 2]
        assert await anyhow(db.fetch_one("SELECT 1 x, 2 y", into=Point)) == Point(1, 2)

    everywhere(check)
    makers: list[Any] = [PGMonkey, PGConnectionManager, Database, AsyncDatabase]
    for make in makers:
        config = [{"connection_settings": {"host": "nowhere"}}] * (make in makers[2:])
        with pytest.raises(TypeError, match="makes no rows"):
            make(*config, row_factory=row_factory)
        make(*config, row_factory=namedtuple_row)


def test_a_row_factory_given_as_class_says_where_it_belongs(everywhere: Everywhere) -> None:
    async def check(db: Any) -> None:
        for fetch in (db.fetch_one, db.fetch_all, db.fetch_value, db.fetch_exactly_one):
            with pytest.raises(TypeError, match=r"into=dict_row is no class.* is a row_factory="):
                await anyhow(fetch("SELECT 1 AS x, 2 AS y", into=dict_row))

    everywhere(check)


@pytest.mark.parametrize(
    ("into", "remedy"), [(dict, "psycopg.rows.dict_row"), (tuple, "psycopg.rows.tuple_row")]
)
def test_a_class_without_fields_names_its_row_factory(
    everywhere: Everywhere, into: Any, remedy: str
) -> None:
    async def check(db: Any) -> None:
        with pytest.raises(RowMismatchError) as caught:
            await anyhow(db.fetch_all("SELECT 1 AS x, 2 AS y", into=into))
        assert f"write row_factory={remedy}" in str(caught.value)

    everywhere(check)


# Parameters


@pytest.mark.parametrize(
    ("params", "remedy"),
    [
        (5, "write [value], or (value,)"),
        (0, "write [value], or (value,)"),
        ("secret", "write [value], or (value,)"),
        ("", "write [value], or (value,)"),
        (b"secret", "write [value], or (value,)"),
        ({5}, "write a list"),
        (frozenset([5]), "write a list"),
        ({5: 6}.values(), "write [value]"),
    ],
)
def test_what_are_no_parameters_says_how_to_write_them(
    everywhere: Everywhere, params: Any, remedy: str
) -> None:
    async def check(db: Any) -> None:
        for query in (db.fetch_one, db.fetch_all, db.fetch_value, db.execute):
            with pytest.raises(TypeError) as caught:
                await anyhow(query("SELECT %s", params))
            assert remedy in str(caught.value)
            assert "secret" not in str(caught.value)
        with pytest.raises(TypeError) as caught:
            await anyhow(db.execute_many("SELECT %s", [[5], params]))
        assert remedy in str(caught.value)
        if isinstance(db, PGMonkey):
            with pytest.raises(TypeError) as caught:
                db.stream("SELECT %s", params)
            assert remedy in str(caught.value)
        for right in ([5], (5,), range(5, 6)):
            assert await anyhow(db.fetch_value("SELECT %s", right)) == 5

    everywhere(check)


def test_a_generator_of_parameters_says_how_to_write_it(everywhere: Everywhere) -> None:
    async def check(db: Any) -> None:
        with pytest.raises(TypeError, match=r"write list\(…\) around it"):
            await anyhow(db.fetch_value("SELECT %s", (n for n in [5])))

    everywhere(check)


def test_a_type_error_of_a_dumper_stays_its_own(everywhere: Everywhere) -> None:
    class Odd:
        pass

    class Careless(Dumper):
        def dump(self, obj: Any) -> bytes:
            raise TypeError("careless")

    async def check(db: Any) -> None:
        psycopg.adapters.register_dumper(Odd, Careless)
        with pytest.raises(TypeError, match="careless"):
            await anyhow(db.fetch_value("SELECT %s", [Odd()]))

    everywhere(check)


# Isolation levels


@pytest.mark.parametrize(
    "words", ["serializable", "SERIALIZABLE", " Serializable ", psycopg.IsolationLevel.SERIALIZABLE]
)
def test_an_isolation_level_can_be_given_in_words(everywhere: Everywhere, words: Any) -> None:
    async def check(db: Any) -> None:
        if "ransaction" in type(db).__name__:
            return  # which is open already, with a level of its own
        async with anyhow_entered(db.transaction(words)) as tx:
            assert await anyhow(tx.fetch_value("SHOW transaction_isolation")) == "serializable"

    everywhere(check)


@pytest.mark.parametrize("words", ["repeatable read", "REPEATABLE_READ", "Repeatable-Read"])
def test_an_isolation_level_of_two_words_can_be_written_any_way(
    database: dict[str, Any], words: str
) -> None:
    db = Database({"connection_settings": database})
    with db.transaction(words) as tx:
        assert tx.fetch_value("SHOW transaction_isolation") == "repeatable read"
    db.close()


def test_an_unknown_isolation_level_is_an_error_that_names_them(everywhere: Everywhere) -> None:
    async def check(db: Any) -> None:
        if "ransaction" in type(db).__name__:
            return
        with pytest.raises(ValueError, match="'serialisable'") as caught:
            await anyhow_entered(db.transaction("serialisable")).__aenter__()
        for level in ("read uncommitted", "read committed", "repeatable read", "serializable"):
            assert f"'{level}'" in str(caught.value)

    everywhere(check)


# Names


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("session", "db.execute("),
        ("engine", "db.fetch_all("),
        ("commit", "with db.transaction():"),
        ("rollback", "with db.transaction():"),
        ("begin", "with db.transaction():"),
        ("Model", "into="),
        ("create_all", "CREATE TABLE"),
        ("fetchall", "db.fetch_all("),
        ("executemany", "db.execute_many("),
    ],
)
def test_a_name_of_others_says_what_serves_here(
    everywhere: Everywhere, name: str, remedy: str
) -> None:
    def check(db: Any) -> None:
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as caught:
            getattr(db, name)
        assert remedy in str(caught.value)
        assert not hasattr(db, name)
        assert getattr(db, name, None) is None

    everywhere(check)


def test_a_cursor_is_missed_only_where_there_is_none(database: dict[str, Any]) -> None:
    db = Database({"connection_settings": database})
    with pytest.raises(AttributeError, match="queries need none"):
        db.cursor  # type: ignore[attr-defined]  # noqa: B018
    with db.transaction() as tx:
        assert tx.cursor().execute("SELECT 1").fetchone() == (1,)
    db.close()


def test_a_subclass_may_have_such_a_name(database: dict[str, Any]) -> None:
    class Own(Database[Any]):
        session = "mine"

    db = Own({"connection_settings": database})
    assert db.session == "mine"
    db.commit = 1  # type: ignore[attr-defined]
    assert db.commit == 1  # type: ignore[attr-defined]
