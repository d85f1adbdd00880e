"""What the configs of an app ask of their server, and how a live server compares with it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import psycopg
from psycopg.rows import namedtuple_row

from .config import Config
from .config.libpq import KEYWORDS, effective_options, is_elsewhere
from .printable import printable

if sys.platform != "win32":
    import pwd

Verdict: TypeAlias = Literal["OK", "LOW", "MISMATCH", "UNKNOWN"]

DEFAULT_RESERVE = 3
"""PostgreSQL's own ``superuser_reserved_connections``."""

IDLE_MARGIN = 300
"""Seconds that ``idle_session_timeout`` stays above ``max_idle``, so that the pool closes first."""

REQUIRES_TLS = frozenset({"require", "verify-ca", "verify-full"})

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

Options: TypeAlias = Mapping[str, str]
"""What libpq connects with: keyword → value, environment and defaults included, no password."""


class Recommendation(NamedTuple):
    """One line of ``postgresql.conf``."""

    setting: str
    value: str
    reason: str

    def __str__(self) -> str:
        value = self.value if re.fullmatch(r"\d+|on|off", self.value) else f"'{self.value}'"
        return printable(f"{self.setting} = {value}  # {self.reason}")


class HbaRule(NamedTuple):
    """One line of ``pg_hba.conf``."""

    type: str
    database: str
    user: str
    address: str
    method: str
    reason: str

    @property
    def fields(self) -> str:
        return " ".join(filter(None, self[:5]))

    def __str__(self) -> str:
        reason = self.reason
        if not self.fields.isprintable():
            reason += "; rename what has characters that cannot be shown: no line can name it"
        return printable(f"{self.fields}  # {reason}")


class AuditRow(NamedTuple):
    """What a server has, beside what it should have. *source* is where it comes from."""

    setting: str
    recommended: str
    current: str
    source: str
    verdict: Verdict


@dataclass(frozen=True)
class Client:
    """A config as the server meets it."""

    config: Config
    options: Options = field(repr=False)
    """They may hold secrets other than the password."""
    has_password: bool

    @property
    def needs_tls(self) -> bool:
        return self.options.get("sslmode") in REQUIRES_TLS

    @property
    def shows_certificate(self) -> bool:
        return self.needs_tls and "sslcert" in self.options

    @property
    def servers(self) -> list[tuple[str, str]]:
        """The host or address, and port, of each server that libpq would try.

        A host that is empty or begins with ``/`` or ``@`` is a Unix socket.
        """
        hosts = (self.options.get("hostaddr") or self.options.get("host") or "").split(",")
        ports = self.options.get("port", "5432").split(",")
        if len(ports) == 1:
            ports *= len(hosts)
        return [(host, port or "5432") for host, port in zip(hosts, ports, strict=True)]

    @property
    def methods(self) -> list[str]:
        """The best authentication method for each of :attr:`servers`, with its options."""
        over_tcp = "scram-sha-256"
        if self.shows_certificate:
            over_tcp = f"{over_tcp} clientcert=verify-full" if self.has_password else "cert"
        over_socket = "scram-sha-256" if self.has_password else "peer"
        return [over_socket if is_socket(host) else over_tcp for host, _ in self.servers]

    @property
    def has_system_user(self) -> bool:
        """Whether its user is named like this process's, as ``peer`` wants it."""
        if sys.platform == "win32":
            return False
        try:
            return self.options.get("user") == pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # This process's user has no name.
            return False


def client_of(config: Config) -> Client:
    """How libpq reads *config* in this environment. Connects to nothing."""
    given = config.settings_kwargs()
    known = {name: str(value) for name, value in given.items() if name in KEYWORDS}
    has_password = bool(known.pop("password", "") or os.environ.get("PGPASSWORD") or config.login)
    options, _ = effective_options(known)  # Reading the config has heard libpq's objections.
    return Client(config, options, has_password)


def group_by_server(configs: Mapping[str, Config]) -> list[dict[str, Client]]:
    """The clients of *configs* under their names, those of one server together."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, Client]] = {}
    for name, config in configs.items():
        client = client_of(config)
        groups.setdefault(tuple(client.servers), {})[name] = client
    return list(groups.values())


def recommend_settings(
    clients: Iterable[Client], workers: int = 1, reserve: int = DEFAULT_RESERVE
) -> list[Recommendation]:
    """What *clients*, all of one server, ask of its ``postgresql.conf``.

    :param workers: the processes of the app, each of which has pools of its own.
    :param reserve: the connections that the server keeps back from ordinary roles.
    """
    clients = list(clients)
    configs = {client.config.key: client.config for client in clients}.values()
    pools = [pool for config in configs for pool in (config.pool, config.async_pool)]
    sizes = [pool.max_size for pool in pools]
    max_idle = max(pool.max_idle for pool in pools)
    lines = [
        Recommendation(
            "max_connections",
            str(workers * sum(sizes) + reserve),
            f"{workers} worker(s) x pools of {' + '.join(map(str, sizes))}, {reserve} kept back",
        ),
        Recommendation(
            "idle_in_transaction_session_timeout",
            "60s",
            "ends a forgotten transaction, which would keep its locks",
        ),
        Recommendation(
            "idle_session_timeout",
            f"{int(max_idle) + IDLE_MARGIN}s",
            f"above max_idle ({max_idle:g}s), so that the pool closes first",
        ),
    ]
    if any("scram" in method for client in clients for method in client.methods):
        lines.append(
            Recommendation(
                "password_encryption", "scram-sha-256", "md5 is broken and on its way out"
            )
        )
    if any(client.needs_tls for client in clients):
        modes = sorted({client.options["sslmode"] for client in clients if client.needs_tls})
        lines.append(
            Recommendation(
                "ssl", "on", f"sslmode {', '.join(modes)}; also set ssl_cert_file, ssl_key_file"
            )
        )
        lines.append(Recommendation("ssl_min_protocol_version", "TLSv1.2", "older ones are broken"))
    if any(client.shows_certificate for client in clients):
        lines.append(
            Recommendation(
                "ssl_ca_file", "root.crt", "the authority that signed the client certificate"
            )
        )
    return lines


def recommend_hba_rules(client: Client) -> list[HbaRule]:
    """The lines of ``pg_hba.conf`` that let *client* in from this machine, for each of its hosts.

    Looks up the hosts' names and asks the system from which address it would reach them.
    """
    user = _hba_name(client.options.get("user", ""))
    database = _hba_name(client.options.get("dbname") or client.options.get("user", ""))
    rules = []
    for (host, _), method in zip(client.servers, client.methods, strict=True):
        if is_socket(host):
            reason = "over the Unix socket"
            if method == "peer":
                reason += f", only for the operating-system user {user}; others need a password"
            rules.append(HbaRule("local", database, user, "", method, reason))
            continue
        kind = "hostssl" if client.needs_tls else "host"
        for address, reason in _addresses_towards(host):
            rules.append(HbaRule(kind, database, user, address, method, reason))
    return rules


def is_socket(host: str) -> bool:
    """Whether libpq takes *host* for the folder, or the abstract name, of a Unix socket."""
    return not host or host[0] in "/@"


def _addresses_towards(host: str) -> list[tuple[str, str]]:
    """This machine's addresses as *host* sees them, each with a remark, in CIDR notation."""
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError as error:
        return [("samenet", f"{host} cannot be resolved here ({error}): put the app's address")]
    if all(_address(destination).is_loopback for *_, destination in found):
        return [("127.0.0.1/32", f"IPv4 to {host}"), ("::1/128", f"IPv6 to {host}")]
    own = dict.fromkeys(
        address for family, *_, to in found if (address := _own_address(family, to)) is not None
    )
    if not own:
        return [("samenet", f"no route from here to {host}: put the app's address")]
    return [
        (str(ipaddress.ip_network(address)), f"IPv{address.version} to {host}") for address in own
    ]


def _own_address(family: int, destination: tuple[Any, ...]) -> Address | None:
    # Connecting a datagram socket sends nothing; it only makes the system choose a route.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(destination)
        except OSError:
            return None  # No route in this address family.
        return _address(probe.getsockname())


def _address(socket_address: tuple[Any, ...]) -> Address:
    return ipaddress.ip_address(socket_address[0].partition("%")[0])


def _hba_name(name: str) -> str:
    keywords = ("all", "sameuser", "samerole", "samegroup", "replication")
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in keywords:
        return name
    if name.startswith("/"):  # A regular expression since PostgreSQL 16, in quotes too.
        name = "/^" + re.sub(r"(\W)", r"\\\1", name) + "$"
    return '"' + name.replace('"', '""') + '"'


def audit_settings(
    connection: psycopg.Connection[Any], clients: Sequence[Client], workers: int = 1
) -> list[AuditRow]:
    """Compare the settings of the server behind *connection* with what *clients* ask of it.

    Changes nothing. The reserve counted in is the server's own. *connection* becomes read-only.
    """
    names = [line.setting for line in recommend_settings(clients)]
    try:
        found = _query(connection, _SETTINGS, [[*names, *_RESERVES]])
    except psycopg.errors.InsufficientPrivilege as error:
        return [
            AuditRow(line.setting, line.value, "", str(error.diag.message_primary), "UNKNOWN")
            for line in recommend_settings(clients, workers)
        ]
    current = {row.name: row for row in found}
    reserve = sum(int(current[name].setting) for name in _RESERVES if name in current)
    return [
        _compare(line, current.get(line.setting), clients)
        for line in recommend_settings(clients, workers, reserve)
    ]


_RESERVES = ("superuser_reserved_connections", "reserved_connections")
_SETTINGS = """
SELECT name, setting, current_setting(name) AS shown,
       concat_ws(' ', source, sourcefile || ':' || sourceline) AS origin
FROM pg_catalog.pg_settings WHERE name = ANY (%s)
"""


def _compare(line: Recommendation, current: Any, clients: Sequence[Client]) -> AuditRow:
    if current is None:
        return AuditRow(line.setting, line.value, "", "not shown by this server", "UNKNOWN")
    verdict = _judge(line, current.setting, clients)
    return AuditRow(line.setting, line.value, current.shown, current.origin, verdict)


def _judge(line: Recommendation, current: str, clients: Sequence[Client]) -> Verdict:
    """The verdict on *current*, which is in the server's base unit (ms for the timeouts)."""
    match line.setting:
        case "max_connections":
            return "OK" if int(current) >= int(line.value) else "LOW"
        case "idle_in_transaction_session_timeout":
            return "OK" if int(current) > 0 else "MISMATCH"
        case "idle_session_timeout":
            if int(current) == 0:
                return "MISMATCH"
            max_idle = max(
                max(client.config.pool.max_idle, client.config.async_pool.max_idle)
                for client in clients
            )
            return "OK" if int(current) > 1000 * max_idle else "LOW"
        case "ssl_min_protocol_version":
            return "OK" if current in ("TLSv1.2", "TLSv1.3") else "LOW"
        case "ssl_ca_file":
            return "OK" if current else "MISMATCH"
        case _:
            return "OK" if current == line.value else "MISMATCH"


def audit_hba(connection: psycopg.Connection[Any], client: Client) -> AuditRow:
    """Which rule of ``pg_hba.conf`` the server would apply to *client* as it is connected.

    Changes nothing. *connection* becomes read-only.
    """
    lines = dict.fromkeys(rule.fields for rule in recommend_hba_rules(client))
    recommended = "; ".join(lines)
    try:
        rules = _query(connection, _HBA_RULES)
        link = _query(connection, _LINK)[0]
    except psycopg.errors.InsufficientPrivilege as error:
        return AuditRow("pg_hba.conf", recommended, "", str(error.diag.message_primary), "UNKNOWN")
    for rule in rules:
        match = _rule_matches(rule, link)
        if match is None:
            return AuditRow(
                "pg_hba.conf", recommended, f"perhaps {rule.fields}", rule.place, "UNKNOWN"
            )
        if match:
            verdict = _judge_rule(rule, client)
            return AuditRow("pg_hba.conf", recommended, rule.fields, rule.place, verdict)
    return AuditRow("pg_hba.conf", recommended, "no rule matches", "", "MISMATCH")


def audit_hba_without_tls(connection: psycopg.Connection[Any], client: Client) -> AuditRow | None:
    """Which rule would let *client* in without encryption, and so whoever has heard its password.

    None where that is as it should be: over a socket, and from this machine where the config does
    not insist on TLS. Changes nothing. *connection* becomes read-only.
    """
    is_far = any(is_elsewhere(host) for host, _ in client.servers)
    if not (client.needs_tls or is_far):
        return None
    setting, recommended = "pg_hba.conf without TLS", "no rule"
    try:
        rules = _query(connection, _HBA_RULES)
        link = _query(connection, _LINK)[0]
    except psycopg.errors.InsufficientPrivilege as error:
        return AuditRow(setting, recommended, "", str(error.diag.message_primary), "UNKNOWN")
    if link.client is None:
        return None
    in_clear = link._replace(tls=False, gss=False)
    for rule in rules:
        match = _rule_matches(rule, in_clear)
        if match is None:
            return AuditRow(setting, recommended, f"perhaps {rule.fields}", rule.place, "UNKNOWN")
        if match:
            verdict: Verdict = "OK" if rule.auth_method == "reject" else "MISMATCH"
            return AuditRow(setting, recommended, rule.fields, rule.place, verdict)
    return AuditRow(setting, recommended, "no rule matches", "", "OK")


# The view has the rules in the order in which the server tries them.
# Superusers count as members of no group here, as in the server's own check.
_HBA_RULES = r"""
WITH RECURSIVE groups (oid) AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user
    UNION
    SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN groups ON m.member = groups.oid
), names (name) AS (
    SELECT rolname FROM pg_catalog.pg_roles JOIN groups USING (oid)
)
SELECT coalesce(to_jsonb(rule) ->> 'file_name', 'line') || ':' || line_number AS place,
       concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','),
           address, netmask, auth_method, array_to_string(options, ' ')) AS fields,
       type, address, netmask, auth_method
FROM pg_catalog.pg_hba_file_rules AS rule
WHERE error IS NULL
  AND EXISTS (
    SELECT FROM unnest(database) AS d
    WHERE d IN ('all', current_database())
       OR (d = 'sameuser' AND session_user = current_database())
       OR (d IN ('samerole', 'samegroup') AND current_database() IN (SELECT name FROM names))
       OR (d LIKE '/%%' AND current_database() ~ substr(d, 2)))
  AND EXISTS (
    SELECT FROM unnest(user_name) AS u
    WHERE u IN ('all', session_user)
       OR (u LIKE '+%%' AND substr(u, 2) IN (SELECT name FROM names))
       OR (u LIKE '/%%' AND session_user ~ substr(u, 2)))
"""

_LINK = """
SELECT host(inet_client_addr()) AS client, host(inet_server_addr()) AS server,
       coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()), false)
           AS tls,
       coalesce((SELECT encrypted FROM pg_catalog.pg_stat_gssapi WHERE pid = pg_backend_pid()),
           false) AS gss
"""


def _rule_matches(rule: Any, link: Any) -> bool | None:
    """Whether *rule* is for a connection like *link*; None if only the server could tell."""
    if (rule.type == "local") != (link.client is None):
        return False
    if link.client is None:
        return True
    wants = {
        "hostssl": link.tls,
        "hostnossl": not link.tls,
        "hostgssenc": link.gss,
        "hostnogssenc": not link.gss,
    }
    if not wants.get(rule.type, True):
        return False
    if rule.address == "all":
        return True
    if rule.address == "samehost":
        return True if link.client == link.server else None
    if rule.netmask is None:  # A host name, or samenet.
        return None
    client, address, mask = map(ipaddress.ip_address, (link.client, rule.address, rule.netmask))
    return client.version == address.version and int(client) & int(mask) == int(address) & int(mask)


def _judge_rule(rule: Any, client: Client) -> Verdict:
    if rule.type == "local" and rule.auth_method == "trust" and "peer" in client.methods:
        # Peer would lock out who has another name than the system knows.
        return "MISMATCH" if client.has_system_user else "UNKNOWN"
    if rule.auth_method in ("trust", "md5", "password", "ident", "reject"):
        return "MISMATCH"
    return "MISMATCH" if client.needs_tls and rule.type == "host" else "OK"


def _query(
    connection: psycopg.Connection[Any], query: str, parameters: Sequence[Any] = ()
) -> list[Any]:
    connection.read_only = True
    with connection.transaction(), connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query.encode(), parameters).fetchall()
