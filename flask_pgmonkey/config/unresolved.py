"""A config as its author wrote it, with its keys checked and its references unresolved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .bounds import require_bounded
from .interpolation import (
    RESOLVE_ENV,
    KeyPath,
    References,
    ambiguous_secret,
    dotted,
    is_reference,
    looks_like_reference,
    structured_reference,
    unresolved_reference,
)
from .libpq import URI_SCHEMES
from .redaction import holds_literal_secret, is_secret_key
from .values import CONNECTION_SECTIONS, PSYCOPG_KEYS, Setting, check_keys
from .yaml_file import logger, path_of, read_file, type_name, unwrap, warn_if_readable

if TYPE_CHECKING:
    from .logins import LoginSource
    from .types import NamedType

# libpq weighs the connection settings against each other, but for these.
_NEVER_WEIGHED = {"dbname", "password", *PSYCOPG_KEYS}

ConfigSource = str | os.PathLike[str] | Mapping[str, Any]


class UnresolvedConfig:
    """What stands in a config, and how to resolve its references.

    :param kind: ``file``, ``mapping`` or ``URI``.
    :param sections: the sections, without empty values.
    :param references: None where ``resolve_env`` is off.
    :param logins: by section, what gives the password where that is a callable or a command; it is
        in none of the *sections*.
    :param incomplete_sections: where something is left out that libpq weighs against the rest.
    :param types: what connections are to know of the database's types.
    """

    __slots__ = (
        "connection_type",
        "incomplete_sections",
        "kind",
        "logins",
        "origin",
        "references",
        "sections",
        "types",
    )

    def __init__(
        self,
        origin: str,
        kind: str,
        connection_type: Any,
        sections: dict[str, dict[str, Any]],
        references: References | None,
        logins: Mapping[str, LoginSource] = MappingProxyType({}),
        incomplete_sections: frozenset[str] = frozenset(),
        types: tuple[NamedType, ...] = (),
    ) -> None:
        self.origin: str = origin
        self.kind: str = kind
        self.connection_type: Any = connection_type
        self.sections: dict[str, dict[str, Any]] = sections
        self.references: References | None = references
        self.logins: Mapping[str, LoginSource] = logins
        self.incomplete_sections: frozenset[str] = incomplete_sections
        self.types: tuple[NamedType, ...] = types

    def __repr__(self) -> str:
        return f"<UnresolvedConfig from {self.origin}>"

    @property
    def has_direct_settings(self) -> bool:
        """Whether ``direct_settings`` say anything."""
        return bool(self.sections["direct_settings"]) or "direct_settings" in self.logins

    def settings(self, section: str) -> dict[str, Setting]:
        """The values of *section*, resolved and ready to be checked.

        :raises EnvInterpolationError: if a reference cannot be resolved.
        """
        return {
            name: self._setting((section, name), value)
            for name, value in self.sections[section].items()
        }

    def setting(self, section: str, name: str) -> Setting:
        """That one of :meth:`settings`."""
        return self._setting((section, name), self.sections[section][name])

    def connection_type_setting(self) -> Setting:
        """The connection type, resolved and ready to be checked."""
        return self._setting(("connection_type",), self.connection_type)

    def is_resolved(self, value: object) -> bool:
        """Whether *value* is a reference that is resolved before use."""
        return self.references is not None and is_reference(value)

    def has_references(self, section: str) -> bool:
        """Whether any value of *section* is a reference that is resolved before use."""
        return any(self.is_resolved(value) for value in self.sections[section].values())

    def kept_references(self, section: str) -> dict[str, tuple[str, str]]:
        """Identify the references of *section* whose content may change while the config stays.

        Those are the references of secret keys, and files.
        """
        kept = {}
        for name, value in self.sections[section].items():
            if self.references is None or not is_reference(value):
                continue
            if (file := self.references.file_of(value, (section, name))) is not None:
                kept[name] = ("from_file", str(file.absolute()))
            elif is_secret_key(name):
                kept[name] = ("reference", repr(value))
        return kept

    def variables(self) -> set[str]:
        """The environment variables on which more depends than the value of a secret."""
        if self.references is None:
            return set()
        names: set[str] = set()
        for path, value in self.values():
            if not is_secret_key(path[-1]) or self.references.file_of(value, path) is not None:
                names |= self.references.variables(value, path)
        return names

    def values(self) -> Iterator[tuple[KeyPath, Any]]:
        """The key path and the value of everything written."""
        if self.connection_type is not None:
            yield ("connection_type",), self.connection_type
        for section, content in self.sections.items():
            for name, value in content.items():
                yield (section, name), value

    def without_references(self) -> UnresolvedConfig:
        """What can be checked before the references are resolved.

        :raises EnvInterpolationError: if a reference is malformed or has a forbidden default.
        """
        if self.references is None:
            return self
        for path, value in self.values():
            self.references.check(value, path)
        sections = {
            section: {name: value for name, value in content.items() if not is_reference(value)}
            for section, content in self.sections.items()
        }
        incomplete = {
            section
            for section in CONNECTION_SECTIONS
            if self.sections[section].keys() - sections[section].keys() - _NEVER_WEIGHED
        }
        is_literal = not is_reference(self.connection_type)
        return UnresolvedConfig(
            self.origin,
            self.kind,
            self.connection_type if is_literal else None,
            sections,
            self.references,
            self.logins,
            incomplete_sections=frozenset(incomplete),
            types=self.types,
        )

    def warn_about_lookalikes(self) -> None:
        """Log what looks like a reference but is none, because ``resolve_env`` is off."""
        for path, value in self.values():
            if self.references is None and looks_like_reference(value):
                logger.warning(
                    "%s: %s looks like a reference to an environment variable and is used as it "
                    "is, because %s is off.",
                    self.origin,
                    dotted(path),
                    RESOLVE_ENV,
                )

    def warn_about_secret_files(self) -> None:
        """Log the files of ``from_file`` that others than their owner may read."""
        for path, value in self.values():
            if self.references and (file := self.references.file_of(value, path)) is not None:
                warn_if_readable(file)

    def _setting(self, path: KeyPath, value: Any) -> Setting:
        if self.references is not None:
            resolved = self.references.resolve(value, path)
            return Setting.at(self.origin, path, resolved, hidden=is_reference(value))
        if structured_reference(value) is not None:
            raise unresolved_reference(f"{self.origin}: {dotted(path)}")
        if looks_like_reference(value) and (
            is_secret_key(path[-1]) or holds_literal_secret(path[-1], value)
        ):
            raise ambiguous_secret(f"{self.origin}: {dotted(path)}")
        return Setting.at(self.origin, path, value, hidden=False)


def read_unresolved(
    source: ConfigSource, resolve_env: bool, allow_sensitive_defaults: bool, origin: str | None
) -> UnresolvedConfig:
    """Read *source* and check its keys; see :func:`read_config` for the parameters."""
    folder = Path()
    content: Mapping[str, Any]
    if isinstance(source, Mapping):
        kind, content = "mapping", source
    elif isinstance(source, str) and source.startswith(URI_SCHEMES):
        kind, content = "URI", {"connection_settings": {"uri": source}}
    elif isinstance(source, (str, os.PathLike)):
        file = path_of(source)
        kind, content, folder = "file", read_file(file), file.parent.absolute()
        origin = f"{origin}, file {file}" if origin else f"file {file}"
    else:
        raise ConfigError(
            f"{origin or 'The config'} must be the path of a YAML file, a mapping or a "
            f"{URI_SCHEMES[0]} URI, not {type_name(source)}."
        )
    origin = origin or f"the {kind}"
    require_bounded(content, origin)
    # The warning shows at the caller of read_config.
    content = unwrap(content, origin, stacklevel=4)
    references = References(origin, folder, allow_sensitive_defaults) if resolve_env else None
    sections = check_keys(content, origin)
    logins = {}
    for section in CONNECTION_SECTIONS:
        password = sections[section].get("password")
        if password is not None and not isinstance(password, str):
            from .logins import login_source  # few have one

            login = login_source(password, section, origin, references)
            if login is not None:
                logins[section] = login
                del sections[section]["password"]
    type_ = content.get("connection_type")
    types: tuple[NamedType, ...] = ()
    if content.get("types") is not None:
        from .types import read_types  # few have some

        types = read_types(content["types"], origin)
    return UnresolvedConfig(origin, kind, type_, sections, references, logins, types=types)
