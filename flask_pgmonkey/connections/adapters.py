"""What a borrower registers on its psycopg connection, so that it can be seen and undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.adapt import AdaptersMap
from psycopg.types import TypeInfo, TypesRegistry

if TYPE_CHECKING:
    from psycopg.abc import Dumper, Loader


class NotedAdapters(AdaptersMap):
    """A connection's adapters, with an entry in *registered* for each that is registered on it.

    What it has of its template it shares until then, as psycopg's own does.
    """

    def __init__(self, template: AdaptersMap, registered: list[None]) -> None:
        super().__init__(template)
        self.types: TypesRegistry = _NotedTypes(template.types, registered)
        self._registered = registered

    def register_dumper(self, cls: type | str | None, dumper: type[Dumper]) -> None:
        self._registered.append(None)
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Loader]) -> None:
        self._registered.append(None)
        super().register_loader(oid, loader)


class _NotedTypes(TypesRegistry):
    def __init__(self, template: TypesRegistry, registered: list[None]) -> None:
        super().__init__(template)
        self._registered = registered

    def add(self, info: TypeInfo) -> None:
        self._registered.append(None)
        super().add(info)
