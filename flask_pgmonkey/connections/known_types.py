"""The types of extensions and of users, as every connection to a database is to know them.

The first connection of a process asks the catalogue, once for all of them; the others are opened
with what came of it. psycopg's own functions register them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter, signature
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import psycopg
from psycopg import postgres
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.hstore import register_hstore
from psycopg.types.multirange import MultirangeInfo, register_multirange
from psycopg.types.range import RangeInfo, register_range
from psycopg.types.string import TextBinaryLoader, TextLoader

from ..config.types import NamedType, check_type_name
from ..printable import one_line

if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection
    from typing_extensions import LiteralString

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

LOOK_AGAIN_EVERY = 60.0
"""Seconds, at least, between two looks for what was not there."""

# What is looked for in the catalogue beside a type, and may be missing.
_COMPANIONS = {
    "vector": ("halfvec", "sparsevec"),
    "geometry": ("geography",),
}
_EXTENSIONS = {
    "hstore": "hstore",
    "citext": "citext",
    "ltree": "ltree",
    **dict.fromkeys(("vector", "halfvec", "sparsevec"), "vector"),
    **dict.fromkeys(("geometry", "geography"), "postgis"),
}

# As bytes of UTF-8, whatever encoding the connection speaks. Of several types of the same name that
# of the search path is meant.
_QUERY = """
    SELECT convert_to(coalesce(json_agg(found)::text, '[]'), 'UTF8')
    FROM unnest(%s::text[], %s::text[]) AS wanted (schema, name)
    CROSS JOIN LATERAL (
        SELECT wanted.schema AS wanted_schema, wanted.name AS wanted_name,
            t.oid::bigint AS oid, t.typname AS name, t.typarray::bigint AS array_oid,
            t.oid::regtype::text AS regtype, t.typdelim AS delimiter, t.typtype AS kind,
            (
                SELECT json_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum
                WHERE enumtypid = t.oid
            ) AS labels,
            (
                SELECT json_agg(json_build_array(attname, atttypid::bigint) ORDER BY attnum)
                FROM pg_attribute WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped
            ) AS fields,
            (
                SELECT json_build_array(rngtypid::bigint, rngsubtype::bigint) FROM pg_range r
                WHERE t.oid IN (rngtypid, (to_json(r) ->> 'rngmultitypid')::oid)
            ) AS range,
            (
                WITH RECURSIVE below (oid) AS (
                    SELECT t.typbasetype
                    UNION ALL
                    SELECT typbasetype FROM below JOIN pg_type USING (oid) WHERE typtype = 'd'
                )
                SELECT oid::bigint FROM below JOIN pg_type USING (oid) WHERE typtype <> 'd'
            ) AS base
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE t.typname = wanted.name AND (wanted.schema IS NULL OR n.nspname = wanted.schema)
        ORDER BY pg_type_is_visible(t.oid) DESC, n.nspname
        LIMIT 1
    ) found"""


class _Opener(Protocol):
    plans_changed: int


class KnownTypes:
    """The types that the connections to one database know.

    :param target: how messages name the database.
    :param wanted: those that the config names.
    :param classes: further ones by their names, with what they become where the app says so.
    :ivar adapters: what connections are opened with, once the catalogue was asked.
    :ivar problems: why types are not known, by their names.
    :ivar warns: whether the problems are logged, each once.
    """

    def __init__(
        self, target: str, wanted: Sequence[NamedType], classes: Mapping[str, type[Any] | None]
    ) -> None:
        self._target = target
        self._classes = dict(classes)
        by_name = {named.name: named for named in wanted}
        for name in classes:
            by_name.setdefault(name, NamedType("type", name))
        self.wanted: tuple[NamedType, ...] = tuple(by_name.values())
        self.adapters: AdaptersMap | None = None
        self._openers: WeakValueDictionary[int, _Opener] = WeakValueDictionary()
        self.problems: dict[str, str] = {}
        self.warns: bool = True
        self._answer: bytes | None = None
        self._looked_at: float | None = None
        self._plans_changed = 0
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<KnownTypes {', '.join(map(str, self.wanted))} of {self._target}>"

    def serve(self, opener: _Opener) -> None:
        """Replace what *opener* has opened when the types turn out to be others."""
        self._openers[id(opener)] = opener

    def claim_look(self) -> bool:
        """Whether the connection that is being opened is to ask the catalogue.

        The first one is; later, once a minute, one after types were missing or a migration was met.
        """
        looked_at, now = self._looked_at, monotonic()
        if looked_at is None:
            return True
        if not self.problems and self._plans_changed == self._count_changes():
            return False
        if now - looked_at < LOOK_AGAIN_EVERY:
            return False
        self._looked_at = now  # the others need not ask too
        return True

    @property
    def question(self) -> tuple[LiteralString, tuple[list[str | None], list[str]]]:
        """The query for the catalogue, and its parameters."""
        names = [named.schema_and_name for named in self.wanted]
        names += [
            (schema, companion)
            for schema, name in names
            for companion in _COMPANIONS.get(name, ())
            if (schema, companion) not in names
        ]
        return _QUERY, ([schema for schema, _ in names], [name for _, name in names])

    def learn(self, conn: BaseConnection[Any], answer: bytes) -> None:
        """Make adapters of what the catalogue has answered on *conn*.

        Connections that were opened with others are replaced when they are borrowed next.
        """
        if answer != self._answer:
            problems: dict[str, str] = {}
            adapters = AdaptersMap(postgres.adapters)
            found = {(row["wanted_schema"], row["wanted_name"]): row for row in json.loads(answer)}
            _register_all(_context(adapters, conn), self.wanted, self._classes, found, problems)
            self.problems = problems
            self.adapters, self._answer = adapters, answer
            if self._looked_at is not None:
                for opener in self._living_openers():
                    opener.plans_changed += 1
        self._note_look()

    def note_refusal(self, error: psycopg.Error) -> None:
        """Do without: the server does not say which types it has."""
        self.problems = {
            str(named): f"the server does not say ({one_line(error)})" for named in self.wanted
        }
        self._note_look()

    def _note_look(self) -> None:
        self._looked_at = monotonic()
        self._plans_changed = self._count_changes()
        news = {words for words in self.problems.values() if words not in self._told}
        if news and self.warns:
            self._told |= news
            logger.warning(
                "Types of %s: %s. Their values are text until then. They are looked for again when"
                " a connection is opened, and at once by db.refresh_types().",
                self._target,
                "; ".join(sorted(news)),
            )

    def _count_changes(self) -> int:
        return sum(opener.plans_changed for opener in self._living_openers())

    def _living_openers(self) -> list[_Opener]:
        # Not by iterating, which others may disturb.
        return [opener for each in self._openers.valuerefs() if (opener := each()) is not None]


def require_classes(types: Mapping[str, type[Any] | None]) -> None:
    """Refuse what is no Enum and no class, or is there for what cannot be the name of a type.

    :raises TypeError: for the former.
    :raises ConfigError: for the latter.
    """
    for name, cls in types.items():
        check_type_name(name, f"types[{name!r}]")
        if cls is not None and not isinstance(cls, type):
            raise TypeError(
                f"types[{name!r}] must be an Enum, a dataclass, NamedTuple or other class for a"
                f" composite, or None for what has no class of yours, not {type(cls).__name__}"
            )


@dataclass(frozen=True)
class _Context:
    """What psycopg's functions register on; *connection* tells them its encoding."""

    adapters: AdaptersMap
    connection: Any


def _context(adapters: AdaptersMap, conn: BaseConnection[Any]) -> _Context:
    # psycopg takes SQL_ASCII for ASCII, in which not every label can be written.
    return _Context(adapters, conn if conn.info.encoding != "ascii" else None)


def _register_all(
    context: _Context,
    wanted: Sequence[NamedType],
    classes: Mapping[str, type[Any] | None],
    found: Mapping[tuple[str | None, str], dict[str, Any]],
    problems: dict[str, str],
) -> None:
    rows = []
    for named in wanted:
        schema, name = named.schema_and_name
        row = found.get((schema, name))
        if row is None:
            problems[str(named)] = f"there is no type {named.name}: {_remedy(name)}"
            continue
        rows.append((named, row))
        rows += [
            (NamedType("type", companion), found[schema, companion])
            for companion in _COMPANIONS.get(name, ())
            if (schema, companion) in found
        ]
    # Domains last: they are loaded as what lies below them.
    for named, row in sorted(rows, key=lambda pair: pair[1]["kind"] == "d"):
        try:
            problem = _register(context, named, classes.get(named.name), row)
        except (TypeError, ValueError) as error:  # a label that no member of an Enum can have
            problem = f"{named.name} cannot be registered: {one_line(error)}"
        if problem is not None:
            problems[str(named)] = problem


def _remedy(name: str) -> str:
    if name in _EXTENSIONS:
        return f"CREATE EXTENSION {_EXTENSIONS[name]} makes it"
    return "create it, or take it out of types"


def _register(
    context: _Context, named: NamedType, cls: type[Any] | None, row: dict[str, Any]
) -> str | None:
    """Register one type; gives what is wrong with it, in words."""
    kind, name = row["kind"], named.name
    wants = "composite" if cls is not None and not issubclass(cls, Enum) else named.kind
    wants = "enum" if cls is not None and issubclass(cls, Enum) else wants
    if wants != "type" and kind != wants[0]:
        return f"{name} is no {wants}"
    if kind == "e" and wants == "enum":
        return _register_enum(context, cls, row)
    if kind == "c":
        return _register_composite(context, cls, row)
    arguments = row["name"], row["oid"], row["array_oid"]
    if kind in ("r", "m"):
        range_oid, subtype_oid = row["range"]
        if kind == "r":
            range_info = RangeInfo(*arguments, regtype=row["regtype"], subtype_oid=subtype_oid)
            register_range(range_info, context)
        else:
            multirange_info = MultirangeInfo(
                *arguments, regtype=row["regtype"], range_oid=range_oid, subtype_oid=subtype_oid
            )
            register_multirange(multirange_info, context)
        return None
    info = TypeInfo(*arguments, regtype=row["regtype"], delimiter=row["delimiter"])
    if kind == "b" and row["name"] in _REGISTER:
        _REGISTER[row["name"]](info, context)
        return None
    info.register(context)
    adapters = context.adapters
    if kind == "e" or row["name"] == "citext":
        adapters.register_loader(info.oid, TextLoader)
        adapters.register_loader(info.oid, TextBinaryLoader)
    elif kind == "d":
        for format_ in Format:
            if (loader := adapters.get_loader(row["base"], format_)) is not None:
                adapters.register_loader(info.oid, loader)
    return None


def _register_enum(context: _Context, cls: type[Enum] | None, row: dict[str, Any]) -> str | None:
    labels = row["labels"] or ()
    arguments = row["name"], row["oid"], row["array_oid"]
    info = EnumInfo(*arguments, labels)
    info.regtype = row["regtype"]  # no argument in psycopg 3.3.3
    if cls is None:
        register_enum(info, context)
        return None
    # By their values where those are the labels, by their names where not.
    values = {member: member.value for member in cls if member.value in labels}
    strangers = set(labels) - set(values.values()) - {*cls.__members__}
    if strangers:
        listed = ", ".join(sorted(strangers))
        return f"{cls.__qualname__} has no member for {listed} of the enum {row['name']}"
    register_enum(info, context, cls, mapping=values)
    return None


def _register_composite(
    context: _Context, cls: type[Any] | None, row: dict[str, Any]
) -> str | None:
    fields = row["fields"] or ()
    names = [name for name, _ in fields]
    arguments = row["name"], row["oid"], row["array_oid"]
    info = CompositeInfo(
        *arguments,
        regtype=row["regtype"],
        field_names=names,
        field_types=[oid for _, oid in fields],
    )
    if cls is None:
        register_composite(info, context)
        return None
    parameters = signature(cls).parameters
    required = {name for name, each in parameters.items() if each.default is Parameter.empty}
    if not required <= set(names) <= parameters.keys():
        return (
            f"{cls.__qualname__}({', '.join(parameters)}) does not fit the composite {row['name']}"
            f" ({', '.join(names)})"
        )
    register_composite(
        info,
        context,
        cls,
        make_object=lambda values, _: cls(**dict(zip(names, values, strict=True))),
        make_sequence=lambda made, _: [getattr(made, name) for name in names],
    )
    return None


def _of_pgvector(name: str) -> Callable[[TypeInfo, _Context], object]:
    def register(info: TypeInfo, context: _Context) -> None:
        from importlib import import_module

        module = import_module(f"pgvector.psycopg.{name}")
        getattr(module, f"register_{name}_info")(context, info)
        if name == "vector":
            from pgvector.psycopg.bit import register_bit_info

            bit: Any = context
            register_bit_info(bit, postgres.types["bit"])

    return register


def _register_shapely(info: TypeInfo, context: _Context) -> None:
    from psycopg.types.shapely import register_shapely

    register_shapely(info, context)


_REGISTER: dict[str, Callable[[TypeInfo, _Context], object]] = {
    "hstore": register_hstore,
    "geometry": _register_shapely,
    "geography": _register_shapely,
    **{name: _of_pgvector(name) for name in ("vector", "halfvec", "sparsevec")},
}
