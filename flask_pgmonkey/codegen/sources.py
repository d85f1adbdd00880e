"""How a program names its config, without a secret in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.interpolation import is_command, is_reference
from ..config.libpq import ENVIRONMENT_VARIABLES
from ..config.redaction import holds_literal_secret
from ..errors import ConfigError

_FOLDER = "Path(__file__).parent"


@dataclass(frozen=True)
class ProgramSource:
    """What stands in a program for its config.

    :ivar in_app: the expression for ``PGMONKEY_CONFIG``.
    :ivar in_script: the expression elsewhere.
    :ivar remark: a comment for above them.
    :ivar app_imports: what the program has to import for *in_app*.
    :ivar script_imports: and for *in_script*, of the standard library and of ours.
    :ivar is_mapping: whether it is a mapping, which the manager takes by another method.
    :ivar resolve_env: whether its references have to be resolved.
    :ivar app_arguments: further arguments for ``Flask(…)``.
    """

    in_app: str
    in_script: str
    remark: str
    app_imports: tuple[str, ...] = ()
    script_imports: tuple[str, ...] = ()
    is_mapping: bool = False
    resolve_env: bool = False
    app_arguments: str = ""


def file_source(path: str, folder: str, *, resolve_env: bool) -> ProgramSource:
    """The config file *path* for a program in *folder*; relative unless they share no folder."""
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    shared = os.path.commonpath([path, folder])
    is_absolute = os.path.dirname(shared) == shared
    literal = python_literal(path if is_absolute else os.path.relpath(path, folder))
    return ProgramSource(
        in_app=literal,
        in_script=literal if is_absolute else f"{_FOLDER} / {literal}",
        remark="The config file." if is_absolute else "The config file, from this file's folder.",
        script_imports=() if is_absolute else ("from pathlib import Path",),
        resolve_env=resolve_env,
    )


def uri_source() -> ProgramSource:
    """A URI, which may hold a password and so stays in the environment."""
    return ProgramSource(
        in_app='os.environ["DATABASE_URL"]',
        in_script='os.environ["DATABASE_URL"]',
        remark="The postgresql:// URI, which may hold a password and so is not written here.",
        app_imports=("import os",),
        script_imports=("import os",),
    )


def embedded_source(postgres_folder: str, folder: str) -> ProgramSource:
    """The embedded server with its data in *postgres_folder*, for a program in *folder*."""
    data = file_source(postgres_folder, folder, resolve_env=False).in_script
    instance = file_source(os.path.dirname(postgres_folder), folder, resolve_env=False).in_script
    is_own = os.path.dirname(postgres_folder) == os.path.join(folder, "instance")
    path_import = ("from pathlib import Path",) if _FOLDER in data else ()
    return ProgramSource(
        in_app='"embedded"',
        in_script=f'{{"connection_settings": start_embedded({data})}}',
        remark="The server for development; its data lie in the app's instance folder.",
        app_imports=() if is_own or _FOLDER not in instance else path_import,
        script_imports=(*path_import, "from flask_pgmonkey.embedded import start_embedded"),
        is_mapping=True,
        app_arguments="" if is_own else f", instance_path=str({instance})",
    )


def mapping_source(mapping: Mapping[str, Any], *, resolve_env: bool) -> ProgramSource:
    """A mapping, whose secrets become references to variables of the environment.

    :raises ConfigError: for a value that no program can hold, such as a callable.
    """
    has_secrets = any(True for _ in _secrets(mapping))
    text = python_literal(_without_secrets(mapping, escape=has_secrets and not resolve_env))
    return ProgramSource(
        in_app=text,
        in_script=text,
        remark="Secrets are taken from the environment." if has_secrets else "The config.",
        is_mapping=True,
        resolve_env=resolve_env or has_secrets,
    )


def _secrets(mapping: Mapping[Any, Any]) -> Iterable[object]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and not is_reference(value) and not is_command(value):
            yield from _secrets(value)
        elif _is_secret(key, value):
            yield key


def _is_secret(key: object, value: object) -> bool:
    return (
        value not in (None, "")
        and not is_reference(value)
        and not is_command(value)
        and holds_literal_secret(key, value)
    )


def _without_secrets(value: Any, escape: bool, key: object = None) -> Any:
    if _is_secret(key, value):
        name = str(key)
        variable = "DATABASE_URL" if name == "uri" else ENVIRONMENT_VARIABLES.get(name)
        return {"from_env": variable or f"PG{name.upper().replace('.', '_')}"}
    if isinstance(value, Mapping):
        return {name: _without_secrets(item, escape, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item, escape, key) for item in value]
    return value.replace("${", "$${") if escape and isinstance(value, str) else value


def python_literal(value: Any, indent: str = "") -> str:
    """The Python of *value*, in double quotes where it can be, a line for each item of a mapping.

    :raises ConfigError: for what no literal stands for.
    """
    if isinstance(value, Mapping):
        if not value:
            return "{}"
        deeper = f"{indent}    "
        lines = [
            f"{deeper}{python_literal(key)}: {python_literal(item, deeper)},\n"
            for key, item in value.items()
        ]
        return f"{{\n{''.join(lines)}{indent}}}"
    if isinstance(value, list):
        return f"[{', '.join(python_literal(item, indent) for item in value)}]"
    if isinstance(value, str):
        literal = repr(value)
        return literal if '"' in literal else f'"{literal[1:-1]}"'
    if isinstance(value, Path):
        return python_literal(str(value))
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    raise ConfigError(
        f"The config holds {type(value).__name__} objects, which no program can be given: name a"
        " config file with --config PATH."
    )
