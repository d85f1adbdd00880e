"""Configs: read, resolved, validated and redacted."""

from __future__ import annotations

from .interpolation import resolve_env_vars
from .redaction import REDACTED, is_secret_key, redact_config
from .unresolved import ConfigSource
from .validated import Config, check_config, read_config
from .values import CONNECTION_TYPES, PoolSettings
from .yaml_file import load_config, normalize_config

__all__ = [
    "CONNECTION_TYPES",
    "REDACTED",
    "Config",
    "ConfigSource",
    "PoolSettings",
    "check_config",
    "is_secret_key",
    "load_config",
    "normalize_config",
    "read_config",
    "redact_config",
    "resolve_env_vars",
]
