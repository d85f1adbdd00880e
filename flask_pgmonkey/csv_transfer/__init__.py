"""CSV files into tables and out of them, at the speed of PostgreSQL's COPY."""

from __future__ import annotations

from .dialect import NO_QUOTE, Dialect, check_character
from .errors import CSVTransferError
from .exporting import export_csv
from .importing import ImportResult, import_csv
from .sequences import AdvancedSequence
from .settings import ImportSettings, read_import_settings, settings_path, write_import_settings
from .streams import Progress, check_encoding

__all__ = [
    "NO_QUOTE",
    "AdvancedSequence",
    "CSVTransferError",
    "Dialect",
    "ImportResult",
    "ImportSettings",
    "Progress",
    "check_character",
    "check_encoding",
    "export_csv",
    "import_csv",
    "read_import_settings",
    "settings_path",
    "write_import_settings",
]
