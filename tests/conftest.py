"""The servers, the faults and the leak check that every test can use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_pgmonkey.testing import assert_no_connection_leaks

from .fake_server import Act, FakeServer
from .proxy import Proxy
from .servers import PrivateServer, Server, choose_server
from .suite import OwnSuite, Suite

WORKERS_PER_CORE = 2
MOST_WORKERS = 12  # the suite's server has connections for that many
# Folders and files whose tests are about our own texts and files and other programs.
ANY_VERSION = (
    "cli/test_csv",
    "cli/test_exec",
    "cli/test_generate_code",
    "cli/test_inspect",
    "cli/test_migrate",
    "cli/test_psql",
    "cli/test_top",
    "cli/test_try_connections",
    "codegen/",
    "config/",
    "csv_transfer/",
    "docs/",
    "example_app/",
    "model/",
    "processes/test_streams",
    "test_embedded",
    "test_server_audit",
    "testing/test_faults",
)
NO_SKIP = os.environ.get("PGMONKEY_NO_SKIP") == "1"
this_run = pytest.StashKey[Suite]()


def pytest_configure(config: pytest.Config) -> None:
    from_controller = getattr(config, "workerinput", None)
    if from_controller is None:
        config.stash[this_run] = suite = OwnSuite(choose_server())
        config.add_cleanup(suite.close)
    else:
        config.stash[this_run] = Suite(Path(from_controller["suite_folder"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where to find us."""
    suite = node.config.stash[this_run]
    suite.answer_workers()
    node.workerinput["suite_folder"] = str(suite.folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """More workers than cores, because tests mostly wait; none where few tests are named."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    files = {argument.partition("::")[0] for argument in config.args}
    if len(files) == 1 and files.pop().endswith(".py"):
        return 0
    return min(WORKERS_PER_CORE * (os.cpu_count() or 2), MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(ANY_VERSION):
            item.add_marker("any_version")


def pytest_report_header(config: pytest.Config) -> str:
    suite = config.stash[this_run]
    choice = suite.choice if isinstance(suite, OwnSuite) else ""
    return f"postgresql: {choice if choice in ('docker', 'embedded') else 'PGMONKEY_TEST_SERVER'}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if NO_SKIP and report.skipped:  # one that is expected to fail is too
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """What this run's processes share."""
    return pytestconfig.stash[this_run]


@pytest.fixture(scope="session")
def server(suite: Suite) -> Server:
    """The suite's PostgreSQL."""
    return suite.server()


@pytest.fixture
def database(server: Server) -> Iterator[dict[str, Any]]:
    """connection_settings of a fresh, empty database."""
    with server.database() as name:
        yield server.settings(name)


@pytest.fixture
def config_file(database: dict[str, Any], tmp_path: Path) -> Path:
    """A YAML file with nothing but the connection_settings of ``database``."""
    path = tmp_path / "database.yaml"
    path.write_text(yaml.safe_dump({"connection_settings": database}))
    path.chmod(0o600)
    return path


@pytest.fixture
def open_folder(suite: Suite) -> Iterator[Path]:
    """A temporary folder for apps with an embedded server.

    Every user can enter it. ``tmp_path`` is closed to the user who runs PostgreSQL for root, and
    the data would lie in root's folder under /var/lib.
    """
    folder = suite.make_open_folder()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _private_server(suite: Suite) -> Iterator[PrivateServer]:
    with suite.run_private_server() as running:
        yield running


@pytest.fixture(scope="module")
def private_server(_private_server: PrivateServer) -> PrivateServer:
    """A cluster of one's own, as new for each test module and healed after each test."""
    _private_server.start_over()
    return _private_server


@pytest.fixture
def proxy() -> Iterator[Callable[[str, int], Proxy]]:
    """Makes proxies to a host and port; they close when the test ends."""
    with ExitStack() as proxies:
        yield lambda host, port: proxies.enter_context(closing(Proxy(host, port)))


@pytest.fixture
def start_fake() -> Iterator[Callable[[Act], FakeServer]]:
    """Starts fake servers; they close when the test ends."""
    with ExitStack() as servers:
        yield lambda act: servers.enter_context(closing(FakeServer(act)))


@pytest.fixture(autouse=True)
def _heal_private_server(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "private_server" in request.fixturenames:
        request.getfixturevalue("private_server").heal()


@pytest.fixture(autouse=True)
def _push_request_context() -> None:
    """Replaces pytest-flask's fixture, which pushes a request around every test with an ``app``."""


@pytest.fixture(autouse=True)
def _monkeypatch_response_class() -> None:
    """Replaces pytest-flask's fixture, which changes the response class of every ``app``."""


@pytest.fixture(autouse=True)
def _fail_on_leaks() -> Iterator[None]:
    """Fail a test that leaves a context pushed or a pooled connection out, as the kit has it.

    Sessions left at work on the server are found when ``database`` is dropped.
    """
    with assert_no_connection_leaks():
        yield
