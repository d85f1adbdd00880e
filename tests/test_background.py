"""``db.background``: coroutines on the process's own event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import flask
import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey

from .programs import run_program
from .proxy import Proxy

THREAD = "flask_pgmonkey-background"
APP = """
from flask import Flask
from flask_pgmonkey import PGMonkey

app = Flask("program")
app.config["PGMONKEY_CONFIG"] = config
db = PGMonkey(app)
app.app_context().push()
"""


@pytest.fixture
def config(database: dict[str, Any]) -> dict[str, Any]:
    return {"connection_settings": database}


@pytest.fixture
def app(config: dict[str, Any]) -> Iterator[Flask]:
    app = Flask("background")
    app.config["PGMONKEY_CONFIG"] = config
    db = PGMonkey(app)
    yield app
    with app.app_context():
        db.clear_cache()


@pytest.fixture
def db(app: Flask) -> Iterator[PGMonkey]:
    """The app's databases, within an app context."""
    with app.app_context():
        db: PGMonkey = app.extensions["pgmonkey"]
        yield db


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def divide_by_zero() -> None:
    await asyncio.sleep(0)
    _ = 1 / 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# Running


def test_run_gives_the_result_of_a_coroutine_on_the_background_thread(db: PGMonkey) -> None:
    async def name() -> str:
        return threading.current_thread().name

    assert db.background.run(answer()) == 42
    assert db.background.run(name()) == THREAD


def test_run_raises_what_the_coroutine_raises(
    db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        db.background.run(divide_by_zero())
    gc.collect()
    assert caplog.record_tuples == []


def test_run_on_the_background_loop_is_an_error_and_no_deadlock(db: PGMonkey) -> None:
    async def wait_for_itself() -> int:
        return db.background.run(answer())

    with pytest.raises(RuntimeError, match="await the coroutine instead"):
        db.background.run(wait_for_itself())


def test_submit_gives_a_concurrent_future_at_once(db: PGMonkey) -> None:
    async def wait() -> str:
        await asyncio.to_thread(may_end.wait, 10)
        return "ended"

    may_end = threading.Event()
    jobs = [db.background.submit(wait()) for _ in range(3)]
    assert all(isinstance(job, concurrent.futures.Future) for job in jobs)
    with pytest.raises(concurrent.futures.TimeoutError):
        jobs[0].result(0.05)
    may_end.set()
    done, waiting = concurrent.futures.wait(jobs, timeout=10)
    assert ({job.result() for job in done}, waiting) == ({"ended"}, set())


def test_a_job_may_submit_another(db: PGMonkey) -> None:
    async def outer() -> int:
        return await asyncio.wrap_future(db.background.submit(answer()))

    assert db.background.run(outer()) == 42


def test_jobs_have_the_app_context_of_whoever_submitted_them_and_no_request(
    app: Flask, config: dict[str, Any]
) -> None:
    other = Flask("other")
    other.config["PGMONKEY_CONFIG"] = config
    for one in (app, other):
        db = one.extensions.get("pgmonkey") or PGMonkey(one)

        async def context(db: PGMonkey = db) -> tuple[Any, ...]:
            value = await asyncio.to_thread(db.fetch_value, "SELECT 1")
            return flask.current_app.name, flask.has_request_context(), flask.g.get("user"), value

        def view(db: PGMonkey = db, context: Any = context) -> list[Any]:
            flask.g.user = "Ada"
            return list(db.background.run(context()))

        one.add_url_rule("/", view_func=view)
        assert one.test_client().get("/").json == [one.name, False, None, 1]
        with one.app_context():
            db.clear_cache()


def test_a_job_may_use_the_sync_queries_and_gives_its_connection_back(db: PGMonkey) -> None:
    async def count() -> Any:
        return db.fetch_value("SELECT count(*) FROM generate_series(1, 3)")

    assert db.background.run(count()) == 3  # the leak check of the suite sees the rest


@pytest.mark.parametrize("wrong", [None, answer, 42], ids=["None", "a function", "a number"])
@pytest.mark.parametrize("method", ["run", "submit"])
def test_what_is_no_coroutine_is_a_type_error(db: PGMonkey, method: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a coroutine"):
        getattr(db.background, method)(wrong)


def test_an_app_that_used_the_background_can_go(config: dict[str, Any]) -> None:
    app = Flask("passing")
    app.config["PGMONKEY_CONFIG"] = config
    db = PGMonkey(app)
    with app.app_context():
        assert db.background.run(answer()) == 42
        assert db.background.run(db.aio.fetch_value("SELECT 1")) == 1
        db.clear_cache()
    gone = weakref.ref(app)
    del app

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    wait_until(is_gone)


# Failures


def test_an_exception_that_nobody_asks_for_is_logged_with_its_traceback(
    db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    gc.disable()  # nobody has to wait for the garbage collector to learn of it
    try:
        db.background.submit(divide_by_zero())
        wait_until(lambda: bool(caplog.records))
    finally:
        gc.enable()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flask_pgmonkey", logging.ERROR)
    assert "divide_by_zero" in record.getMessage()
    assert record.exc_info is not None
    assert "_ = 1 / 0" in caplog.text


def test_an_exception_that_somebody_asks_for_is_not_logged(
    db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def wrapped() -> None:
        await asyncio.wrap_future(db.background.submit(divide_by_zero()))

    assert isinstance(db.background.submit(divide_by_zero()).exception(10), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(wrapped())
    gc.collect()
    assert caplog.record_tuples == []


def test_sys_exit_in_a_job_is_the_failure_of_that_job_alone(db: PGMonkey) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    other = db.background.submit(asyncio.sleep(0.2, "went on"))
    with pytest.raises(SystemExit):
        db.background.run(leave())
    assert other.result(10) == "went on"
    assert db.background.run(answer()) == 42


# Cancelling


def test_a_cancelled_job_ends_where_it_waits(db: PGMonkey) -> None:
    async def wait() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    started, ended = threading.Event(), threading.Event()
    job = db.background.submit(wait())
    assert started.wait(10)
    assert job.cancel()
    assert ended.wait(10)
    assert job.cancelled()
    assert concurrent.futures.wait([job], timeout=10).done == {job}
    with pytest.raises(concurrent.futures.CancelledError):
        job.result()


def test_a_job_cancelled_before_it_starts_never_runs(db: PGMonkey) -> None:
    async def block() -> None:
        blocked.set()
        may_end.wait(10)

    async def run() -> None:
        ran.set()

    blocked, may_end, ran = threading.Event(), threading.Event(), threading.Event()
    blocking = db.background.submit(block())
    assert blocked.wait(10)
    job = db.background.submit(run())
    assert job.cancel()
    may_end.set()
    blocking.result(10)
    assert concurrent.futures.wait([job], timeout=10).done == {job}
    assert not ran.is_set()


def test_a_job_cancelled_before_its_first_step_never_runs(db: PGMonkey) -> None:
    async def block(blocked: threading.Event, may_end: threading.Event) -> None:
        blocked.set()
        may_end.wait(10)

    async def run() -> None:
        ran.set()

    # Both jobs behind the first are tasks, in turn, by the time that the second blocks.
    first, second = [(threading.Event(), threading.Event()) for _ in range(2)]
    ran = threading.Event()
    db.background.submit(block(*first))
    assert first[0].wait(10)
    blocking = db.background.submit(block(*second))
    job = db.background.submit(run())
    first[1].set()
    assert second[0].wait(10)
    assert job.cancel()
    second[1].set()
    blocking.result(10)
    assert concurrent.futures.wait([job], timeout=10).done == {job}
    assert not ran.is_set()


def test_a_job_that_is_over_cannot_be_cancelled(db: PGMonkey) -> None:
    job = db.background.submit(answer())
    assert job.result(10) == 42
    assert not job.cancel()
    assert not job.cancelled()


def test_a_job_that_cancels_itself_is_cancelled(
    db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    job = db.background.submit(give_up())
    with pytest.raises(concurrent.futures.CancelledError):
        job.result(10)
    assert job.cancelled()
    assert caplog.record_tuples == []


def test_a_cancelled_job_stops_its_query_on_the_server(
    db: PGMonkey, database: dict[str, Any]
) -> None:
    job = db.background.submit(db.aio.execute("SELECT pg_sleep(60)"))
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
    with psycopg.connect(**database, autocommit=True) as observer:
        running += " AND state = 'active' AND datname = current_database()"
        wait_until(lambda: observer.execute(running).fetchone() == (1,))
        job.cancel()
        wait_until(lambda: observer.execute(running).fetchone() == (0,))


# The process


def test_nothing_is_started_that_is_not_used(config: dict[str, Any]) -> None:
    run = run_program(
        APP
        + """
db.fetch_value("SELECT 1")
db.background, db.aio
print([thread.name for thread in threading.enumerate() if "background" in thread.name])
db.background.run(asyncio.sleep(0))
print([thread.daemon for thread in threading.enumerate() if "background" in thread.name])
""",
        config,
    )
    assert (run.stdout, run.stderr) == ("[]\n[True]\n", "")


def test_a_job_may_end_while_the_process_exits(
    config: dict[str, Any], proxy: Callable[[str, int], Proxy]
) -> None:
    # By a host name: psycopg resolves it in a thread, and none can be started any more.
    settings = config["connection_settings"]
    port = proxy(settings["host"], int(settings["port"])).port
    settings.update(host="localhost", port=port)
    run = run_program(
        APP
        + """
async def work():
    await asyncio.sleep(1)
    print("pooled", await db.aio.fetch_value("SELECT 1"))
    async with db.aio.transaction() as tx:
        print("in a transaction", await tx.fetch_value("SELECT 2"))

db.background.submit(work())
""",
        config,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "pooled 1\nin a transaction 2\n"


def test_a_cancelled_job_may_clean_up_while_the_process_exits(config: dict[str, Any]) -> None:
    run = run_program(
        APP
        + """
async def work():
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.5)
        print("cleaned up")

job = db.background.submit(work())
db.background.run(asyncio.sleep(0.1))
job.cancel()
""",
        config,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "cleaned up\n", "")


TAKES_TOO_LONG = """
async def work():
    try:
        await db.aio.execute("SELECT pg_sleep(60)")
    except asyncio.CancelledError:
        print("cancelled")
        raise
"""
WILL_NOT_END = """
async def work():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("cancelled")
"""


@pytest.mark.parametrize(
    ("job", "seconds"), [(TAKES_TOO_LONG, 6), (WILL_NOT_END, 8)], ids=["too long", "for ever"]
)
def test_a_job_that_takes_too_long_is_cancelled_at_exit(
    config: dict[str, Any], job: str, seconds: int
) -> None:
    run = run_program(
        APP
        + job
        + """
db.background.submit(work())
db.background.run(asyncio.sleep(0.2))
print(time.monotonic(), flush=True)
""",
        config,
    )
    exit_took = time.monotonic() - float(run.stdout.splitlines()[0])
    assert (run.returncode, run.stderr) == (0, "")
    assert "cancelled" in run.stdout
    assert exit_took < seconds


def test_nothing_can_be_submitted_after_the_end(config: dict[str, Any]) -> None:
    run = run_program(
        """
import atexit

@atexit.register  # before the package: so it runs after it
def submit_too_late():
    for call in (db.background.submit, db.background.run):
        try:
            call(asyncio.sleep(0))
        except RuntimeError as error:
            print(error)
"""
        + APP
        + "db.background.run(asyncio.sleep(0))",
        config,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "the process is exiting: nothing can be submitted any more",
        "the process is exiting: nothing can be submitted any more",
    ]


def test_a_process_that_gevent_patched_is_refused(config: dict[str, Any]) -> None:
    run = run_program(
        """
import gevent.monkey
gevent.monkey.patch_all()
"""
        + APP
        + """
async def query():
    await db.aio.fetch_value("SELECT 1")

async def transact():
    async with db.aio.transaction() as tx:
        await tx.fetch_value("SELECT 1")

for call in (
    lambda: db.background.run(query()),
    lambda: db.background.submit(query()),
    lambda: asyncio.run(query()),
    lambda: asyncio.run(transact()),
):
    try:
        call()
    except RuntimeError as error:
        print("use the sync calls" in str(error))
print(db.fetch_value("SELECT 42"))
""",
        config,
        checks=(),  # gevent itself warns
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True"] * 4 + ["42"]
