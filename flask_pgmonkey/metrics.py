"""Metrics of an app's pools, for OpenTelemetry and for Prometheus.

Names, units and attributes are those of OpenTelemetry's semantic conventions for database clients.
Numbers are read from the pools when somebody collects them. Times are only put aside by those who
borrow, and counted in at collection too: OpenTelemetry's SDK takes 7 µs for each.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, ref

from flask import Blueprint, Flask, Response, current_app, request

from .connections.borrowed import PoolMeasures
from .connections.watching import pool_name
from .manager import PGConnectionManager
from .per_process import PerProcess

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from .connections import AsyncPoolConnection, PoolConnection

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""The bounds of the histograms, in seconds: those that the conventions give for queries."""

_PREFIX = "db.client.connection."
_POOL = _PREFIX + "pool.name"
_STATE = _PREFIX + "state"


class _Number(NamedTuple):
    """A metric that is read from the pools.

    :ivar read: the value, or one for each state.
    """

    name: str
    unit: str
    description: str
    read: Callable[[PoolMeasures], int | dict[str, int]]


_NUMBERS = (
    _Number(
        "count",
        "{connection}",
        "The number of connections that are currently idle, or used.",
        lambda pool: {"idle": pool.idle, "used": pool.used},
    ),
    _Number(
        "idle.max",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        lambda pool: pool.max_size,
    ),
    _Number(
        "idle.min",
        "{connection}",
        "The minimum number of idle open connections, while none is used.",
        lambda pool: pool.min_size,
    ),
    _Number(
        "max",
        "{connection}",
        "The maximum number of open connections allowed.",
        lambda pool: pool.max_size,
    ),
    _Number(
        "pending_requests",
        "{request}",
        "The number of borrowers that wait for a connection.",
        lambda pool: pool.pending,
    ),
)
_TIMEOUTS = _Number(
    "timeouts",
    "{timeout}",
    "The number of borrowers that waited for a connection in vain.",
    lambda pool: pool.timeouts,
)


class _Time(NamedTuple):
    """A histogram of what the pools tell their timers."""

    name: str
    description: str


_TIMES = (
    _Time("create_time", "The time it took to open a connection."),
    _Time("wait_time", "The time it took to borrow a connection."),
    _Time("use_time", "The time for which a connection was borrowed."),
)
_MOST_PUT_ASIDE = 20_000
"""So many times of one name are kept for who collects them; more are counted in at once."""

_WRITE_EVERY = 0.5
"""Seconds in which a process writes its numbers down once, in multiprocess mode."""


def instrument_app(
    app: Flask, meter_provider: MeterProvider | None = None, *, prefix: str = ""
) -> None:
    """Have OpenTelemetry measure the pools of *app*. Call it once, after ``db.init_app(app)``.

    Needs ``flask-pgmonkey[otel]``, and an SDK that exports what is measured. A pool appears when it
    is used for the first time; nothing here opens one.

    :param meter_provider: OpenTelemetry's global one without it.
    :param prefix: stands before the names of the pools, to tell apart the apps of one process.
    :raises RuntimeError: where the app has no PGMonkey, or is measured already.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise _missing("opentelemetry-api", "otel") from error
    _manager_of(app)
    if "pgmonkey_metrics" in app.extensions:
        raise RuntimeError(
            f"the app {app.name!r} is measured already: call instrument_app() once for each app"
        )
    provider = meter_provider or metrics.get_meter_provider()
    instruments = _instruments.get(provider)
    if instruments is None:
        instruments = _instruments[provider] = _Instruments(provider)
    app.extensions["pgmonkey_metrics"] = instruments.measure(app, prefix)


def metrics_blueprint(
    *, prefix: str = "", registry: CollectorRegistry | None = None, name: str = "metrics"
) -> Blueprint:
    """A blueprint with ``/metrics``, where Prometheus reads how the app's pools stand. Register it
    after ``db.init_app(app)``.

    Needs ``flask-pgmonkey[prometheus]``. A pool appears when it is used for the first time; nothing
    here opens one.

    :param prefix: stands before the names of the pools, to tell apart the apps of one process.
    :param registry: whose metrics the page shows too; prometheus-client's ``REGISTRY`` without it.
        In its multiprocess mode it shows all that the processes have written down.
    :param name: the blueprint's, as endpoints use it.
    :raises RuntimeError: when it is registered on an app that has no PGMonkey.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise _missing("prometheus-client", "prometheus") from error
    others = registry if registry is not None else prometheus_client.REGISTRY
    blueprint = Blueprint(name, __name__)
    pages: WeakKeyDictionary[Flask, _Page] = WeakKeyDictionary()

    @blueprint.record_once
    def measure(state: Any) -> None:
        pages[state.app] = _Page(state.app, prefix, others)

    @blueprint.get("/metrics")
    def page() -> Response:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        return pages[app].answer(request.headers.get("Accept", ""))

    return blueprint


def _missing(package: str, extra: str) -> ImportError:
    return ImportError(
        f"the package {package} is missing: run pip install 'flask-pgmonkey[{extra}]'"
    )


def _manager_of(app: Flask) -> PGConnectionManager:
    db: Any = app.extensions.get("pgmonkey")
    if db is None:
        raise RuntimeError(f"the app {app.name!r} has no PGMonkey: call db.init_app(app)")
    manager: PGConnectionManager = db._state(app).manager
    return manager


class _Pools:
    """The pools of an app, which this does not keep alive."""

    def __init__(self, app: Flask, prefix: str) -> None:
        self._find_app: Callable[[], Flask | None] = ref(app)
        self.prefix = prefix
        self._timeouts: PerProcess[_Timeouts] = PerProcess(_Timeouts)

    def measure(self) -> dict[str, PoolMeasures]:
        """How the pools of this process stand, by name: those of several event loops together."""
        app = self._find_app()
        if app is None:
            return {}
        timeouts = self._timeouts.here()
        found: dict[str, PoolMeasures] = {}
        with timeouts.lock:
            for pool in _manager_of(app).pools():
                name = self.prefix + pool_name(pool)
                measures = timeouts.counted_on(name, pool)
                same = found.get(name)
                if same is not None:
                    both = zip(same, measures, strict=True)
                    total = PoolMeasures(*map(sum, both))
                    measures = total._replace(timeouts=measures.timeouts)
                found[name] = measures
        return found


class _Timeouts:
    """Counts the timeouts of each name on, where one pool follows the other."""

    def __init__(self) -> None:
        # Of this process alone, as a fork may come at any time; a __del__ that queries too.
        self.lock: Any = threading.RLock()
        self._totals: dict[str, int] = {}
        self._seen: WeakKeyDictionary[PoolConnection | AsyncPoolConnection, int] = (
            WeakKeyDictionary()
        )

    def counted_on(self, name: str, pool: PoolConnection | AsyncPoolConnection) -> PoolMeasures:
        measures = pool.measure()
        new = measures.timeouts - self._seen.get(pool, 0)
        self._seen[pool] = measures.timeouts
        self._totals[name] = total = self._totals.get(name, 0) + new
        return measures._replace(timeouts=total)


class _Measured:
    """An app whose pools are measured.

    :param record: takes the name of a time, a number of seconds, and the name of a pool. Called
        by :meth:`count_in`.
    """

    def __init__(self, app: Flask, prefix: str, record: Callable[[str, float, str], None]) -> None:
        self.pools = _Pools(app, prefix)
        self._prefix = prefix
        self._record = record
        # Deques: who puts aside and who counts in need no lock, nor does a __del__ in between.
        self._put_aside: PerProcess[dict[tuple[str, str], deque[float]]] = PerProcess(dict)
        _manager_of(app).timers.append(self._note)

    def _note(self, pool: str, time: str, seconds: float) -> None:
        times = self._put_aside[os.getpid()]
        try:
            put_aside = times[pool, time]
        except KeyError:
            put_aside = times.setdefault((pool, time), deque())
        if len(put_aside) < _MOST_PUT_ASIDE:
            put_aside.append(seconds)
        else:
            self._record(time, seconds, self._prefix + pool)

    def count_in(self) -> None:
        """Record the times of this process that were put aside."""
        for (pool, time), put_aside in list(self._put_aside.here().items()):
            with suppress(IndexError):
                for _ in range(len(put_aside)):
                    self._record(time, put_aside.popleft(), self._prefix + pool)


# OpenTelemetry


class _Instruments:
    """The instruments of one meter provider, for all apps that are measured with it."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("flask_pgmonkey")
        self._measured: WeakSet[_Measured] = WeakSet()
        for number in _NUMBERS:
            self._create(meter.create_observable_up_down_counter, number)
        self._create(meter.create_observable_counter, _TIMEOUTS)
        self._histograms = {time.name: _histogram(meter, time) for time in _TIMES}

    def _create(self, create: Callable[..., object], number: _Number) -> None:
        create(
            _PREFIX + number.name,
            callbacks=[partial(self._observe, number)],
            unit=number.unit,
            description=number.description,
        )

    def measure(self, app: Flask, prefix: str) -> _Measured:
        """Measure *app* as long as the object lives that is returned."""
        measured = _Measured(app, prefix, self._record)
        self._measured.add(measured)
        return measured

    def _record(self, time: str, seconds: float, pool: str) -> None:
        self._histograms[time].record(seconds, {_POOL: pool})

    def _observe(self, number: _Number, options: CallbackOptions) -> Iterator[Observation]:
        from opentelemetry.metrics import Observation

        for measured in list(self._measured):
            # Within the first callback, so that the SDK has all of it in the same collection.
            if number is _NUMBERS[0]:
                measured.count_in()
            for pool, measures in measured.pools.measure().items():
                value = number.read(measures)
                if isinstance(value, int):
                    yield Observation(value, {_POOL: pool})
                    continue
                for state, count in value.items():
                    yield Observation(count, {_POOL: pool, _STATE: state})


def _histogram(meter: Meter, time: _Time) -> Any:
    return meter.create_histogram(
        _PREFIX + time.name,
        unit="s",
        description=time.description,
        explicit_bucket_boundaries_advisory=BUCKETS,
    )


_instruments: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()


# Prometheus


class _Page:
    """What Prometheus reads of one app."""

    def __init__(self, app: Flask, prefix: str, others: CollectorRegistry) -> None:
        measured = _Measured(app, prefix, self._record)
        is_written = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        make = _WrittenDown if is_written else _ReadWhenAsked
        self._shown: PerProcess[_Shown] = PerProcess(partial(make, measured, others))
        if is_written:
            _manager_of(app).timers.append(self._have_it_written)

    def _have_it_written(self, *time: object) -> None:
        self._shown[os.getpid()].write_soon()

    def _record(self, time: str, seconds: float, pool: str) -> None:
        self._shown.here().record(time, seconds, pool)

    def answer(self, accept: str) -> Response:
        """The page, in the format that is asked for."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        response = Response(encode(self._shown.here().registry()), content_type=content_type)
        response.headers["Cache-Control"] = "no-store"
        return response


def _prometheus_name(name: str) -> str:
    return (_PREFIX + name).replace(".", "_")


_LABEL = _POOL.replace(".", "_")
_STATE_LABEL = _STATE.replace(".", "_")


class _Shown:
    """What one process shows, and its histograms."""

    def __init__(self, measured: _Measured, others: CollectorRegistry) -> None:
        from prometheus_client import CollectorRegistry, Histogram

        self._measured = measured
        self._registry = CollectorRegistry()
        self._registry.register(others)
        self._histograms = {
            time.name: Histogram(
                _prometheus_name(time.name),
                time.description,
                [_LABEL],
                unit="seconds",
                buckets=BUCKETS,
                registry=self._registry,
            )
            for time in _TIMES
        }

    def record(self, time: str, seconds: float, pool: str) -> None:
        """Count a time in."""
        self._histograms[time].labels(pool).observe(seconds)

    def registry(self) -> CollectorRegistry:
        """What is to be shown now."""
        self._measured.count_in()
        return self._registry

    def write_soon(self) -> None:
        """Have it written down where it is to be."""


class _ReadWhenAsked(_Shown):
    """Numbers that are read from the pools of the process that shows them."""

    def __init__(self, measured: _Measured, others: CollectorRegistry) -> None:
        super().__init__(measured, others)
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The numbers, for prometheus-client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        pools = self._measured.pools.measure()
        for number in (*_NUMBERS, _TIMEOUTS):
            family = CounterMetricFamily if number is _TIMEOUTS else GaugeMetricFamily
            states = [_STATE_LABEL] if number.name == "count" else []
            metric: Any = family(
                _prometheus_name(number.name), number.description, labels=[_LABEL, *states]
            )
            for pool, measures in pools.items():
                value = number.read(measures)
                if isinstance(value, int):
                    metric.add_metric([pool], value)
                    continue
                for state, count in value.items():
                    metric.add_metric([pool, state], count)
            yield metric


class _WrittenDown(_Shown):
    """Numbers that each process writes down, for prometheus-client's multiprocess mode.

    Whoever shows them cannot ask the pools of other processes.
    """

    def __init__(self, measured: _Measured, others: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge

        super().__init__(measured, others)
        self._gauges = {
            number.name: Gauge(
                _prometheus_name(number.name),
                number.description,
                [_LABEL, *([_STATE_LABEL] if number.name == "count" else [])],
                multiprocess_mode="livesum",
                registry=self._registry,
            )
            for number in _NUMBERS
        }
        self._timeouts = Counter(
            _prometheus_name(_TIMEOUTS.name),
            _TIMEOUTS.description,
            [_LABEL],
            registry=self._registry,
        )
        self._written: dict[str, int] = {}
        self._writing: Any = threading.RLock()  # a __del__ that queries may come within
        self._is_due = False

    def write_soon(self) -> None:
        if self._is_due:
            return
        self._is_due = True
        timer = threading.Timer(_WRITE_EVERY, self._write_again)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # at exit no thread can be started any more
            self._write_again()

    def _write_again(self) -> None:
        self._is_due = False  # first this: what comes now is written next time
        self._write()

    def registry(self) -> CollectorRegistry:
        """What all processes have written down."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        self._write()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry

    def _write(self) -> None:
        with self._writing:
            self._measured.count_in()
            for pool, measures in self._measured.pools.measure().items():
                for number in _NUMBERS:
                    gauge = self._gauges[number.name]
                    value = number.read(measures)
                    if isinstance(value, int):
                        gauge.labels(pool).set(value)
                        continue
                    for state, count in value.items():
                        gauge.labels(pool, state).set(count)
                new = measures.timeouts - self._written.get(pool, 0)
                self._written[pool] = measures.timeouts
                self._timeouts.labels(pool).inc(new)
