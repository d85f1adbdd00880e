"""A blueprint for load balancers and orchestrators: does this process live, can it serve?"""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask, Response, current_app, jsonify

from .config import Config
from .connections import NormalConnection
from .connections.connect_errors import is_out_of_connections
from .connections.server_connection import ServerConnection
from .per_process import PerProcess
from .printable import one_line

if TYPE_CHECKING:
    from .extension import PGMonkey

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

TIMEOUT = 0.8
"""Seconds until ``/ready`` answers, at most."""

KEPT_FOR = 1.0
"""Seconds for which the answer of a database serves everyone who asks."""

FAILURES_BEFORE_503 = 2
"""How often in a row a database has to fail before ``/ready`` is 503."""


def health_blueprint(*bind_names: str, name: str = "health") -> Blueprint:
    """A blueprint with ``/live`` and ``/ready``, for the app's databases or those that are named.

    ``/live`` is 200 as long as the process answers; it asks no database, because a restart of the
    app repairs none. ``/ready`` asks each database over a new connection of its own, never one of
    the app's, and answers within :data:`TIMEOUT` seconds: 200, or 503 once a database has failed
    twice in a row. An exhausted pool is reported, and is no failure. The log says why a database
    failed; the answers do not.

    :param bind_names: which databases; all of the app's without them.
    :param name: the blueprint's, as endpoints use it.
    """
    blueprint = Blueprint(name, __name__)
    probes: WeakKeyDictionary[Flask, PerProcess[dict[str, _Probe]]] = WeakKeyDictionary()

    @blueprint.get("/live")
    def live() -> Response:
        return _uncached(jsonify(status="alive"))

    @blueprint.get("/ready")
    def ready() -> Response:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        db: PGMonkey[Any] | None = app.extensions.get("pgmonkey")
        if db is None:
            raise RuntimeError(f"the app {app.name!r} has no PGMonkey: call db.init_app(app)")
        of_app = probes.get(app) or probes.setdefault(app, PerProcess(dict))
        of_process = of_app.here()
        asked = [
            of_process.get(each) or of_process.setdefault(each, _Probe(each))
            for each in bind_names or db.bind_names
        ]
        deadline = monotonic() + TIMEOUT
        for probe in asked:
            probe.begin(app, db)
        are_ready = [probe.is_ready(deadline) for probe in asked]
        response = jsonify(
            status="ready" if all(are_ready) else "unavailable",
            databases={
                probe.bind_name: {
                    "status": "ready" if is_ready else "unavailable",
                    "failures": probe.failures,
                    "pool": probe.pool_in_numbers(db),
                }
                for probe, is_ready in zip(asked, are_ready, strict=True)
            },
        )
        if not all(are_ready):
            response.status_code = 503
            response.headers["Retry-After"] = "1"
        return _uncached(response)

    return blueprint


class _Attempt:
    """One connection to a database, opened in a thread, which is given up when it takes too long.

    A thread cannot be ended from outside: it ends when ``connect_timeout`` or the bound of its
    query has passed.
    """

    def __init__(self, app: Flask, db: PGMonkey[Any], bind_name: str) -> None:
        self._app = app
        self._db = db
        self._bind_name = bind_name
        self.config: Config | None = None
        self.error: Exception | None = None
        self.is_over: threading.Event = threading.Event()
        threading.Thread(target=self._run, name="flask_pgmonkey-health", daemon=True).start()

    def _run(self) -> None:
        try:
            with self._app.app_context():
                self.config = config = self._db.get_config(self._bind_name)
            with closing(ServerConnection.open(NormalConnection(config), None, None)) as conn:
                conn.query_timeout = TIMEOUT
                conn.execute("SELECT 1", prepare=False)
        except Exception as error:
            # A server that has none left serves those that the app has.
            self.error = None if is_out_of_connections(error) else error
        finally:
            self.is_over.set()


class _Probe:
    """What is known of one database in this process. One attempt at a time."""

    def __init__(self, bind_name: str) -> None:
        self.bind_name = bind_name
        self.failures = 0
        self._asked_at = 0.0
        self._turn = threading.Lock()
        self._attempt: _Attempt | None = None
        self._is_answered = True

    def begin(self, app: Flask, db: PGMonkey[Any]) -> None:
        """Ask the database, unless it is being asked, or was within the last second."""
        with self._turn:
            now = monotonic()
            if not self._is_answered or now - self._asked_at < KEPT_FOR:
                return
            self._asked_at = now
            self._is_answered = False
            if self._attempt is None or self._attempt.is_over.is_set():
                self._attempt = _Attempt(app, db, self.bind_name)

    def is_ready(self, deadline: float) -> bool:
        """Whether the database may be counted on, waiting for its answer until *deadline*."""
        attempt = self._attempt
        if attempt is not None and not self._is_answered:
            attempt.is_over.wait(max(0.0, deadline - monotonic()))
            with self._turn:
                if not self._is_answered:
                    self._is_answered = True
                    self._count(attempt)
        return self.failures < FAILURES_BEFORE_503

    def _count(self, attempt: _Attempt) -> None:
        if attempt.is_over.is_set() and attempt.error is None:
            self.failures = 0
            return
        self.failures += 1
        said = f"no answer within {TIMEOUT} s" if attempt.error is None else attempt.error
        logger.warning("The database %s is not ready: %s", self.bind_name, one_line(said))

    def pool_in_numbers(self, db: PGMonkey[Any]) -> dict[str, int] | None:
        """The app's pool in this process; None while it is closed."""
        config = self._attempt.config if self._attempt is not None else None
        pool = db.manager.lookup(config, "pool")() if config is not None else None
        stats = pool.get_stats() if pool is not None else {}
        if not stats:
            return None
        return {
            "max_size": stats["pool_max"],
            "size": stats["pool_size"],
            "idle": stats["pool_available"],
            "waiting": stats["requests_waiting"],
        }


def _uncached(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
