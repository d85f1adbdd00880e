"""``flask pgmonkey inspect``: the tables of a database, and dataclasses for its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
import psycopg

from ..codegen.dataclass import class_name_for, generate_dataclass
from ..csv_transfer.tables import TableName
from ..inspection import (
    Relation,
    ResultColumn,
    columns_of_query,
    columns_of_relation,
    find_relation,
    reading,
    relations,
)
from .targets import Target, database_options
from .terminal import print_table, say, say_sentence


def parse_class_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and class_name_for(value) != value:
        raise click.BadParameter("write it as Python does, such as OrderItem.")
    return value


@click.command("inspect")
@click.argument("table", required=False)
@database_options
@click.option("--query", metavar="SQL", help="The columns that this query would give.")
@click.option("--dataclass", is_flag=True, help="Print a dataclass for the rows, for into=.")
@click.option(
    "--class",
    "class_name",
    metavar="NAME",
    callback=parse_class_name,
    help="The dataclass's name; else that of the table, or Row.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    target: Target,
    table: str | None,
    query: str | None,
    dataclass: bool,
    class_name: str | None,
    as_json: bool,
) -> None:
    """Show the tables and views of a database, or the columns, keys and indexes of one.

    TABLE may be schema.table. A query is described by the server, and not run.

    \b
      flask pgmonkey inspect
      flask pgmonkey inspect sales.orders --json
      flask pgmonkey inspect orders --dataclass > rows.py
      flask pgmonkey inspect --query "SELECT id, total FROM orders WHERE id = %s" --dataclass
    """
    if table is not None and query is not None:
        raise click.UsageError("Give either TABLE or --query SQL.")
    if dataclass and table is None and query is None:
        raise click.UsageError("--dataclass goes with TABLE or --query SQL.")
    if dataclass and as_json:
        raise click.UsageError("Give either --dataclass or --json.")
    if class_name is not None and not dataclass:
        raise click.UsageError("--class goes with --dataclass.")
    with target.connect() as connection, reading(connection):
        if query is not None:
            columns = columns_of_query(connection, query)
            if dataclass:
                print_dataclass(connection, class_name or "Row", "A row of a query.", columns)
            else:
                print_columns(columns, as_json)
        elif table is None:
            print_relations(relations(connection), as_json)
        else:
            name = TableName.parse(table)
            oid = find_relation(connection, name.schema, name.table)
            (relation,) = relations(connection, oid)
            if dataclass:
                class_name = class_name or class_name_for(relation.name)
                source = f"A row of {relation.table}."
                columns = columns_of_relation(connection, oid)
                print_dataclass(connection, class_name, source, columns)
            else:
                print_relation(relation, as_json)


def print_dataclass(
    connection: psycopg.Connection[Any],
    class_name: str,
    source: str,
    columns: Sequence[ResultColumn],
) -> None:
    for line in generate_dataclass(class_name, source, columns, connection.adapters).splitlines():
        say(line)


def print_columns(columns: Sequence[ResultColumn], as_json: bool) -> None:
    if as_json:
        rows = [{"name": c.name, "type": c.type, "nullable": c.nullable} for c in columns]
        click.echo(json.dumps(rows, indent=2))
        return
    print_table(["Column", "Type", "Null"], [(c.name, c.type, yes(c.nullable)) for c in columns])


def print_relations(found: Sequence[Relation], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(relation) for relation in found], indent=2))
        return
    print_table(
        ["Table", "Kind", "Columns", "Rows", "Size", "Indexes"],
        [
            (
                relation.table,
                relation.kind,
                str(len(relation.columns)),
                estimate(relation.rows),
                size(relation.bytes),
                size(relation.index_bytes),
            )
            for relation in found
        ],
    )


def print_relation(relation: Relation, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(relation), indent=2))
        return
    facts = [relation.kind]
    if relation.rows is not None:
        facts.append(f"{estimate(relation.rows)} rows")
    if relation.bytes:
        facts.append(f"{size(relation.bytes)}, {size(relation.index_bytes)} of it indexes")
    say_sentence(f"{relation.table}: {', '.join(facts)}")
    if relation.comment:
        say_sentence(relation.comment)
    say()
    headers = ["Column", "Type", "Null", "Default", "Comment"]
    rows = [
        (c.name, c.type, yes(c.nullable), c.default or "", c.comment or "")
        for c in relation.columns
    ]
    is_commented = any(column.comment for column in relation.columns)
    print_table(headers[: 4 + is_commented], [row[: 4 + is_commented] for row in rows])
    if relation.keys:
        say()
        print_table(["Key", "Definition"], [(key.name, key.definition) for key in relation.keys])
    if relation.indexes:
        say()
        print_table(
            ["Index", "Size", "Definition"],
            [
                (
                    each.name,
                    size(each.bytes),
                    each.definition + ("" if each.valid else " (INVALID)"),
                )
                for each in relation.indexes
            ],
        )
    if relation.partitions:
        say()
        print_table(["Partition"], [(partition,) for partition in relation.partitions])


def yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def estimate(rows: int | None) -> str:
    return "" if rows is None else f"~{rows:,}"


def size(number: int) -> str:
    """Bytes in the largest unit of which there is at least one, as PostgreSQL counts them."""
    units = ["B", "kB", "MB", "GB"]
    value = float(number)
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return (
        f"{value:,.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"
    )
