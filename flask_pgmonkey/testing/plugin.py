"""The pytest plugin. Asleep until a test asks for one of its fixtures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..database import Database
    from .checks import SeenQueries
    from .runs import FreshDatabases, Run
    from .templates import Schema

_FIXTURES = {"pgmonkey_database", "pgdb"}
_has_failed = pytest.StashKey[bool]()
_stories = pytest.StashKey[list[str]]()
place: dict[str, Any] = {}
"""The keyword arguments of :func:`~flask_pgmonkey.testing.runs.this_run` in this session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flask_pgmonkey")
    group.addoption(
        "--pgmonkey-keep",
        action="store_true",
        help="Keep the databases of tests that fail, until the next run.",
    )
    group.addoption(
        "--pgmonkey-create",
        action="store_true",
        help="Make templates anew, whatever earlier runs have made.",
    )
    parser.addini(
        "pgmonkey_server",
        "The server of the tests' databases: a postgresql:// URI, docker, or embedded."
        " PGMONKEY_TEST_SERVER in the environment comes first.",
        default="",
    )


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    if not _are_asked_for(items):
        return []
    return [f"flask_pgmonkey: {_run(items[0].config).server.name}"]


def pytest_collection_finish(session: pytest.Session) -> None:
    # From here on, what a session's fixture queries finds no database, least of all a real one.
    if _are_asked_for(session.items) and not session.config.option.collectonly:
        _run(session.config).guard()


def _are_asked_for(items: list[pytest.Item]) -> bool:
    return any(not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ())) for item in items)


def _run(config: pytest.Config) -> Run:
    from ..errors import PGMonkeyError
    from .runs import this_run

    try:
        return this_run(_choice(config), config.rootpath)
    except PGMonkeyError as error:
        raise pytest.UsageError(str(error)) from error


def _choice(config: pytest.Config) -> str:
    worker = getattr(config, "workerinput", {})
    named = os.environ.get("PGMONKEY_TEST_SERVER") or config.getini("pgmonkey_server")
    return str(worker.get("pgmonkey_server") or named or "embedded")


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    # What a block of fresh_database() goes by, which knows of no pytest.
    place.update(choice=_choice(config), project=config.rootpath)
    if config.getoption("pgmonkey_create") and not hasattr(config, "workerinput"):
        _run(config).drop_templates()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let the workers of pytest-xdist share the controller's container."""
    from ..errors import FreshDatabaseError

    if _choice(node.config) == "docker":
        run = _run(node.config)
        try:
            found = run.server.find()
        except FreshDatabaseError as error:
            raise pytest.UsageError(str(error)) from None
        node.workerinput["pgmonkey_server"] = (
            "postgresql://{user}:{password}@{host}:{port}/{dbname}".format_map(found)
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed and call.when != "teardown":
        item.stash[_has_failed] = True
    return report  # type: ignore[return-value]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    stories = config.stash.setdefault(_stories, [])
    output = getattr(config, "workeroutput", None)
    if stories and output is None:  # of the workers of pytest-xdist, which have left the server
        _run(config).settings()
    runs = sys.modules.get("flask_pgmonkey.testing.runs")
    if runs is not None:
        for run in runs.all_runs:
            stories += run.stories() if output is None else [run.server.name, *run.stories()]
            if any(story.startswith("kept") for story in stories):
                run.keep_running()
        runs.close()
    place.clear()
    if output is not None:
        output["pgmonkey"] = stories


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker of pytest-xdist has to tell."""
    output = getattr(node, "workeroutput", None) or {}
    stories = node.config.stash.setdefault(_stories, [])
    stories += [story for story in output.get("pgmonkey", ()) if story not in stories]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for story in config.stash.get(_stories, []):
        terminalreporter.write_line(f"flask_pgmonkey: {story}")


@pytest.fixture(scope="session")
def pgmonkey_schema() -> Schema | None:
    """What fills the tests' databases; to be overridden.

    A function that is called once, in an app context and on an empty database; or the path of a
    SQL file, or of a folder with SQL files, which run in the order of their names.
    """
    return None


@pytest.fixture
def pgmonkey_database(
    request: pytest.FixtureRequest, pgmonkey_schema: Schema | None
) -> Iterator[FreshDatabases]:
    """Databases of the test's own, for every app that queries in it."""
    from .runs import FreshDatabases, left_jobs

    config = request.config
    fresh = FreshDatabases(_run(config), pgmonkey_schema)
    fresh.begin()
    yield fresh
    failed = request.node.stash.get(_has_failed, False)
    fresh.is_kept = failed and bool(config.getoption("pgmonkey_keep"))
    if failed:
        fresh.look_for_server()
    left = fresh.end()
    if fresh.is_kept:
        fresh.tell_kept(request.node.nodeid)
    if fresh.failure is not None:
        request.session.shouldstop = str(fresh.failure)
        if not failed:  # the app has caught the error
            pytest.fail(str(fresh.failure), pytrace=False)
    if left:
        pytest.fail(left_jobs(left), pytrace=False)


@pytest.fixture
def pgdb(request: pytest.FixtureRequest, pgmonkey_database: FreshDatabases) -> Database[Any]:
    """The test's own look into the database of the fixture ``app``, over a connection apart."""
    return pgmonkey_database.database(request.getfixturevalue("app"))


@pytest.fixture
def pgmonkey_queries() -> Callable[..., AbstractContextManager[SeenQueries]]:
    """Counts queries: ``with pgmonkey_queries(at_most=2) as queries:``."""
    from .checks import count_queries

    return count_queries


@pytest.fixture
def pgmonkey_no_leaks() -> Iterator[None]:
    """Fails a test that leaves a pooled connection borrowed, or an app context pushed."""
    from .checks import assert_no_connection_leaks

    with assert_no_connection_leaks():
        yield
