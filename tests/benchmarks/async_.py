"""Many small queries through ``async_pool``, beside a bare AsyncConnectionPool; one db.aio hop."""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter
from typing import Any

from flask import Flask
from psycopg_pool import AsyncConnectionPool

from flask_pgmonkey import AsyncDatabase, PGConnectionManager, PGMonkey

from ..servers import choose_server, run_server
from .measuring import median_difference, print_table, print_versions

POOL_SIZE = 10
TASKS = 100
CALLS_OF_A_HOP = 500

Query = Callable[[], Awaitable[object]]


def main(argv: list[str]) -> None:
    """Print the time of the queries, the ratio to hold, and the cost of a hop."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks async", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--queries", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    with run_server(choose_server()) as server:
        settings = server.settings()
        queries = asyncio.run(time_queries(settings, arguments.rounds, arguments.queries))
        bare = queries["psycopg_pool"]
        print_table(
            ("contender", f"{arguments.queries:,} queries, {TASKS} tasks", "beside the bare pool"),
            (
                (name, f"{median(taken) * 1e3:.0f} ms", f"{median(taken) / median(bare):.2f} of it")
                for name, taken in queries.items()
            ),
        )
        here, hopping = time_hops(settings, arguments.rounds)
        print_table(
            ("one query at a time", "time"),
            (
                ("AsyncDatabase.fetch_value, on its own loop", f"{median(here) * 1e6:.0f} µs"),
                ("db.aio.fetch_value, from another loop", f"{median(hopping) * 1e6:.0f} µs"),
                ("the hop", f"{median_difference(hopping, here) * 1e6:.0f} µs"),
            ),
        )
        with server.connect() as connection:
            print_versions(("psycopg", "psycopg-pool"), connection)


async def time_queries(
    settings: dict[str, Any], rounds: int, queries: int
) -> dict[str, list[float]]:
    """Seconds for all queries of each contender, a value for each round, in turns."""
    config = {
        "connection_settings": {**settings, "autocommit": True},
        "async_pool_settings": {"min_size": POOL_SIZE, "max_size": POOL_SIZE},
    }
    manager, db = PGConnectionManager(), AsyncDatabase(config)
    ours: Any = await manager.get_database_connection_from_dict(config, "async_pool")
    bare = AsyncConnectionPool(
        kwargs={**settings, "autocommit": True},
        min_size=POOL_SIZE,
        max_size=POOL_SIZE,
        open=False,
    )
    await bare.open(wait=True)

    async def query_bare() -> object:
        async with bare.connection() as conn:
            return await (await conn.execute("SELECT 1")).fetchone()

    async def query_ours() -> object:
        async with ours as conn:
            return await (await conn.execute("SELECT 1")).fetchone()

    async def query_database() -> object:
        return await db.fetch_one("SELECT 1")

    contenders: dict[str, Query] = {
        "psycopg_pool": query_bare,
        "async_pool": query_ours,
        "AsyncDatabase": query_database,
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, query in contenders.items():
            seconds = await time_all(query, queries)
            if number:  # the first round warms up
                samples[name].append(seconds)
    await bare.close()
    await db.disconnect()
    await manager.clear_cache_async()
    return samples


async def time_all(query: Query, queries: int) -> float:
    """Seconds for *queries* of them from all tasks together."""

    async def work() -> None:
        for _ in range(queries // TASKS):
            await query()

    gc.collect()
    start = perf_counter()
    await asyncio.gather(*(work() for _ in range(TASKS)))
    return perf_counter() - start


def time_hops(settings: dict[str, Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds for a query on its own loop, and for one through db.aio from another loop."""
    app = Flask(__name__)
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": settings}
    db = PGMonkey(app)

    async def measure() -> tuple[list[float], list[float]]:
        own = AsyncDatabase({"connection_settings": settings})
        aio = db.aio
        here, hopping = [], []
        for number in range(rounds + 1):
            one = await time_one_by_one(lambda: own.fetch_value("SELECT 1"))
            other = await time_one_by_one(lambda: aio.fetch_value("SELECT 1"))
            if number:
                here.append(one)
                hopping.append(other)
        return here, hopping

    with app.app_context():
        measured = asyncio.run(measure())
        db.clear_cache()
    return measured


async def time_one_by_one(query: Query) -> float:
    """Seconds for one query, on average."""
    start = perf_counter()
    for _ in range(CALLS_OF_A_HOP):
        await query()
    return (perf_counter() - start) / CALLS_OF_A_HOP
