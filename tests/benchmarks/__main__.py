"""Run one benchmark: ``python -m tests.benchmarks NAME [OPTIONS]``."""

from __future__ import annotations

import argparse
import keyword
from importlib import import_module

BENCHMARKS = (
    "request", "growth", "batch", "json", "seeing", "cache", "kill", "faults", "csv", "import",
    "async", "testing",
)  # fmt: skip


def main() -> None:
    """Hand over to the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    arguments, rest = parser.parse_known_args()
    module = f"{arguments.name}_" if keyword.iskeyword(arguments.name) else arguments.name
    import_module(f"{__package__}.{module}").main(rest)


if __name__ == "__main__":
    main()
