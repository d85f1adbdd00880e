"""Takes the steps of actors in an order that a seed decides."""

from __future__ import annotations

import contextvars
import gc
import time
from contextlib import nullcontext
from typing import Any

from . import actors, tasks
from .actors import Steps
from .world import WORKING, World, killing

ACTORS = {
    actors.single_queries: 5,
    actors.batch: 2,
    actors.transaction: 6,
    actors.swallowed_error: 2,
    actors.stream: 3,
    actors.stream_in_transaction: 2,
    actors.pool_blocks: 4,
    actors.held_connection: 3,
    actors.normal_block: 2,
    actors.left_state: 2,
    actors.fork: 1,
    actors.kills: 2,
    actors.reloads: 1,
    tasks.aio_queries: 2,
    tasks.aio_transaction: 3,
    tasks.async_pool_block: 3,
    tasks.async_block: 2,
    tasks.clears_the_cache: 1,
}
DROPPED = 0.04  # of all steps, how many drop their actor instead, as a client that goes away
STEPS_BETWEEN_CHECKS = 50


def run(world: World, settings: dict[str, Any], seconds: float) -> int:
    """Let actors act for some time, at least until the first check; gives how many steps."""
    end = time.monotonic() + seconds
    steps = 0
    with killing(world, settings) if world.kills_in_flight else nullcontext() as pause:
        while steps == 0 or time.monotonic() < end:
            _act(world, STEPS_BETWEEN_CHECKS)
            steps += STEPS_BETWEEN_CHECKS
            with pause or nullcontext():
                world.check()
    return steps


def _act(world: World, steps: int) -> None:
    """Take so many steps, and then those that it takes until nobody works any more."""
    working: list[tuple[str, Steps, contextvars.Context]] = []
    try:
        while steps > 0 or working:
            while steps > 0 and len(working) < WORKING:
                (make,) = world.random.choices([*ACTORS], [*ACTORS.values()])
                working.append((make.__name__, make(world), contextvars.Context()))
            steps -= 1
            name, actor, context = chosen = world.random.choice(working)
            if world.happens(DROPPED):
                world.note(f"{name} is dropped")
                working.remove(chosen)
                context.run(actor.close)
                del actor, chosen
                gc.collect()
                continue
            world.note(name)
            try:
                context.run(next, actor)
            except StopIteration:
                working.remove(chosen)
    finally:
        for _, actor, context in working:
            context.run(actor.close)
