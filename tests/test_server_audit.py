"""Recommendations for a server, and how a live one compares with them."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from flask_pgmonkey.config import read_config
from flask_pgmonkey.server_audit import (
    AuditRow,
    Client,
    audit_hba,
    audit_hba_without_tls,
    audit_settings,
    client_of,
    group_by_server,
    recommend_hba_rules,
    recommend_settings,
)

from .servers import PrivateServer


def client(pools: dict[str, Any] | None = None, **settings: Any) -> Client:
    return client_of(read_config({"connection_settings": settings, **(pools or {})}))


def recommended(*clients: Client, workers: int = 1) -> dict[str, str]:
    return {line.setting: line.value for line in recommend_settings(clients, workers)}


def hba_fields(of: Client) -> list[str]:
    return [rule.fields for rule in recommend_hba_rules(of)]


def test_max_connections_counts_every_pool_of_every_worker_and_the_reserve() -> None:
    shop = client({"pool_settings": {"max_size": 7}, "async_pool_settings": {"max_size": 2}})
    reports = client({"pool_settings": {"max_size": 20}, "async_pool_settings": {"max_size": 1}})

    assert recommended(shop)["max_connections"] == "12"
    assert recommended(shop, reports, workers=4)["max_connections"] == str(4 * (9 + 21) + 3)


def test_two_binds_with_one_content_share_their_pools() -> None:
    assert recommended(client(host="db"), client(host="db"))["max_connections"] == "23"


def test_binds_are_grouped_by_the_server_they_live_on() -> None:
    configs = {
        "default": {"host": "db", "dbname": "shop"},
        "reports": {"uri": "postgresql://db:5432/reports"},
        "archive": {"host": "db", "port": 5433},
    }
    groups = group_by_server(
        {name: read_config({"connection_settings": given}) for name, given in configs.items()}
    )

    assert [list(group) for group in groups] == [["default", "reports"], ["archive"]]


def test_idle_session_timeout_lies_above_the_longest_max_idle() -> None:
    patient = client({"async_pool_settings": {"max_idle": 1800}})

    assert recommended(patient, client())["idle_session_timeout"] == "2100s"


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_config_that_insists_on_tls_asks_the_server_for_it(mode: str) -> None:
    insisting = client(host="127.0.0.1", sslmode=mode, sslrootcert="root.crt")

    assert recommended(insisting)["ssl"] == "on"
    assert {rule.type for rule in recommend_hba_rules(insisting)} == {"hostssl"}


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_a_config_that_does_not_insist_on_tls_does_not_ask_for_it(mode: str) -> None:
    content = client(host="127.0.0.1", sslmode=mode, sslcert="client.crt")

    assert not {"ssl", "ssl_ca_file"} & recommended(content).keys()
    assert {rule.type for rule in recommend_hba_rules(content)} == {"host"}


def test_a_local_host_has_a_rule_for_ipv4_and_one_for_ipv6() -> None:
    assert hba_fields(client(host="localhost", dbname="shop", user="app")) == [
        "host shop app 127.0.0.1/32 scram-sha-256",
        "host shop app ::1/128 scram-sha-256",
    ]


def test_each_of_several_hosts_has_its_rules() -> None:
    several = client(host="127.0.0.1,/run/postgresql,no-such-host.invalid", password="x")
    rules = recommend_hba_rules(several)

    assert [rule.address for rule in rules] == ["127.0.0.1/32", "::1/128", "", "samenet"]
    assert {rule.method for rule in rules} == {"scram-sha-256"}
    assert "no-such-host.invalid cannot be resolved" in rules[-1].reason


def test_a_remote_host_sees_this_machines_own_address() -> None:
    (rule,) = recommend_hba_rules(client(hostaddr="192.0.2.77"))

    assert rule.address == "samenet" or rule.address.endswith("/32")
    assert not rule.address.startswith("192.0.2.77")


def test_a_socket_without_a_password_asks_the_system_who_the_user_is() -> None:
    local = client(host="/run/postgresql")

    assert hba_fields(local) == [f"local {getpass.getuser()} {getpass.getuser()} peer"]
    (rule,) = recommend_hba_rules(local)
    assert f"only for the operating-system user {getpass.getuser()};" in rule.reason
    assert "password_encryption" not in recommended(local)


@pytest.mark.parametrize(
    ("password", "method"),
    [("", "cert"), ("x", "scram-sha-256 clientcert=verify-full")],
)
def test_a_client_certificate_is_asked_for(password: str, method: str) -> None:
    certified = client(
        hostaddr="127.0.0.1",
        sslmode="require",
        sslcert="client.crt",
        sslkey="client.key",
        password=password,
    )

    assert {rule.method for rule in recommend_hba_rules(certified)} == {method}
    assert "ssl_ca_file" in recommended(certified)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("shop", "shop"), ("my shop", '"my shop"'), ("all", '"all"'), ('a"b', '"a""b"')],
)
def test_names_that_pg_hba_would_misread_are_quoted(name: str, quoted: str) -> None:
    (rule,) = recommend_hba_rules(client(host="/run/postgresql", dbname=name, user=name))

    assert (rule.database, rule.user) == (quoted, quoted)


@pytest.fixture
def app_client(private_server: PrivateServer) -> Client:
    """The private server's user without privileges, over TCP with a password."""
    return client(**private_server.settings())


@pytest.fixture
def superuser(private_server: PrivateServer) -> Client:
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE postgres PASSWORD 'for TCP'")
    return client(**private_server.settings(user="postgres", password="for TCP"))


def connect(to: Client) -> psycopg.Connection[Any]:
    return psycopg.connect(**to.config.connect_kwargs())


@pytest.fixture
def settings(private_server: PrivateServer) -> Iterator[Any]:
    """Sets server settings for the time of a test."""

    def put(**values: Any) -> None:
        with private_server.connect() as admin:
            for name, value in values.items():
                admin.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            admin.execute("SELECT pg_reload_conf()")
        private_server.restart()

    yield put
    with private_server.connect() as admin:
        admin.execute("ALTER SYSTEM RESET ALL")
        admin.execute("SELECT pg_reload_conf()")
    private_server.restart()


def audited(of: Client, workers: int = 1) -> dict[str, AuditRow]:
    with connect(of) as connection:
        return {row.setting: row for row in audit_settings(connection, [of], workers)}


def test_a_server_as_installed_lacks_the_timeouts(app_client: Client) -> None:
    rows = audited(app_client)

    assert rows["max_connections"][1:3] == ("23", "100")
    assert {name: row.verdict for name, row in rows.items()} == {
        "max_connections": "OK",
        "idle_in_transaction_session_timeout": "MISMATCH",
        "idle_session_timeout": "MISMATCH",
        "password_encryption": "OK",
    }


def test_the_reserve_is_the_servers_own(app_client: Client, settings: Any) -> None:
    settings(reserved_connections=4, superuser_reserved_connections=5)

    assert audited(app_client)["max_connections"].recommended == "29"


def test_too_few_connections_for_all_workers_are_low(app_client: Client) -> None:
    row = audited(app_client, workers=5)["max_connections"]

    assert (row.recommended, row.verdict) == ("103", "LOW")


def test_timeouts_that_protect_the_server_are_ok(app_client: Client, settings: Any) -> None:
    settings(idle_in_transaction_session_timeout="5min", idle_session_timeout="20min")
    rows = audited(app_client)

    assert rows["idle_in_transaction_session_timeout"].verdict == "OK"
    assert rows["idle_session_timeout"].verdict == "OK"
    assert rows["idle_session_timeout"].current == "20min"
    assert "configuration file" in rows["idle_session_timeout"].source


def test_a_server_that_closes_sessions_before_the_pool_does_is_low(
    app_client: Client, settings: Any
) -> None:
    settings(idle_session_timeout="10min")

    assert audited(app_client)["idle_session_timeout"].verdict == "LOW"


def test_md5_passwords_are_a_mismatch(app_client: Client, settings: Any) -> None:
    settings(password_encryption="md5")

    assert audited(app_client)["password_encryption"].verdict == "MISMATCH"


def test_a_server_without_tls_is_a_mismatch_for_a_config_that_insists(app_client: Client) -> None:
    insisting = client(hostaddr="127.0.0.1", sslmode="require")
    with connect(app_client) as connection:
        rows = {row.setting: row for row in audit_settings(connection, [insisting])}

    assert (rows["ssl"].current, rows["ssl"].verdict) == ("off", "MISMATCH")
    assert rows["ssl_min_protocol_version"].verdict == "OK"


def test_hidden_settings_cost_only_the_rows_that_need_them(
    private_server: PrivateServer, app_client: Client, superuser: Client
) -> None:
    with private_server.connect("app") as admin:
        admin.execute("REVOKE SELECT ON pg_settings FROM PUBLIC")
    try:
        rows = audited(app_client)
    finally:
        with private_server.connect("app") as admin:
            admin.execute("GRANT SELECT ON pg_settings TO PUBLIC")

    assert {row.verdict for row in rows.values()} == {"UNKNOWN"}
    assert "permission denied" in rows["max_connections"].source
    with connect(superuser) as connection:
        assert audit_hba(connection, superuser).verdict == "OK"


def test_hidden_rules_are_unknown(app_client: Client) -> None:
    with connect(app_client) as connection:
        row = audit_hba(connection, app_client)

    assert row.verdict == "UNKNOWN"
    assert "permission denied" in row.source


def matching_rule(server: PrivateServer, as_client: Client, *lines: str) -> AuditRow:
    """The audit's row under a pg_hba.conf whose last line lets everybody in with a password."""
    with connect(as_client) as connection:
        server.write_hba([*lines, "host all all all scram-sha-256"])
        return audit_hba(connection, as_client)


@pytest.mark.parametrize(
    "other",
    [
        "local all all trust",
        "hostssl all all all trust",
        "hostgssenc all all all trust",
        "host elsewhere all all trust",
        "host sameuser all all trust",
        "host samerole all all trust",
        "host replication all all trust",
        "host /^b all all trust",
        "host all app all trust",
        "host all +pg_monitor all trust",
        "host all /^a all trust",
        "host all all 10.0.0.0/8 trust",
        "host all all ::1/128 trust",
    ],
)
def test_rules_for_others_are_passed_over(
    private_server: PrivateServer, superuser: Client, other: str
) -> None:
    row = matching_rule(private_server, superuser, other)

    assert (row.current, row.verdict) == ("host all all all scram-sha-256", "OK")


@pytest.mark.parametrize(
    "rule",
    [
        "host all all all trust",
        "hostnossl all all all trust",
        "hostnogssenc all all all trust",
        "host app postgres 127.0.0.1/32 trust",
        "host all all 127.0.0.0/8 trust",
        "host all all samehost trust",
        "host elsewhere,app /^post all trust",
        "host all all all md5",
        "host all all all password",
    ],
)
def test_a_rule_that_lets_the_client_in_too_easily_is_a_mismatch(
    private_server: PrivateServer, superuser: Client, rule: str
) -> None:
    row = matching_rule(private_server, superuser, rule)

    kind, database, user, _, method = rule.split()
    assert row.verdict == "MISMATCH"
    assert row.current.startswith(f"{kind} {database} {user}")
    assert row.current.endswith(method)
    assert row.source.endswith(":2")


def test_a_rule_for_a_group_is_for_its_members(private_server: PrivateServer) -> None:
    with private_server.connect() as admin:
        admin.execute("CREATE ROLE auditor LOGIN PASSWORD 'y' IN ROLE pg_monitor")
        admin.execute("GRANT SELECT ON pg_hba_file_rules TO auditor")
        admin.execute("GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO auditor")
    with private_server.connect("app") as admin:
        admin.execute("GRANT SELECT ON pg_hba_file_rules TO auditor")
        admin.execute("GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO auditor")
    auditor = client(**private_server.settings(user="auditor", password="y"))

    row = matching_rule(private_server, auditor, "host all +pg_monitor all trust")

    assert row.current.startswith("host all +pg_monitor")


@pytest.mark.parametrize(("user", "verdict"), [("me", "MISMATCH"), ("not me", "UNKNOWN")])
def test_trust_over_the_socket_is_a_mismatch_only_where_peer_would_work(
    private_server: PrivateServer, user: str, verdict: str
) -> None:
    name = getpass.getuser() if user == "me" else user
    with private_server.connect() as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
            admin.execute(f'CREATE ROLE "{name}" SUPERUSER LOGIN'.encode())
        folder, port = admin.info.host, admin.info.port
    over_socket = client(host=folder, port=port, user=name, dbname="app")

    row = matching_rule(private_server, over_socket, "local app all trust")

    assert (row.current, row.verdict) == ("local app all trust", verdict)


@pytest.mark.parametrize("address", ["samenet", "client.example.com"])
def test_a_rule_that_only_the_server_can_judge_is_unknown(
    private_server: PrivateServer, superuser: Client, address: str
) -> None:
    row = matching_rule(private_server, superuser, f"host all all {address} trust")

    assert (row.current, row.verdict) == (f"perhaps host all all {address} trust", "UNKNOWN")


def test_no_matching_rule_is_a_mismatch(private_server: PrivateServer, superuser: Client) -> None:
    with connect(superuser) as connection:
        private_server.write_hba(["host elsewhere all all trust"])
        row = audit_hba(connection, superuser)

    assert (row.current, row.verdict) == ("no rule matches", "MISMATCH")


def test_the_audit_cannot_write(superuser: Client) -> None:
    with connect(superuser) as connection:
        audit_settings(connection, [superuser])
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TABLE audited ()")


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("host all all all scram-sha-256", "MISMATCH"),
        ("hostnossl all all all trust", "MISMATCH"),
        ("hostssl all all all scram-sha-256", "OK"),
        ("hostnossl all all all reject", "OK"),
        ("host all all db.example scram-sha-256", "UNKNOWN"),
    ],
)
def test_a_rule_that_lets_in_without_tls_is_a_mismatch_where_the_config_wants_tls(
    private_server: PrivateServer, superuser: Client, line: str, verdict: str
) -> None:
    strict = client(**private_server.settings(), sslmode="verify-full")
    with connect(superuser) as connection:
        private_server.write_hba([line])
        row = audit_hba_without_tls(connection, strict)
        relaxed = audit_hba_without_tls(connection, superuser)

    assert row is not None
    assert (row.setting, row.verdict) == ("pg_hba.conf without TLS", verdict)
    assert relaxed is None
