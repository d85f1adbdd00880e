"""A dataclass for the rows of a table or a query, as ``into=`` takes it."""

from __future__ import annotations

import keyword
import re
import sys
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

from psycopg import postgres
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format
from psycopg.types.composite import CompositeInfo
from psycopg.types.enum import EnumInfo
from psycopg.types.multirange import MultirangeInfo
from psycopg.types.range import RangeInfo

from ..inspection import ResultColumn
from ..printable import printable

_TEXT = "builtins:str"
_ANY = "typing:Any"

_OBJECTS = {
    "bool": "builtins:bool",
    **dict.fromkeys(("int2", "int4", "int8", "oid"), "builtins:int"),
    **dict.fromkeys(("float4", "float8"), "builtins:float"),
    "numeric": "decimal:Decimal",
    "bytea": "builtins:bytes",
    "date": "datetime:date",
    **dict.fromkeys(("time", "timetz"), "datetime:time"),
    **dict.fromkeys(("timestamp", "timestamptz"), "datetime:datetime"),
    "interval": "datetime:timedelta",
    "uuid": "uuid:UUID",
    **dict.fromkeys(("json", "jsonb"), _ANY),
    "inet": "ipaddress:IPv4Address | ipaddress:IPv6Address"
    " | ipaddress:IPv4Interface | ipaddress:IPv6Interface",
    "cidr": "ipaddress:IPv4Network | ipaddress:IPv6Network",
    "record": f"builtins:tuple[{_ANY}, ...]",
    "text": _TEXT,
}

#: What psycopg's loaders make, as annotations in which each name stands after its module.
_MADE_BY: dict[object, str] = {
    None: _TEXT,
    **{
        postgres.adapters.get_loader(postgres.types[name].oid, Format.TEXT): annotation
        for name, annotation in _OBJECTS.items()
    },
}
_MADE_BY_OTHERS = {
    "psycopg.types.hstore.HstoreLoader": "builtins:dict[builtins:str, builtins:str | None]",
    "psycopg.types.shapely.GeometryLoader": "shapely.geometry.base:BaseGeometry",
    "pgvector.psycopg.vector.VectorLoader": "pgvector:Vector",
    "pgvector.psycopg.halfvec.HalfVectorLoader": "pgvector:HalfVector",
    "pgvector.psycopg.sparsevec.SparseVectorLoader": "pgvector:SparseVector",
}

_UNNAMED = "?column?"
_NAME = re.compile(r"([\w.]+):(\w+)")


def generate_dataclass(
    class_name: str, source: str, columns: Sequence[ResultColumn], adapters: AdaptersMap
) -> str:
    """The text of a module with a dataclass for rows with these *columns*.

    A column whose name cannot be that of a field gets another, with a comment that says how to
    select it.

    :param source: what gives the rows, for the docstring.
    :param adapters: those of the connections that will read the rows.
    """
    fields: dict[str, str] = {}
    remarks: dict[str, str] = {}
    names = [column.name for column in columns]
    for position, column in enumerate(columns):
        name = column.name
        is_second = name in names[:position]
        if is_second or not _is_field_name(name):
            name = _alias(name, position, {*names, *fields})
            selected = "…" if is_second or column.name == _UNNAMED else _quoted(column.name)
            remarks[name] = f"  # {printable(selected)} AS {name}"
        fields[name] = _annotation(column, adapters)
    spell = _Spelling({class_name, "dataclass", *fields})
    lines = [f"    {name}: {spell(fields[name])}{remarks.get(name, '')}" for name in fields]
    return "\n".join(
        [
            *spell.imports(),
            *("", ""),
            "@dataclass(frozen=True, slots=True)",
            f"class {class_name}:",
            f'    """{_in_docstring(source)}"""',
            "",
            *lines,
            "",
        ]
    )


def class_name_for(table: str) -> str:
    """``OrderItems`` for ``order_items``; ``Row`` where nothing of the kind can be made of it."""
    words = re.split(r"[\W_]+", unicodedata.normalize("NFKC", table))
    name = "".join(word[:1].upper() + word[1:] for word in words)
    return name if _is_field_name(name) else "Row"


def _annotation(column: ResultColumn, adapters: AdaptersMap) -> str:
    annotation = _python_type(column.oid, adapters)
    return f"{annotation} | None" if column.nullable and annotation != _ANY else annotation


def _python_type(oid: int, adapters: AdaptersMap) -> str:
    info = adapters.types.get(oid)
    if info is None:
        return _TEXT
    if oid == info.array_oid:
        return f"builtins:list[{_python_type(info.oid, adapters)}]"
    if isinstance(info, RangeInfo):
        return f"psycopg.types.range:Range[{_python_type(info.subtype_oid, adapters)}]"
    if isinstance(info, MultirangeInfo):
        bound = _python_type(info.subtype_oid, adapters)
        return f"psycopg.types.multirange:Multirange[{bound}]"
    if isinstance(info, EnumInfo):
        return _class_of_app(info.enum) or "enum:Enum"
    if isinstance(info, CompositeInfo):
        is_tuple = info.python_type is None or issubclass(info.python_type, tuple)
        return _class_of_app(info.python_type) or (_OBJECTS["record"] if is_tuple else _ANY)
    loader = adapters.get_loader(oid, Format.TEXT)
    if loader in _MADE_BY:
        return _MADE_BY[loader]
    # One of the app's own may make anything.
    return (
        _MADE_BY_OTHERS.get(f"{loader.__module__}.{loader.__qualname__}", _ANY) if loader else _ANY
    )


def _class_of_app(cls: type[Any] | None) -> str | None:
    """The annotation for a class that can be imported; psycopg's own makes cannot."""
    if cls is None or not cls.__qualname__.isidentifier():
        return None
    module = sys.modules.get(cls.__module__)
    is_there = module is not None and getattr(module, cls.__name__, None) is cls
    return f"{cls.__module__}:{cls.__name__}" if is_there else None


def _is_field_name(name: str) -> bool:
    """Whether a field can have the name of a column, as it is.

    Python writes identifiers in NFKC, and changes those that begin with two underscores.
    """
    return (
        name.isidentifier()
        and name.isprintable()
        and not keyword.iskeyword(name)
        and not name.startswith("__")
        and unicodedata.normalize("NFKC", name) == name
    )


def _alias(name: str, position: int, taken: Collection[str]) -> str:
    name = "" if name == _UNNAMED else name
    words = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name)).strip("_").lower()
    base = f"{words}_" if keyword.iskeyword(words) else words
    if not _is_field_name(base):
        base = f"column_{words or position + 1}"
    if not _is_field_name(base):
        base = f"column_{position + 1}"
    alias, number = base, 2
    while alias in taken:
        alias, number = f"{base}_{number}", number + 1
    return alias


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def _in_docstring(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')


class _Spelling:
    """How annotations are written in a program, and what it has to import for them.

    No name in them is one of *taken*: in the body of the class that would be its field.
    """

    def __init__(self, taken: Collection[str]) -> None:
        self._taken = taken
        self._names = {("dataclasses", "dataclass"): "dataclass"}

    def __call__(self, annotation: str) -> str:
        return _NAME.sub(self._spell, annotation)

    def _spell(self, found: re.Match[str]) -> str:
        module, name = found.groups()
        alias = name
        while alias in self._taken:
            alias += "_"
        self._names[module, name] = alias
        return alias

    def imports(self) -> list[str]:
        modules: dict[str, list[str]] = {}
        for (module, name), alias in sorted(self._names.items()):
            if module != "builtins" or alias != name:
                written = name if alias == name else f"{name} as {alias}"
                modules.setdefault(module, []).append(written)
        lines = [f"from {module} import {', '.join(names)}" for module, names in modules.items()]
        of_others = [line for line in lines if line.startswith("from psycopg.")]
        own = [line for line in lines if line not in of_others]
        return [*own, *([""] if of_others else []), *of_others]
