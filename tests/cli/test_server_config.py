"""``flask pgmonkey server-config``; the judgement itself is held by tests/test_server_audit.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..servers import PrivateServer
from .conftest import Invoke, Run


@pytest.fixture
def config(private_server: PrivateServer, tmp_path: Path) -> Path:
    path = tmp_path / "db.yaml"
    path.write_text(yaml.safe_dump({"connection_settings": private_server.settings()}))
    path.chmod(0o600)
    return path


def test_lines_can_be_pasted_into_the_servers_files(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "db.yaml"
    config.write_text(
        "connection_settings: {host: localhost, user: app, dbname: shop, sslmode: require}"
    )

    shown = run("server-config", "--config", config, "--workers", 4)

    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = [line.partition("  #")[0] for line in shown.stdout.splitlines()]
    assert [line for line in lines if line and not line.startswith("#")] == [
        "max_connections = 83",
        "idle_in_transaction_session_timeout = '60s'",
        "idle_session_timeout = '900s'",
        "password_encryption = 'scram-sha-256'",
        "ssl = on",
        "ssl_min_protocol_version = 'TLSv1.2'",
        "hostssl shop app 127.0.0.1/32 scram-sha-256",
        "hostssl shop app ::1/128 scram-sha-256",
    ]


def test_recommending_connects_to_nothing(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "db.yaml"
    config.write_text("connection_settings: {hostaddr: 127.0.0.1, port: 1}")

    assert run("server-config", "--config", config).exit_code == 0


def test_a_bind_counts_all_that_share_its_server_and_leaves_out_others(
    make_app: Any, invoke: Invoke
) -> None:
    def settings(host: str, dbname: str) -> dict[str, Any]:
        return {"connection_settings": {"hostaddr": host, "dbname": dbname}}

    app = make_app(
        CONFIG=settings("127.0.0.1", "shop"),
        BINDS={
            "reports": settings("127.0.0.1", "reports"),
            "far": settings("127.0.0.2", "far"),
            "six": settings("::1", "six"),
        },
    )

    (only,) = json.loads(invoke(app, "server-config", "--bind", "reports", "--json").stdout)
    everything = json.loads(invoke(app, "server-config", "--json").stdout)

    assert only["databases"] == ["default", "reports"]
    assert only["postgresql.conf"][0]["value"] == "43"
    assert {line["database"] for line in only["pg_hba.conf"]} == {"shop", "reports"}
    servers = [server["server"] for server in everything]
    assert servers == ["127.0.0.1:5432", "127.0.0.2:5432", "[::1]:5432"]


def test_the_audit_shows_every_verdict_and_ends_with_1_if_anything_is_worse(
    run: Run, config: Path
) -> None:
    shown = run("server-config", "--config", config, "--audit", "--workers", 9)

    assert (shown.exit_code, shown.stderr) == (1, "")
    verdicts = {line.split()[0]: line.split()[-1] for line in shown.stdout.splitlines()[1:]}
    assert verdicts == {
        "Setting": "Verdict",
        "max_connections": "LOW",
        "idle_in_transaction_session_timeout": "MISMATCH",
        "idle_session_timeout": "MISMATCH",
        "password_encryption": "OK",
        "pg_hba.conf": "UNKNOWN",
    }


def test_the_audit_of_a_server_as_recommended_ends_with_0(
    run: Run, config: Path, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app SET idle_in_transaction_session_timeout = '60s'")
        admin.execute("ALTER ROLE app SET idle_session_timeout = '1h'")
    try:
        shown = run("server-config", "--config", config, "--audit", "--json")
    finally:
        with private_server.connect() as admin:
            admin.execute("ALTER ROLE app RESET ALL")

    (server,) = json.loads(shown.stdout)
    assert shown.exit_code == 0
    assert server["audit"][1] == {
        "setting": "idle_in_transaction_session_timeout",
        "recommended": "60s",
        "current": "1min",
        "source": "user",
        "verdict": "OK",
    }
    assert private_server.password not in shown.stdout
