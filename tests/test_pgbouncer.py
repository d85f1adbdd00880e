"""PgBouncer between the app and the server, one server connection for each transaction."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import AsyncDatabase, Database, PGConnectionManager, PGMonkey
from flask_pgmonkey.config import read_config
from flask_pgmonkey.errors import MigrationError
from flask_pgmonkey.migrations import Migrations

from .ports import give_back_port, reserve_port
from .proxy import Proxy
from .servers import PrivateServer, make_open_folder
from .tenants import assert_tenants_are_apart

_PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")


class Bouncer:
    """A PgBouncer in transaction mode that can be killed and started again."""

    def __init__(self, folder: Path, server: PrivateServer) -> None:
        self.port = reserve_port()
        self._server = server
        self._ini = folder / "pgbouncer.ini"
        (folder / "users.txt").write_text(f'"{server.user}" "{server.password}"\n')
        self._ini.write_text(
            f"[databases]\napp = host=127.0.0.1 port={server.port} dbname=app\n"
            "[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {folder / 'users.txt'}\npool_mode = transaction\n"
            "default_pool_size = 2\nserver_login_retry = 1\nmax_client_conn = 3\n"
        )
        self.start()

    def settings(self) -> dict[str, Any]:
        own = self._server.settings(prepare_threshold="off")
        return {**own, "port": self.port}

    def start(self) -> None:
        assert _PROGRAM is not None
        # PgBouncer refuses to run as root.
        user, group = ("nobody", "nogroup") if os.geteuid() == 0 else (None, None)
        self._process = subprocess.Popen(
            [_PROGRAM, "--quiet", self._ini], stderr=subprocess.DEVNULL, user=user, group=group
        )
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert time.monotonic() < deadline, "PgBouncer does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


@pytest.fixture
def bouncer(private_server: PrivateServer) -> Iterator[Bouncer]:
    if _PROGRAM is None:
        pytest.skip("the program pgbouncer is not installed")
    folder = make_open_folder()
    running = Bouncer(folder, private_server)
    yield running
    running.kill()
    give_back_port(running.port)
    shutil.rmtree(folder)


def test_requests_share_the_few_server_connections(bouncer: Bouncer) -> None:
    app = Flask(__name__)
    db = PGMonkey(app, config={"connection_settings": bouncer.settings()})

    @app.get("/<int:number>")
    def double(number: int) -> str:
        with db.transaction() as tx:
            tx.execute("SELECT pg_sleep(0)")
            return str(tx.fetch_value("SELECT %s * 2", [number]))

    client = app.test_client()
    # More often than the sixth time, when psycopg would prepare the statement.
    assert [client.get(f"/{n}").text for n in range(20)] == [str(n * 2) for n in range(20)]
    with app.app_context():
        db.clear_cache()


def test_json_csv_and_uploads_go_through_it_whichever_server_connection_they_get(
    bouncer: Bouncer,
) -> None:
    app = Flask(__name__)
    settings = {"connection_settings": bouncer.settings(), "pool_settings": {"max_size": 3}}
    db = PGMonkey(app, config=settings)
    query = "SELECT %s::int AS n, '=' || %s AS text"
    with app.app_context():
        db.execute("CREATE TABLE uploads (n int)")

    @app.get("/<int:n>")
    def view(n: int) -> str:
        made = [
            db.json_response(query, [n, n]).get_data(),
            db.stream_json(query, [n, n], lines=True).get_data(),
            db.csv_response(query, [n, n], filename="n.csv", safe_formulas=True).get_data(),
        ]
        db.copy_from("uploads", io.BytesIO(b"%d\n" % n), columns=["n"], header=False)
        return b"\n".join(made).decode()

    def send(n: int) -> str:
        return app.test_client().get(f"/{n}").text

    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(send, range(150)))
    assert answers == [
        f'[{{"n":{n},"text":"={n}"}}]\n{{"n":{n},"text":"={n}"}}\n\nn,text\n{n},\'={n}\n'
        for n in range(150)
    ]
    with app.app_context():
        assert db.fetch_value("SELECT count(DISTINCT n) FROM uploads") == 150
        db.execute("DROP TABLE uploads")
        db.clear_cache()


def test_a_batch_is_one_transaction_on_one_server_connection(bouncer: Bouncer) -> None:
    with closing(
        Database({"connection_settings": bouncer.settings(), "pool_settings": {"max_size": 3}})
    ) as db:
        db.execute("CREATE TABLE IF NOT EXISTS batched (n integer PRIMARY KEY)")

        def run(number: int) -> bool:
            try:
                with db.batch() as b:
                    before = b.fetch_value("SELECT pg_backend_pid()")
                    b.execute("INSERT INTO batched VALUES (%s)", [number])
                    if number % 3 == 0:
                        b.execute("INSERT INTO batched VALUES (%s)", [number])
                    after = b.fetch_value("SELECT pg_backend_pid()")
            except psycopg.errors.UniqueViolation:
                return False
            same: bool = before.result() == after.result()
            return same

        with ThreadPoolExecutor(6) as threads:
            done = list(threads.map(run, range(60)))
        assert done == [number % 3 != 0 for number in range(60)]
        assert db.fetch_value("SELECT count(*) FROM batched") == 40
        db.execute("DROP TABLE batched")


def test_a_restarted_pgbouncer_is_found_again(bouncer: Bouncer) -> None:
    db = Database({"connection_settings": bouncer.settings()})
    assert db.fetch_value("SELECT 1") == 1
    bouncer.kill()
    bouncer.start()
    assert db.fetch_value("SELECT 2") == 2
    db.close()


def test_settings_that_it_would_lose_are_warned_of_once(
    bouncer: Bouncer, private_server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"sync_settings": {"lock_timeout": "5s"}, "async_settings": {"lock_timeout": "5s"}}
    direct = {"connection_settings": private_server.settings(), **settings}
    pooled = {"connection_settings": bouncer.settings(), **settings}
    manager = PGConnectionManager()

    async def connect() -> None:
        connection = await manager.get_database_connection_from_dict(pooled, "async")
        await connection.disconnect()

    manager.get_database_connection_from_dict(direct, "pool")
    assert caplog.messages == []
    for connection_type in ("normal", "pool"):
        manager.get_database_connection_from_dict(pooled, connection_type)
    manager.clear_cache()
    asyncio.run(connect())

    assert [message.partition(" get lost")[0][-14:] for message in caplog.messages] == [
        " sync_settings",
        "async_settings",
    ]
    assert all("ALTER ROLE … SET" in message for message in caplog.messages)
    assert all("connection_settings.options" in message for message in caplog.messages)


def test_settings_that_pgbouncer_could_not_pass_on_are_no_refused_settings(
    bouncer: Bouncer, private_server: PrivateServer
) -> None:
    db = Database(
        {
            "connection_settings": bouncer.settings(),
            "pool_settings": {"max_size": 2, "timeout": 20},
            "sync_settings": {"work_mem": "7MB"},
        }
    )

    def query(n: int) -> Any:
        try:
            return db.fetch_value("SELECT %s::int", [n])
        except Exception as error:
            return error

    assert query(0) == 0
    private_server.stop()
    with ThreadPoolExecutor(8) as threads:
        outcomes = threads.map(query, range(1, 40))
        time.sleep(2)
        private_server.start()
        failed = [one for one in outcomes if isinstance(one, Exception)]
    assert not [one for one in failed if not isinstance(one, psycopg.OperationalError)]
    assert query(40) == 40
    db.close()


def test_a_pgbouncer_that_is_full_is_waited_for(
    bouncer: Bouncer, proxy: Callable[[str, int], Proxy]
) -> None:
    settings = bouncer.settings()
    between = proxy("127.0.0.1", bouncer.port)
    pool = PGConnectionManager().get_database_connection_from_dict(
        {
            "connection_settings": {**settings, "host": between.host, "port": between.port},
            "pool_settings": {"timeout": 30},
        },
        "pool",
    )
    del settings["prepare_threshold"]
    others = [psycopg.connect(**settings) for _ in range(2)]
    with pool, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.borrow)
        deadline = time.monotonic() + 10
        while between.count < 3:  # the second was refused
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for other in others:
            other.close()
        pool.release(waiting.result(30))
    pool.disconnect()


def test_direct_settings_lead_past_it(bouncer: Bouncer, private_server: PrivateServer) -> None:
    config = {
        "connection_settings": bouncer.settings(),
        "direct_settings": {"port": private_server.port},
    }
    app = Flask(__name__)
    db = PGMonkey(app, config=config)
    with app.app_context(), db.get_connection("normal", direct=True) as conn:
        conn.execute("LISTEN orders")
        conn.commit()
        db.execute("NOTIFY orders, 'through the pooler'")
        assert [n.payload for n in conn.notifies(timeout=5, stop_after=1)] == ["through the pooler"]
        db.clear_cache()

    direct = Database(config, direct=True)
    with direct.pool as conn:
        assert conn.info.port == private_server.port
    direct.close()

    async def port_of_async() -> int:
        there = AsyncDatabase(config, direct=True)
        assert await there.fetch_value("SELECT 1") == 1
        async with await there.manager.async_pool_for(there.config) as conn:
            port = conn.info.port
        await there.disconnect()
        return port

    assert asyncio.run(port_of_async()) == private_server.port


def test_migrations_refuse_it_and_go_past_it(
    bouncer: Bouncer, private_server: PrivateServer, tmp_path: Path
) -> None:
    (tmp_path / "1_books.sql").write_text(
        "-- migrate:up\nCREATE TABLE books ();\n-- migrate:down\nDROP TABLE books;\n"
    )
    pooled = {"connection_settings": bouncer.settings()}
    with pytest.raises(MigrationError, match=r"stands a pooler.*direct_settings"):
        Migrations(read_config(pooled), tmp_path).up()
    past = read_config({**pooled, "direct_settings": {"port": private_server.port}})
    assert Migrations(past, tmp_path).up() == ["1_books.sql"]
    assert Migrations(past, tmp_path).down() == ["1_books.sql"]


def test_behind_it_no_tenant_ever_sees_a_row_of_the_other(
    bouncer: Bouncer, private_server: PrivateServer
) -> None:
    with psycopg.connect(**private_server.settings(), autocommit=True) as owner:
        # The three clients share two sessions.
        assert_tenants_are_apart(bouncer.settings(), owner)
