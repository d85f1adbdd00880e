"""References in a config: ``${VAR}``, ``${VAR:-default}``, ``from_env`` and ``from_file``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EnvInterpolationError
from .bounds import require_bounded
from .reading import read_small_file
from .redaction import is_secret_key

_STRUCTURED = ("from_env", "from_file")
_OF_COMMAND = ("from_command", "ttl")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
# Patterns stay text here: few programs need them, and compiling costs at import.
_TOKEN = (
    r"\$(?P<literal>\$\{)"
    rf"|\$\{{(?P<name>{_NAME})(?::-(?P<default>(?:(?!\$\{{)[^}}])*))?\}}"
    r"|(?P<malformed>\$\{)"
)

#: The two flags, by the names that code, apps and commands give them.
RESOLVE_ENV = "resolve_env (PGMONKEY_RESOLVE_ENV, --resolve-env)"
ALLOW_SENSITIVE_DEFAULTS = (
    "allow_sensitive_defaults (PGMONKEY_ALLOW_SENSITIVE_DEFAULTS, --allow-sensitive-defaults)"
)

#: Where a value stands in the config: mapping keys and list indexes from the top.
KeyPath = tuple[object, ...]


def dotted(path: KeyPath) -> str:
    """Write a key path as ``pool_settings.min_size`` or ``hosts[0]``.

    A key that is no plain name shows as ``?``, and so does whatever lies below a secret key,
    because a slip of the pen can make a key of a password.
    """
    text = ""
    below_secret = False
    for part in path:
        if type(part) is int and 0 <= part < 1_000_000:
            text += f"[{part}]"
            continue
        hidden = below_secret and part not in (*_STRUCTURED, *_OF_COMMAND)
        shown = part if isinstance(part, str) and _is_plain(part) and not hidden else "?"
        text += f".{shown}" if text else shown
        below_secret = below_secret or is_secret_key(part)
    return text


def _is_plain(key: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.-]{0,62}", key, re.ASCII) is not None


def resolve_env_vars(
    config: Mapping[str, Any], allow_sensitive_defaults: bool = False
) -> dict[str, Any]:
    """A copy of *config* in which every reference is replaced by what it refers to.

    ``${VAR}``, ``${VAR:-default}``, ``{from_env: VAR}`` and ``{from_file: path}`` are resolved at
    any depth; ``$${`` is a literal ``${``. A relative path is relative to the current folder.
    ``{from_command: …}`` stays, with its words resolved: it is asked for each connection.

    :param allow_sensitive_defaults: permit defaults for passwords and other secret keys.
    :raises EnvInterpolationError: if a variable is not set and has no default, a file cannot be
        read, a reference is malformed, or a secret key has a default.
    """
    references = References("the mapping", Path(), allow_sensitive_defaults)
    return references.resolve_mapping(config)


def structured_reference(value: object) -> tuple[str, object] | None:
    """``("from_env", name)`` or ``("from_file", path)`` if *value* is such a mapping."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, target),) = value.items()
        if kind in _STRUCTURED:
            return kind, target
    return None


def is_command(value: object) -> bool:
    """Whether *value* is meant as ``{from_command: …}``, right or wrong."""
    return isinstance(value, Mapping) and "from_command" in value


def looks_like_reference(value: object) -> bool:
    """Whether *value* is text that contains something like ``${VAR}``."""
    return isinstance(value, str) and re.search(r"\$\{" + _NAME, value) is not None


def is_reference(value: object) -> bool:
    """Whether resolving could change *value*, which is not a list or a plain mapping."""
    return structured_reference(value) is not None or (isinstance(value, str) and "${" in value)


def where_relative(file: Path) -> str:
    """The end of an error about a file that is not there: what its path is relative to."""
    try:
        return "" if file.is_absolute() else f", relative to the current folder {os.getcwd()}"
    except OSError:
        return ", relative to the current folder, which was removed"


def unresolved_reference(place: str) -> ConfigError:
    """The error for a reference where ``resolve_env`` is off."""
    return ConfigError(f"{place} is a reference; switch on {RESOLVE_ENV} to resolve it.")


def ambiguous_secret(place: str) -> ConfigError:
    """The error for a secret with ``${VAR}`` in it where ``resolve_env`` is off."""
    return ConfigError(
        f"{place} looks like a reference to an environment variable; switch on {RESOLVE_ENV} to "
        "resolve it, and write $${ for the characters themselves."
    )


class _Part:
    """A piece of text, or the variable that stands in its place."""

    __slots__ = ("default", "text", "variable")

    def __init__(self, text: str, variable: str | None = None, default: str | None = None) -> None:
        self.text = text
        self.variable = variable
        self.default = default


class References:
    """How the references of one config are resolved.

    :param origin: how errors name the config.
    :ivar folder: what a relative ``from_file`` is relative to.
    """

    __slots__ = ("_allow_sensitive_defaults", "_origin", "folder")

    def __init__(self, origin: str, folder: Path, allow_sensitive_defaults: bool) -> None:
        self._origin = origin
        self.folder: Path = folder
        self._allow_sensitive_defaults = allow_sensitive_defaults

    def resolve_mapping(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Resolve a whole config; see :func:`resolve_env_vars`."""
        if not isinstance(config, Mapping):
            raise ConfigError(f"{self._origin}: expected a mapping, not {type(config).__name__}.")
        require_bounded(config, self._origin)
        return {key: self.resolve(value, (key,)) for key, value in config.items()}

    def resolve(self, value: Any, path: KeyPath) -> Any:
        """*value* with its references resolved, at any depth."""
        if isinstance(value, str):
            return self._interpolate(value, path)
        if (reference := structured_reference(value)) is not None:
            kind, target = reference
            return (
                self._read_variable(self._variable_name(target, path), path)
                if kind == "from_env"
                else self._read_file(target, path)
            )
        if isinstance(value, Mapping):
            return {key: self.resolve(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.resolve(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def check(self, value: object, path: KeyPath) -> None:
        """Raise the errors of a malformed reference, without looking at environment or files."""
        if isinstance(value, str):
            for _ in self._parts(value, path):
                pass
        elif (reference := structured_reference(value)) is not None:
            kind, target = reference
            if kind == "from_env":
                self._variable_name(target, path)
            elif not isinstance(target, str) or not target:
                raise self._error(path, "from_file needs the path of a file")
            else:
                self.check(target, (*path, kind))

    def variables(self, value: object, path: KeyPath) -> set[str]:
        """The environment variables that *value*, no list or plain mapping, depends on."""
        if isinstance(value, str):
            return {part.variable for part in self._parts(value, path) if part.variable}
        if (reference := structured_reference(value)) is not None:
            kind, target = reference
            if kind == "from_env":
                return {self._variable_name(target, path)}
            return self.variables(target, (*path, kind))
        return set()

    def file_of(self, value: object, path: KeyPath) -> Path | None:
        """The file that *value* refers to; None if it is no ``from_file``."""
        kind, target = structured_reference(value) or (None, None)
        return self._file_path(target, path) if kind == "from_file" else None

    def _variable_name(self, target: object, path: KeyPath) -> str:
        if not isinstance(target, str) or re.fullmatch(_NAME, target) is None:
            raise self._error(path, "from_env needs the name of an environment variable")
        return target

    def _file_path(self, target: object, path: KeyPath) -> Path:
        name = self._interpolate(target, (*path, "from_file")) if isinstance(target, str) else ""
        if not name or "\0" in name:
            raise self._error(path, "from_file needs the path of a file")
        return self.folder / name

    def _interpolate(self, text: str, path: KeyPath) -> str:
        if "${" not in text:
            return text
        return "".join(
            part.text
            if part.variable is None
            else self._read_variable(part.variable, path, part.default)
            for part in self._parts(text, path)
        )

    def _parts(self, text: str, path: KeyPath) -> Iterator[_Part]:
        end = 0
        for match in re.finditer(_TOKEN, text):
            yield _Part(text[end : match.start()])
            end = match.end()
            if match["malformed"]:
                raise self._error(
                    path,
                    "'${' does not begin a reference; write ${VAR} or ${VAR:-default}, "
                    "or $${ for the characters themselves",
                )
            if match["literal"]:
                yield _Part(match["literal"])
                continue
            self._refuse_sensitive_default(match["name"], match["default"], path)
            yield _Part("", match["name"], match["default"])
        yield _Part(text[end:])

    def _refuse_sensitive_default(self, variable: str, default: str | None, path: KeyPath) -> None:
        if default is None or self._allow_sensitive_defaults:
            return
        # The way to a secret is no secret, so it may have a default.
        is_way = path[-1] == "from_file" or "from_command" in path
        if not is_way and any(is_secret_key(part) for part in path):
            raise self._error(
                path,
                f"a secret key may have no default in the config; set the environment variable "
                f"{variable} and write ${{{variable}}}, or switch on {ALLOW_SENSITIVE_DEFAULTS}",
            )

    def _read_variable(self, variable: str, path: KeyPath, default: str | None = None) -> str:
        value = os.environ.get(variable)
        if value is not None:
            return value.rstrip("\r\n")  # As of a file: what wrote it may have ended the line.
        if default is not None:
            return default
        raise self._error(path, f"the environment variable {variable} is not set")

    def _read_file(self, target: object, path: KeyPath) -> str:
        file = self._file_path(target, path)
        try:
            content, _ = read_small_file(file)
            return content.decode().rstrip("\r\n")
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except UnicodeError:
            reason = "it is not UTF-8 text"
        # As it is written where a variable is in it, which may hold the secret by mistake.
        named = f"{str(file)!r}{where_relative(file)}"
        if is_reference(target):
            named = repr(target)
        raise self._error(path, f"cannot read the file {named}: {reason}")

    def _error(self, path: KeyPath, problem: str) -> EnvInterpolationError:
        return EnvInterpolationError(f"{self._origin}: {dotted(path)}: {problem}.")
