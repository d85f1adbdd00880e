"""``into=``: rows and values of the user's own classes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import psycopg
import pydantic
import pytest
from psycopg.rows import dict_row

from flask_pgmonkey import AsyncDatabase, Database
from flask_pgmonkey.errors import NoRowError, RowMismatchError, SeveralRowsError

PEOPLE = "SELECT id, name FROM (VALUES (1, 'Ada'), (2, 'Grace')) AS people (id, name) ORDER BY id"
BY_NAME = "SELECT name, id FROM (VALUES (1, 'Ada'), (2, 'Grace')) AS people (id, name) ORDER BY id"


@dataclass
class OfDataclass:
    id: int
    name: str
    note: str = ""


class OfNamedTuple(NamedTuple):
    id: int
    name: str


class OfMsgspec(msgspec.Struct):
    id: int
    name: str


class OfPydantic(pydantic.BaseModel):
    id: int
    name: str


@attrs.define
class OfAttrs:
    id: int
    name: str


class Plain:
    def __init__(self, id: int, *, name: str) -> None:
        self.id, self.name = id, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and vars(self) == vars(other)


class Colour(Enum):
    RED = "red"


class Email(str):
    __slots__ = ()


CLASSES: list[Any] = [OfDataclass, OfNamedTuple, OfMsgspec, OfPydantic, OfAttrs, Plain]


@pytest.fixture
def db(database: dict[str, Any]) -> Iterator[Database]:
    db = Database({"connection_settings": database})
    yield db
    db.close()


@pytest.mark.parametrize("into", CLASSES)
@pytest.mark.parametrize("query", [PEOPLE, BY_NAME])
def test_rows_become_objects_by_position_or_by_name(db: Database, into: Any, query: str) -> None:
    ada, grace = into(id=1, name="Ada"), into(id=2, name="Grace")
    assert db.fetch_all(query, into=into) == [ada, grace]
    assert db.fetch_one(query, into=into) == ada
    assert db.fetch_exactly_one(f"{query} LIMIT 1", into=into) == ada
    with db.transaction() as tx:
        assert tx.fetch_all(query, into=into) == [ada, grace]


@pytest.mark.parametrize("into", CLASSES)
def test_no_row_is_none_or_an_empty_list_and_the_columns_are_checked(
    db: Database, into: Any
) -> None:
    nobody = f"SELECT * FROM ({PEOPLE}) AS people WHERE id > 2"
    assert db.fetch_all(nobody, into=into) == []
    assert db.fetch_one(nobody, into=into) is None
    with pytest.raises(RowMismatchError):
        db.fetch_all("SELECT 1 AS id, 2 AS other WHERE false", into=into)


@pytest.mark.parametrize("into", CLASSES)
@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ("1 AS id", "no column for 'name'"),
        ("1 AS id, 'Ada' AS name, 2 AS size", "'size' is none of its parameters"),
        ("1 AS id, 2 AS id, 'Ada' AS name", "column 'id' stands there twice"),
        ("1 AS ids, 'Ada' AS name", r"no column for 'id'; 'ids' is none of its parameters"),
    ],
)
def test_an_error_names_the_columns_and_the_class(
    db: Database, into: Any, columns: str, problem: str
) -> None:
    with pytest.raises(RowMismatchError, match=problem) as raised:
        db.fetch_all(f"SELECT {columns}", into=into)
    assert into.__name__ in str(raised.value)
    assert db.fetch_value("SELECT 1") == 1


def test_the_remedy_that_an_error_names_helps(db: Database) -> None:
    with pytest.raises(RowMismatchError, match="with AS where need be"):
        db.fetch_one("SELECT 1 AS number, 'Ada' AS name", into=OfDataclass)
    found = db.fetch_one("SELECT 1 AS \"id\", 'Ada' AS name", into=OfDataclass)
    assert found == OfDataclass(1, "Ada")


def test_fields_that_init_does_not_take_need_no_column(db: Database) -> None:
    @dataclass
    class Counted:
        id: int
        seen: int = field(init=False, default=0)

    assert db.fetch_all("SELECT 1 AS id", into=Counted) == [Counted(1)]
    with pytest.raises(RowMismatchError, match="'seen' is none of its parameters"):
        db.fetch_all("SELECT 1 AS id, 2 AS seen", into=Counted)


def test_a_class_that_takes_any_name_gets_all_columns(db: Database) -> None:
    class Anything:
        def __init__(self, **columns: Any) -> None:
            self.columns = columns

    assert db.fetch_exactly_one(PEOPLE + " LIMIT 1", into=Anything).columns == {
        "id": 1,
        "name": "Ada",
    }


def test_a_type_without_fields_takes_the_one_column(db: Database) -> None:
    assert db.fetch_all("SELECT generate_series(1, 3)", into=int) == [1, 2, 3]
    assert db.fetch_all("SELECT 'red'", into=Colour) == [Colour.RED]
    assert db.fetch_all("SELECT 'a@b.example'", into=Email) == ["a@b.example"]
    assert db.fetch_one("SELECT 1.5", into=float) == 1.5
    with pytest.raises(RowMismatchError, match=r"int has no fields.*the result has 2: id, name"):
        db.fetch_all(PEOPLE, into=int)
    with pytest.raises(RowMismatchError, match="column 'n' is NULL, which is no int"):
        db.fetch_all("SELECT NULL::int AS n", into=int)


def test_a_value_is_of_the_type_asked_for(db: Database) -> None:
    assert db.fetch_value("SELECT count(*) FROM pg_class", into=int) > 0  # type: ignore[operator]
    assert type(db.fetch_value("SELECT 1.50", into=float)) is float
    assert db.fetch_value("SELECT 1.50", into=Decimal) == Decimal("1.50")
    key = "6f2cbf3e-3a38-4c7e-9d4f-0b0a4f4a9f11"
    assert db.fetch_value("SELECT %s::text", [key], into=UUID) == UUID(key)
    assert db.fetch_value("SELECT max(n) FROM generate_series(1, 0) AS n", into=int) is None
    assert db.fetch_value("SELECT 1 WHERE false", into=int) is None


def test_a_value_that_does_not_fit_is_not_shown(db: Database) -> None:
    with pytest.raises(RowMismatchError, match="a value of type str does not fit int") as raised:
        db.fetch_value("SELECT 'hunter2'", into=int)
    assert "hunter2" not in str(raised.value)


def test_into_and_row_factory_exclude_each_other(db: Database) -> None:
    untyped: Any = db
    for fetch in (untyped.fetch_all, untyped.fetch_one, untyped.fetch_value):
        with pytest.raises(TypeError, match="give either row_factory or into"):
            fetch(PEOPLE, into=OfDataclass, row_factory=dict_row)


def test_the_databases_own_row_factory_does_not_matter(database: dict[str, Any]) -> None:
    db = Database({"connection_settings": database}, row_factory=dict_row)
    assert db.fetch_all(PEOPLE, into=OfNamedTuple)[0] == OfNamedTuple(1, "Ada")
    db.close()


def test_what_an_insert_returned_is_durable_when_its_rows_do_not_fit(db: Database) -> None:
    db.execute("CREATE TABLE items (n int)")
    with pytest.raises(RowMismatchError):
        db.fetch_one("INSERT INTO items VALUES (1) RETURNING n", into=OfDataclass)
    assert db.fetch_all("SELECT n FROM items") == [(1,)]


def test_rows_that_do_not_fit_leave_a_pipeline_usable(db: Database) -> None:
    with db.transaction() as tx, tx.connection.pipeline():
        with pytest.raises(RowMismatchError):
            tx.fetch_all(PEOPLE, into=OfTooMuch)
        assert tx.fetch_value("SELECT 2") == 2


@dataclass
class OfTooMuch:
    id: int
    name: str
    size: int


def test_exactly_one_row_is_wanted(db: Database) -> None:
    assert db.fetch_exactly_one("SELECT 1, 2") == (1, 2)
    with pytest.raises(NoRowError, match="gave no row"):
        db.fetch_exactly_one("SELECT 1 WHERE false")
    with pytest.raises(SeveralRowsError, match="gave 3 rows"):
        db.fetch_exactly_one("SELECT generate_series(1, 3)")
    assert issubclass(NoRowError, psycopg.Error)
    assert issubclass(SeveralRowsError, psycopg.Error)
    with pytest.raises(psycopg.ProgrammingError, match="didn't produce records"):
        db.fetch_exactly_one("CREATE TABLE nothing ()")


def test_async_databases_give_the_same(database: dict[str, Any]) -> None:
    async def ask() -> None:
        db = AsyncDatabase({"connection_settings": database})
        try:
            assert await db.fetch_all(BY_NAME, into=OfDataclass) == [
                OfDataclass(1, "Ada"),
                OfDataclass(2, "Grace"),
            ]
            assert await db.fetch_one(PEOPLE, into=OfNamedTuple) == (1, "Ada")
            assert await db.fetch_value("SELECT 1.5", into=float) == 1.5
            assert await db.fetch_exactly_one("SELECT 7", into=int) == 7
            with pytest.raises(NoRowError):
                await db.fetch_exactly_one("SELECT 1 WHERE false")
            with pytest.raises(RowMismatchError):
                await db.fetch_all(PEOPLE, into=int)
            async with db.transaction() as tx:
                assert await tx.fetch_all(PEOPLE, into=OfMsgspec) == [
                    OfMsgspec(1, "Ada"),
                    OfMsgspec(2, "Grace"),
                ]
        finally:
            await db.disconnect()

    asyncio.run(ask())
