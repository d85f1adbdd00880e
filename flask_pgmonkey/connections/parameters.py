"""The parameters of queries, for whoever debugs: those that may be secrets do not show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from psycopg.types.json import Json, Jsonb

from ..config.redaction import REDACTED, holds_password, is_secret_key

# What columns of secrets are called, and functions that make or check them, beside a config's keys.
_NAMES = (
    r"passw|passphrase|pwd|secret|token|credential|(?:api|private|access|session)_?key|salt"
    r"|session_?id|cvv|cvc|iban|card_?num|(?:\b|_)(?:pin|otp|totp|ssn)(?:\b|_)|crypt"
)
_LONGEST_SEARCHED = 10_000


def without_secrets(sql: str, params: Any) -> Any:
    """The parameters of a query, with ``***REDACTED***`` for each that may be a secret.

    Nothing says which column a parameter is for. So where the text names one that may hold secrets,
    they all may be.
    """
    is_secret = names_secret(sql)
    if isinstance(params, Mapping):
        return {
            name: REDACTED if is_secret else _without_secrets(name, value)
            for name, value in params.items()
        }
    if is_secret:
        return (REDACTED,) * len(params)
    return tuple(_without_secrets("", value) for value in params)


@lru_cache(maxsize=1024)
def names_secret(sql: str) -> bool:
    """Whether a text names a column, a function or a setting that may hold secrets."""
    text = re.sub(r"%\([^()]*\)", "", sql)  # the names of parameters count for themselves
    return re.search(_NAMES, text, re.IGNORECASE) is not None


def _without_secrets(name: object, value: Any) -> Any:
    if is_secret_key(name) or re.search(_NAMES, str(name), re.IGNORECASE):
        return REDACTED
    if isinstance(value, str):
        return REDACTED if holds_password(value[:_LONGEST_SEARCHED]) else value
    if isinstance(value, Mapping):
        return {key: _without_secrets(key, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(name, each) for each in value]
    if isinstance(value, (Json, Jsonb)):
        return _without_secrets(name, value.obj)
    return value
