"""What requests meet when the server, its accounts or the network fail."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

from ..proxy import Proxy
from ..servers import PrivateServer
from .conftest import Site

PLANTED = "planted-and-wrong"
TERMINATE_ALL = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'app'"
)
MakeProxy = Callable[[str, int], Proxy]


@pytest.fixture(autouse=True)
def no_secret_in_logs(
    caplog: pytest.LogCaptureFixture, private_server: PrivateServer
) -> Iterator[None]:
    """No test of this file logs a password, at any level."""
    caplog.set_level(logging.DEBUG)
    yield
    for secret in (PLANTED, private_server.password):
        assert secret not in caplog.text


@pytest.fixture
def open_site() -> Iterator[Callable[..., Site]]:
    """Makes sites on a server that may fail, and closes them."""
    sites: list[Site] = []

    def make(settings: dict[str, Any], **pool_settings: Any) -> Site:
        app = Flask("tests")
        config = {"connection_settings": settings, "pool_settings": pool_settings}
        sites.append(Site(app, PGMonkey(app, config=config)))
        return sites[-1]

    yield make
    for site in sites:
        with site.app.app_context():
            site.db.clear_cache()


def query(site: Site) -> str:
    """What the app answers from its database."""
    return site.visit(lambda: str(site.db.fetch_value("SELECT 1"))).text


def query_soon(site: Site) -> str:
    """What the app answers once it has found its database again."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return query(site)
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def fail(site: Site, within: float) -> str:
    """The error of a request, which comes within so many seconds and tells no secret."""
    start = time.monotonic()
    with pytest.raises(psycopg.OperationalError) as raised:
        query(site)
    assert time.monotonic() - start < within
    everything = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    with site.app.app_context():
        everything += repr(site.db.get_config()) + repr(site.db.manager) + repr(site.db)
    assert PLANTED not in everything
    assert PrivateServer.password not in everything
    return str(raised.value)


def test_a_wrong_password_until_it_is_right(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(password=PLANTED))
    for _ in range(2):
        assert 'password authentication failed for user "app"' in fail(site, within=1)
    private_server.set_password("app", PLANTED)
    assert query(site) == "1"


def test_an_unknown_database_until_it_exists(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings("later"))
    assert 'database "later" does not exist' in fail(site, within=1)
    with private_server.connect() as admin:
        admin.execute("CREATE DATABASE later")
    try:
        assert query(site) == "1"
    finally:
        with private_server.connect() as admin:
            admin.execute("DROP DATABASE later WITH (FORCE)")


def test_a_refused_port_until_somebody_listens(
    private_server: PrivateServer, proxy: MakeProxy, open_site: Callable[..., Site]
) -> None:
    gate = proxy(private_server.host, private_server.port)
    gate.refuse()
    site = open_site(private_server.settings(port=gate.port), timeout=2)
    assert "refused" in fail(site, within=4)
    assert "refused" in fail(site, within=1.5)
    gate.accept()
    assert query_soon(site) == "1"


def test_an_unresolvable_host(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(host="nowhere.invalid"), timeout=0.5)
    assert "nowhere.invalid" in fail(site, within=3)


def test_a_server_that_never_answers_until_it_does(
    private_server: PrivateServer, proxy: MakeProxy, open_site: Callable[..., Site]
) -> None:
    gate = proxy(private_server.host, private_server.port)
    gate.deaf()
    site = open_site(private_server.settings(port=gate.port, connect_timeout=2), timeout=2)
    assert "timeout" in fail(site, within=5)
    assert "timeout" in fail(site, within=1.5)
    gate.resume()
    assert query_soon(site) == "1"


def test_a_server_killed_in_a_request_is_an_error_of_that_request_alone(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings())

    def view() -> str:
        with site.db.transaction():
            site.db.execute("SELECT 1")
            private_server.kill()
            return str(site.db.fetch_value("SELECT 1"))

    with pytest.raises(psycopg.OperationalError):
        site.visit(view)
    assert borrowed_connections() == []
    private_server.start()
    assert query(site) == "1"


def test_a_server_killed_in_a_request_that_does_not_notice(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings())

    def view() -> None:
        site.db.execute("BEGIN")
        private_server.kill()

    assert site.visit(view).status_code == 200
    assert borrowed_connections() == []
    private_server.start()
    assert query(site) == "1"


def test_every_connection_of_the_pool_terminated_costs_no_request_an_error(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(), min_size=10)
    with private_server.connect() as admin:
        for _ in range(3):
            assert query(site) == "1"
            admin.execute(TERMINATE_ALL)
            assert query(site) == "1"


def test_an_outage_delays_those_who_wait_and_fails_others_with_psycopg_s_error(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(), timeout=5)
    assert query(site) == "1"
    outage_over = threading.Event()

    def request() -> tuple[float, str]:
        start = time.monotonic()
        try:
            return start, query(site)
        except psycopg.Error as error:
            return start, type(error).__name__

    with ThreadPoolExecutor(100) as threads:
        futures: list[Future[tuple[float, str]]] = []

        def send_20_each_second() -> None:
            while not outage_over.wait(0.05):
                futures.append(threads.submit(request))

        sender = threading.Thread(target=send_20_each_second)
        sender.start()
        private_server.stop()
        stopped_at = time.monotonic()
        time.sleep(3)
        private_server.start()
        time.sleep(0.5)
        outage_over.set()
        sender.join()
        answers = [future.result() for future in futures]
    assert len(answers) > 30
    waited = [answer for start, answer in answers if start > stopped_at]
    assert set(waited) == {"1"}
    assert query(site) == "1"


def test_backends_that_die_all_the_time_cost_requests_psycopg_s_error_and_no_other(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(), max_size=8)
    assert query(site) == "1"
    is_over = threading.Event()

    def kill_one_every_10_ms() -> None:
        with private_server.connect() as admin:
            while not is_over.wait(0.01):
                admin.execute(TERMINATE_ALL + " ORDER BY random() LIMIT 1")

    def request(n: int) -> str:
        try:
            return site.visit(lambda: str(site.db.fetch_value(slow_query))).text
        except psycopg.Error as error:
            return type(error).__name__

    slow_query = "SELECT 1 FROM pg_sleep(0.002)"
    killer = threading.Thread(target=kill_one_every_10_ms)
    killer.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            answers = Counter(threads.map(request, range(1000)))  # any other error comes through
    finally:
        is_over.set()
        killer.join()
    assert answers["1"] > 500
    assert len(answers) > 1  # or else nobody was hit
    assert query_soon(site) == "1"
    assert borrowed_connections() == []


def test_flows_that_are_lost_cost_the_queries_that_are_sent_over_them_alone(
    private_server: PrivateServer, proxy: MakeProxy, open_site: Callable[..., Site]
) -> None:
    gate = proxy(private_server.host, private_server.port)
    site = open_site(private_server.settings(port=gate.port), max_size=6, query_timeout=1)
    with site.app.app_context():
        for conn in [site.db.pool.borrow() for _ in range(6)]:
            site.db.pool.release(conn)
    gate.lose_flows()
    start = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        query(site)
    for _ in range(12):
        assert query(site) == "1"
    assert time.monotonic() - start < 5


def test_a_password_that_changes_is_the_server_s_error_at_once_for_all_who_wait(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings())
    assert query(site) == "1"
    private_server.set_password("app", "another")
    with private_server.connect() as admin:
        admin.execute(TERMINATE_ALL)
    with ThreadPoolExecutor(8) as threads:
        errors = list(threads.map(lambda _: fail(site, within=10), range(8)))
    assert all("password authentication failed" in error for error in errors)
    private_server.set_password("app", private_server.password)
    assert query(site) == "1"


def test_an_exhausted_pool_says_who_holds_its_connections(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings(), max_size=1, timeout=0.2, leak_threshold=60)
    with site.app.test_request_context("/hold"):
        site.db.fetch_value("SELECT 1")
        with ThreadPoolExecutor(1) as threads:
            error = threads.submit(fail, site, within=5).result()
    assert "1 of at most 1 are borrowed" in error
    assert "request GET /hold" in error


def test_reprs_tell_no_secret(
    private_server: PrivateServer, open_site: Callable[..., Site]
) -> None:
    site = open_site(private_server.settings())
    with site.app.app_context():
        with site.db.transaction() as tx:
            shown = [repr(tx)]
        with site.db.stream("SELECT 1") as stream:
            shown.append(repr(stream))
        shown += [
            repr(each)
            for each in (
                site.db, site.db.bind("default"), site.db.manager, site.db.get_config(),
                site.db.pool, site.db.get_connection("normal"), site.db.connection, tx,
                site.db.cursor(), site.db.pool.get_stats(), site.db.cache_info,
            )
        ]  # fmt: skip
    assert "<PGMonkey tests>" in shown
    assert private_server.password not in " ".join(shown)
