"""Whatever is open when a program ends is closed, soon and without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flask_pgmonkey.config import CONNECTION_TYPES

from ..proxy import Proxy
from .running import Programs, wait_for


@pytest.mark.parametrize("connection_type", CONNECTION_TYPES)
def test_a_script_that_forgets_to_close_ends_quietly(
    programs: Programs, connection_type: str
) -> None:
    endings = ["kept", "dropped"]
    if connection_type.startswith("async"):
        endings.append("loop just closed")
    config = programs.config()
    started = [
        programs.start_script("forgets_to_close", config, connection_type, ending)
        for ending in endings
    ]
    for program in started:
        program.wait().cleanly()
    programs.expect_no_sessions()


def test_sys_exit_inside_a_block_ends_with_its_code(programs: Programs) -> None:
    config = programs.config()
    started = [
        programs.start_script("forgets_to_close", config, connection_type, "sys.exit")
        for connection_type in CONNECTION_TYPES
    ]
    for program in started:
        program.wait().cleanly(3)
    programs.expect_no_sessions()


@pytest.mark.parametrize("connection_type", ["pool", "async_pool"])
def test_a_pool_that_is_connecting_to_a_deaf_server_does_not_hold_the_exit(
    programs: Programs, connection_type: str, proxy: Callable[[str, int], Proxy]
) -> None:
    settings = programs.connection_settings
    between = proxy(settings["host"], int(settings["port"]))
    config = programs.config(
        {**settings, "host": between.host, "port": between.port, "connect_timeout": 60},
        pool_settings={"min_size": 1, "max_size": 2},
        async_pool_settings={"min_size": 1, "max_size": 2},
    )
    program = programs.start_script("exits_while_connecting", config, connection_type)
    program.wait_for_output("ready")
    between.deaf()
    program.go_on()
    wait_for(lambda: between.count == 2, "the second connection")
    program.go_on()
    assert program.wait().cleanly().seconds < 6
    programs.expect_no_sessions()
