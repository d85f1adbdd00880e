"""``/live`` and ``/ready``: what a load balancer hears, and what it never hears."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_pgmonkey import PGMonkey, health
from flask_pgmonkey.health import health_blueprint

from .proxy import Proxy
from .servers import PrivateServer

MakeProxy = Callable[[str, int], Proxy]
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"


class Watched:
    """An app with the blueprint."""

    def __init__(self, app: Flask, db: PGMonkey[Any], *bind_names: str) -> None:
        self.app = app
        self.db = db
        app.register_blueprint(health_blueprint(*bind_names))

    def ask(self, path: str = "/ready") -> TestResponse:
        """What a path answers, within the promised time and the deadline of a slow machine."""
        began_at = time.monotonic()
        response = self.app.test_client().get(path)
        assert time.monotonic() - began_at < health.TIMEOUT + 2
        return response

    def ask_anew(self) -> TestResponse:
        """The next answer that is not the one which is kept."""
        time.sleep(health.KEPT_FOR)
        return self.ask()

    def run(self, function: Callable[[], Any]) -> Any:
        with self.app.app_context():
            return function()


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    """Makes apps on connection_settings, and closes what they have open."""
    made: list[Watched] = []

    def make(
        settings: dict[str, Any], *bind_names: str, binds: Any = None, **pool_settings: Any
    ) -> Watched:
        app = Flask("tests")
        config = {"connection_settings": settings, "pool_settings": pool_settings}
        app.config.from_mapping(PGMONKEY_CONFIG=config, PGMONKEY_BINDS=binds or {})
        made.append(Watched(app, PGMonkey(app), *bind_names))
        return made[-1]

    yield make
    for each in made:
        each.run(each.db.clear_cache)


def test_a_process_lives_without_a_database(
    watch: Callable[..., Watched], private_server: PrivateServer, proxy: MakeProxy
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port))
    gate.deaf()
    response = watched.ask("/live")
    assert (response.status_code, response.json) == (200, {"status": "alive"})
    assert response.headers["Cache-Control"] == "no-store"
    assert gate.count == 0


def test_a_database_is_ready_on_a_connection_of_its_own(
    watch: Callable[..., Watched], private_server: PrivateServer
) -> None:
    watched = watch(private_server.settings())
    response = watched.ask()
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    ready = {"status": "ready", "failures": 0, "pool": None}
    assert response.json == {"status": "ready", "databases": {"default": ready}}
    assert watched.run(lambda: watched.db.cache_info["size"]) == 0
    with private_server.connect() as admin:
        assert admin.execute(SESSIONS).fetchone() == (0,)


def test_an_exhausted_pool_is_told_and_fails_nothing(
    watch: Callable[..., Watched], private_server: PrivateServer
) -> None:
    watched = watch(private_server.settings(), max_size=1)
    with watched.app.app_context():
        watched.db.fetch_value("SELECT 1")
        response = watched.ask()
    assert response.status_code == 200
    pool = {"max_size": 1, "size": 1, "idle": 0, "waiting": 0}
    assert response.json is not None
    assert response.json["databases"]["default"]["pool"] == pool


def test_a_server_without_a_connection_left_is_ready(
    watch: Callable[..., Watched], private_server: PrivateServer
) -> None:
    watched = watch(private_server.settings())
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT 1")
        try:
            with psycopg.connect(**private_server.settings()):
                assert [watched.ask().status_code, watched.ask_anew().status_code] == [200, 200]
        finally:
            admin.execute("ALTER ROLE app CONNECTION LIMIT -1")


def test_the_second_failure_in_a_row_is_503_and_the_first_success_ends_it(
    watch: Callable[..., Watched],
    private_server: PrivateServer,
    proxy: MakeProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port))
    assert watched.ask().status_code == 200
    gate.refuse()
    assert watched.ask_anew().status_code == 200
    refused = watched.ask_anew()
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    failing = {"status": "unavailable", "failures": 2, "pool": None}
    assert refused.json == {"status": "unavailable", "databases": {"default": failing}}
    assert "The database default is not ready: connection failed" in caplog.text
    assert private_server.password not in caplog.text
    gate.accept()
    assert watched.ask_anew().status_code == 200


def test_a_server_that_falls_silent_fails_in_time_and_is_asked_by_one_thread(
    watch: Callable[..., Watched], private_server: PrivateServer, proxy: MakeProxy
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port, connect_timeout=60))
    gate.deaf()
    with ThreadPoolExecutor(8) as many:
        first = list(many.map(lambda _: watched.ask().status_code, range(8)))
    assert first == [200] * 8
    assert watched.ask_anew().status_code == 503
    assert gate.count == 1
    gate.drop_all()
    gate.resume()
    assert watched.ask_anew().status_code in (200, 503)  # the one that was cut off may count
    assert watched.ask_anew().status_code == 200


def test_a_server_that_is_stopped_in_mid_query_fails_in_time(
    watch: Callable[..., Watched], private_server: PrivateServer
) -> None:
    watched = watch(private_server.settings())
    private_server.pause()
    try:
        codes = [watched.ask().status_code, watched.ask_anew().status_code]
    finally:
        private_server.resume()
    assert codes == [200, 503]


def test_an_answer_is_kept_for_a_second(
    watch: Callable[..., Watched], private_server: PrivateServer, proxy: MakeProxy
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port))
    began_at = time.monotonic()
    with ThreadPoolExecutor(8) as many:
        assert set(many.map(lambda _: watched.ask().status_code, range(40))) == {200}
    assert gate.count <= 1 + (time.monotonic() - began_at) / health.KEPT_FOR


def test_each_database_is_asked_and_one_of_them_suffices_for_503(
    watch: Callable[..., Watched], private_server: PrivateServer, proxy: MakeProxy
) -> None:
    gate = proxy(private_server.host, private_server.port)
    gate.refuse()
    down = {"connection_settings": private_server.settings(port=gate.port)}
    watched = watch(private_server.settings(), binds={"stock": down})
    watched.ask()
    response = watched.ask_anew()
    assert response.status_code == 503
    assert response.json is not None
    found = {name: each["status"] for name, each in response.json["databases"].items()}
    assert found == {"default": "ready", "stock": "unavailable"}

    without_stock = watch(private_server.settings(), "default", binds={"stock": down})
    without_stock.ask()
    assert without_stock.ask_anew().json == {
        "status": "ready",
        "databases": {"default": {"status": "ready", "failures": 0, "pool": None}},
    }


def test_an_app_without_a_database_is_told_what_to_call() -> None:
    app = Flask("tests")
    app.testing = True
    app.register_blueprint(health_blueprint(), url_prefix="/health")
    with pytest.raises(RuntimeError, match=r"has no PGMonkey: call db\.init_app\(app\)"):
        app.test_client().get("/health/ready")
