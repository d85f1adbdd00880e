"""What OpenTelemetry and Prometheus hear of the pools, and what they cost those who do not ask."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from weakref import ref

import psycopg
import pytest
from flask import Flask
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from psycopg_pool import PoolTimeout

from flask_pgmonkey import PGMonkey, metrics
from flask_pgmonkey.metrics import instrument_app, metrics_blueprint
from flask_pgmonkey.signals import connection_borrowed, connection_opened, connection_returned

from .programs import run_program

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
TIMES = ("create_time", "wait_time", "use_time")

MakeApp = Callable[..., tuple[Flask, PGMonkey[Any]]]


@pytest.fixture
def make_app(database: dict[str, Any]) -> Iterator[MakeApp]:
    """Makes apps on the test's database and closes what they have open."""
    made = []

    def make(binds: Any = None, **pool_settings: Any) -> tuple[Flask, PGMonkey[Any]]:
        app = Flask("tests")
        sections = {f"{which}_settings": pool_settings for which in ("pool", "async_pool")}
        config = {"connection_settings": database, **sections}
        app.config.from_mapping(PGMONKEY_CONFIG=config, PGMONKEY_BINDS=binds or {})
        made.append((app, PGMonkey(app)))
        return made[-1]

    yield make
    for app, db in made:
        with app.app_context():
            db.clear_cache()


class Meter:
    """A real SDK, whose metrics are read from memory."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> dict[str, Any]:
        """All metrics, by their names without ``db.client.connection.``."""
        data = self.reader.get_metrics_data()
        return {
            metric.name.removeprefix("db.client.connection."): metric
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def read(self) -> dict[str, dict[Any, Any]]:
        """What each says of each pool: a number, or how many times were counted."""
        return {
            name: {
                (at[POOL], at[STATE]) if STATE in at else at[POOL]: (
                    point.count if name in TIMES else point.value
                )
                for point in metric.data.data_points
                for at in [cast("dict[str, str]", point.attributes)]
            }
            for name, metric in self.metrics().items()
        }


@pytest.fixture
def meter() -> Iterator[Meter]:
    meter = Meter()
    yield meter
    meter.provider.shutdown()


def states(pool: str, idle: int, used: int) -> dict[Any, int]:
    return {(pool, "idle"): idle, (pool, "used"): used}


# OpenTelemetry


def test_a_pool_is_measured_as_the_conventions_say(make_app: MakeApp, meter: Meter) -> None:
    app, db = make_app(min_size=1, max_size=3)
    instrument_app(app, meter.provider)
    with app.app_context():
        db.fetch_all("SELECT 1")
        assert meter.read() == {
            "count": states("default", 0, 1),
            "idle.max": {"default": 3},
            "idle.min": {"default": 1},
            "max": {"default": 3},
            "pending_requests": {"default": 0},
            "timeouts": {"default": 0},
            "create_time": {"default": 1},
            "wait_time": {"default": 1},
        }
    found = meter.metrics()
    assert meter.read()["count"] == states("default", 1, 0)
    assert {name: metric.unit for name, metric in found.items()} == {
        **dict.fromkeys(("count", "idle.max", "idle.min", "max"), "{connection}"),
        "pending_requests": "{request}",
        "timeouts": "{timeout}",
        **dict.fromkeys(TIMES, "s"),
    }
    for name, metric in found.items():
        assert metric.name == f"db.client.connection.{name}"
        assert metric.description
        if name not in TIMES:
            assert metric.data.is_monotonic is (name == "timeouts")


def test_times_are_seconds_in_buckets_that_fit(make_app: MakeApp, meter: Meter) -> None:
    app, db = make_app()
    instrument_app(app, meter.provider)
    with app.app_context():
        db.fetch_all("SELECT pg_sleep(0.2)")
    (used,) = meter.metrics()["use_time"].data.data_points
    assert 0.2 <= used.sum < 60
    assert used.explicit_bounds[0] < 0.2 < used.explicit_bounds[-1]
    (created,) = meter.metrics()["create_time"].data.data_points
    assert 0 < created.sum < 60


def test_who_waits_and_who_waited_in_vain_are_counted(make_app: MakeApp, meter: Meter) -> None:
    app, db = make_app(max_size=1, timeout=0.1)
    instrument_app(app, meter.provider)
    with app.app_context():
        pool = db.pool
        db.fetch_all("SELECT 1")
        for _ in range(2):
            with pytest.raises(PoolTimeout):
                pool.borrow()
        assert meter.read()["timeouts"] == {"default": 2}
        # A pool that follows counts on.
        db.release()
        db.clear_cache()
        db.fetch_all("SELECT 1")
        assert meter.read()["timeouts"] == {"default": 2}
        with pytest.raises(PoolTimeout):
            db.pool.borrow()
        assert meter.read()["timeouts"] == {"default": 3}


def test_the_pool_of_aio_has_a_name_of_its_own(make_app: MakeApp, meter: Meter) -> None:
    app, db = make_app(min_size=1, max_size=2)
    instrument_app(app, meter.provider)
    with app.app_context():
        asyncio.run(db.aio.fetch_all("SELECT 1"))
    found = meter.read()
    assert found["count"] == states("default (async)", 1, 0)
    assert found["max"] == {"default (async)": 2}
    for time in TIMES:
        assert found[time] == {"default (async)": 1}


def test_binds_are_told_apart_and_share_what_they_share(
    make_app: MakeApp, meter: Meter, database: dict[str, Any]
) -> None:
    shared = {"connection_settings": database, "pool_settings": {}, "async_pool_settings": {}}
    other = {"connection_settings": {**database, "application_name": "other"}}
    app, db = make_app({"same": shared, "other": other})
    instrument_app(app, meter.provider)
    for bind in (db, db.bind("same"), db.bind("other")):
        with app.app_context():
            bind.fetch_all("SELECT 1")
    found = meter.read()
    assert found["count"].keys() == {
        (name, state) for name in ("default", "other") for state in ("idle", "used")
    }
    assert found["use_time"] == {"default": 2, "other": 1}


def test_apps_of_one_process_are_told_apart_by_their_prefix(
    make_app: MakeApp, meter: Meter
) -> None:
    for prefix in ("shop/", "blog/"):
        app, db = make_app(max_size=2)
        instrument_app(app, meter.provider, prefix=prefix)
        with app.app_context():
            db.fetch_all("SELECT 1")
    found = meter.read()
    assert found["max"] == {"shop/default": 2, "blog/default": 2}
    assert found["use_time"] == {"shop/default": 1, "blog/default": 1}


def test_measuring_opens_nothing(make_app: MakeApp, meter: Meter, database: dict[str, Any]) -> None:
    app, db = make_app(min_size=1)
    instrument_app(app, meter.provider)
    assert meter.read() == {}
    with app.app_context():
        assert db.cache_info["size"] == 0
        db.fetch_all("SELECT 1")
        pool = db.pool
        db.release()
        pool.disconnect()
        assert meter.read()["count"] == states("default", 0, 0)
        assert not pool.get_stats()
        db.clear_cache()
        assert "count" not in meter.read()


def test_an_app_that_is_gone_is_neither_kept_nor_told_of(
    database: dict[str, Any], meter: Meter
) -> None:
    app = Flask("forgotten")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    db = PGMonkey(app)
    blueprint = metrics_blueprint(registry=CollectorRegistry())  # which outlives it
    app.register_blueprint(blueprint)
    instrument_app(app, meter.provider)
    with app.app_context():
        db.fetch_all("SELECT 1")
        assert app.test_client().get("/metrics").status_code == 200
        db.clear_cache()
    forgotten = ref(app)
    del app
    gc.collect()
    assert forgotten() is None
    assert "count" not in meter.read()


def test_metrics_listen_to_no_signal(make_app: MakeApp, meter: Meter) -> None:
    """What is told of an event costs more than what is measured."""
    app, db = make_app()
    instrument_app(app, meter.provider)
    app.register_blueprint(metrics_blueprint(registry=CollectorRegistry()))
    with app.app_context():
        db.fetch_all("SELECT 1")
    for signal in (connection_opened, connection_borrowed, connection_returned):
        assert not signal.receivers


def test_times_wait_for_who_collects_them_and_never_without_bound(
    make_app: MakeApp, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_MOST_PUT_ASIDE", 3)
    app, db = make_app()
    instrument_app(app, meter.provider)
    measured = app.extensions["pgmonkey_metrics"]
    for _ in range(5):
        with app.app_context():
            db.fetch_all("SELECT 1")
    waiting = measured._put_aside.here()
    assert {time: len(times) for (_, time), times in waiting.items()} == {
        "create_time": 1,
        "wait_time": 3,
        "use_time": 3,
    }
    assert meter.read()["use_time"] == {"default": 5}
    assert not any(waiting.values())
    with app.app_context():
        db.fetch_all("SELECT 1")
    assert meter.read()["use_time"] == {"default": 6}


def test_no_time_is_lost_between_threads(make_app: MakeApp, meter: Meter) -> None:
    app, db = make_app(max_size=4)
    instrument_app(app, meter.provider)
    stop = threading.Event()

    def query() -> int:
        for count in itertools.count(1):
            with app.app_context():
                db.fetch_all("SELECT 1")
            if stop.is_set():
                return count
        raise AssertionError

    with ThreadPoolExecutor(4) as threads:
        counts = [threads.submit(query) for _ in range(4)]
        for _ in range(30):
            meter.read()
        stop.set()
        total = sum(each.result() for each in counts)
    assert meter.read()["use_time"] == {"default": total}
    assert meter.read()["wait_time"] == {"default": total}


def test_a_second_call_and_an_app_without_a_database_are_refused(
    make_app: MakeApp, meter: Meter
) -> None:
    with pytest.raises(RuntimeError, match=r"has no PGMonkey: call db\.init_app\(app\)"):
        instrument_app(Flask("tests"), meter.provider)
    app, _ = make_app()
    instrument_app(app, meter.provider)
    with pytest.raises(RuntimeError, match=r"call instrument_app\(\) once for each app"):
        instrument_app(app, meter.provider)


@pytest.mark.parametrize(
    ("module", "use", "extra"),
    [
        ("opentelemetry", lambda: instrument_app(Flask("tests")), "otel"),
        ("prometheus_client", metrics_blueprint, "prometheus"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, use: Callable[[], object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'flask-pgmonkey\[{extra}\]'"):
        use()


def test_the_global_provider_may_be_set_later(database: dict[str, Any]) -> None:
    result = run_program(
        """
        from flask import Flask
        from flask_pgmonkey import PGMonkey
        from flask_pgmonkey.metrics import instrument_app
        app = Flask("tests")
        app.config["PGMONKEY_CONFIG"] = {"connection_settings": config}
        db = PGMonkey(app)
        instrument_app(app)

        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        with app.app_context():
            db.fetch_all("SELECT 1")
        scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
        print(scope.scope.name, len(scope.metrics))
        """,
        database,
    )
    assert (result.stdout, result.stderr) == ("flask_pgmonkey 9\n", "")


def test_after_a_fork_each_process_reports_its_own(database: dict[str, Any]) -> None:
    result = run_program(
        """
        import os
        from flask import Flask
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from prometheus_client import CollectorRegistry
        from psycopg_pool import PoolTimeout
        from flask_pgmonkey import PGMonkey
        from flask_pgmonkey.metrics import instrument_app, metrics_blueprint

        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        app = Flask("tests")
        app.config["PGMONKEY_CONFIG"] = {
            "connection_settings": config,
            "pool_settings": {"min_size": 0, "max_size": 1, "timeout": 0.1},
        }
        db = PGMonkey(app)
        instrument_app(app, provider)
        app.register_blueprint(metrics_blueprint(registry=CollectorRegistry()))

        def measured():
            data = reader.get_metrics_data()
            metrics = data.resource_metrics[0].scope_metrics[0].metrics if data else []
            numbers = {
                metric.name.rpartition("connection.")[2]: [p.value for p in metric.data.data_points]
                for metric in metrics if not metric.name.endswith("_time")
            }
            page = app.test_client().get("/metrics").text
            lines = [
                line.rpartition(" ")[2] for line in page.splitlines()
                if line.startswith("db_client_connection_wait_time_seconds_count")
            ]
            return numbers.get("count"), numbers.get("timeouts"), lines

        with app.app_context():
            db.fetch_all("SELECT 1")
            try:
                db.pool.borrow()
            except PoolTimeout:
                pass
            pid = os.fork()
            if not pid:
                before = measured()
            else:
                os.waitpid(pid, 0)
                print("parent", measured(), flush=True)
        if not pid:
            with app.app_context():
                db.fetch_all("SELECT 1")
                print("child", before, measured(), flush=True)
            os._exit(0)
        """,
        database,
        checks=("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "child (None, None, []) ([0, 1], [0], ['1.0'])",
        "parent ([0, 1], [1], ['1.0'])",
    ]


# Prometheus


def samples(page: str) -> dict[Any, float]:
    """What a page says of pools, by name and labels."""
    return {
        (sample.name.removeprefix("db_client_connection_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("db_client_connection_")
        and not sample.name.endswith(("_bucket", "_sum", "_created"))
    }


def test_prometheus_reads_the_same_numbers(make_app: MakeApp) -> None:
    app, db = make_app(min_size=1, max_size=3)
    app.register_blueprint(metrics_blueprint(registry=CollectorRegistry()))
    with app.app_context():
        db.fetch_all("SELECT 1")
        db.release()
        db.fetch_all("SELECT 1")
        response = app.test_client().get("/metrics")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"].startswith("text/plain")
    assert samples(response.text) == {
        ("count", "default", "idle"): 0,
        ("count", "default", "used"): 1,
        ("idle_max", "default"): 3,
        ("idle_min", "default"): 1,
        ("max", "default"): 3,
        ("pending_requests", "default"): 0,
        ("timeouts_total", "default"): 0,
        ("create_time_seconds_count", "default"): 1,
        ("wait_time_seconds_count", "default"): 2,
        ("use_time_seconds_count", "default"): 1,
    }


def test_the_page_opens_nothing_and_shows_the_metrics_of_others(make_app: MakeApp) -> None:
    app, db = make_app()
    app.register_blueprint(metrics_blueprint(), url_prefix="/internal")
    page = app.test_client().get("/internal/metrics").text
    assert samples(page) == {}
    assert "python_info" in page
    with app.app_context():
        assert db.cache_info["size"] == 0


def test_the_page_speaks_openmetrics_where_that_is_asked_for(make_app: MakeApp) -> None:
    app, db = make_app()
    app.register_blueprint(metrics_blueprint(registry=CollectorRegistry()))
    with app.app_context():
        db.fetch_all("SELECT 1")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = app.test_client().get("/metrics", headers=accept)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_the_page_of_an_app_without_a_database_says_what_to_call() -> None:
    blueprint = metrics_blueprint(registry=CollectorRegistry())
    with pytest.raises(RuntimeError, match=r"has no PGMonkey: call db\.init_app\(app\)"):
        Flask("tests").register_blueprint(blueprint)


def test_in_multiprocess_mode_the_page_shows_all_processes(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    result = run_program(
        """
        import os, time
        from flask import Flask
        from prometheus_client import multiprocess
        from flask_pgmonkey import PGMonkey
        from flask_pgmonkey.metrics import metrics_blueprint

        app = Flask("tests")
        app.config["PGMONKEY_CONFIG"] = {
            "connection_settings": config, "pool_settings": {"min_size": 0, "max_size": 2},
        }
        db = PGMonkey(app)
        app.register_blueprint(metrics_blueprint())
        ready, done = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            with app.app_context():
                db.fetch_all("SELECT 1")
            with app.app_context():
                db.fetch_all("SELECT 1")
                os.write(ready[1], b"!")
                os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        with app.app_context():
            db.fetch_all("SELECT 1")
        deadline = time.monotonic() + 10
        while True:  # the child writes a moment later
            page = app.test_client().get("/metrics").text
            if (
                'wait_time_seconds_count{db_client_connection_pool_name="default"} 3.0' in page
                and 'db_client_connection_state="used"} 1.0' in page
            ):
                break
            assert time.monotonic() < deadline, page
            time.sleep(0.05)
        print(page)
        os.write(done[1], b"!")
        os.waitpid(pid, 0)
        multiprocess.mark_process_dead(pid)
        print("=")
        print(app.test_client().get("/metrics").text)
        """,
        database,
    )
    assert result.stderr == ""
    while_both_live, after = map(samples, result.stdout.split("\n=\n"))
    assert while_both_live[("count", "default", "idle")] == 1
    assert while_both_live[("count", "default", "used")] == 1
    assert while_both_live[("max", "default")] == 4
    assert while_both_live[("wait_time_seconds_count", "default")] == 3
    assert while_both_live[("create_time_seconds_count", "default")] == 2
    assert after[("max", "default")] == 2
    assert after[("wait_time_seconds_count", "default")] == 3
    assert after[("use_time_seconds_count", "default")] >= 2  # the child's last may be missing


# Spans


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What opentelemetry-instrumentation-psycopg makes of this test's queries."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = PsycopgInstrumentor()
    before = {cls: vars(cls)["connect"] for cls in (psycopg.Connection, psycopg.AsyncConnection)}
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter
    instrumentor.uninstrument()
    for cls, connect in before.items():
        # What it puts back is bound to psycopg's class, and gives subclasses connections of that.
        setattr(cls, "connect", connect)  # noqa: B010


def test_the_instrumentation_of_psycopg_makes_the_spans_of_queries(
    make_app: MakeApp, spans: InMemorySpanExporter
) -> None:
    app, db = make_app()
    with app.app_context():
        db.execute("CREATE TABLE items (n integer)")
        db.execute_many("INSERT INTO items VALUES (%s)", [(1,), (2,)])
        assert db.fetch_all("SELECT n FROM items ORDER BY n") == [(1,), (2,)]
        assert db.fetch_value("DELETE FROM items WHERE n = %s RETURNING n", (1,)) == 1
        assert asyncio.run(db.aio.fetch_value("SELECT count(*) FROM items")) == 1
    statements = [
        str((span.attributes or {}).get("db.statement")) for span in spans.get_finished_spans()
    ]
    for text in (
        "CREATE TABLE items (n integer)",
        "INSERT INTO items VALUES (%s)",
        "SELECT n FROM items ORDER BY n",
        "DELETE FROM items WHERE n = %s RETURNING n",
        "SELECT count(*) FROM items",
    ):
        assert statements.count(text) == 1, statements
