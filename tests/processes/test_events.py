"""Events in threads, greenlets and forked children: of the right bind, told without a lock."""

from __future__ import annotations

import sys

import pytest

from .running import PROGRAMS, STRICT, Programs
from .test_greenlets import LENIENT


@pytest.mark.parametrize("scenario", ["threads", "greenlets", "fork", "raw_fork"])
def test_each_event_says_the_right_bind_and_no_lock_is_held_while_it_is_told(
    programs: Programs, scenario: str
) -> None:
    configs = [programs.config(pool_settings={"max_size": size}) for size in (5, 4)]
    options = LENIENT if scenario == "greenlets" else STRICT
    programs.start(
        sys.executable, *options, PROGRAMS / "events_of_binds.py", scenario, *configs
    ).wait().cleanly()
    programs.expect_no_sessions()
