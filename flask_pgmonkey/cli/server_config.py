"""``flask pgmonkey server-config``: what the app asks of its server, and whether it has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..server_audit import (
    AuditRow,
    Client,
    audit_hba,
    audit_hba_without_tls,
    audit_settings,
    group_by_server,
    is_socket,
    recommend_hba_rules,
    recommend_settings,
)
from .targets import Target, find_options, find_targets
from .terminal import print_table, say


@click.command("server-config")
@find_options
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that run the app, each with its own pools.",
)
@click.option(
    "--audit",
    "with_audit",
    is_flag=True,
    help="Compare with the live server, reading only. Exit code 1 if anything is worse.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def server_config(
    workers: int, with_audit: bool, as_json: bool, bind: str | None, **options: Any
) -> None:
    """Recommend lines for postgresql.conf and pg_hba.conf.

    The pools of all databases that live on one server are counted together; --bind leaves out the
    servers of the others.

    \b
      flask --app shop pgmonkey server-config --workers 4
      flask --app shop pgmonkey server-config --workers 4 --audit
      flask pgmonkey server-config --config database.yaml --json
    """
    wanted = {target.name for target in find_targets(bind=bind, **options)}
    targets = {target.name: target for target in find_targets(bind=None, **options)}
    servers = [
        clients
        for clients in group_by_server({name: target.config for name, target in targets.items()})
        if wanted.intersection(clients)
    ]
    audits = [audit_server(clients, targets, workers) if with_audit else [] for clients in servers]
    if as_json:
        reports = map(as_mapping, servers, audits, [workers] * len(servers))
        click.echo(json.dumps(list(reports), indent=2))
    else:
        for clients, rows in zip(servers, audits, strict=True):
            print_report(clients, rows, workers)
    if any(row.verdict in ("LOW", "MISMATCH") for rows in audits for row in rows):
        click.get_current_context().exit(1)


def audit_server(
    clients: Mapping[str, Client], targets: Mapping[str, Target], workers: int
) -> list[AuditRow]:
    """The settings once, and for each of *clients* the rule that lets it in."""
    rows: list[AuditRow] = []
    for name, client in clients.items():
        with targets[name].connect() as connection:
            rows = rows or audit_settings(connection, list(clients.values()), workers)
            rows.append(audit_hba(connection, client))
            without_tls = audit_hba_without_tls(connection, client)
            rows += [without_tls] if without_tls is not None else []
    return rows


def print_report(clients: Mapping[str, Client], rows: Sequence[AuditRow], workers: int) -> None:
    say(f"# Server of {', '.join(clients)}: {server_name(clients)}")
    if rows:
        print_table([field.capitalize() for field in AuditRow._fields], rows)
        return
    say()
    say("# postgresql.conf")
    for line in recommend_settings(clients.values(), workers):
        say(line)
    say()
    say("# pg_hba.conf: TYPE DATABASE USER ADDRESS METHOD")
    for client in clients.values():
        for rule in recommend_hba_rules(client):
            say(rule)
    say()


def as_mapping(
    clients: Mapping[str, Client], rows: Sequence[AuditRow], workers: int
) -> dict[str, Any]:
    return {
        "server": server_name(clients),
        "databases": list(clients),
        "postgresql.conf": [
            line._asdict() for line in recommend_settings(clients.values(), workers)
        ],
        "pg_hba.conf": [
            rule._asdict() for client in clients.values() for rule in recommend_hba_rules(client)
        ],
        "audit": [row._asdict() for row in rows],
    }


def server_name(clients: Mapping[str, Client]) -> str:
    client = next(iter(clients.values()))
    hosts = [(f"[{host}]" if is_ipv6(host) else host, port) for host, port in client.servers]
    return ", ".join(f"{host or 'local socket'}:{port}" for host, port in hosts)


def is_ipv6(host: str) -> bool:
    return ":" in host and not is_socket(host)
