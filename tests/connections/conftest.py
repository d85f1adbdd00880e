"""A case for each connection type, on an empty database or on the server that is to be hurt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ..servers import PrivateServer, Server
from .every_type import Case, case_for

# Python 3.10 shows no notes.
collect_ignore = [] if sys.version_info >= (3, 11) else ["test_query_notes.py"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes a case for each type in its module's ``CONNECTION_TYPES``."""
    if "connection_type" in metafunc.fixturenames:
        metafunc.parametrize("connection_type", metafunc.module.CONNECTION_TYPES)


@pytest.fixture(scope="session")
def _database_of_cases(server: Server) -> Iterator[dict[str, Any]]:
    with server.database() as name:
        yield server.settings(name)


@pytest.fixture
def case(connection_type: str, _database_of_cases: dict[str, Any]) -> Iterator[Case]:
    """A connection type on an empty database. Fails a test that leaves a session on the server."""
    made = case_for(connection_type, _database_of_cases)
    yield made
    try:
        made.assert_sessions(0)
    finally:
        made.terminate()
        made.run_on_server("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture
def fragile(connection_type: str, private_server: PrivateServer) -> Iterator[Case]:
    """A connection type on the private server, over TCP with a password."""
    yield case_for(connection_type, private_server.settings())
    private_server.heal()
    made = case_for(connection_type, private_server.settings())
    try:
        made.assert_sessions(0)
    finally:
        made.terminate()
