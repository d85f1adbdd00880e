"""One test body for all connection types: written for the async ones, run for the sync ones too."""

from __future__ import annotations

import ast
import asyncio
import inspect
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeAlias, cast

import psycopg
from _pytest.assertion.rewrite import rewrite_asserts

from flask_pgmonkey.config import Config, read_config
from flask_pgmonkey.connections import (
    AsyncNormalConnection,
    AsyncPoolConnection,
    NormalConnection,
    PoolConnection,
    borrowed_connections,
)

_OBSERVER = "the test itself"

Body: TypeAlias = "Callable[..., Coroutine[Any, Any, None]]"

_CLASSES: dict[str, Any] = {
    "normal": NormalConnection,
    "pool": PoolConnection,
    "async": AsyncNormalConnection,
    "async_pool": AsyncPoolConnection,
}


def sync_and_async(body: Body) -> Callable[..., None]:
    """A test of what *body* promises of the type of its ``case``.

    A sync type gets the same body without its ``async`` and ``await``.
    """
    sync_body = _without_async(body)

    def test(**fixtures: Any) -> None:
        case = next(one for one in fixtures.values() if isinstance(one, Case))
        if isinstance(case, AsyncCase):
            asyncio.run(case.run(body(**fixtures)))
        elif isinstance(case, SyncCase):
            case.run(lambda: sync_body(**fixtures))

    test.__name__, test.__module__, test.__doc__ = body.__name__, body.__module__, body.__doc__
    cast(Any, test).__signature__ = inspect.signature(body)
    return test


def _without_async(body: Body) -> Callable[..., None]:
    source = textwrap.dedent(inspect.getsource(body))
    tree = _AsyncRemover().visit(ast.parse(source))
    tree.body[0].decorator_list.clear()
    ast.fix_missing_locations(ast.increment_lineno(tree, body.__code__.co_firstlineno - 1))
    if "@pytest_ar" in body.__globals__:  # as pytest has rewritten the rest of the module
        rewrite_asserts(tree, source.encode())
    code = compile(tree, body.__code__.co_filename, "exec")
    found: dict[str, Any] = {}
    exec(code, body.__globals__, found)  # noqa: S102
    return cast("Callable[..., None]", found[body.__name__])


_SYNC_NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__anext__": "__next__",
    "aclose": "close",
    "AsyncExitStack": "ExitStack",
    "clear_cache_async": "clear_cache",
    "enter_async_context": "enter_context",
    "push_async_exit": "push",
}


class _AsyncRemover(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = _SYNC_NAMES.get(node.id, node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = _SYNC_NAMES.get(node.attr, node.attr)
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_as(ast.FunctionDef, node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self._visit_as(ast.With, node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self._visit_as(ast.For, node)

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return cast("ast.AST", self.visit(node.value))

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.is_async = 0
        return self.generic_visit(node)

    def _visit_as(self, kind: type[ast.AST], node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        fields = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
        if "name" in fields:
            fields["name"] = _SYNC_NAMES.get(fields["name"], fields["name"])
        return ast.copy_location(kind(**fields), node)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer."""
    start = monotonic()
    yield
    assert monotonic() - start <= seconds


class Case:
    """One connection type, and what a test does with it.

    :param settings: connection_settings of an empty database.
    """

    def __init__(self, connection_type: Any, settings: dict[str, Any]) -> None:
        self.connection_type: Any = connection_type
        self.settings = settings
        self.is_pool = connection_type.endswith("pool")
        self.settings_section = "async_settings" if self._is_async() else "sync_settings"
        self._made: list[Any] = []

    def _is_async(self) -> bool:
        return bool(self.connection_type.startswith("async"))

    def config(
        self,
        connection: dict[str, Any] | None = None,
        pool: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
    ) -> Config:
        """A config with these sections, for whichever type."""
        content: dict[str, Any] = {"connection_settings": {**self.settings, **(connection or {})}}
        if pool:
            content["pool_settings"] = content["async_pool_settings"] = pool
        if server:
            content["sync_settings"] = content["async_settings"] = server
        return read_config(content)

    def make(
        self,
        connection: dict[str, Any] | None = None,
        pool: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """A connection object, still closed."""
        made = _CLASSES[self.connection_type](self.config(connection, pool, server), **arguments)
        self._made.append(made)
        return made

    def forget(self, made: Any) -> None:
        """Leave it to somebody else to close *made*."""
        self._made.remove(made)

    def admin(self) -> psycopg.Connection[Any]:
        """A connection of its own to the case's database, in autocommit mode."""
        settings = {**self.settings, "application_name": _OBSERVER}
        return psycopg.connect(**settings, autocommit=True)

    def rows(self, query: str) -> list[Any]:
        """What a query gives through a connection of its own."""
        with self.admin() as admin:
            return admin.execute(query).fetchall()

    def run_on_server(self, statement: str) -> None:
        """Run statements through a connection of their own."""
        with self.admin() as admin:
            admin.execute(statement)

    def sessions(self) -> set[int]:
        """The backends that serve the case's database."""
        with self.admin() as admin:
            return _sessions(admin)

    def assert_sessions(self, count: int) -> None:
        """Wait until so many backends serve the case's database."""
        deadline = monotonic() + 5
        with self.admin() as admin:
            while len(found := _sessions(admin)) != count:
                assert monotonic() < deadline, f"{len(found)} sessions instead of {count}"
                time.sleep(0.01)

    def assert_nothing_is_out(self, pool: Any) -> None:
        """Wait until *pool* has all its connections, and nobody waits for one."""
        deadline = monotonic() + 5
        while (stats := pool.get_stats())["pool_available"] != stats["pool_size"]:
            assert monotonic() < deadline, stats
            time.sleep(0.01)
        assert stats["requests_waiting"] == 0
        assert borrowed_connections() == []

    def terminate(self, *pids: int) -> None:
        """End these backends, or all that serve the case's database, and wait until they did."""
        with self.admin() as admin:
            doomed = set(pids) or _sessions(admin)
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [[*doomed]]
            )
            deadline = monotonic() + 5
            while _sessions(admin) & doomed:
                assert monotonic() < deadline, "the backends go on"
                time.sleep(0.01)


def _sessions(admin: psycopg.Connection[Any]) -> set[int]:
    query = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name <> %s"
        " AND backend_type = 'client backend'"
    )
    return {pid for (pid,) in admin.execute(query, [_OBSERVER])}


class SyncCase(Case):
    """What :class:`AsyncCase` does, with threads for tasks."""

    def run(self, body: Callable[[], None]) -> None:
        """Run a test body, then close what it opened."""
        with ThreadPoolExecutor(64) as self._threads:
            try:
                body()
            finally:
                for made in self._made:
                    made.disconnect()

    def open(self, *sections: Any, **arguments: Any) -> Any:
        made = self.make(*sections, **arguments)
        made.connect()
        return made

    def value(self, conn: Any, query: str, *params: Any) -> Any:
        row = conn.execute(query, params or None).fetchone()
        return row and row[0]

    def prepare(self, conn: Any, query: str) -> None:
        for _ in range(6):
            conn.execute(query)
        assert len(conn._prepared._names) == 1

    def run_all(self, conn: Any, statements: Iterable[str]) -> None:
        for statement in statements:
            conn.execute(statement)

    def wait_for_sessions(self, count: int) -> None:
        self.assert_sessions(count)

    def expect_nothing_out(self, pool: Any) -> None:
        self.assert_nothing_is_out(pool)

    def idle_backends(self, pool: Any, count: int) -> list[int]:
        borrowed = [pool.borrow() for _ in range(count)]
        for conn in borrowed:
            pool.release(conn)
        return [conn.info.backend_pid for conn in borrowed]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def event(self) -> threading.Event:
        return threading.Event()

    def start(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._threads.submit(work, *arguments)

    def outcome(self, work: Future[Any]) -> Any:
        return work.exception(60) or work.result()

    def together(self, work: Callable[..., Any], inputs: Iterable[Any]) -> list[Any]:
        started = [self._threads.submit(work, one) for one in inputs]
        return [self.outcome(one) for one in started]


class AsyncCase(Case):
    """An async connection type."""

    async def run(self, body: Coroutine[Any, Any, None]) -> None:
        """Run a test body, then close what it opened."""
        try:
            await body
        finally:
            for made in self._made:
                await made.disconnect()

    async def open(self, *sections: Any, **arguments: Any) -> Any:
        """A connection object, open; takes what :meth:`make` takes."""
        made = self.make(*sections, **arguments)
        await made.connect()
        return made

    async def value(self, conn: Any, query: str, *params: Any) -> Any:
        """The first column of the first row."""
        row = await (await conn.execute(query, params or None)).fetchone()
        return row and row[0]

    async def prepare(self, conn: Any, query: str) -> None:
        """Run *query* until psycopg has prepared it."""
        for _ in range(6):
            await conn.execute(query)
        assert len(conn._prepared._names) == 1

    async def run_all(self, conn: Any, statements: Iterable[str]) -> None:
        """Run statements, one after the other."""
        for statement in statements:
            await conn.execute(statement)

    async def wait_for_sessions(self, count: int) -> None:
        """Wait until so many backends serve the case's database, while tasks go on."""
        await asyncio.to_thread(self.assert_sessions, count)

    async def expect_nothing_out(self, pool: Any) -> None:
        """Wait until *pool* has all its connections, while tasks go on."""
        await asyncio.to_thread(self.assert_nothing_is_out, pool)

    async def idle_backends(self, pool: Any, count: int) -> list[int]:
        """Have *count* connections idle; gives their backends in the order they will be lent."""
        borrowed = [await pool.borrow() for _ in range(count)]
        for conn in borrowed:
            await pool.release(conn)
        return [conn.info.backend_pid for conn in borrowed]

    async def sleep(self, seconds: float) -> None:
        """Let others work."""
        await asyncio.sleep(seconds)

    def event(self) -> asyncio.Event:
        """An event that tasks can wait for."""
        return asyncio.Event()

    def start(
        self, work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any
    ) -> asyncio.Task[Any]:
        """Let *work* run beside."""
        return asyncio.create_task(work(*arguments))

    async def outcome(self, work: asyncio.Task[Any]) -> Any:
        """The result of what was started, or its exception."""
        return (await asyncio.gather(work, return_exceptions=True))[0]

    async def together(
        self, work: Callable[..., Coroutine[Any, Any, Any]], inputs: Iterable[Any]
    ) -> list[Any]:
        """The outcomes of *work* for each of *inputs*, all running at the same time."""
        return await asyncio.gather(*map(work, inputs), return_exceptions=True)


def case_for(connection_type: Any, settings: dict[str, Any]) -> Case:
    """The case of a connection type."""
    return (AsyncCase if connection_type.startswith("async") else SyncCase)(
        connection_type, settings
    )


def errors(outcomes: Sequence[Any]) -> list[BaseException]:
    """Those of *outcomes* that are exceptions."""
    return [one for one in outcomes if isinstance(one, BaseException)]
