"""Actors that are tasks of an event loop. Dropped, they are cancelled, in a step or between two."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any

from .actors import Steps
from .world import INSERT, RefusedError, Work, World

NextTurn = Callable[[], Awaitable[None]]


def stepwise(
    task: Callable[[World, NextTurn], Coroutine[Any, Any, None]],
) -> Callable[[World], Steps]:
    """An actor of a coroutine function that awaits its second argument between its steps."""

    @wraps(task)
    def actor(world: World) -> Steps:
        turn, waits = asyncio.Event(), asyncio.Event()

        async def next_turn() -> None:
            waits.set()
            turn.clear()
            await turn.wait()
            waits.clear()

        async def step() -> None:
            waits.clear()
            turn.set()
            waiting = asyncio.ensure_future(waits.wait())
            await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()

        async def cancel() -> None:
            if world.happens(0.5):
                turn.set()
                for _ in range(world.random.randint(1, 20)):
                    await asyncio.sleep(0)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(task(world, next_turn))

        with world.app.app_context():
            running = world.await_on_loop(start())
            try:
                while True:
                    world.await_on_loop(step())
                    if running.done():
                        break
                    yield
            except GeneratorExit:
                world.await_on_loop(cancel())
                raise
            running.result()

    return actor


@stepwise
async def aio_queries(world: World, next_turn: NextTurn) -> None:
    """Queries of ``db.aio``, on the loop in the background."""
    for _ in range(world.random.randint(1, 3)):
        await next_turn()
        with Work(world, is_ending=True) as work:
            if world.happens(0.5):
                await world.db.aio.execute(INSERT, [work.number()])
            else:
                async with world.db.aio.batch() as b:
                    b.execute(INSERT, [work.number()])
                    await next_turn()
                    b.execute(INSERT, [work.number()])


@stepwise
async def aio_transaction(world: World, next_turn: NextTurn) -> None:
    """A transaction of ``db.aio``, with a savepoint."""
    with Work(world) as work:
        async with world.db.aio.transaction() as tx:
            await tx.execute(INSERT, [work.number()])
            await next_turn()
            own = world.number()
            with suppress(RefusedError):
                async with tx.transaction() as nested:
                    await nested.execute(INSERT, [own])
                    await next_turn()
                    if world.happens(0.3):
                        raise RefusedError
                work.numbers.append(own)
            await next_turn()
            if world.happens(0.3):
                raise RefusedError
            work.is_ending = True


@stepwise
async def async_pool_block(world: World, next_turn: NextTurn) -> None:
    """A block of the pool of this loop, which may be opened anew before."""
    with Work(world) as work:
        pool = await world.db.get_connection("async_pool", force_reload=world.happens(0.1))
        async with pool as conn:
            await conn.execute(INSERT, [work.number()])
            await next_turn()
            await conn.execute(INSERT, [work.number()])
            await next_turn()
            if world.happens(0.3):
                raise RefusedError
            work.is_ending = True


@stepwise
async def async_block(world: World, next_turn: NextTurn) -> None:
    """A block of the one connection of type ``async``."""
    await next_turn()
    with Work(world) as work:
        async with await world.db.get_connection("async") as conn:
            await conn.execute(INSERT, [work.number()])
            if world.happens(0.3):
                raise RefusedError
            work.is_ending = True


@stepwise
async def clears_the_cache(world: World, next_turn: NextTurn) -> None:
    """Everything is closed, from an event loop."""
    await next_turn()
    with Work(world):
        await world.db.clear_cache_async()
