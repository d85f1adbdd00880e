"""Forks: the child shares nothing with its parent, and the parent's connections stay unharmed."""

from __future__ import annotations

import json

import pytest

from .running import Programs

EXITS = ("os._exit", "sys.exit")


@pytest.mark.parametrize("fork", ["fork", "raw_fork"])
def test_objects_held_across_a_fork_begin_anew_in_the_child(programs: Programs, fork: str) -> None:
    config = programs.config()
    started = [programs.start_script("held_across_forks", config, fork, leave) for leave in EXITS]
    for program in started:
        assert program.wait().cleanly().stdout == "19\n"
    programs.expect_no_sessions()


@pytest.mark.parametrize(
    "where", ["normal block", "pool block", "pool.connection()", "request", "stream"]
)
def test_a_fork_inside_a_block_leaves_the_block_to_the_parent(
    programs: Programs, where: str
) -> None:
    config = programs.config()
    started = [
        programs.start_script("fork_inside", config, where, fork, leave)
        for fork, leave in zip(("raw_fork", "fork"), EXITS, strict=True)
    ]
    for program in started:
        program.wait().cleanly()
    programs.expect_no_sessions()


def test_a_fork_inside_a_transaction_leaves_the_transaction_to_the_parent(
    programs: Programs,
) -> None:
    config = programs.config()
    started = [
        programs.start_script("fork_inside", config, where, "fork", "os._exit")
        for where in ("db.transaction()", "Database.transaction()")
    ]
    for program in started:
        program.wait().cleanly()
    programs.expect_no_sessions()


def test_a_psycopg_connection_of_the_parent_is_refused_in_the_child(programs: Programs) -> None:
    programs.run_script("inherited_connection", programs.config())
    programs.expect_no_sessions()


def test_parent_and_children_under_load_see_only_their_own_rows(programs: Programs) -> None:
    found = json.loads(programs.run_script("fork_under_load", programs.config(), 25_000))
    assert found.pop("rows") >= 125_000
    assert found == {"wrong": 0, "shared pids": 0, "new pids of the parent": 0}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing_have_connections_of_their_own(
    programs: Programs, method: str
) -> None:
    printed = programs.run_script("multiprocessing_workers", programs.config(), method)
    found = json.loads(printed)
    before, after = found["parent"]
    assert after == before
    processes, server_pids = zip(before, *found["children"], strict=True)
    assert len(set(processes)) == len(processes) > 1
    assert len(set(server_pids)) == len(server_pids)
    programs.expect_no_sessions()
