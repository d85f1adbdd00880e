"""gevent: each greenlet's context has its own connection, and waits without blocking the others."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from ..proxy import Proxy
from .running import PROGRAMS, Programs

# gevent itself uses what Python warns of.
LENIENT = ("-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning")


def run_greenlets(programs: Programs, scenario: str, **settings: object) -> None:
    config = programs.config(
        {**programs.connection_settings, **settings}, pool_settings={"min_size": 1, "max_size": 3}
    )
    program = programs.start(sys.executable, *LENIENT, PROGRAMS / "greenlets.py", scenario, config)
    program.wait().cleanly()
    programs.expect_no_sessions()


@pytest.mark.parametrize(
    "scenario",
    [
        "each context has its own connection",
        "a query and a wait block nobody",
        "a timeout while waiting leaves no waiter",
        "a timeout while holding loses no connection",
        "a storm of timeouts loses no connection",
        "a connection that the server ended is replaced",
        "greenlets of one context take turns",
    ],
)
def test_greenlets_over_a_small_pool(programs: Programs, scenario: str) -> None:
    run_greenlets(programs, scenario)


def test_a_greenlet_that_connects_to_a_deaf_server_blocks_nobody(
    programs: Programs, proxy: Callable[[str, int], Proxy]
) -> None:
    settings = programs.connection_settings
    between = proxy(settings["host"], int(settings["port"]))
    between.deaf()
    address = {"host": between.host, "port": between.port, "connect_timeout": 2}
    run_greenlets(programs, "deaf server", **address)
