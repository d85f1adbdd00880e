"""``x.py`` and ``x_async.py`` do the same: without its async, the one is the other.

Method by method and line by line, but for docstrings and annotations. The differences that must be
stand in ``twins.txt``. ``python -m tests.test_twins`` prints them anew: read what is new there, and
make it alike or keep it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from difflib import ndiff
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "flask_pgmonkey"

TWINS = sorted(
    str(file.relative_to(ROOT)).removesuffix("_async.py") for file in ROOT.rglob("*_async.py")
)

ALLOWED = Path(__file__).with_name("twins.txt")

_SYNC_NAMES = {
    "AsyncConnectionObject": "SyncConnectionObject",
    "_enter_block": "__enter__",
    "_exit_block": "__exit__",
    "_execute": "_run",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "AsyncExitStack": "ExitStack",
    "asynccontextmanager": "contextmanager",
    "enter_async_context": "enter_context",
    "ping_async": "ping",
    "wait_async": "wait",
    "async_pool": "pool",
    "async_settings": "sync_settings",
    "connect_kwargs_on_loop": "connect_kwargs",
    "ask_login_on_loop": "ask_login",
    "ask_another_login_on_loop": "ask_another_login",
    "async_pool_for": "pool_for",
    "enclosing_async_cursor": "enclosing_cursor",
    "outermost_async_transaction": "outermost_transaction",
    "nested_async_transaction": "nested_transaction",
}


_LOCKS = ("_lock", "free")


def sync_name(name: str) -> str:
    return _SYNC_NAMES.get(name) or re.sub(r"^(_?)Async(?=[A-Z])", r"\1", name)


class AsyncRemover(ast.NodeTransformer):
    """Makes of an async module what its sync twin has to be."""

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self._visited(node.value)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._as(ast.FunctionDef, node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self._as(ast.With, node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self._as(ast.For, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name = sync_name(node.name)
        *before, last = node.body
        if before and isinstance(before[-1], ast.FunctionDef) and _runs(before[-1].name, last):
            # What async queries hand to self._run() stands inline in the sync ones.
            node.body = [*before[:-1], *_inline(before[-1])]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        call = node.value
        # await conn.set_autocommit(True) is conn.autocommit = True.
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr.startswith("set_")
            and len(call.args) == 1
        ):
            call.func.attr = call.func.attr.removeprefix("set_")
            return ast.Assign([call.func], call.args[0])
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "_state_on_own_loop":
            node.func = ast.Attribute(ast.Attribute(node.func.value, "_states"), "here")
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = sync_name(node.id)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            node.value = re.sub(r"\w+", lambda word: sync_name(word[0]), node.value)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.attr = sync_name(node.attr)
        return node

    def _as(self, kind: type[ast.AST], node: ast.AST) -> ast.AST:
        fields = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
        return self._visited(kind(**fields))

    def _visited(self, node: ast.AST) -> ast.AST:
        visited: ast.AST = self.visit(node)
        return visited


def _runs(name: str, last: ast.stmt) -> bool:
    return ast.unparse(last) == f"return self._run({name})"


def _inline(work: ast.FunctionDef) -> list[ast.stmt]:
    inline = ast.parse("conn = self._begin_use()\ntry: pass\nfinally: self._end_use(conn)").body
    tried = inline[1]
    assert isinstance(tried, ast.Try)
    tried.body = work.body
    return inline


class AnnotationRemover(ast.NodeTransformer):
    """Takes out what only type checkers and readers read, and locks: a loop has one thread."""

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        context = node.items[0].context_expr
        is_lock = len(node.items) == 1 and ast.unparse(context).rpartition(".")[2] in _LOCKS
        return node.body if is_lock else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg):
            if argument is not None:
                argument.annotation = None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        return ast.Assign([node.target], node.value) if node.value is not None else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        is_cast = isinstance(node.func, ast.Name) and node.func.id == "cast"
        return node.args[1] if is_cast else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        # WaitingClient[ServerConnection]() is WaitingClient().
        self.generic_visit(node)
        is_class = isinstance(node.value, ast.Name) and node.value.id[:1].isupper()
        return node.value if is_class else node


def functions(module: ast.Module) -> Iterator[tuple[str, str]]:
    """The name and the code of each function, those of classes with the class before the dot."""
    for node in module.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{sync_name(node.name)}." if isinstance(node, ast.ClassDef) else ""
        for member in members:
            if isinstance(member, ast.FunctionDef) and not _is_overload(member):
                yield prefix + member.name, ast.unparse(ast.fix_missing_locations(member))


def _is_overload(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in function.decorator_list)


def sync_classes(module: ast.Module) -> set[str]:
    """The classes of a module, as its sync twin calls them."""
    return {sync_name(node.name) for node in module.body if isinstance(node, ast.ClassDef)}


def read(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def differences(twin: str) -> dict[str, list[str]]:
    """The lines that the functions of a twin do not have alike, by the function's name.

    ``- line`` stands in the sync one, ``+ line`` in the async one, and nothing but ``+`` or ``-``
    for a function that only one of them has.
    """
    plain = AnnotationRemover()
    sync = dict(functions(plain.visit(read(f"{twin}.py"))))
    stripped = dict(functions(plain.visit(AsyncRemover().visit(read(f"{twin}_async.py")))))
    # What base.py has for all four types, its twin imports from there.
    alone = sync_classes(read(f"{twin}.py")) - sync_classes(read(f"{twin}_async.py"))
    return {
        name: _difference(sync.get(name), stripped.get(name))
        for name in [*sync, *(name for name in stripped if name not in sync)]
        if sync.get(name) != stripped.get(name) and name.partition(".")[0] not in alone
    }


def _difference(sync: str | None, stripped: str | None) -> list[str]:
    if sync is None or stripped is None:
        return ["+" if sync is None else "-"]
    lines = ndiff(sync.splitlines(), stripped.splitlines())
    return [" ".join(line.split()) for line in lines if line[0] in "+-"]


def render(twin: str) -> str:
    """The differences of a twin as they stand in the file."""
    lines = [f"== {twin}"]
    for name, different in differences(twin).items():
        lines += [name, *(f"    {line}" for line in different)]
    return "\n".join(lines)


def _as_any_python_writes_it(text: str) -> str:
    # Which quotes, parentheses and blanks ast.unparse takes depends on the version.
    return re.sub(r"['\"() ]", "", text)


@pytest.mark.parametrize("twin", TWINS)
def test_twins_are_alike_but_where_they_must_differ(twin: str) -> None:
    allowed = re.split(r"^(?=== )", ALLOWED.read_text(encoding="utf-8"), flags=re.MULTILINE)
    of_twin = [text.rstrip() for text in allowed if text.startswith(f"== {twin}\n")] or [
        f"== {twin}"
    ]
    assert _as_any_python_writes_it(render(twin)) == _as_any_python_writes_it(of_twin[0])


def test_a_difference_is_found() -> None:
    one = AnnotationRemover().visit(ast.parse("def f(a: int) -> int:\n    return g(a)"))
    two = ast.parse("async def f(a: str) -> str:\n    'Doc.'\n    return await g(a, 1)")
    other = AnnotationRemover().visit(AsyncRemover().visit(two))
    assert dict(functions(one)) == {"f": "def f(a):\n    return g(a)"}
    assert dict(functions(other)) == {"f": "def f(a):\n    return g(a, 1)"}


if __name__ == "__main__":
    print("\n\n".join(map(render, TWINS)))
