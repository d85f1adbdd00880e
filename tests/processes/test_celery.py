"""Celery's prefork workers, which fork after the app has queried."""

from __future__ import annotations

import signal
import sys

from ..servers import Server
from .running import Programs, wait_for

SEND = """
from tests.processes.celery_app import record
for number in range(60):
    record.apply_async([number], ignore_result=True)
"""


def test_tasks_in_forked_workers_have_connections_of_their_own(
    programs: Programs, server: Server
) -> None:
    (programs.folder / "queue").mkdir()
    environment = {
        "FLASK_PGMONKEY_CONFIG": programs.config(),
        "CELERY_FOLDER": programs.folder / "queue",
    }
    with server.connect(programs.connection_settings["dbname"]) as conn:
        conn.execute("CREATE TABLE records (number int, process int, server int, of_parent int)")
        worker = programs.start(
            *(sys.executable, "-m", "celery", "--app", "tests.processes.celery_app:celery"),
            *("worker", "--pool", "prefork", "--concurrency", 3, "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            **environment,
        )
        sender = programs.start(sys.executable, "-c", SEND, **environment)
        assert sender.wait().returncode == 0, sender.stderr
        wait_for(lambda: worker.stderr.count("one of the fifth") >= 12, "12 failures")
        wait_for(lambda: worker.stderr.count("succeeded in") == 48, "48 successes")

        records = conn.execute("SELECT * FROM records").fetchall()
        assert sorted(number for number, *_ in records) == [n for n in range(60) if n % 5]
        worker_of = {server_pid: process for _, process, server_pid, _ in records}
        assert len(worker_of) == len(set(worker_of.values())) == 3
        (of_parent,) = {of_parent for *_, of_parent in records}
        assert of_parent not in worker_of
        assert of_parent in programs.sessions()

    worker.signal(signal.SIGTERM)
    ended = worker.wait()
    assert ended.returncode == 0, ended
    assert "couldn't stop thread" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    programs.expect_no_sessions()
