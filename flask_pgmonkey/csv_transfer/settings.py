"""The YAML file beside a CSV file that says how to read it, as pgmonkey writes and reads it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

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


def settings_path(csv_file: str | os.PathLike[str]) -> Path:
    """``orders.yaml`` for ``orders.csv`` and for ``orders.csv.gz``."""
    return without_compression(Path(csv_file)).with_suffix(".yaml")


def read_import_settings(path: str | os.PathLike[str]) -> ImportSettings:
    """The settings in the file *path*; empty settings if there is none.

    A mapping without any key of ours is another program's file, and left alone.

    :raises ConfigError: if a key is unknown or a value of the wrong type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ImportSettings()
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"file {path}: not YAML: {error}") from error
    types = {field.name: str(field.type).partition(" ")[0] for field in fields(ImportSettings)}
    if not isinstance(content, dict) or not types.keys() & content.keys():
        return ImportSettings()
    for key, value in content.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, 1, 0)[0]
            raise ConfigError(f"file {path}: unknown key {key!r}; did you mean {near!r}?")
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
