"""The figures of a run: ``MODEL_SECONDS`` each, by a seed of its own or ``MODEL_SEED``."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from .driver import run
from .world import World

pytestmark = pytest.mark.any_version

SECONDS = float(os.environ.get("MODEL_SECONDS", "10"))
STEPS_SHOWN = 80


@pytest.mark.timeout(SECONDS * 3 + 120)
@pytest.mark.parametrize("kills_in_flight", [False, True], ids=["between steps", "in flight"])
@pytest.mark.parametrize("_run", [1, 2])
def test_what_is_reported_as_done_is_done_and_nothing_else(
    database: dict[str, Any], kills_in_flight: bool, _run: int
) -> None:
    seed = int(os.environ.get("MODEL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MODEL_SEED={seed}")
    with World(database, seed, kills_in_flight) as world:
        try:
            print(run(world, database, SECONDS), "steps")
        except BaseException:
            print("the last steps:", *world.steps[-STEPS_SHOWN:], sep="\n")
            raise
