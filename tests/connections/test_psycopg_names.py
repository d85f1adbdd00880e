"""The underscored names of psycopg on which this package stands."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg._connection_base import BaseConnection
from psycopg._cursor_base import BaseCursor
from psycopg.transaction import BaseTransaction

import flask_pgmonkey

from ..servers import Server

NAMES_OF_PSYCOPG = {
    "_adapters", "_autocommit", "_check_copy_result", "_check_result_for_fetch", "_commit_gen",
    "_conn", "_connect_gen", "_convert_query", "_deferrable", "_encoding", "_enter_gen",
    "_exec_command", "_exit_gen", "_fetch_gen", "_get_enter_commands", "_get_tx_start_command",
    "_isolation_level", "_last_query", "_make_row", "_maybe_prepare_gen", "_notice_handlers",
    "_notifies_backlog", "_notify_handlers", "_num_transactions", "_outer_transaction", "_pgconn",
    "_pipeline", "_prepared", "_push_savepoint", "_query", "_raise_for_result", "_read_only",
    "_reset", "_rollback_gen", "_set_results", "_stack_index", "_start_copy_gen",
    "_start_query", "_to_flush", "_tpc", "_tpc_prepare_gen", "_tx",
}  # fmt: skip
MODULES_OF_PSYCOPG = {
    "psycopg._connection_base.BaseConnection",
    "psycopg._cursor_base.BaseCursor",
    "psycopg._queries.PostgresQuery",  # for type checkers alone
}


@pytest.fixture
def names_of_psycopg(server: Server) -> dict[str, set[str]]:
    """The underscored attributes of sync and of async connections, their cursors and the rest."""

    async def connect_async() -> set[str]:
        async with await psycopg.AsyncConnection.connect(**server.settings()) as conn:
            transaction = psycopg.AsyncTransaction(conn)
            return _underscored(
                conn, conn.cursor(), psycopg.AsyncServerCursor, conn._prepared, transaction
            )

    with server.connect() as conn:
        transaction = psycopg.Transaction(conn)
        found = _underscored(conn, conn.cursor(), psycopg.ServerCursor, conn._prepared, transaction)
    return {"sync": found, "async": asyncio.run(connect_async())}


def _underscored(*objects: Any) -> set[str]:
    return {name for each in objects for name in dir(each) if re.match("_[^_]", name)}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_underscored_names_that_are_used_exist_in_psycopg(
    kind: str, names_of_psycopg: dict[str, set[str]]
) -> None:
    assert not NAMES_OF_PSYCOPG - names_of_psycopg[kind]


def test_no_other_underscored_names_are_used(names_of_psycopg: dict[str, set[str]]) -> None:
    used = {name for module in _modules() for name in _names_used_on_others(module)}
    assert used & names_of_psycopg["sync"] == NAMES_OF_PSYCOPG
    assert used & names_of_psycopg["async"] == NAMES_OF_PSYCOPG


def test_no_other_underscored_modules_are_imported() -> None:
    imported = {
        f"{node.module}.{alias.name}"
        for module in _modules()
        for node in ast.walk(_parsed(module))
        if isinstance(node, ast.ImportFrom) and re.match(r"psycopg(_pool)?\._", node.module or "")
        for alias in node.names
    }
    assert imported == MODULES_OF_PSYCOPG
    for name in MODULES_OF_PSYCOPG:
        module, _, member = name.rpartition(".")
        assert hasattr(importlib.import_module(module), member)


def _modules() -> Iterator[ModuleType]:
    yield flask_pgmonkey
    for found in pkgutil.walk_packages(flask_pgmonkey.__path__, f"{flask_pgmonkey.__name__}."):
        yield importlib.import_module(found.name)


def _parsed(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _names_used_on_others(module: ModuleType) -> Iterator[str]:
    """Underscored names that are asked of other objects than ``self``, in code or in a string.

    Of ``self`` too where psycopg's class is the parent.
    """
    tree = _parsed(module)
    heirs = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and issubclass(getattr(module, node.name), (BaseConnection, BaseCursor, BaseTransaction))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_self(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and not (node.args and _is_self(node.args[0])):
            yield from _names_in_strings(node)
    for heir in heirs:
        own = vars(getattr(module, heir.name))
        yield from (name for name in own if not name.startswith("__"))  # what it overrides
        for node in ast.walk(heir):
            if isinstance(node, ast.Attribute) and _is_self(node.value) and node.attr not in own:
                yield node.attr


def _names_in_strings(call: ast.Call) -> Iterator[str]:
    """The names in ``attrgetter("a.b", "c")``, ``getattr(x, "a")`` and the like."""
    function = call.func
    called = function.id if isinstance(function, ast.Name) else ""
    if called in {"attrgetter", "methodcaller", "getattr", "setattr", "hasattr"}:
        for argument in call.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield from argument.value.split(".")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}
