"""Exhaustion and outage are 503 with Retry-After; what the app itself does wrong stays 500."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import psycopg
import pytest
from flask import Blueprint, Flask, Response, got_request_exception
from flask.sessions import SecureCookieSessionInterface
from psycopg_pool import PoolTimeout
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.test import TestResponse

from flask_pgmonkey import PGMonkey

from ..proxy import Proxy
from ..servers import PrivateServer
from .conftest import Site

MakeProxy = Callable[[str, int], Proxy]


@pytest.fixture
def open_site() -> Iterator[Callable[..., Site]]:
    """Makes sites whose errors are answered, as in production, and closes them."""
    sites: list[Site] = []

    def make(settings: dict[str, Any], app: Flask | None = None, **pool_settings: Any) -> Site:
        app = app or Flask("tests")
        # Many of these tests wait it out.
        pool_settings = {"timeout": 0.3, **pool_settings}
        config = {"connection_settings": settings, "pool_settings": pool_settings}
        sites.append(Site(app, PGMonkey(app, config=config)))
        app.testing = False
        return sites[-1]

    yield make
    for site in sites:
        with site.app.app_context():
            site.db.clear_cache()


@pytest.fixture
def nowhere(private_server: PrivateServer, proxy: MakeProxy) -> dict[str, Any]:
    """connection_settings of a port that refuses."""
    gate = proxy(private_server.host, private_server.port)
    gate.refuse()
    return private_server.settings(port=gate.port)


def query(site: Site) -> TestResponse:
    return site.visit(lambda: str(site.db.fetch_value("SELECT 1")))


def assert_unavailable(response: TestResponse) -> None:
    assert response.status_code == 503
    assert 1 <= int(response.headers["Retry-After"]) <= 5


def test_a_server_that_is_down_until_it_is_up(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(), timeout=0.5)
    assert query(site).status_code == 200
    private_server.stop()
    assert_unavailable(query(site))
    private_server.start()
    # While the outage is known, requests hear of it at once, and one attempt follows another.
    deadline = monotonic() + 10
    while (answer := query(site)).text != "1":
        assert_unavailable(answer)
        assert monotonic() < deadline


def test_a_connection_that_dies_in_a_transaction(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings())

    def view() -> None:
        with site.db.transaction() as tx:
            pid = tx.fetch_value("SELECT pg_backend_pid()")
            with private_server.connect() as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            tx.execute("SELECT 1")

    assert_unavailable(site.visit(view))


@pytest.mark.parametrize("max_waiting", [0, 1])
def test_an_exhausted_pool(
    private_server: PrivateServer, open_site: Callable[..., Site], max_waiting: int
) -> None:
    site = open_site(private_server.settings(), max_size=1, timeout=0.5, max_waiting=max_waiting)
    with site.app.app_context(), site.db.pool, ThreadPoolExecutor(3) as threads:
        for response in threads.map(query, [site] * 3):
            assert_unavailable(response)
    assert query(site).text == "1"


def test_a_server_that_has_no_connection_left(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT 0")
        try:
            assert_unavailable(query(open_site(private_server.settings(), timeout=0.2)))
        finally:
            admin.execute("ALTER ROLE app CONNECTION LIMIT -1")


@pytest.mark.parametrize(
    ("sqlstate", "status"),
    [
        ("53300", 503), ("57P01", 503), ("57P03", 503), ("08006", 503), ("08P01", 503),
        ("57014", 500), ("40P01", 500), ("40001", 500), ("53100", 500), ("55P03", 500),
        ("42601", 500), ("P0001", 500), ("25006", 500),
    ],
)  # fmt: skip
def test_the_sqlstates_of_an_outage_and_no_others(
    private_server: PrivateServer, open_site: Callable[..., Site], sqlstate: str, status: int
) -> None:
    site = open_site(private_server.settings())
    raising = f"DO $$ BEGIN RAISE 'planted' USING ERRCODE = '{sqlstate}'; END $$"
    assert site.visit(lambda: site.db.execute(raising)).status_code == status


def test_what_the_app_does_wrong_stays_500(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings())

    def send_without_an_answer_to_the_last() -> None:
        pgconn = site.db.connection.pgconn
        try:
            pgconn.send_query(b"SELECT 1")
            pgconn.send_query(b"SELECT 1")
        finally:
            site.db.connection.close()

    assert site.visit(send_without_an_answer_to_the_last).status_code == 500
    assert site.visit(lambda: site.db.execute("SELEKT")).status_code == 500
    assert site.visit(lambda: 1 / 0).status_code == 500


@pytest.mark.parametrize("error", [PoolTimeout, psycopg.OperationalError, psycopg.Error, Exception])
@pytest.mark.parametrize("is_first", [True, False])
def test_an_error_handler_of_the_app_wins(
    nowhere: dict[str, Any],
    open_site: Callable[..., Site],
    error: type[Exception],
    is_first: bool,
) -> None:
    app = Flask("tests")

    def handle(raised: Exception) -> Response:
        assert isinstance(raised, psycopg.OperationalError)
        return Response("handled", 418)

    if is_first:
        app.register_error_handler(error, handle)
    site = open_site(nowhere, app)
    if not is_first:
        app.register_error_handler(error, handle)
    assert query(site).status_code == (503 if error is PoolTimeout else 418)


def test_an_error_handler_of_a_blueprint_wins(
    nowhere: dict[str, Any], open_site: Callable[..., Site]
) -> None:
    app = Flask("tests")
    blueprint = Blueprint("shop", __name__)
    site = open_site(nowhere, app)
    blueprint.add_url_rule("/shop", "shop", lambda: site.db.fetch_value("SELECT 1"))
    blueprint.register_error_handler(psycopg.Error, lambda _: ("handled", 418))
    app.register_blueprint(blueprint)
    assert app.test_client().get("/shop").status_code == 418
    assert_unavailable(query(site))


@pytest.mark.parametrize("handled", [503, HTTPException])
def test_the_app_s_page_for_503_is_shown_with_retry_after_and_told_the_cause(
    nowhere: dict[str, Any], open_site: Callable[..., Site], handled: Any
) -> None:
    site = open_site(nowhere)

    @site.app.errorhandler(handled)
    def page(error: ServiceUnavailable) -> tuple[str, int]:
        return f"our own page: {type(error.__cause__).__name__}", 503

    response = query(site)
    assert_unavailable(response)
    assert response.text == "our own page: OperationalError"


def test_a_page_for_500_does_not_hide_it(
    nowhere: dict[str, Any], open_site: Callable[..., Site]
) -> None:
    site = open_site(nowhere)
    site.app.register_error_handler(500, lambda _: ("broken", 500))
    assert_unavailable(query(site))


@pytest.mark.parametrize("where", ["session", "before_request", "after_request", "error_handler"])
def test_queries_outside_the_view_count_too(
    nowhere: dict[str, Any], open_site: Callable[..., Site], where: str
) -> None:
    site = open_site(nowhere)

    def fail(*_: Any) -> Any:
        return site.db.fetch_value("SELECT 1")

    if where == "session":
        interface = SecureCookieSessionInterface()
        interface.open_session = fail  # type: ignore[method-assign,assignment]
        site.app.session_interface = interface
    elif where == "before_request":
        site.app.before_request(fail)
    elif where == "error_handler":
        site.app.register_error_handler(ZeroDivisionError, fail)
    else:
        # Not again for the answer that says so.
        done: list[None] = []

        def fail_once(response: Response) -> Response:
            if not done:
                done.append(None)
                fail()
            return response

        site.app.after_request(fail_once)
    assert_unavailable(site.visit(lambda: 1 / 0 if where == "error_handler" else "fine"))


@pytest.mark.parametrize(
    "config", [{"TESTING": True}, {"DEBUG": True}, {"PROPAGATE_EXCEPTIONS": True}]
)
def test_tests_and_the_debugger_see_the_error_itself(
    nowhere: dict[str, Any], open_site: Callable[..., Site], config: dict[str, bool]
) -> None:
    site = open_site(nowhere)
    site.app.config.update(config)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        query(site)
    site.app.config.update(PROPAGATE_EXCEPTIONS=False)
    assert_unavailable(query(site))


def test_it_is_logged_and_told_to_those_who_listen_for_failures(
    nowhere: dict[str, Any],
    open_site: Callable[..., Site],
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = open_site(nowhere)
    heard: list[Any] = []

    def hear(sender: Flask, exception: Exception, **extra: Any) -> None:
        heard.append(exception)

    with got_request_exception.connected_to(hear, site.app):
        assert_unavailable(query(site))
    assert [type(error) for error in heard] == [psycopg.OperationalError]
    logged = [record for record in caplog.records if record.name == site.app.name]
    assert [record.getMessage() for record in logged] == ["Exception on / [GET]"]
    assert logged[0].exc_info is not None
    assert logged[0].exc_info[1] is heard[0]


@pytest.mark.parametrize("off", [False, "off"])
def test_it_can_be_switched_off(
    nowhere: dict[str, Any], open_site: Callable[..., Site], off: Any
) -> None:
    app = Flask("tests")
    app.config["PGMONKEY_UNAVAILABLE"] = off
    response = query(open_site(nowhere, app))
    assert response.status_code == 500
    assert "Retry-After" not in response.headers
