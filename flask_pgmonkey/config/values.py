"""What a config may say: one table of keys for each section, and how each value is read."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from ..errors import ConfigError
from .interpolation import RESOLVE_ENV, KeyPath, dotted, looks_like_reference
from .libpq import KEYWORDS, URI_SCHEMES, is_connection_string, parse_uri, unknown_parameters
from .redaction import is_secret_key
from .yaml_file import type_name

CONNECTION_TYPES = ("normal", "pool", "async", "async_pool")

_LARGEST_INTEGER = 2**31 - 1
_SIMPLE_VALUE = r"[\w.+-]{0,30}"
_SERVER_SETTING_NAME = r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)*"
_ENDLESS = (".inf", "+.inf", "inf", "infinity")
_SWITCH_WORDS: dict[str | int, bool] = {
    **dict.fromkeys(("true", "on", "yes", "1", 1), True),
    **dict.fromkeys(("false", "off", "no", "0", 0), False),
}


class Setting:
    """One value to check.

    :param place: origin and dotted key, for errors.
    :param shown: the end of an error that says what came, as far as that may be shown.
    """

    __slots__ = ("place", "shown", "value")

    def __init__(self, place: str, value: Any, shown: str) -> None:
        self.place: str = place
        self.value: Any = value
        self.shown: str = shown

    def __repr__(self) -> str:
        return f"<Setting {self.place}>"

    @classmethod
    def at(cls, origin: str, path: KeyPath, value: Any, hidden: bool) -> Setting:
        """The value at *path*; *hidden* keeps it out of errors, as secret keys do."""
        place = f"{origin}: {dotted(path)}"
        if hidden or is_secret_key(path[-1]):
            return cls(place, value, "")
        if looks_like_reference(value):
            return cls(place, value, f"; it is a reference, and {RESOLVE_ENV} is off")
        simple = isinstance(value, (int, float, str)) and not _has_endless_digits(value)
        if simple and re.fullmatch(_SIMPLE_VALUE, str(value)):
            return cls(place, value, f", not {value!r}")
        return cls(place, value, "")

    def error(self, expected: str) -> ConfigError:
        """The error that says what was expected, and what came if that may be shown."""
        if isinstance(self.value, (Mapping, list, tuple)) or self.value is None:
            return ConfigError(f"{self.place} must be {expected}, not {type_name(self.value)}.")
        return ConfigError(f"{self.place} must be {expected}{self.shown}.")


def whole_number(setting: Setting, least: int = -_LARGEST_INTEGER) -> int:
    """Read an integer of 32 bits from a number or from digits in quotes."""
    value = setting.value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,400}\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse_exponent(setting)
        limit = f" of at least {least}" if least > -_LARGEST_INTEGER else ""
        raise setting.error(f"a whole number{limit}")
    if value > _LARGEST_INTEGER:
        raise setting.error(f"a whole number of at most {_LARGEST_INTEGER}")
    return value


def _refuse_exponent(setting: Setting) -> None:
    # In a file 1e3 stays text, like every number that Python writes otherwise.
    if isinstance(setting.value, str) and re.fullmatch(
        r"\s*[+-]?[0-9.]{1,30}e[+-]?[0-9]{1,5}\s*", setting.value, re.IGNORECASE
    ):
        raise setting.error("a number without an exponent")


def executions_or_off(setting: Setting) -> int | None:
    """Read a number of executions, or false or off, which is None."""
    value = setting.value
    if value is False or (isinstance(value, str) and value.strip().lower() in ("off", "false")):
        return None
    if value is True:
        raise setting.error("a whole number of at least 0, or off")
    return whole_number(setting, least=0)


def seconds(setting: Setting, zero: bool = False) -> float:
    """Read a duration; *zero* permits 0."""
    value = setting.value
    if isinstance(value, str) and re.fullmatch(
        r"\s*\+?(?:[0-9]{1,400}\.?[0-9]{0,20}|\.[0-9]{1,20})\s*", value
    ):
        value = float(value)
    if isinstance(value, str) and value.strip().lower() in _ENDLESS:
        value = math.inf
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not value >= 0  # NaN fails every comparison.
        or (value == 0 and not zero)
    ):
        _refuse_exponent(setting)
        raise setting.error(
            "a number of seconds, 0 or more" if zero else "a number of seconds above 0"
        )
    if value > threading.TIMEOUT_MAX:
        raise setting.error(f"a number of seconds, at most {threading.TIMEOUT_MAX:.0f}")
    return float(value)


def switch(setting: Setting) -> bool:
    """Read true or false, also as on/off, yes/no, 1/0 and in quotes."""
    value = setting.value
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else value
    if isinstance(word, (str, int)) and word in _SWITCH_WORDS:
        return _SWITCH_WORDS[word]
    raise setting.error("true or false")


def switch_or_auto(setting: Setting) -> bool | Literal["auto"]:
    """Read true, false or auto."""
    value = setting.value
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return switch(setting)
    except ConfigError:
        raise setting.error("true, false or auto") from None


def text(setting: Setting) -> str:
    """Read text, or a number as its digits."""
    value = setting.value
    if isinstance(value, bool):
        raise ConfigError(f"{setting.place} must be text; put the value in quotes.")
    if not isinstance(value, (str, int, float)) or _has_endless_digits(value):
        raise setting.error("text or a number")
    written = str(value)
    if "\0" in written:
        raise ConfigError(f"{setting.place} contains a NUL character, which PostgreSQL refuses.")
    if not _is_encodable(written):
        raise ConfigError(f"{setting.place} contains characters that UTF-8 cannot encode.")
    return written


def _has_endless_digits(value: object) -> bool:
    # Python refuses to write out integers of more than some thousand digits.
    return isinstance(value, int) and abs(value) > 10**100


def _is_encodable(written: str) -> bool:
    try:
        written.encode()
    except UnicodeEncodeError:
        return False
    return True


def server_setting(setting: Setting) -> str:
    """Read the value of a server setting as PostgreSQL writes it: true is ``on``."""
    if isinstance(setting.value, bool):
        return "on" if setting.value else "off"
    return text(setting)


def _text_for_libpq(setting: Setting) -> str:
    written = text(setting)
    if written.lstrip().startswith(URI_SCHEMES):
        raise ConfigError(f"{setting.place} holds a URI; move it to {_key_for_uris(setting)}.")
    return written


def _key_for_uris(setting: Setting) -> str:
    section = setting.place.rpartition(": ")[2].partition(".")[0]
    return f"{section}.uri"


def _shown_in_target(setting: Setting) -> str:
    """Read what logs show of a connection, which must not be a whole connection string."""
    written = _text_for_libpq(setting)
    if is_connection_string(written) or re.search(r"\w:", written.rpartition("@")[0]):
        raise ConfigError(
            f"{setting.place} holds a connection string; write each of its parts under its own "
            f"key, or a URI under {_key_for_uris(setting)}."
        )
    return written


def _digits(setting: Setting) -> str:
    return str(whole_number(setting))


def _switch_for_libpq(setting: Setting, otherwise: Callable[[Setting], str]) -> str:
    """Read true and false as libpq writes its switches, 1 and 0."""
    return str(int(setting.value)) if isinstance(setting.value, bool) else otherwise(setting)


def _ports(setting: Setting) -> str:
    expected = "a port from 1 to 65535, or one for each host with commas between"
    if isinstance(setting.value, bool):
        raise setting.error(expected)
    ports = text(setting)
    for port in filter(None, ports.split(",")):
        if not re.fullmatch(r"\s*[0-9]{1,5}\s*", port) or not 1 <= int(port) <= 65535:
            raise setting.error(expected)
    return ports


#: How libpq's keywords are read that are more than text.
_LIBPQ_KEYS: dict[str, Callable[[Setting], str]] = {
    "host": _shown_in_target,
    "hostaddr": _shown_in_target,
    "user": _shown_in_target,
    "dbname": _shown_in_target,
    "port": _ports,
    "connect_timeout": _digits,
    "keepalives": partial(_switch_for_libpq, otherwise=_digits),
    "keepalives_idle": _digits,
    "keepalives_interval": _digits,
    "keepalives_count": _digits,
    "tcp_user_timeout": _digits,
    "sslcompression": partial(_switch_for_libpq, otherwise=_text_for_libpq),
    "sslsni": partial(_switch_for_libpq, otherwise=_text_for_libpq),
    "gssdelegation": partial(_switch_for_libpq, otherwise=_text_for_libpq),
    "replication": partial(_switch_for_libpq, otherwise=_text_for_libpq),
}
#: The keys that are psycopg's own, and how they are read.
PSYCOPG_KEYS: dict[str, Callable[[Setting], Any]] = {
    "autocommit": switch,
    "prepare_threshold": executions_or_off,
    "prepared_max": partial(whole_number, least=1),
}
CONNECTION_KEYS = KEYWORDS | PSYCOPG_KEYS.keys() | {"uri"}

#: What holds where neither the config, the environment nor the service says anything.
CONNECTION_DEFAULTS = {"connect_timeout": "3"}

#: The same over TCP, so that a server that is gone is noticed within a minute. With the operating
#: system's own values a query waits for hours, or for ever. Milliseconds for the last.
TCP_DEFAULTS = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class PoolSettings(NamedTuple):
    """Size and patience of a pool; times are in seconds. :data:`POOL_KEYS` reads them.

    :param max_size: by default 10, or ``min_size`` if that is larger.
    :param max_waiting: how many may wait for a connection; 0 is any number.
    :param check_on_checkout: ask the server for a sign of life before each borrow.
    :param reset_on_return: clear settings, locks, temporary tables and the like of each borrower;
        auto is of those whose statements left some.
    :param leak_threshold: log a borrow that is held longer; 0 is never.
    :param query_timeout: cancel a query that runs longer; 0 is never.
    """

    min_size: int = 1
    max_size: int = 10
    timeout: float = 5.0
    max_waiting: int = 0
    max_lifetime: float = 3600.0
    max_idle: float = 600.0
    reconnect_timeout: float = 2.0
    num_workers: int = 3
    check_on_checkout: bool = False
    reset_on_return: bool | Literal["auto"] = "auto"
    leak_threshold: float = 0.0
    query_timeout: float = 0.0

    def of_psycopg_pool(self) -> dict[str, Any]:
        """The arguments for a pool of psycopg_pool's: all but the keys that are ours."""
        return {key: value for key, value in self._asdict().items() if key not in _KEYS_OF_OURS}


#: How each key of a pool section is read.
POOL_KEYS: dict[str, Callable[[Setting], Any]] = {
    "min_size": partial(whole_number, least=0),
    "max_size": partial(whole_number, least=1),
    "timeout": seconds,
    "max_waiting": partial(whole_number, least=0),
    "max_lifetime": seconds,
    "max_idle": seconds,
    "reconnect_timeout": partial(seconds, zero=True),
    "num_workers": partial(whole_number, least=1),
    "check_on_checkout": switch,
    "reset_on_return": switch_or_auto,
    "leak_threshold": partial(seconds, zero=True),
    "query_timeout": partial(seconds, zero=True),
}
_KEYS_OF_OURS = {"check_on_checkout", "reset_on_return", "leak_threshold", "query_timeout"}

#: Where to connect: the second overrides the first for what a pooler cannot serve.
CONNECTION_SECTIONS = ("connection_settings", "direct_settings")

#: The keys of each section; None where any name of a server setting may stand.
SECTIONS: dict[str, Collection[str] | None] = {
    **dict.fromkeys(CONNECTION_SECTIONS, CONNECTION_KEYS),
    "pool_settings": POOL_KEYS,
    "async_pool_settings": POOL_KEYS,
    "sync_settings": None,
    "async_settings": None,
}
_PLAIN_KEYS = ("connection_type", "types")  # no sections
# Connection keywords that are server settings as well.
_ALSO_SERVER_SETTINGS = frozenset({"application_name", "client_encoding", "port"})
_OTHER_NAMES = {
    "database": "dbname",
    "db": "dbname",
    "username": "user",
    "hostname": "host",
    "server": "host",
    "dsn": "uri",
    "url": "uri",
    "conninfo": "uri",
    "pool_size": "max_size",
    "ssl": "sslmode",
}


def connection_option(setting: Setting, keyword: str) -> str:
    """Read the value of a libpq keyword as the text that libpq takes."""
    return _LIBPQ_KEYS.get(keyword, _text_for_libpq)(setting)


def uri_options(setting: Setting) -> dict[str, str]:
    """Split a URI and check its options; no error shows any part of it."""
    uri = text(setting).rstrip("\r\n")  # What read it from a file or variable may have kept one.
    if not uri.startswith(URI_SCHEMES):
        raise ConfigError(f"{setting.place} must begin with {URI_SCHEMES[0]}.")
    options = parse_uri(uri)
    if options is None and (unknown := unknown_parameters(uri)):
        nearest = _OTHER_NAMES.get(unknown[0]) or nearest_name(unknown[0], KEYWORDS)
        remedy = f"did you mean {nearest}?" if nearest in KEYWORDS else "remove it."
        raise ConfigError(
            f"{setting.place} has a parameter that libpq does not know, {unknown[0]}; {remedy}"
        )
    if options is None:
        raise ConfigError(
            f"{setting.place} is not a valid URI; percent-encode special characters in its user "
            "name, password and database name (@ as %40, / as %2F, ? as %3F, % as %25)."
        )
    for keyword, value in options.items():
        part = Setting(f"{setting.place}, its part {keyword}", value, "")
        connection_option(part, keyword)
    return options


def check_keys(config: Mapping[str, Any], origin: str) -> dict[str, dict[str, Any]]:
    """The sections of *config*, each a dictionary without its empty values.

    :raises ConfigError: for an unknown or misplaced key, or a section that is not a mapping.
    """
    for key in config:
        if key not in SECTIONS and key not in _PLAIN_KEYS and not _is_for_anchors(key):
            raise ConfigError(_unknown_key(origin, None, key))
    sections = {}
    for section in SECTIONS:
        content = config.get(section)
        if content is not None and not isinstance(content, Mapping):
            raise ConfigError(f"{origin}: {section} {_instead_of_mapping(section, content)}")
        for key in content or ():
            if not _belongs(key, section):
                raise ConfigError(_unknown_key(origin, section, key))
        sections[section] = {k: v for k, v in (content or {}).items() if v is not None}
    return sections


def _instead_of_mapping(section: str, content: object) -> str:
    expected = "must be a mapping of names and values"
    is_of_connection = section in CONNECTION_SECTIONS
    if isinstance(content, str) and content.lstrip().startswith(URI_SCHEMES):
        home = section if is_of_connection else CONNECTION_SECTIONS[0]
        return f"{expected}, not a URI; move it to {home}.uri."
    if isinstance(content, str) and is_connection_string(content):
        remedy = "; write each of its parts under its own key" if is_of_connection else ""
        return f"{expected}, not a connection string{remedy}."
    if looks_like_reference(content):
        remedy = f"; move it to {section}.uri if it is of one" if is_of_connection else ""
        return f"{expected}, not a reference{remedy}."
    return f"{expected}, not {type_name(content)}."


def _is_for_anchors(key: object) -> bool:
    return isinstance(key, str) and key.startswith("x-")


def _belongs(key: object, section: str) -> bool:
    keys = SECTIONS[section]
    if keys is not None:
        return key in keys
    if not isinstance(key, str) or re.fullmatch(_SERVER_SETTING_NAME, key) is None:
        return False
    return key not in POOL_KEYS and (key not in CONNECTION_KEYS or key in _ALSO_SERVER_SETTINGS)


def _unknown_key(origin: str, section: str | None, key: object) -> str:
    path = (key,) if section is None else (section, key)
    place = f"{origin}: {dotted(path)}"
    if not isinstance(key, str) or "?" in dotted((key,)):
        return f"{place}: this key is not a name."
    for home, keys in SECTIONS.items():
        if keys is not None and key in keys:
            return f"{place} does not belong here; move it to {home}."
    known = ("connection_type", *SECTIONS, "types") if section is None else SECTIONS[section]
    if known is None:
        return f"{place}: this key is not the name of a server setting."
    if nearest := _OTHER_NAMES.get(key) or nearest_name(key, known):
        return f"{place} is not a known key; did you mean {nearest}?"
    if known is CONNECTION_KEYS:
        return f"{place} is not a known key; settings of the server belong in sync_settings."
    if section is None:
        return (
            f"{place} is not a known key; known are {', '.join(known)}, and any that begins "
            "with x-, for YAML anchors."
        )
    return f"{place} is not a known key; known are {', '.join(known)}."


def nearest_name(key: str, names: Collection[str]) -> str | None:
    """That of *names* which was probably meant, if any is near enough."""
    import difflib

    return next(iter(difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.75)), None)
