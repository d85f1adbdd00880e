"""Which module may import which: imports only go down, and Flask stays at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "flask_pgmonkey"
ROOT = Path(__file__).parent.parent / PACKAGE

LAYERS = [
    {"cli", "health", "metrics", "testing"},
    {"migrations", "server_audit", "codegen"},
    {"extension"},
    {"debugging", "development", "monitor", "responses", "uploads"},
    {"activity", "contexts", "query_log", "query_tags", "unavailable"},
    {"aio"},
    {"background", "database_async"},
    {"database"},
    {"copying", "queries_async", "streaming"},
    {"queries"},
    {"batches_async", "json_rows"},
    {"batches"},
    {"manager", "programs", "retries"},
    {"connections", "csv_transfer", "embedded"},
    {"config"},
    {"rows"},
    {"events", "inspection", "per_process", "plans"},
    {"after_commit", "errors", "files", "mistakes", "owned_lock", "printable", "signals"},
]
LEVELS = {name: len(LAYERS) - level for level, names in enumerate(LAYERS) for name in names}
FLASK = {"flask", "werkzeug", "click", "jinja2"}

# Without the root's __init__.py, which gathers the public names from everywhere.
FILES = sorted(set(ROOT.rglob("*.py")) - {ROOT / "__init__.py"})


def module_of(file: Path) -> str:
    """The dotted name below the package: ``cli.targets``."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    """How high a module stands; everything may import what stands lower."""
    top = module.partition(".")[0]
    assert top in LEVELS, f"{module} has no layer in this test"
    return LEVELS[top]


def imported_names(file: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, wherever in it."""
    package = (PACKAGE, *file.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_only_go_down(file: Path) -> None:
    module = module_of(file)
    here = module.partition(".")[0]
    upward = []
    for line, name in imported_names(file):
        package, _, target = name.partition(".")
        if package != PACKAGE or target.partition(".")[0] == here:
            continue
        if layer_of(target) >= layer_of(module):
            upward.append(f"line {line}: {name}")
    assert not upward, f"{file} imports what stands above or beside it: {upward}"


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if layer_of(module_of(file)) <= LEVELS["database"]],
    ids=module_of,
)
def test_nothing_from_database_down_imports_flask(file: Path) -> None:
    flask = [
        f"line {line}: {name}"
        for line, name in imported_names(file)
        if name.partition(".")[0] in FLASK
    ]
    assert not flask, f"{file} imports Flask: {flask}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Wherever the import stands: in a function, or for type checkers alone."""
    modules = {module_of(file) for file in FILES}
    imports: dict[str, set[str]] = {}
    for file in FILES:
        names = {name.removeprefix(f"{PACKAGE}.") for _, name in imported_names(file)}
        found = {n if n in modules else n.rpartition(".")[0] for n in names} & modules
        imports[module_of(file)] = found - {module_of(file)}
    while free := {module for module, targets in imports.items() if not targets & imports.keys()}:
        for module in free:
            del imports[module]
    assert not imports, f"these import each other in a circle: {imports}"
