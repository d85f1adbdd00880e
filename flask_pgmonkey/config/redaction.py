"""Which keys hold secrets, and copies of configs without them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .bounds import require_bounded
from .libpq import PASSWORD_KEYWORDS, names_before_equals

REDACTED = "***REDACTED***"

# These secret keys hold paths, which say little to whoever reads them.
_SECRET_PATHS = {"sslkeylogfile", "sslkey", "sslcert", "sslrootcert"}
_SECRET_KEYS = (
    PASSWORD_KEYWORDS
    | _SECRET_PATHS
    | {
        "password",
        "scram_client_key",
        "scram_server_key",
        "uri",
    }
)
_SECRET_WORDS = ("token", "secret", "credential", "passw")

# A word of `options` as the server splits them: at spaces without a backslash before.
_WORD_OF_OPTIONS = r"(?s)(?:\\.|[^ \t\n\r\f\v\\])+"


def is_secret_key(key: object) -> bool:
    """Whether values under *key* are secrets: passwords, keys, certificates, tokens and URIs."""
    if not isinstance(key, str):
        return False
    name = key.lower()
    return name in _SECRET_KEYS or any(word in name for word in _SECRET_WORDS)


def is_literal_secret_key(key: object) -> bool:
    """Whether values under *key* are secrets themselves rather than the paths of some."""
    return is_secret_key(key) and str(key).lower() not in _SECRET_PATHS


def holds_literal_secret(key: object, value: object) -> bool:
    """Whether *value*, which stands under *key*, is a secret itself or holds one in ``options``."""
    if is_literal_secret_key(key):
        return True
    return key == "options" and isinstance(value, str) and redacted_options(value) != value


def redacted_options(options: str) -> str:
    """Command line options of the server, such as ``-c name=value``, without secrets."""

    def redacted(word: re.Match[str]) -> str:
        name, equals, _ = re.sub(r"(?s)\\(.)", r"\1", word[0]).partition("=")
        return f"{name}={REDACTED}" if equals and is_secret_key(name) else word[0]

    return re.sub(_WORD_OF_OPTIONS, redacted, options)


def redact_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of *config* in which ``***REDACTED***`` stands for each secret.

    All that a secret key holds is replaced, a mapping or a list as a whole, and so is any text
    that contains a URI or a connection string with a password. Of ``options`` the secret settings
    are replaced. Empty values stay as they are.

    :raises ConfigError: if *config* is not a mapping, nests deeper than 100 levels, or comes to
        more than 100,000 values.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"A config to redact must be a mapping, not {type(config).__name__}.")
    require_bounded(config, "The config")
    return {key: redacted_value(key, value) for key, value in config.items()}


def redacted_value(key: object, value: Any) -> Any:
    """A copy of *value*, which stands under *key*, without secrets."""
    if is_secret_key(key) and not _is_empty(value):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redacted_value(name, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_value(key, item) for item in value]
    if isinstance(value, str):
        if holds_password(value):
            return REDACTED
        return redacted_options(value) if key == "options" else value
    return copy.deepcopy(value)


def holds_password(text: str) -> bool:
    """Whether *text* contains a URI or a connection string with a password."""
    if any("passw" in name.lower() for name in names_before_equals(text)):
        return True
    # Of each word up to its last @, what follows a :// up to the next slash.
    heads = (word.rpartition("@")[0] for word in text.split() if "@" in word)
    return any(re.search(r"://[^/:]*:", head) for head in heads)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)
