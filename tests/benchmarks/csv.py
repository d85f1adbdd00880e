"""CSV in and out: 1,000,000 rows of 5 columns, against psql, psycopg and pgmonkey 4.0.0.

Every contender runs in a process of its own, in turns, and is timed from its connection to its
end, without the start of the process. Peak memory counts from just before the connection.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import yaml
from psycopg.conninfo import make_conninfo

from ..servers import choose_server, run_server

COLUMNS = "id integer, name text, price numeric, placed timestamptz, note text"
IMPORTERS = ("flask-pgmonkey", "psql", "pgmonkey")
EXPORTERS = ("flask-pgmonkey", "psycopg", "pgmonkey")


def main(argv: list[str]) -> None:
    """Print the medians of all contenders, and the ratios to hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks csv", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, run_server(choose_server()) as server:
        folder = Path(name)
        write_rows(folder / "rows.csv", arguments.rows)
        with server.database() as dbname:
            settings = server.settings(dbname)
            write_settings(folder, settings)
            with psycopg.connect(**settings, autocommit=True) as connection:
                connection.execute(f"CREATE TABLE rows ({COLUMNS})".encode())
                imports = run_rounds("import", IMPORTERS, arguments.rounds, folder, connection)
                exports = run_rounds("export", EXPORTERS, arguments.rounds, folder, connection)
    print_results("import", imports, {"psql": 0.9, "pgmonkey": 3.0})
    print_results("export", exports, {"psycopg": 0.9, "pgmonkey": 2.0})


def write_rows(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("id,name,price,placed,note\n")
        for number in range(count):
            file.write(
                f"{number},Customer {number},{number % 10000 / 100:.2f},"
                f'2026-01-{number % 28 + 1:02} 12:00:00+00,"note, number {number}"\n'
            )


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """What pgmonkey needs beside the files."""
    (folder / "db.yaml").write_text(
        yaml.safe_dump({"connection_type": "normal", "connection_settings": settings})
    )
    csv_settings = {
        "has_headers": True,
        "auto_create_table": False,
        "enforce_lowercase": True,
        "delimiter": ",",
        "quotechar": '"',
        "encoding": "utf-8",
    }
    for name in ("rows.yaml", "out.yaml"):
        (folder / name).write_text(yaml.safe_dump(csv_settings))


Samples = dict[str, list[tuple[float, float]]]
"""Of each contender: the seconds and the MB of memory of each round."""


def run_rounds(
    task: str,
    contenders: Iterable[str],
    rounds: int,
    folder: Path,
    connection: psycopg.Connection[Any],
) -> Samples:
    samples: Samples = {contender: [] for contender in contenders}
    for round_number in range(rounds + 1):
        for contender, taken in samples.items():
            if task == "import":
                connection.execute("TRUNCATE rows")
                connection.execute("CHECKPOINT")
            (folder / "out.csv").unlink(missing_ok=True)
            sample = run_contender(task, contender, folder)
            if round_number:  # The first one warms up.
                taken.append(sample)
            if task == "export":
                check_export(folder)
        print(f"{task}: round {round_number} of {rounds}", file=sys.stderr)
    return samples


def check_export(folder: Path) -> None:
    exported, imported = (folder / name for name in ("out.csv", "rows.csv"))
    if exported.stat().st_size != imported.stat().st_size:
        raise RuntimeError("the export is not what was imported")


def run_contender(task: str, contender: str, folder: Path) -> tuple[float, float]:
    if contender == "psql":
        return run_psql(folder), 0.0
    program = f"from tests.benchmarks.csv import contend; contend({task!r}, {contender!r})"
    with (folder / "noise").open("w") as noise:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=noise,
            stderr=noise,
            check=False,
        )
    if done.returncode:
        raise RuntimeError((folder / "noise").read_text())
    seconds, megabytes = json.loads((folder / "sample.json").read_text())
    return seconds, megabytes


def run_psql(folder: Path) -> float:
    """The seconds that psql itself gives for its ``\\copy``."""
    settings = yaml.safe_load((folder / "db.yaml").read_text())["connection_settings"]
    psql = shutil.which("psql")
    if psql is None:
        raise RuntimeError("psql is not installed")
    commands = [r"\timing on", rf"\copy rows FROM '{folder}/rows.csv' (FORMAT csv, HEADER)"]
    arguments = [argument for command in commands for argument in ("-c", command)]
    output = subprocess.run(
        [psql, "-X", make_conninfo(**settings), *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return float(output.partition("Time: ")[2].split()[0]) / 1000


def contend(task: str, contender: str) -> None:
    """Do *task* in this process, in whose folder the files are, and write ``sample.json``."""
    work = prepare(task, contender)
    memory = peak_memory()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    Path("sample.json").write_text(json.dumps([seconds, peak_memory() - memory]))


def prepare(task: str, contender: str) -> Callable[[], object]:
    """What is timed, with all that it imports imported."""
    settings = yaml.safe_load(Path("db.yaml").read_text())["connection_settings"]
    if contender == "pgmonkey":
        if task == "import":
            importer = import_module("pgmonkey.tools.csv_data_importer").CSVDataImporter
            return lambda: importer("db.yaml", "rows.csv", "rows").run()
        exporter = import_module("pgmonkey.tools.csv_data_exporter").CSVDataExporter
        return lambda: exporter("db.yaml", "rows", "out.csv").run()
    if contender == "psycopg":
        return lambda: export_with_psycopg(settings)
    from flask_pgmonkey.csv_transfer import export_csv, import_csv

    def transfer() -> None:
        with psycopg.connect(**settings) as connection:
            if task == "import":
                import_csv(connection, "rows", "rows.csv", progress=lambda *done: None)
            else:
                export_csv(connection, "out.csv", table="rows", progress=lambda *done: None)

    return transfer


def export_with_psycopg(settings: dict[str, Any]) -> None:
    with psycopg.connect(**settings) as connection, open("out.csv", "wb") as file:
        statement = "COPY rows TO STDOUT (FORMAT csv, HEADER)"
        with connection.cursor().copy(statement) as copy:
            for row in copy:
                file.write(row)


def peak_memory() -> float:
    """MB that this process had resident at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def print_results(task: str, samples: Samples, bounds: dict[str, float]) -> None:
    ours = median(seconds for seconds, _ in samples["flask-pgmonkey"])
    print(f"\n| {task} | median | peak memory above start | our speed is | at least |")
    print("| --- | --- | --- | --- | --- |")
    for contender, taken in samples.items():
        seconds = median(each for each, _ in taken)
        memory = max(each for _, each in taken)
        shown = f"{memory:.0f} MB" if memory else ""
        ratio = f"{seconds / ours:.2f}x" if contender in bounds else ""
        bound = f"{bounds[contender]}x" if contender in bounds else ""
        print(f"| {contender} | {seconds:.2f} s | {shown} | {ratio} | {bound} |")
