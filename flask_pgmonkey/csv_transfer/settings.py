"""The YAML file beside a CSV file that says how to read it, as pgmonkey writes and reads it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..config.reading import read_small_file
from ..errors import ConfigError
from .dialect import check_character
from .streams import check_encoding, replacing_file, without_compression


@dataclass(frozen=True)
class ImportSettings:
    """How to read one CSV file; None where the file is to tell by itself."""

    has_headers: bool | None = None
    auto_create_table: bool | None = None
    enforce_lowercase: bool | None = None
    delimiter: str | None = None
    quotechar: str | None = None
    encoding: str | None = None


CHECKS: dict[str, Callable[[str], str]] = {
    "delimiter": check_character,
    "quotechar": check_character,
    "encoding": check_encoding,
}

RENAME = (
    "if this is not how import-csv is to read the CSV file of the same name, rename one of the two"
)


def settings_path(csv_file: str | os.PathLike[str]) -> Path:
    """``orders.yaml`` for ``orders.csv`` and for ``orders.csv.gz``."""
    plain = without_compression(Path(csv_file))
    return plain.parent / f"{plain.stem}.yaml"  # A path without a name, such as /, gives no error.


def read_import_settings(path: str | os.PathLike[str]) -> ImportSettings:
    """The settings in the file *path*; empty settings if there is none.

    :raises OSError: if it is there and cannot be read, or is no small file.
    :raises ConfigError: if it is something else, a key is unknown, or a value of the wrong type.
    """
    try:
        written, _ = read_small_file(Path(path))
        content: Any = yaml.safe_load(written.decode())
    except FileNotFoundError:
        return ImportSettings()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML's own words quote the text, and another program's may hold a password.
        mark = getattr(error, "problem_mark", None)
        place = f"file {path}, line {mark.line + 1}" if mark else f"file {path}"
        raise ConfigError(f"{place}: not YAML; {RENAME}") from None
    if content is None:
        return ImportSettings()
    types = {field.name: str(field.type).partition(" ")[0] for field in fields(ImportSettings)}
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"file {path}: no import settings; {RENAME}")
    for key, value in content.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, 1, 0.75)
            remedy = (
                f"did you mean {near[0]!r}?" if near else f"known are {', '.join(types)}; {RENAME}"
            )
            raise ConfigError(f"file {path}: {key!r} is no import setting; {remedy}")
        if value is not None and type(value).__name__ != types[key]:
            raise ConfigError(f"file {path}: {key} must be a {types[key]}, not {value!r}")
    if content.get("delimiter") == r"\t":  # What YAML makes of an unquoted \t.
        content["delimiter"] = "\t"
    for key, check in CHECKS.items():
        try:
            if content.get(key) is not None:
                check(content[key])
        except (ValueError, LookupError) as error:
            raise ConfigError(f"file {path}: {key}: {error}") from error
    return ImportSettings(**content)


def write_import_settings(path: str | os.PathLike[str], settings: ImportSettings) -> None:
    """Write *settings* to *path*, in place of what is there."""
    text = yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True)
    with replacing_file(path) as file:
        file.write(b"# How `flask pgmonkey import-csv` reads the CSV file of this name.\n")
        file.write(text.encode())
