"""The key ``types``: the types of extensions and of users that connections are to know."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from ..errors import ConfigError

TypeKind = Literal["type", "enum", "composite"]

_NAME = re.compile(r"([^\W\d][\w$]{0,62})(?:\.([^\W\d][\w$]{0,62}))?")
_KINDS = ("enum", "composite")
_MOST = 1000

#: The package that makes Python's objects of a type, and the extra that brings it.
_PACKAGES = {
    **dict.fromkeys(("vector", "halfvec", "sparsevec"), "pgvector"),
    **dict.fromkeys(("geometry", "geography"), "shapely"),
}
_TYPES_OF_EXTENSIONS = {"pgvector": "vector", "postgis": "geometry"}


class NamedType(NamedTuple):
    """A type that connections are to know.

    :ivar kind: ``enum`` and ``composite`` for one that is to become objects of a class that
        psycopg makes.
    :ivar name: ``name`` or ``schema.name``, as the server has it.
    """

    kind: TypeKind
    name: str

    def __str__(self) -> str:
        return self.name if self.kind == "type" else f"{self.kind} {self.name}"

    @property
    def entry(self) -> str | dict[str, str]:
        """What stands in a config for it."""
        return self.name if self.kind == "type" else {self.kind: self.name}

    @property
    def schema_and_name(self) -> tuple[str | None, str]:
        """The schema, where one is named, and the name in it."""
        first, dot, second = self.name.partition(".")
        return (first, second) if dot else (None, first)


def read_types(value: object, origin: str) -> tuple[NamedType, ...]:
    """What stands under ``types``.

    :raises ConfigError: for what names no type, and where a package is missing.
    """
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{origin}: types must be a list of names, such as [vector, hstore].")
    if len(value) > _MOST:
        raise ConfigError(f"{origin}: types must not have more than {_MOST} names.")
    found: list[NamedType] = []
    for number, entry in enumerate(value):
        named = _read_entry(entry, f"{origin}: types[{number}]")
        if named.name in [each.name for each in found]:
            raise ConfigError(f"{origin}: types names {named.name} twice.")
        found.append(named)
    return tuple(found)


def _read_entry(entry: object, place: str) -> NamedType:
    kind: TypeKind = "type"
    if isinstance(entry, Mapping):
        (first, entry), *more = entry.items() or [(None, None)]
        if more or first not in _KINDS:
            raise ConfigError(f"{place} must be a name, {{enum: NAME}} or {{composite: NAME}}.")
        kind = first
    return NamedType(kind, check_type_name(entry, place))


def check_type_name(name: object, place: str) -> str:
    """*name*, as ``name`` or ``schema.name``.

    :raises ConfigError: where it is none, or needs a package that is not there.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{place} must be the name of a type: NAME or SCHEMA.NAME.")
    bare = name.rpartition(".")[2]
    if bare in _TYPES_OF_EXTENSIONS:
        raise ConfigError(
            f"{place}: {bare} is an extension; did you mean its type {_TYPES_OF_EXTENSIONS[bare]}?"
        )
    package = _PACKAGES.get(bare)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{place}: the type {bare} needs the package {package}:"
            f' pip install "flask-pgmonkey[{package}]".'
        )
    return name
