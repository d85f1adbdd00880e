"""The YAML file beside a CSV file that says how to read it, as pgmonkey writes and reads it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from ..config.interpolation import dotted
from ..config.reading import read_small_file
from ..config.yaml_file import NotYAMLError, SafeLoader, parse_yaml, type_name
from ..errors import ConfigError
from ..files import open_without_waiting, our_file
from .dialect import NO_QUOTE, check_character
from .streams import check_encoding, without_compression


@dataclass(frozen=True)
class ImportSettings:
    """How to read one CSV file; None where the file is to tell by itself."""

    has_headers: bool | None = None
    auto_create_table: bool | None = None
    enforce_lowercase: bool | None = None
    delimiter: str | None = None
    quotechar: str | None = None
    encoding: str | None = None
    escapechar: str | None = None


_ONE_CHARACTER = "one ASCII character other than a line break"

WORD_FOR_NO_QUOTE = "none"
"""What quotechar says where quotes are plain characters."""

CHECKS: dict[str, tuple[Callable[[str], str], str]] = {
    "delimiter": (check_character, _ONE_CHARACTER),
    "quotechar": (check_character, f"{_ONE_CHARACTER}, or {WORD_FOR_NO_QUOTE}"),
    "escapechar": (check_character, _ONE_CHARACTER),
    "encoding": (check_encoding, "the name of an encoding that Python knows, such as utf-8"),
}
"""How a value is checked, and what an error says that it must be: never the value."""

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
    path = Path(path)
    content, place = None, ""
    try:
        written, _ = read_small_file(path, open_without_waiting)
        content = parse_yaml(written.decode("utf-8-sig"), path, SafeLoader)
    except (FileNotFoundError, UnicodeEncodeError):  # the latter where no file can have the name
        return ImportSettings()
    except UnicodeDecodeError:
        place = f"file {path}"
    except NotYAMLError as error:
        place = f"file {path}, line {error.line}" if error.line else f"file {path}"
    if place:  # Not within the except: the file may be another program's, and hold a password.
        raise ConfigError(f"{place}: not YAML; {RENAME}")
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
            raise ConfigError(f"file {path}: {dotted((key,))!r} is no import setting; {remedy}")
        if value is not None and type(value).__name__ != types[key]:
            expected = "text" if types[key] == "str" else "true or false"
            raise ConfigError(f"file {path}: {key} must be {expected}, not {type_name(value)}")
    if content.get("delimiter") == r"\t":  # What YAML makes of an unquoted \t.
        content["delimiter"] = "\t"
    if content.get("quotechar") == WORD_FOR_NO_QUOTE:
        content["quotechar"] = NO_QUOTE
    for key, (check, expected) in CHECKS.items():
        if content.get(key) is not None and not _passes(check, content[key]):
            raise ConfigError(f"file {path}: {key} must be {expected}")
    return ImportSettings(**content)


def _passes(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except (ValueError, LookupError):
        return False
    return True


def write_import_settings(path: str | os.PathLike[str], settings: ImportSettings) -> None:
    """Write *settings* to *path*, in place of what is there."""
    content = asdict(settings)
    if settings.quotechar == NO_QUOTE:
        content["quotechar"] = WORD_FOR_NO_QUOTE
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with our_file(path) as file:
        file.write(b"# How `flask pgmonkey import-csv` reads the CSV file of this name.\n")
        file.write(text.encode())
