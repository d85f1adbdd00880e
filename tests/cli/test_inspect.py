"""``flask pgmonkey inspect`` against real tables, and its dataclasses under mypy and ``into=``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from flask_pgmonkey import Database
from flask_pgmonkey.cli import pgmonkey
from flask_pgmonkey.inspection import columns_of_query

Inspect = Callable[..., Result]
Connection = psycopg.Connection[tuple[Any, ...]]

SCHEMA = """
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE DOMAIN price AS numeric(10, 2) NOT NULL CHECK (VALUE >= 0);
    CREATE TABLE customers (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL,
        email text UNIQUE,
        feels mood NOT NULL DEFAULT 'glad'
    );
    COMMENT ON TABLE customers IS 'Who buys';
    CREATE SCHEMA sales;
    CREATE TABLE sales.orders (
        id bigint PRIMARY KEY,
        customer_id integer NOT NULL REFERENCES customers,
        total price,
        tags text[] NOT NULL DEFAULT '{}',
        placed timestamptz DEFAULT now()
    );
    CREATE INDEX orders_by_customer ON sales.orders (customer_id);
    CREATE VIEW buyers AS SELECT name, total FROM customers JOIN sales.orders
        ON customer_id = customers.id;
    CREATE MATERIALIZED VIEW totals AS SELECT sum(total) AS total FROM sales.orders;
    CREATE TABLE visits (day date NOT NULL, page text) PARTITION BY RANGE (day);
    CREATE TABLE visits_2026 PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE INDEX ON visits (day);
    CREATE FOREIGN DATA WRAPPER nowhere;
    CREATE SERVER far FOREIGN DATA WRAPPER nowhere;
    CREATE FOREIGN TABLE afar (id integer NOT NULL, name text) SERVER far;
    INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, 100) n;
    INSERT INTO visits SELECT '2026-05-01', 'home' FROM generate_series(1, 50);
    ANALYZE customers, visits;
"""


@pytest.fixture
def connection(database: dict[str, Any]) -> Iterator[Connection]:
    with psycopg.connect(**database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def schema(connection: Connection) -> None:
    connection.execute(SCHEMA)


@pytest.fixture
def inspect(config_file: Path, connection: Connection) -> Inspect:
    def inspect(*arguments: object) -> Result:
        words = ["inspect", "--config", str(config_file), *map(str, arguments)]
        return CliRunner().invoke(pgmonkey, words, prog_name="flask pgmonkey")

    return inspect


@pytest.fixture
def module(inspect: Inspect) -> Callable[..., dict[str, Any]]:
    """Runs what --dataclass prints; gives its names."""

    def run(*arguments: object) -> dict[str, Any]:
        result = inspect("--dataclass", *arguments)
        assert result.exit_code == 0, result.output
        return names_in(result.stdout)

    return run


def names_in(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "rows"}
    exec(compile(program, "rows.py", "exec", dont_inherit=True), names)  # noqa: S102
    return names


@pytest.mark.usefixtures("schema")
def test_the_tables_of_a_database_and_what_they_hold(inspect: Inspect) -> None:
    result = inspect()
    assert result.exit_code == 0, result.output
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == ["Table", "Kind", "Columns", "Rows", "Size", "Indexes"]
    assert {line[0]: line[1] for line in lines[1:]} == {
        "afar": "foreign table",
        "buyers": "view",
        "customers": "table",
        "totals": "materialized view",
        "visits": "partitioned table",
        "sales.orders": "table",
    }
    by_table = {line[0]: line[2:] for line in lines}
    assert by_table["customers"][:2] == ["4", "~100"]
    assert by_table["visits"][:2] == ["2", "~50"]
    assert by_table["buyers"] == ["2", "0 B", "0 B"]
    assert result.stdout == inspect().stdout
    shown = json.loads(inspect("--json").stdout)
    assert [relation["table"] for relation in shown] == list(by_table)[1:]
    assert shown[2] == json.loads(inspect("customers", "--json").stdout)


@pytest.mark.usefixtures("schema")
def test_a_table_with_its_columns_keys_and_indexes(inspect: Inspect) -> None:
    result = inspect("sales.orders")
    assert result.exit_code == 0, result.output
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "sales.orders: table, 24 kB, 16 kB of it indexes",
        "",
        "Column       Type                      Null  Default",
        "id           bigint                    no",
        "customer_id  integer                   no",
        "total        price                     no",
        "tags         text[]                    no    '{}'::text[]",
        "placed       timestamp with time zone  yes   now()",
        "",
        "Key                      Definition",
        "orders_pkey              PRIMARY KEY (id)",
        "orders_customer_id_fkey  FOREIGN KEY (customer_id) REFERENCES customers(id)",
        "",
        "Index                     Size    Definition",
        "sales.orders_by_customer  8.0 kB  CREATE INDEX orders_by_customer ON sales.orders USING"
        " btree (customer_id)",
        "sales.orders_pkey         8.0 kB  CREATE UNIQUE INDEX orders_pkey ON sales.orders USING"
        " btree (id)",
    ]
    lines = inspect("customers").stdout.splitlines()
    assert lines[0] == "customers: table, ~100 rows, 48 kB, 32 kB of it indexes"
    assert lines[1] == "Who buys"
    lines = inspect("visits").stdout.splitlines()
    assert lines[-1] == "visits_2026"
    (index,) = [line for line in lines if line.startswith("visits_day_idx")]
    assert " 16 kB " in index
    shown = json.loads(inspect("visits_2026", "--json").stdout)
    assert (shown["kind"], shown["rows"], shown["bytes"]) == ("partition", 50, 32768)
    assert shown["columns"][0] == {
        "name": "day",
        "type": "date",
        "nullable": False,
        "default": None,
        "comment": None,
    }


NEAR = {
    "custommers": "customers",
    "Customers": "customers",
    "orders": "sales.orders",
    "sale.orders": "sales.orders",
    "sales.order": "sales.orders",
    "public.total": "totals",
    "customers_pkey": "customers",
}


@pytest.mark.usefixtures("schema")
def test_an_unknown_table_is_answered_with_those_of_near_names(inspect: Inspect) -> None:
    for written, meant in NEAR.items():
        result = inspect(written)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(
            f'Error: There is no table or view "{written}"; did you mean {meant}'
        )
        assert inspect(meant).exit_code == 0


def test_an_unknown_table_that_is_near_to_none(inspect: Inspect, connection: Connection) -> None:
    result = inspect("zebras")
    assert result.stderr == 'Error: There is no table or view "zebras", nor any other.\n'
    connection.execute("CREATE TABLE orders ()")
    result = inspect("zebras")
    assert result.stderr == (
        'Error: There is no table or view "zebras"; the command lists them all.\n'
    )
    assert inspect("orders").exit_code == 0
    assert inspect("orders", "--dataclass").stderr == (
        "Error: The query gives no columns; write a SELECT, or RETURNING.\n"
    )


def test_options_that_do_not_go_together(inspect: Inspect) -> None:
    for words in (
        ["orders", "--query", "SELECT 1"],
        ["--dataclass"],
        ["orders", "--dataclass", "--json"],
        ["orders", "--class", "Order"],
        ["orders", "--dataclass", "--class", "my order"],
        ["orders", "--dataclass", "--class", "None"],
    ):
        assert inspect(*words).exit_code == 2


def test_a_lock_is_not_waited_for_long(
    inspect: Inspect, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_pgmonkey.inspection.LONGEST_WAIT", "20ms")
    connection.execute("CREATE TABLE orders (id integer)")
    with connection.transaction():
        connection.execute("LOCK orders")
        for words in (["orders"], ["orders", "--dataclass"], ["--query", "SELECT * FROM orders"]):
            result = inspect(*words)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr == (
                "Error: Something else, such as a migration, has kept a table locked for 20ms; try"
                " again when it has ended.\n"
            )
    assert inspect("orders").exit_code == 0


def test_nothing_is_run_or_changed(inspect: Inspect, connection: Connection) -> None:
    connection.execute("CREATE TABLE orders (id integer NOT NULL)")
    query = "INSERT INTO orders VALUES (1) RETURNING id"
    assert re.search(r"id +integer +no", inspect("--query", query).stdout)
    assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    assert inspect("--query", "SELECT pg_sleep(100)").exit_code == 0
    for query, complaint in [
        ("SELECT 1; SELECT 2", "several statements"),
        ("UPDATE orders SET id = 1", "gives no columns"),
        ("SELECT nothing", 'column "nothing" does not exist'),
        ("SELECT %s", ""),
        ("SELECT id FROM orders WHERE %s IS NULL", "write its type after it, as in %s::integer."),
        ("", "gives no columns"),
    ]:
        result = inspect("--query", query)
        assert complaint in result.stderr
        assert result.exit_code == int(bool(complaint)), result.output


NOT_NULL = {
    "SELECT id FROM orders": "id",
    "SELECT id, customer FROM orders WHERE note LIKE '%s'": "id customer",
    "SELECT id FROM orders WHERE id = %s AND note LIKE 'a%%' AND id %% 2 = 0": "id",
    "SELECT id FROM orders WHERE id = %(id)s OR id = -%(id)s": "id",
    "SELECT orders.id, name FROM orders JOIN customers ON customers.id = customer": "id name",
    "SELECT orders.id, name FROM orders LEFT JOIN customers ON customers.id = customer": "id",
    "SELECT orders.id, name FROM customers RIGHT JOIN orders ON customers.id = customer": "id",
    "SELECT orders.id, name FROM orders LEFT JOIN customers ON false": "id",
    "SELECT orders.id, name FROM orders LEFT JOIN customers ON customers.id = customer"
    " WHERE customers.id IS NULL": "id",
    "SELECT orders.id, name FROM orders FULL JOIN customers ON customers.id = customer": "",
    "SELECT a.id, b.customer FROM orders a LEFT JOIN orders b ON b.id = a.id + 1": "",
    "SELECT orders.id, name FROM orders LEFT JOIN (customers JOIN other USING (id))"
    " ON customers.id = customer": "id",
    "WITH c AS MATERIALIZED (SELECT * FROM customers)"
    " SELECT orders.id, c.name FROM orders LEFT JOIN c ON c.id = customer": "",
    "SELECT id, customer FROM orders GROUP BY ROLLUP (id, customer)": "",
    "SELECT (SELECT name FROM customers LIMIT 1)": "",
    "SELECT id FROM orders UNION SELECT id FROM customers": "",
    "SELECT count(*), max(id) FROM orders": "",
    "SELECT id FROM seen": "",
    "SELECT late FROM other": "",
    "INSERT INTO orders VALUES (1, 2) RETURNING id, note": "id",
    "SHOW work_mem": "",
    "EXPLAIN SELECT 1": "",
    "VALUES (1)": "",
}


def test_a_column_is_nullable_unless_the_server_knows_better(
    inspect: Inspect, connection: Connection
) -> None:
    connection.execute("""
        CREATE TABLE orders (id integer NOT NULL, customer integer NOT NULL, note text);
        CREATE TABLE customers (id integer PRIMARY KEY, name text NOT NULL);
        CREATE TABLE other (id integer NOT NULL, late integer);
        CREATE VIEW seen AS SELECT * FROM orders;
        INSERT INTO other VALUES (1, NULL);
    """)
    if connection.info.server_version >= 180000:
        connection.execute("ALTER TABLE other ADD CONSTRAINT l NOT NULL late NOT VALID")
        (column,) = columns_of_query(connection, "INSERT INTO other VALUES (2, 2) RETURNING old.id")
        assert column.nullable
    connection.execute("SET default_transaction_read_only = on")
    for query, expected in NOT_NULL.items():
        found = columns_of_query(connection, query)
        assert [column.name for column in found if not column.nullable] == expected.split(), query


VALUES = {
    "bool": "true",
    "smallint": "1",
    "bigint": "1",
    "oid": "1",
    "real": "1.5",
    "double precision": "1.5",
    "numeric(5, 2)": "1.5",
    "text": "a",
    "varchar(3)": "a",
    "char(3)": "a",
    '"char"': "a",
    "name": "a",
    "bytea": "a",
    "date": "2026-05-01",
    "time": "12:00",
    "timetz": "12:00+01",
    "timestamp": "2026-05-01 12:00",
    "timestamptz": "2026-05-01 12:00",
    "interval": "1 day",
    "uuid": "12345678-1234-1234-1234-123456789012",
    "json": "[1]",
    "jsonb": "{}",
    "inet": "192.0.2.1",
    "cidr": "192.0.2.0/24",
    "macaddr": "08:00:2b:01:02:03",
    "money": "1",
    "bit(2)": "10",
    "point": "(1,2)",
    "tsvector": "a b",
    "jsonpath": "$",
    "pg_lsn": "0/1",
    "regclass": "pg_class",
    "int4range": "[1,2)",
    "numrange": "[1,2)",
    "daterange": "[2026-05-01,)",
    "tstzrange": "empty",
    "datemultirange": "{[2026-05-01,)}",
    "mood": "glad",
    "price": "1.50",
    "pair": "(1,a)",
    "integer[]": "{1,2}",
    "numeric[][]": "{1.5}",
    "uuid[]": "{}",
    "daterange[]": '{"[2026-05-01,)"}',
    "jsonb[]": "{}",
    "mood[]": "{glad}",
    "pair[]": "{}",
    "floatrange": "[1,2)",
}


def test_annotations_are_what_psycopg_gives(
    connection: Connection, database: dict[str, Any], module: Callable[..., dict[str, Any]]
) -> None:
    connection.execute("""
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE DOMAIN price AS numeric(10, 2);
        CREATE TYPE pair AS (number integer, word text);
        CREATE TYPE floatrange AS RANGE (subtype = float8);
    """)
    columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(VALUES))
    connection.execute(f"CREATE TABLE samples ({columns})")
    values = ", ".join(f"'{value}'" for value in VALUES.values())
    connection.execute(f"INSERT INTO samples VALUES ({values}); INSERT INTO samples DEFAULT VALUES")
    for words in (["samples"], ["--query", "SELECT * FROM samples"]):
        cls = module(*words, "--class", "Samples")["Samples"]
        with closing(Database({"connection_settings": database})) as db:
            full, empty = db.fetch_all("SELECT * FROM samples ORDER BY c0", into=cls)
        for field, type_ in zip(fields(cls), VALUES, strict=True):
            assert getattr(empty, field.name) is None
            assert fits(getattr(full, field.name), field.type), (type_, field.type)
            assert fits(None, field.type), (type_, field.type)


def fits(value: object, annotation: Any) -> bool:
    if annotation is Any:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if get_origin(annotation) in (Union, types.UnionType):
        return any(fits(value, each) for each in get_args(annotation))
    if isinstance(value, list):
        element = get_args(annotation)
        return bool(element) and all(fits(each, element[0]) for each in value)
    if isinstance(value, (Range, Multirange)):
        bound = value[0].lower if isinstance(value, Multirange) else value.lower
        args = get_args(annotation)
        return isinstance(value, get_origin(annotation)) and (bound is None or fits(bound, *args))
    return type(value) is annotation


def test_every_kind_of_table_has_its_dataclass(
    schema: None, module: Callable[..., dict[str, Any]]
) -> None:
    made = {
        table: {field.name: field.type for field in fields(module(table)[class_name])}
        for table, class_name in [
            ("sales.orders", "Orders"),
            ("buyers", "Buyers"),
            ("totals", "Totals"),
            ("afar", "Afar"),
            ("visits", "Visits"),
            ("visits_2026", "Visits2026"),
        ]
    }
    days = {"day": date, "page": str | None}
    assert made == {
        "sales.orders": {
            "id": int,
            "customer_id": int,
            "total": Decimal,
            "tags": list[str],
            "placed": datetime | None,
        },
        "buyers": {"name": str | None, "total": Decimal | None},
        "totals": {"total": Decimal | None},
        "afar": {"id": int, "name": str | None},
        "visits": days,
        "visits_2026": days,
    }


NAMES = [
    ("Order No", "order_no"),
    ("order_no", "order_no"),
    ("class", "class_"),
    ("None", "none"),
    ("__secret", "secret"),
    ("2024", "column_2024"),
    ("ﬁrst", "first"),
    ("größe", "größe"),
    ("€", "column_9"),
    ('x\x1b[2J"\n', "x_2j"),
    ("date", "date"),
    ("list", "list"),
    ("int", "int"),
    ("int_", "int_"),
    ("dataclass", "dataclass"),
    ("self", "self"),
    ("match", "match"),
]


def test_names_that_are_no_names_in_python(inspect: Inspect, connection: Connection) -> None:
    types = {"date": "date NOT NULL", "list": "date[] NOT NULL"}
    columns = [
        '"{}" {}'.format(name.replace('"', '""'), types.get(name, "integer")) for name, _ in NAMES
    ]
    connection.execute(f'CREATE TABLE "Odd ""\\ int\n" ({", ".join(columns)})')
    result = inspect('Odd "\\ int\n', "--dataclass")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if not line.isprintable()] == []
    cls = names_in(result.stdout)["OddInt"]
    expected = [name for _, name in NAMES]
    expected[0] = "order_no_2"
    assert [field.name for field in fields(cls)] == expected
    assert "from builtins import int as int__, list as list_\n" in result.stdout
    assert "from datetime import date as date_\n" in result.stdout
    for line in [
        '    order_no_2: int__ | None  # "Order No" AS order_no_2',
        '    class_: int__ | None  # "class" AS class_',
        '    x_2j: int__ | None  # "x\\x1b[2J""\\n" AS x_2j',
        "    date: date_",
        "    list: list_[date_]",
    ]:
        assert line in result.stdout.splitlines()


def test_columns_without_a_name_or_with_the_same(inspect: Inspect) -> None:
    query = "SELECT 1 AS id, 2 AS id, 3, 4, 5 AS id_2"
    lines = inspect("--query", query, "--dataclass").stdout.splitlines()
    assert [line.strip() for line in lines if ":" in line][1:] == [
        "id: int | None",
        "id_3: int | None  # … AS id_3",
        "column_3: int | None  # … AS column_3",
        "column_4: int | None  # … AS column_4",
        "id_2: int | None",
    ]


USE = """
from decimal import Decimal

from rows import Orders
from flask_pgmonkey import Database


def turnover(db: Database) -> Decimal:
    orders = db.fetch_all("SELECT * FROM sales.orders", into=Orders)
    return sum((order.total for order in orders), Decimal())
"""


@pytest.mark.any_version
@pytest.mark.usefixtures("schema")
def test_mypy_takes_the_dataclass_and_what_reads_into_it(
    inspect: Inspect, connection: Connection, tmp_path: Path
) -> None:
    columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(VALUES))
    connection.execute("CREATE TYPE pair AS (number integer, word text)")
    connection.execute("CREATE TYPE floatrange AS RANGE (subtype = float8)")
    connection.execute(f"CREATE TABLE samples ({columns}, date date, list date[], int integer)")
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "rows.py").write_text(inspect("sales.orders", "--dataclass").stdout)
    (tmp_path / "samples.py").write_text(inspect("samples", "--dataclass").stdout)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout
