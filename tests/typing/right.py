"""What type checkers say of rows: read by mypy and pyright, never run."""

# pyright: strict

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from flask import Flask, Response, request
from psycopg.rows import AsyncRowFactory, RowFactory, class_row, dict_row, scalar_row
from typing_extensions import assert_type

from flask_pgmonkey import AsyncDatabase, Database, PGConnectionManager, PGMonkey
from flask_pgmonkey.batches import Batch, BatchResult
from flask_pgmonkey.batches_async import AsyncBatch
from flask_pgmonkey.connections import (
    AsyncNormalConnection,
    AsyncPoolConnection,
    NormalConnection,
    PoolConnection,
)
from flask_pgmonkey.plans import Plan
from flask_pgmonkey.queries import Transaction
from flask_pgmonkey.queries_async import AsyncQueries
from flask_pgmonkey.streaming import RowStream

T = TypeVar("T")

Q = "SELECT 1"


@dataclass
class User:
    id: int


tuples = PGMonkey()
dicts = PGMonkey(row_factory=dict_row)
users = PGMonkey(Flask(__name__), config="embedded", row_factory=class_row(User))

assert_type(tuples, PGMonkey[tuple[Any, ...]])
assert_type(dicts, PGMonkey[dict[str, Any]])
assert_type(users, PGMonkey[User])

# The database's own rows
assert_type(tuples.fetch_one(Q), "tuple[Any, ...] | None")
assert_type(tuples.fetch_all(Q), list[tuple[Any, ...]])
assert_type(dicts.fetch_one(Q), "dict[str, Any] | None")
assert_type(dicts.fetch_exactly_one(Q), dict[str, Any])
assert_type(dicts.fetch_one_or_404(Q, description="gone"), dict[str, Any])
assert_type(users.fetch_all(Q, [1]), list[User])
assert_type(users.stream(Q), RowStream[User])
assert_type(users.bind("reports").fetch_one(Q), "User | None")
assert_type(users.connection, psycopg.Connection[User])
assert_type(users.fetch_json(Q), bytes)
assert_type(users.json_response(Q, [1]), Response)
assert_type(users.bind("reports").stream_json(Q, lines=True), Response)
assert_type(users.csv_response(Q, filename="users.csv"), Response)
assert_type(users.copy_from("users", request.stream, columns={"Name": "name", "Age": None}), int)
for streamed in users.stream(Q):
    assert_type(streamed, User)
with users.transaction() as tx:
    assert_type(tx.fetch_one(Q), "User | None")
    assert_type(tx.explain(Q), Plan)
    with tx.transaction() as nested:
        assert_type(nested.fetch_exactly_one(Q), User)


# Transactions that are run again
def rename(tx: Transaction[User], user_id: int, name: str = "") -> User | None:
    return tx.fetch_one(Q, [user_id, name])


assert_type(users.run_transaction(rename, 1, "Ada", isolation_level="serializable"), "User | None")
assert_type(users.bind("reports").run_transaction(lambda tx: tx.execute(Q), retries=5), int)
assert_type(Database("db.yaml").run_transaction(lambda tx: tx.fetch_all(Q, into=User)), list[User])


async def count(tx: AsyncQueries[Any], table: str) -> int:
    return await tx.execute(Q, [table])


async def run_async() -> None:
    assert_type(await AsyncDatabase("db.yaml").run_transaction(count, "users"), int)
    assert_type(await users.aio.run_transaction(count, "users"), int)


# Other rows
assert_type(tuples.fetch_all(Q, row_factory=class_row(User)), list[User])
assert_type(tuples.fetch_one(Q, row_factory=dict_row), "dict[str, Any] | None")
assert_type(tuples.fetch_value(Q, row_factory=scalar_row), "Any | None")
assert_type(tuples.stream(Q, row_factory=class_row(User)), RowStream[User])
assert_type(tuples.fetch_all(Q, into=User), list[User])
assert_type(tuples.fetch_one(Q, into=User), "User | None")
assert_type(tuples.fetch_exactly_one(Q, into=User), User)
assert_type(tuples.fetch_one_or_404(Q, into=User), User)
assert_type(tuples.fetch_value(Q, into=int), "int | None")
assert_type(tuples.stream(Q, into=User), RowStream[User])

# Batches
with users.batch() as b:
    assert_type(b, Batch[User])
    assert_type(b.fetch_all(Q), BatchResult[list[User]])
    assert_type(b.fetch_one(Q).result(), "User | None")
    assert_type(b.fetch_exactly_one(Q).result(), User)
    assert_type(b.fetch_value(Q).result(), Any)
    assert_type(b.fetch_value(Q, into=int).result(), "int | None")
    assert_type(b.fetch_all(Q, row_factory=dict_row).result(), list[dict[str, Any]])
    assert_type(b.fetch_one(Q, row_factory=dict_row).result(), "dict[str, Any] | None")
    assert_type(b.execute(Q).result(), int)
with tuples.bind("reports").batch() as of_bind, users.transaction() as outer:
    assert_type(of_bind.fetch_all(Q, into=User).result(), list[User])
    with outer.batch() as of_tx:
        assert_type(of_tx.fetch_all(Q).result(), list[User])

# Outside Flask
assert_type(Database("db.yaml").fetch_one(Q), "tuple[Any, ...] | None")
assert_type(Database("db.yaml", row_factory=dict_row).fetch_all(Q), list[dict[str, Any]])
with Database("db.yaml", row_factory=class_row(User)).transaction() as of_database:
    assert_type(of_database.fetch_all(Q), list[User])


async def in_async_code() -> None:
    assert_type(await dicts.aio.fetch_one(Q), "dict[str, Any] | None")
    assert_type(await users.aio.fetch_all(Q), list[User])
    assert_type(await users.aio.fetch_json(Q), bytes)
    assert_type(await tuples.aio.fetch_all(Q, into=User), list[User])
    assert_type(await tuples.aio.fetch_value(Q, into=int), "int | None")
    assert_type(await tuples.aio.fetch_exactly_one(Q, row_factory=class_row(User)), User)
    assert_type(await tuples.aio.explain(Q, analyze=True), Plan)
    async with users.aio.batch() as b:
        assert_type(b, AsyncBatch[User])
        assert_type(b.fetch_all(Q), BatchResult[list[User]])
        assert_type(b.fetch_one(Q, row_factory=dict_row).result(), "dict[str, Any] | None")
        assert_type(b.fetch_value(Q, into=int).result(), "int | None")
    async with users.aio.transaction() as tx:
        assert_type(await tx.fetch_one(Q), "User | None")
        async with tx.transaction() as nested:
            assert_type(await nested.fetch_all(Q), list[User])
    assert_type(await AsyncDatabase("db.yaml").fetch_one(Q), "tuple[Any, ...] | None")
    db = AsyncDatabase("db.yaml", row_factory=class_row(User))
    assert_type(await db.fetch_all(Q), list[User])
    async with db.transaction() as of_database:
        assert_type(await of_database.fetch_one(Q), "User | None")


# Connection objects
assert_type(tuples.get_connection("normal"), NormalConnection)
assert_type(tuples.get_connection("pool"), PoolConnection)
assert_type(tuples.get_connection("async"), Awaitable[AsyncNormalConnection])
assert_type(tuples.get_connection("async_pool"), Awaitable[AsyncPoolConnection])
manager = PGConnectionManager()
assert_type(manager.get_database_connection("db.yaml", "pool"), PoolConnection)
assert_type(manager.get_database_connection_from_dict({}, "normal"), NormalConnection)


# A helper of the user's own that passes an optional factory or class on
def fetch(factory: RowFactory[T] | None = None) -> list[T] | list[dict[str, Any]]:
    return dicts.fetch_all(Q, row_factory=factory)


def fetch_into(into: type[T] | None = None) -> T | dict[str, Any] | None:
    return dicts.fetch_one(Q, into=into)


async def fetch_there(
    factory: AsyncRowFactory[T] | None = None,
) -> list[T] | list[dict[str, Any]]:
    return await dicts.aio.fetch_all(Q, row_factory=factory)
