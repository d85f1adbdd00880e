"""Connections over TLS, to a PostgreSQL that was built with it (the wheel's is not)."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
import yaml

from flask_pgmonkey import Database, PGConnectionManager
from flask_pgmonkey.config import read_config
from flask_pgmonkey.migrations import Migrations

from .servers import PrivateServer, make_open_folder
from .suite import Suite

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """A folder with a CA, what it signed for 127.0.0.1 and for the user app, and a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl makes the certificates")
    folder = make_open_folder()
    for name in ("ca", "stranger"):
        _openssl(folder, "req -x509 -nodes -newkey rsa:2048 -days 2", name, f"-subj /CN={name}")
    signed = "req -x509 -nodes -newkey rsa:2048 -days 2 -CA ca.crt -CAkey ca.key"
    _openssl(folder, signed, "server", "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1")
    _openssl(folder, signed, "app", "-subj /CN=app")
    yield folder
    shutil.rmtree(folder)


def _openssl(folder: Path, command: str, name: str, rest: str) -> None:
    arguments = f"openssl {command} -keyout {name}.key -out {name}.crt {rest}".split()
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls_server(certificates: Path, suite: Suite) -> Iterator[PrivateServer]:
    if not _DEBIAN:
        pytest.skip("no PostgreSQL with TLS in /usr/lib/postgresql")
    with suite.run_private_server(_DEBIAN[-1].parent) as server:
        with server.connect() as admin:
            data = Path(_show(admin, "data_directory"))
            for name in ("server.crt", "server.key", "ca.crt"):
                copy = data / name
                shutil.copy(certificates / name, copy)
                shutil.chown(copy, data.owner(), data.group())
                copy.chmod(0o600)
            admin.execute("ALTER SYSTEM SET ssl = on")
            admin.execute("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'")
        server.restart()
        yield server


def _show(admin: psycopg.Connection[Any], setting: str) -> str:
    row = admin.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def _settings(server: PrivateServer, certificates: Path, ca: str) -> dict[str, Any]:
    return server.settings(sslmode="verify-full", sslrootcert=str(certificates / f"{ca}.crt"))


def test_dead_connections_are_found_through_tls(
    tls_server: PrivateServer, certificates: Path
) -> None:
    db = Database({"connection_settings": _settings(tls_server, certificates, "ca")})
    pid = db.fetch_value("SELECT pg_backend_pid() FROM pg_stat_ssl WHERE ssl LIMIT 1")
    with tls_server.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert db.fetch_value("SELECT pg_backend_pid()") != pid
    db.close()


@pytest.mark.parametrize("connection_type", ["normal", "pool", "async", "async_pool"])
def test_a_certificate_that_nobody_knows_is_an_error_at_once(
    tls_server: PrivateServer, certificates: Path, connection_type: Any
) -> None:
    manager = PGConnectionManager()
    config = {"connection_settings": _settings(tls_server, certificates, "stranger")}
    start = monotonic()
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        _open(manager, config, connection_type)
    assert monotonic() - start < 1


def _open(manager: PGConnectionManager, config: dict[str, Any], connection_type: Any) -> None:
    async def open_async() -> None:
        await manager.get_database_connection_from_dict(config, connection_type)

    if connection_type.startswith("async"):
        asyncio.run(open_async())
    else:
        manager.get_database_connection_from_dict(config, connection_type)


def test_the_test_command_tells_protocol_and_cipher(
    tls_server: PrivateServer, certificates: Path, tmp_path: Path
) -> None:
    config = tmp_path / "database.yaml"
    settings = _settings(tls_server, certificates, "ca")
    config.write_text(yaml.safe_dump({"connection_settings": settings}))
    config.chmod(0o600)
    command = [sys.executable, "-m", "flask", "pgmonkey", "test", "--config", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    text = json.dumps(json.loads(done.stdout))
    assert "TLSv1.3" in text
    assert "AES" in text
    assert settings["password"] not in done.stdout + done.stderr


def test_a_client_certificate_logs_in(tls_server: PrivateServer, certificates: Path) -> None:
    tls_server.write_hba(["hostssl all app 127.0.0.1/32 cert"])
    settings = _settings(tls_server, certificates, "ca")
    del settings["password"]
    (certificates / "app.key").chmod(0o600)
    settings |= {
        "sslcert": str(certificates / "app.crt"),
        "sslkey": str(certificates / "app.key"),
    }
    db = Database({"connection_settings": settings})
    assert db.fetch_value("SELECT current_user") == "app"
    db.close()
    tls_server.heal()


def test_migrations_go_through_tls_with_a_certificate_and_with_a_password(
    tls_server: PrivateServer, certificates: Path, tmp_path: Path
) -> None:
    tls_server.write_hba(
        ["hostssl all app 127.0.0.1/32 cert", "hostssl all other 127.0.0.1/32 scram-sha-256"]
    )
    with tls_server.connect() as admin:
        admin.execute("CREATE ROLE other LOGIN PASSWORD 'other-pw' IN ROLE app")
    (certificates / "app.key").chmod(0o600)
    with_password = tls_server.settings(user="other", password="other-pw", sslmode="prefer")
    with_certificate = _settings(tls_server, certificates, "ca") | {
        "sslcert": str(certificates / "app.crt"),
        "sslkey": str(certificates / "app.key"),
    }
    del with_certificate["password"]
    encrypted = (
        "DO $$ BEGIN ASSERT (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()); END $$;"
    )
    for number, settings in enumerate((with_certificate, with_password), 1):
        name = f"{number}_tls.sql"
        (tmp_path / name).write_text(
            f"-- migrate:up\n{encrypted}\nGRANT ALL ON SCHEMA public TO other;\n-- migrate:down\n"
        )
        config = read_config({"connection_settings": settings})
        assert Migrations(config, tmp_path).up() == [name]
        with tls_server.connect("app") as admin:
            admin.execute("GRANT ALL ON schema_migrations TO other")
    config = read_config({"connection_settings": with_password})
    Migrations(config, tmp_path).dump(tmp_path / "schema.sql")
    assert "schema_migrations" in (tmp_path / "schema.sql").read_text()

    stranger = _settings(tls_server, certificates, "stranger")
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        Migrations(read_config({"connection_settings": stranger}), tmp_path).up()
    with tls_server.connect() as admin:
        admin.execute("REVOKE app FROM other")
    tls_server.heal()
