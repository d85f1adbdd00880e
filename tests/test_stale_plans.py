"""A migration under prepared statements, seen from each place that has queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey

from .extension.conftest import MakeSite, admin, make_site

__all__ = ["admin", "make_site"]

QUERY = "SELECT * FROM items"
INSERT = "INSERT INTO items VALUES (%s) RETURNING *"
Migrate = Callable[[], object]


@pytest.fixture
def migrate(admin: psycopg.Connection[Any]) -> Migrate:
    """Adds a column to the table ``items``, which had one."""
    return lambda: admin.execute("ALTER TABLE items ADD size integer")


def use(db: Any, migrate: Migrate) -> None:
    for n in range(7):
        assert db.fetch_all(QUERY) == [(one,) for one in range(n)]
        db.execute(INSERT, [n])
    migrate()
    assert db.fetch_one(INSERT, [7]) == (7, None)
    assert db.fetch_all(QUERY)[0] == (0, None)
    assert db.fetch_value("SELECT count(*) FROM items") == 8


async def use_async(db: Any, migrate: Migrate) -> None:
    for n in range(7):
        assert await db.fetch_all(QUERY) == [(one,) for one in range(n)]
        await db.execute(INSERT, [n])
    migrate()
    assert await db.fetch_one(INSERT, [7]) == (7, None)
    assert (await db.fetch_all(QUERY))[0] == (0, None)
    assert await db.fetch_value("SELECT count(*) FROM items") == 8


def test_requests_go_on(make_site: MakeSite, migrate: Migrate) -> None:
    site = make_site(pool_settings={"max_size": 1})
    for _ in range(8):
        site.visit(lambda: str(site.db.fetch_all(QUERY)))
    migrate()
    assert site.visit(lambda: str(site.db.fetch_all(QUERY))).status_code == 200


def test_an_app_context_goes_on(make_site: MakeSite, migrate: Migrate) -> None:
    site = make_site()
    with site.app.app_context():
        use(site.db, migrate)


def test_db_aio_goes_on(make_site: MakeSite, migrate: Migrate) -> None:
    db: PGMonkey[Any] = make_site(async_pool_settings={"max_size": 1}).db
    app = next(iter(db._apps))
    with app.app_context():
        asyncio.run(use_async(db.aio, migrate))


def test_a_database_goes_on(database: dict[str, Any], migrate: Migrate) -> None:
    db = Database({"connection_settings": database, "pool_settings": {"max_size": 1}})
    use(db, migrate)
    db.close()


def test_an_async_database_goes_on(database: dict[str, Any], migrate: Migrate) -> None:
    async def main() -> None:
        db = AsyncDatabase({"connection_settings": database})
        try:
            await use_async(db, migrate)
        finally:
            await db.disconnect()

    asyncio.run(main())


def test_execute_many_runs_again_as_a_whole(database: dict[str, Any], migrate: Migrate) -> None:
    db = Database({"connection_settings": database, "pool_settings": {"max_size": 1}})
    assert db.execute_many(INSERT, [[n] for n in range(9)]) == 9
    migrate()
    assert db.execute_many(INSERT, [[n] for n in range(9, 12)]) == 3
    assert db.fetch_value("SELECT count(*) FROM items") == 12
    db.close()


def test_execute_many_runs_again_as_a_whole_in_async_code(
    database: dict[str, Any], migrate: Migrate
) -> None:
    async def main() -> None:
        db = AsyncDatabase({"connection_settings": database})
        try:
            assert await db.execute_many(INSERT, [[n] for n in range(9)]) == 9
            migrate()
            assert await db.execute_many(INSERT, [[n] for n in range(9, 12)]) == 3
            assert await db.fetch_value("SELECT count(*) FROM items") == 12
        finally:
            await db.disconnect()

    asyncio.run(main())


def test_execute_many_in_a_transaction_is_the_callers_to_run_again(
    database: dict[str, Any], migrate: Migrate
) -> None:
    db = Database({"connection_settings": database, "pool_settings": {"max_size": 1}})
    db.execute_many(INSERT, [[n] for n in range(9)])
    migrate()

    def work() -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO items VALUES (100)")
            tx.execute_many(INSERT, [[9]])

    with pytest.raises(psycopg.errors.FeatureNotSupported):
        work()
    work()
    assert db.fetch_value("SELECT count(*) FROM items") == 11
    db.close()
