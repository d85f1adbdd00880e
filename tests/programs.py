"""Programs that the tests run in processes of their own, where every complaint shows."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

_PROLOGUE = """
import asyncio, json, logging, sys, threading, time
logging.basicConfig(level=logging.WARNING)
# Slowness is no complaint: other programs run beside this one.
logging.getLogger("asyncio").addFilter(lambda record: "Executing" not in record.getMessage())
config = json.loads(sys.argv[1])
"""


def run_program(
    body: str,
    config: dict[str, Any],
    *,
    checks: Sequence[str] = ("-X", "dev", "-W", "error"),
    timeout: float = 30,
) -> subprocess.CompletedProcess[str]:
    """Run *body*, which finds *config* under that name, with all of Python's own checks."""
    return subprocess.run(
        [
            *(sys.executable, *checks),
            *("-c", _PROLOGUE + textwrap.dedent(body), json.dumps(config)),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
