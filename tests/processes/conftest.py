from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..servers import Server
from .running import Programs


@pytest.fixture
def programs(tmp_path: Path, server: Server, database: dict[str, Any]) -> Iterator[Programs]:
    """Runs programs on an empty database, and kills what is left of them."""
    running = Programs(tmp_path, server, database)
    try:
        yield running
    finally:
        running.kill_all()
