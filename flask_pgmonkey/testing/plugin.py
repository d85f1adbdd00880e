"""The pytest plugin. Asleep until a test asks for one of its fixtures."""

from __future__ import annotations

import os
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
_stories = pytest.StashKey[dict[str, str]]()
_kept = pytest.StashKey[list[str]]()


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
        _run(session.config).begin()


def _are_asked_for(items: list[pytest.Item]) -> bool:
    return any(not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ())) for item in items)


def _run(config: pytest.Config) -> Run:
    from .runs import this_run

    workers = getattr(config, "workerinput", {})
    choice = os.environ.get("PGMONKEY_TEST_SERVER") or config.getini("pgmonkey_server")
    choice = workers.get("pgmonkey_server") or choice or "embedded"
    try:
        run = this_run(choice, config.rootpath)
    except Exception as error:
        raise pytest.UsageError(str(error)) from error
    return run


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("pgmonkey_create") and not hasattr(config, "workerinput"):
        _run(config).drop_templates()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let the workers of pytest-xdist share the controller's container."""
    config = node.config
    choice = os.environ.get("PGMONKEY_TEST_SERVER") or config.getini("pgmonkey_server")
    if choice == "docker":
        from .runs import this_run

        found = this_run(choice, config.rootpath).server.find()
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
    stories = _end(session.config)
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["pgmonkey"] = stories
    else:
        session.config.stash.setdefault(_stories, {}).update(stories)


def _end(config: pytest.Config) -> dict[str, str]:
    import sys

    runs = sys.modules.get("flask_pgmonkey.testing.runs")
    if runs is None or not runs._runs:
        return {}
    run: Run = runs._runs[0]
    stories = {}
    if run.template_story:
        stories["template"] = run.template_story
        seconds = sorted(run.clones.seconds)
        middle = seconds[len(seconds) // 2] * 1e3 if seconds else 0.0
        stories["clones"] = f"{len(seconds)} clones, {middle:.1f} ms each in the median"
    kept = config.stash.get(_kept, [])
    stories.update({f"kept {uri}": f"kept: flask pgmonkey psql --config '{uri}'" for uri in kept})
    if kept:
        run.keep_running()
    runs.close()
    return stories


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker of pytest-xdist has to tell."""
    output = getattr(node, "workeroutput", None) or {}
    node.config.stash.setdefault(_stories, {}).update(output.get("pgmonkey", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for story in config.stash.get(_stories, {}).values():
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
    left = fresh.end()
    if fresh.is_kept:
        config.stash.setdefault(_kept, []).extend(fresh.uris())
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
