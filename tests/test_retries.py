"""``run_transaction()``: a transaction that conflicts with others is run again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask
from psycopg import errors

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey
from flask_pgmonkey.retries import LONGEST, SHORTEST, Retries

SUM = "SELECT sum(amount)::int FROM entries WHERE account = %s"
ENTER = "INSERT INTO entries VALUES (%s, %s)"
TAKE = "UPDATE accounts SET amount = amount - %s WHERE id = %s"
REFUSE_AT_COMMIT = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE serialization_failure; END $$;"
    "CREATE CONSTRAINT TRIGGER refused AFTER INSERT ON entries"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
)


@pytest.fixture
def admin(database: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside, with two accounts, and entries for the sums that are serializable."""
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("CREATE TABLE accounts (id integer PRIMARY KEY, amount integer)")
        connection.execute("INSERT INTO accounts VALUES (1, 1000), (2, 1000)")
        connection.execute("CREATE TABLE entries (account integer, amount integer)")
        connection.execute("INSERT INTO entries VALUES (1, 1), (2, 1)")
        yield connection


@pytest.fixture
def config(database: dict[str, Any]) -> dict[str, Any]:
    # The server looks for deadlocks that often.
    options = f"{database.get('options', '')} -c deadlock_timeout=20ms"
    return {
        "connection_settings": {**database, "options": options},
        "pool_settings": {"max_size": 8, "timeout": 30},
    }


@pytest.fixture
def db(config: dict[str, Any]) -> Iterator[Database[Any]]:
    database = Database(config)
    yield database
    database.close()


@pytest.fixture
def app(config: dict[str, Any]) -> Iterator[Flask]:
    app = Flask(__name__)
    bound = PGMonkey(app, config=config)
    yield app
    with app.app_context():
        bound.clear_cache()


class Failing:
    """A function for transactions that fails so many times with one SQLSTATE."""

    def __init__(self, times: int, sqlstate: str = "40001") -> None:
        self.times = times
        self.calls = 0
        self.raising = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"

    def __call__(self, tx: Any, value: str = "done") -> str:
        self.calls += 1
        tx.execute(ENTER, [3, self.calls])
        if self.calls <= self.times:
            tx.execute(self.raising)
        return value

    async def on_loop(self, tx: Any, value: str = "done") -> str:
        self.calls += 1
        await tx.execute(ENTER, [3, self.calls])
        if self.calls <= self.times:
            await tx.execute(self.raising)
        return value


def entries_of(admin: psycopg.Connection[Any], account: int) -> list[int]:
    rows = admin.execute("SELECT amount FROM entries WHERE account = %s ORDER BY 1", [account])
    return [amount for (amount,) in rows]


def test_it_gives_what_the_function_gives_with_its_arguments(
    db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    def show(tx: Any, first: int, second: str = "") -> tuple[Any, ...]:
        return (first, second, tx.fetch_value("SHOW transaction_isolation"))

    assert db.run_transaction(show, 1, "b") == (1, "b", "read committed")
    assert db.run_transaction(show, 1, isolation_level="serializable") == (1, "", "serializable")
    with pytest.raises(errors.ReadOnlySqlTransaction):
        db.run_transaction(Failing(0), read_only=True)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_what_may_pass_is_tried_again_and_takes_effect_once(
    sqlstate: str, db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    failing = Failing(3, sqlstate)
    assert db.run_transaction(failing, "value") == "value"
    assert entries_of(admin, 3) == [4]


@pytest.mark.parametrize("sqlstate", ["40000", "40002", "40003", "55P03", "57014", "25P02"])
def test_what_will_not_pass_is_tried_once(
    sqlstate: str, db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    failing = Failing(1, sqlstate)
    with pytest.raises(psycopg.Error) as caught:
        db.run_transaction(failing)
    assert caught.value.sqlstate == sqlstate
    assert failing.calls == 1
    assert entries_of(admin, 3) == []


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (2, 3)])
def test_the_last_error_comes_out_after_so_many_retries(
    retries: int, calls: int, db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    failing = Failing(10)
    with pytest.raises(errors.SerializationFailure):
        db.run_transaction(failing, retries=retries)
    assert failing.calls == calls
    assert entries_of(admin, 3) == []
    with pytest.raises(ValueError, match="retries from 0, not -1"):
        db.run_transaction(failing, retries=-1)
    assert failing.calls == calls


def test_what_commit_refuses_is_tried_again(
    db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    admin.execute(REFUSE_AT_COMMIT)
    calls = 0

    def enter(tx: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            admin.execute("DROP TRIGGER refused ON entries")
        tx.execute(ENTER, [3, calls])
        tx.on_commit(lambda: called.append(calls))

    called: list[int] = []
    # Up to the third call, which finds no trigger.
    with pytest.raises(errors.SerializationFailure):
        db.run_transaction(enter, retries=0)
    assert db.run_transaction(enter) is None
    assert entries_of(admin, 3) == [3]
    assert called == [3]


def test_serializable_transactions_that_conflict_all_take_effect_once(
    db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    """The example of PostgreSQL's documentation, at which one of two has to fail."""
    counted = threading.Lock()
    attempts = 0
    committed: list[int] = []

    def enter(tx: Any, to: int, of: int) -> int:
        nonlocal attempts
        with counted:
            attempts += 1
        total: int = tx.fetch_value(SUM, [of])
        tx.execute("SELECT pg_sleep(0.001)")
        tx.execute(ENTER, [to, total % 1000])
        tx.on_commit(lambda: committed.append(total))
        return total

    def run(number: int) -> int:
        return db.run_transaction(
            enter, number % 2 + 1, (number + 1) % 2 + 1, isolation_level="serializable", retries=50
        )

    with ThreadPoolExecutor(4) as threads:
        totals = list(threads.map(run, range(24)))
    assert sorted(committed) == sorted(totals)
    entered = admin.execute("SELECT count(*) FROM entries").fetchone()
    assert entered == (2 + 24,)
    assert attempts > 24, "no transaction conflicted with another"


def test_deadlocks_are_tried_again_and_take_effect_once(
    db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    both_have_one = threading.Barrier(2)
    attempts: list[int] = []

    def transfer(tx: Any, first: int, second: int) -> None:
        attempts.append(first)
        tx.execute(TAKE, [first, first])
        if attempts.count(first) == 1:
            both_have_one.wait(10)
        tx.execute(TAKE, [-first, second])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda pair: db.run_transaction(transfer, *pair), [(1, 2), (2, 1)]))
    assert len(attempts) > 2, "nobody was a deadlock's victim"
    rows = admin.execute("SELECT amount FROM accounts ORDER BY id").fetchall()
    assert rows == [(1000 - 1 + 2,), (1000 + 1 - 2,)]


def test_no_attempt_begins_when_the_time_of_the_request_is_up(
    app: Flask, admin: psycopg.Connection[Any]
) -> None:
    db: PGMonkey[Any] = app.extensions["pgmonkey"]
    began = time.monotonic()
    failing = Failing(10**6)
    with app.app_context(), db.timeout(5), db.timeout(0.3), pytest.raises(psycopg.Error) as caught:
        with db.timeout(60):
            db.run_transaction(failing, retries=10**6)
    assert caught.value.sqlstate == "40001"
    assert failing.calls > 1
    assert time.monotonic() - began < 5
    last = failing.calls

    def sleepy(tx: Any) -> None:
        time.sleep(0.3)
        failing(tx)

    with app.app_context(), db.timeout(0.3), pytest.raises(errors.SerializationFailure):
        db.run_transaction(sleepy, retries=10**6)
    assert failing.calls == last + 1


def test_pauses_are_by_chance_from_ten_milliseconds_to_a_second() -> None:
    error = errors.SerializationFailure()
    most = [0.0] * 12
    for _ in range(300):
        retries = Retries(test_deadlocks_are_tried_again_and_take_effect_once, 12)
        pauses = [retries.pause_after(error) or 0.0 for _ in most]
        assert all(0 <= pause <= SHORTEST * 2**n for n, pause in enumerate(pauses))
        most = [max(pair) for pair in zip(most, pauses, strict=True)]
        assert retries.pause_after(error) is None
    assert SHORTEST / 2 < most[0] <= SHORTEST
    assert LONGEST / 2 < most[-1] <= LONGEST


def test_within_a_transaction_it_is_refused(app: Flask, database: dict[str, Any]) -> None:
    db: PGMonkey[Any] = app.extensions["pgmonkey"]
    plain = Database({"connection_settings": database})
    refused = pytest.raises(RuntimeError, match=r"within a transaction.*outside of all")

    def never(tx: Any) -> None:
        raise AssertionError

    with app.app_context():
        with db.transaction(), refused:
            db.run_transaction(never)
        db.execute("BEGIN")
        with refused:
            db.bind("default").run_transaction(never)
        db.execute("ROLLBACK")
        with refused:
            db.run_transaction(lambda tx: db.run_transaction(never))
        # Another database's is none of it.
        with db.transaction(), plain.transaction(), refused:
            plain.run_transaction(never)
        with db.transaction():
            assert plain.run_transaction(lambda tx: tx.fetch_value("SELECT 1")) == 1
        assert db.run_transaction(lambda tx: tx.fetch_value("SELECT 1")) == 1
    plain.close()


def test_a_rollback_that_the_function_asks_for_is_none_to_try_again(
    db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    def enter(tx: Any) -> int:
        tx.execute(ENTER, [3, 1])
        raise psycopg.Rollback

    assert db.run_transaction(enter) is None
    assert entries_of(admin, 3) == []


def test_the_log_tells_of_retries_without_the_values(
    db: Database[Any], admin: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flask_pgmonkey")
    failing = Failing(1)

    def insert(tx: Any, secret: str) -> str:
        return failing(tx, secret)

    db.run_transaction(insert, "s3cret")
    (message,) = caplog.messages
    assert "insert ended with SerializationFailure (SQLSTATE 40001): attempt 2 of 4" in message
    assert "s3cret" not in message


# Async


@pytest.mark.parametrize("kind", ["AsyncDatabase", "aio"])
def test_async_functions_are_awaited_and_tried_again(
    kind: str, app: Flask, config: dict[str, Any], admin: psycopg.Connection[Any]
) -> None:
    bound: PGMonkey[Any] = app.extensions["pgmonkey"]
    attempts = 0

    async def enter(tx: Any, to: int, of: int) -> int:
        nonlocal attempts
        attempts += 1
        total: int = await tx.fetch_value(SUM, [of])
        await tx.execute("SELECT pg_sleep(0.001)")
        await tx.execute(ENTER, [to, total % 1000])
        return total

    async def main(db: Any) -> None:
        assert await db.run_transaction(Failing(2).on_loop, "value") == "value"
        runs = [
            db.run_transaction(
                enter, n % 2 + 1, (n + 1) % 2 + 1, isolation_level="serializable", retries=50
            )
            for n in range(12)
        ]
        await asyncio.gather(*runs)
        for sqlstate, calls in (("40P01", 3), ("40002", 1)):
            failing = Failing(10, sqlstate)
            with pytest.raises(psycopg.Error):
                await db.run_transaction(failing.on_loop, retries=2)
            assert failing.calls == calls
        refused = pytest.raises(RuntimeError, match="within a transaction")
        async with db.transaction():
            with refused:
                await db.run_transaction(enter, 1, 2)
            # Another task has no transaction open.
            assert await asyncio.create_task(db.run_transaction(Failing(0).on_loop)) == "done"
        with pytest.raises(TypeError, match=r"coroutine function here, and .*<lambda> is none"):
            await db.run_transaction(lambda tx: None)
        await db.disconnect()

    if kind == "aio":
        with app.app_context():
            asyncio.run(main(bound.aio))
    else:
        asyncio.run(main(AsyncDatabase(config)))
    assert admin.execute("SELECT count(*) FROM entries").fetchone() == (2 + 12 + 2,)
    assert attempts > 12


def test_a_coroutine_function_in_a_sync_transaction_is_refused(
    db: Database[Any], admin: psycopg.Connection[Any]
) -> None:
    with pytest.raises(TypeError, match=r"on_loop is a coroutine function: await db\.aio"):
        _ = db.run_transaction(Failing(0).on_loop)
    assert entries_of(admin, 3) == []
