"""How the benchmarks measure, and how they show what they found."""

from __future__ import annotations

import gc
import os
import platform
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil
import psycopg


def take_turns(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each timer gives, a value for each round.

    A round is short and runs every contender once, in random order, so that what the machine does
    beside the benchmark meets all of them alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds + 1):
        for name in random.sample(list(timers), len(timers)):
            seconds = timers[name]()
            if number:  # the first round warms up
                samples[name].append(seconds)
    return samples


def time_calls(call: Callable[[], object], calls: int) -> float:
    """Seconds for one call, on average; without pauses of the garbage collector."""
    gc.collect(0)
    gc.disable()
    try:
        start = perf_counter()
        for _ in range(calls):
            call()
        return (perf_counter() - start) / calls
    finally:
        gc.enable()


@contextmanager
def processors_apart(server: psycopg.Connection) -> Iterator[bool]:
    """During the block this process and a local server run on processors of their own.

    So they do on two machines. Where the scheduler moves them, a round trip takes three times as
    long when it has put them apart as when it has not, and each contender meets that by chance.

    :return: whether the system can do it.
    """
    processors = list(range(os.cpu_count() or 1))
    is_local = sys.platform == "linux" and server.info.host.startswith("/")
    postmaster = psutil.Process(server.info.backend_pid).parent() if is_local else None
    if postmaster is None or len(processors) == 1:
        yield False
        return
    ours = psutil.Process()
    try:
        ours.cpu_affinity(processors[:1])
        for process in (postmaster, *postmaster.children()):
            process.cpu_affinity(processors[1:])
        yield True
    finally:
        for process in (ours, postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):  # a session that is just ending
                process.cpu_affinity(processors)


def median_difference(samples: Iterable[float], base: Iterable[float]) -> float:
    """What a round costs above the same round of another contender."""
    return median(one - other for one, other in zip(samples, base, strict=True))


def print_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table."""
    head = list(head)
    print(f"\n| {' | '.join(head)} |")
    print(f"|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def print_versions(packages: Iterable[str], server: psycopg.Connection | None = None) -> None:
    """Print the machine and the versions of everything that was measured."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {version(package)}" for package in packages]
    if server is not None:
        versions.append(f"PostgreSQL {server.info.parameter_status('server_version')}")
    print(f"\n{_processor()}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}.")


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
