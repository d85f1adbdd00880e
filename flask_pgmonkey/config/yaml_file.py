"""Reading config files: YAML to a dictionary, with the file and the line in every error."""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..printable import printable
from .bounds import require_bounded
from .interpolation import KeyPath, References, dotted, looks_like_reference, where_relative
from .libpq import URI_SCHEMES, is_connection_string, parse_uri
from .reading import read_small_file
from .redaction import holds_literal_secret

logger: logging.Logger = logging.getLogger("flask_pgmonkey")


class NotYAMLError(Exception):
    """Text that is not YAML, or a value that its tag does not fit.

    :ivar line: where, counted from 1; 0 if that is not known.
    :ivar is_tag: whether it is a tag, such as ``!!python/name:os.system`` or ``!!int x``.
    """

    def __init__(self, line: int, is_tag: bool = False) -> None:
        super().__init__(line)
        self.line = line
        self.is_tag = is_tag


class _TagError(yaml.constructor.ConstructorError):
    """A value with a tag that is not known, or that the value does not fit."""


class SafeLoader(yaml.SafeLoader):
    """PyYAML's, with the place in every error: ``!!bool x`` is a mere KeyError there."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (RecursionError, yaml.YAMLError):
            raise
        except Exception:
            place = node.start_mark
        raise _TagError(None, None, "", place)

    def construct_undefined(self, node: yaml.Node) -> Any:
        raise _TagError(None, None, "", node.start_mark)


SafeLoader.add_constructor(None, SafeLoader.construct_undefined)  # PyYAML's is of its own class


@cache
def _loader() -> type[SafeLoader]:
    """A loader that reads a number only where the text is just how Python writes that number.

    Everything else stays the text that stands in the file, so that a password ``0123`` or a
    version ``1.10`` is not changed on its way. (The C loader crashes on deep nesting.)
    """

    class Loader(SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {}
    for tag, pattern, first in (
        ("merge", r"<<", ["<"]),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"0|-?[1-9][0-9]{0,15}", list("-0123456789")),
        ("float", r"-?(?:0|[1-9][0-9]{0,7})\.(?:0|[0-9]{0,6}[1-9])", list("-0123456789")),
    ):
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first
        )
    return Loader


def load_config(
    path: str | os.PathLike[str], resolve_env: bool = False, allow_sensitive_defaults: bool = False
) -> dict[str, Any]:
    """Read a YAML config file into a dictionary.

    Keys and values are not validated here: that happens where the config is used.

    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file``, whose relative paths
        are relative to the file's folder; see :func:`resolve_env_vars`.
    :param allow_sensitive_defaults: permit ``${VAR:-default}`` for secret keys.
    :raises ConfigError: if the file cannot be read or is not a YAML mapping.
    :raises EnvInterpolationError: if a reference cannot be resolved.
    """
    file = path_of(path)
    config = unwrap(read_file(file), f"file {file}", stacklevel=3)
    if not resolve_env:
        return config
    references = References(f"file {file}", file.parent.absolute(), allow_sensitive_defaults)
    return references.resolve_mapping(config)


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the outdated ``postgresql:`` key around its sections.

    :raises ConfigError: if that key does not hold a mapping or has other keys beside it.
    """
    return unwrap(config, "the mapping", stacklevel=3)


def unwrap(config: Mapping[str, Any], origin: str, stacklevel: int) -> dict[str, Any]:
    """Do the work of :func:`normalize_config` for a config from *origin*."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{origin}: expected a mapping, not {type_name(config)}.")
    if "postgresql" not in config:
        return dict(config)
    wrapped = config["postgresql"]
    if not isinstance(wrapped, Mapping) or len(config) > 1:
        raise ConfigError(
            f"{origin}: the outdated key postgresql must hold all sections of the config; "
            "remove it and move its sections to the top level."
        )
    warnings.warn(
        f"{printable(origin)}: the key postgresql around a config is deprecated; "
        "move its sections to the top level.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return dict(wrapped)


def read_file(file: Path) -> dict[str, Any]:
    """Parse *file* and warn, once in each process, about its permissions."""
    content, mode = _read_bytes(file)
    config = _parse(_decode(content, file), file)
    _warn_about_permissions(file, mode, any(_literal_secrets(config, set())))
    return config


def _read_bytes(file: Path) -> tuple[bytes, int]:
    try:
        return read_small_file(file)
    except FileNotFoundError:
        remedy = (
            "the embedded server is for the config of an app, PGMONKEY_CONFIG"
            if str(file) == "embedded"
            else "'flask pgmonkey create-config' writes one"
        )
        problem = f"does not exist{where_relative(file)}; {remedy}"
    except IsADirectoryError:
        problem = "is a folder; give the path of the YAML file in it"
    except PermissionError:
        problem = "may not be read by this user; change its owner or its mode"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or type(error).__name__}"
    except ValueError:
        problem = "has a name that no file can have"
    raise ConfigError(f"file {file} {problem}.")


def _decode(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    raise ConfigError(f"file {file}, line {line}: not UTF-8 text; save the file as UTF-8.")


def _parse(text: str, file: Path) -> dict[str, Any]:
    config, wrong = None, None
    try:
        config = parse_yaml(text, file, _loader())
    except NotYAMLError as error:
        wrong = error.line, error.is_tag
    if wrong is not None:
        line, is_tag = wrong
        place = f"file {file}, line {line}" if line else f"file {file}"
        if is_tag:
            # Without the tag: it may be a password that begins with an exclamation mark.
            raise ConfigError(
                f"{place}: what begins with ! is a tag of YAML, and this one is not known or does "
                "not fit its value; remove it, or put the value in quotes."
            )
        raise ConfigError(
            f"{place}: not valid YAML. Indent with spaces, and put quotes around "
            "values with special characters such as : # % @ & * ! [ {."
        )
    if config is None:
        raise ConfigError(
            f"file {file} is empty; 'flask pgmonkey create-config' writes a template."
        )
    if isinstance(config, str) and config.startswith(URI_SCHEMES):
        raise ConfigError(
            f"file {file}: expected the sections of a config, not a URI; move it to "
            "connection_settings.uri."
        )
    if not isinstance(config, dict):
        raise ConfigError(
            f"file {file}: expected the sections of a config (connection_settings: …), "
            f"not {type_name(config)}."
        )
    return config


def parse_yaml(text: str, file: Path, loader_class: type[SafeLoader]) -> object:
    """What the one document in *text* holds; None if there is none.

    :raises NotYAMLError: for what is not YAML.
    :raises ConfigError: for a second document, a key that stands twice, and aliases that would
        come to more than a config may.
    """
    line, is_tag = 0, False
    try:
        loader = loader_class(text)
        root = loader.get_node() if loader.check_node() else None
        if root is None:
            return None
        if loader.check_node():
            raise ConfigError(
                f"file {file} holds a second YAML document; keep one of them, and remove the "
                "line --- between them."
            )
        require_bounded(root, f"file {file}", _parts_of_node)
        _refuse_duplicate_keys(root, file)
        content: object = loader.construct_document(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, is_tag = mark.line + 1 if mark else 0, isinstance(error, _TagError)
    except (RecursionError, yaml.YAMLError):
        pass  # Nesting beyond all measure.
    else:
        return content
    # PyYAML's own words quote the text, and that may be a password: not even its context stays.
    raise NotYAMLError(line, is_tag)


def _parts_of_node(node: object) -> list[object] | None:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return None


def _refuse_duplicate_keys(root: yaml.Node, file: Path) -> None:
    """Raise if a mapping names a key twice, which YAML forbids and PyYAML lets pass."""
    pending: list[tuple[yaml.Node, KeyPath]] = [(root, ())]
    seen: set[int] = set()
    while pending:
        node, path = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += ((item, (*path, index)) for index, item in enumerate(node.value))
        elif isinstance(node, yaml.MappingNode):
            names = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in names:
                        raise ConfigError(
                            f"file {file}, line {key.start_mark.line + 1}: "
                            f"{dotted((*path, key.value))} stands here a second time; remove one."
                        )
                    names.add(key.value)
                pending.append((value, (*path, key.value)))


@cache
def _warn_about_permissions(file: Path, mode: int, holds_secret: bool) -> None:
    if os.name != "posix":
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning(
            "Others may change the config file %s; run: %s", file, _shell("chmod go-w", file)
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH) and holds_secret:
        logger.warning(
            "The config file %s holds a password and others may read it; run: %s",
            file,
            _shell("chmod 600", file),
        )


def warn_if_readable(file: Path) -> None:
    """Warn if others than its owner may read the file of a ``from_file`` reference."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return  # The owner's, of direct_settings, need not be here; who reads it hears of it.
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning(
            "Others may read the secret file %s; run: %s", file, _shell("chmod go-r", file)
        )


def _shell(command: str, file: Path) -> str:
    import shlex

    return f"{command} {shlex.quote(str(file))}"


def _literal_secrets(config: object, seen: set[int]) -> Iterator[str]:
    """The keys that hold a secret itself, not a path or a reference to one.

    :param seen: the mappings already visited: YAML's aliases can make one a part of itself, or
        of so many others that the walk would never end.
    """
    if not isinstance(config, Mapping) or id(config) in seen:
        return
    seen.add(id(config))
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _literal_secrets(value, seen)
        elif (
            value in (None, "")
            or looks_like_reference(value)
            or not holds_literal_secret(key, value)
        ):
            continue
        elif key == "uri":
            if "password" in (parse_uri(str(value)) or {}):
                yield key
        else:
            yield str(key)


def path_of(path: str | os.PathLike[str]) -> Path:
    """*path* as a Path; what is meant as a connection string is refused.

    :raises ConfigError: without quoting it, because it may contain a password.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError("The path of the config file is empty.")
    if is_connection_string(text):
        raise ConfigError(
            "Expected the path of a YAML file, a mapping or a URI that begins with "
            f"{URI_SCHEMES[0]}, not another kind of connection string."
        )
    return Path(path)


def type_name(value: object) -> str:
    """The kind of *value*, in the words of a config's author."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a value of type {type(value).__name__}"
