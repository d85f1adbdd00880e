"""``types``: what connections know of a database's types, sync and async, for one query."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from flask_pgmonkey import AsyncDatabase, Database, PGConnectionManager
from flask_pgmonkey.config import CONNECTION_TYPES, read_config
from flask_pgmonkey.connections import known_types
from flask_pgmonkey.connections.known_types import KnownTypes
from flask_pgmonkey.errors import ConfigError

from ..programs import run_program
from ..servers import PrivateServer

Connection = psycopg.Connection[tuple[Any, ...]]


class Mood(Enum):
    GLAD = "glad"
    SAD = "sad"


class Colour(Enum):
    red = 1
    green = 2


class Calmer(Enum):
    GLAD = "glad"
    SAD = "sad"
    CALM = "calm"


class Distance(Enum):
    near = 1
    far = 2


class Size(Enum):
    BIG = "größer"


@dataclass
class Address:
    zip: str | None
    street: str
    mood: Mood | None = None


class Pair(NamedTuple):
    number: int
    home: Address


SCHEMA = """
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE TYPE colour AS ENUM ('red', 'green');
    CREATE TYPE address AS (street text, zip text, mood mood);
    CREATE TYPE pair AS (number integer, home address);
    CREATE TYPE floatrange AS RANGE (subtype = float8);
    CREATE DOMAIN price AS numeric(10, 2);
    CREATE DOMAIN euros AS price CHECK (VALUE >= 0);
    CREATE SCHEMA far;
    CREATE TYPE far.mood AS ENUM ('near', 'far');
    CREATE TYPE far.only AS ENUM ('there');
"""

# Types made of text, where the server has no such extension.
TEXT_TYPE = """
    CREATE TYPE {name};
    CREATE FUNCTION {name}_in(cstring) RETURNS {name} LANGUAGE internal STRICT AS 'textin';
    CREATE FUNCTION {name}_out({name}) RETURNS cstring LANGUAGE internal STRICT AS 'textout';
    CREATE TYPE {name} (INPUT = {name}_in, OUTPUT = {name}_out, LIKE = text);
"""


@pytest.fixture
def connection(database: dict[str, Any]) -> Iterator[Connection]:
    with psycopg.connect(**database, autocommit=True) as connection:
        connection.execute("SET client_min_messages TO error")  # shell types
        connection.execute(SCHEMA)
        yield connection


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the catalogue has answered."""
    answers: list[bytes] = []
    learn = KnownTypes.learn

    def noting(known: KnownTypes, conn: Any, answer: bytes) -> None:
        answers.append(answer)
        learn(known, conn, answer)

    monkeypatch.setattr(KnownTypes, "learn", noting)
    return answers


@pytest.fixture
def fetch_with_all(
    database: dict[str, Any],
) -> Callable[..., list[tuple[Any, ...]]]:
    """The rows of a query over every connection type, each once."""

    def fetch(
        query: Any,
        parameters: Any = None,
        binary: bool = False,
        config: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> list[tuple[Any, ...]]:
        settings = {"connection_settings": database, **(config or {})}
        read = read_config(settings)
        manager = PGConnectionManager(**arguments)
        rows = []
        for type_ in ("normal", "pool"):
            with manager.connection_for(read, type_) as conn:
                rows += conn.execute(query, parameters, binary=binary).fetchall()
        manager.clear_cache()

        async def fetch_async() -> None:
            for type_ in ("async", "async_pool"):
                async with await manager.connection_for(read, type_) as conn:
                    cursor = await conn.execute(query, parameters, binary=binary)
                    rows.extend(await cursor.fetchall())
            await manager.clear_cache_async()

        asyncio.run(fetch_async())
        assert len(rows) == len(CONNECTION_TYPES)
        return rows

    return fetch


def test_each_kind_of_type_becomes_what_psycopg_makes_of_it(
    connection: Connection, fetch_with_all: Callable[..., Any], asked: list[bytes]
) -> None:
    connection.execute(TEXT_TYPE.format(name="hstore"))
    query = """
        SELECT 'glad'::mood, '{glad,sad}'::mood[], 'red'::colour, '{red}'::colour[],
            ROW('High St', '1', 'sad')::address, ARRAY[ROW('High St', '2', NULL)::address],
            '[1,2)'::floatrange, ARRAY['[1,2)'::floatrange], '{[1,2)}'::floatmultirange,
            ARRAY[1.5]::price[], ARRAY[2.5]::euros[], '{there}'::far.only[]
    """
    types = [
        *("mood", {"enum": "colour"}, {"composite": "address"}, "floatrange", "floatmultirange"),
        *("price", "euros", "only", "hstore"),
    ]
    for binary in (False, True):
        for row in fetch_with_all(query, binary=binary, config={"types": types}):
            mood, moods, colour, colours, address, addresses, *ranges, prices, euros, only = row
            assert (mood, moods) == ("glad", ["glad", "sad"])
            assert isinstance(colour, Enum)
            assert (colour.name, colours) == ("red", [colour])
            assert address == ("High St", "1", "sad")
            assert address.street == "High St"
            assert addresses == [("High St", "2", None)]
            floats = Range(1.0, 2.0)
            assert ranges == [floats, [floats], Multirange([floats])]
            assert (prices, euros, only) == ([Decimal("1.50")], [Decimal("2.50")], ["there"])
    assert len(asked) == 2  # of two managers, for all four types of connection
    query = """SELECT '"a"=>"1"'::hstore, ARRAY['"b"=>NULL'::hstore]"""
    for row in fetch_with_all(query, config={"types": types}):
        assert row == ({"a": "1"}, [{"b": None}])


def test_classes_of_the_app_come_and_go(
    connection: Connection, fetch_with_all: Callable[..., Any], asked: list[bytes]
) -> None:
    classes = {"mood": Mood, "colour": Colour, "address": Address, "pair": Pair, "floatrange": None}
    sad = Address("1", "High St", Mood.SAD)
    query = """
        SELECT %s::mood, %s, %s::mood[], %s, %s, %s::pair, %s = 'sad',
            '{sad}'::mood[], ARRAY[ROW(1, ROW('Low St', NULL, 'glad'))::pair],
            ARRAY['[1,2)'::floatrange]
    """
    values = Mood.GLAD, Mood.SAD, [Mood.GLAD, Mood.SAD], Colour.green, sad, Pair(1, sad), Mood.SAD
    for binary in (False, True):
        for row in fetch_with_all(query, values, binary=binary, types=classes):
            assert row == (
                *(Mood.GLAD, Mood.SAD, [Mood.GLAD, Mood.SAD], Colour.green, sad, Pair(1, sad)),
                *(True, [Mood.SAD], [Pair(1, Address(None, "Low St", Mood.GLAD))]),
                [Range(1.0, 2.0)],
            )
    far = fetch_with_all("SELECT 'near'::far.mood", types={"far.mood": Distance})
    assert {row[0].name for row in far} == {"near"}


def test_pgvector_makes_its_own_objects(
    private_server: PrivateServer, fetch_with_all: Callable[..., Any]
) -> None:
    pgvector = pytest.importorskip("pgvector")
    with private_server.connect("app") as connection:  # embedded, so it has the extension
        connection.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
        connection.execute("GRANT USAGE ON SCHEMA extensions TO PUBLIC")
    config = {"connection_settings": private_server.settings(), "types": ["vector"]}
    query = """
        SELECT '[1,2]'::extensions.vector, ARRAY['[1,2]'::extensions.vector],
            '[1,2]'::extensions.halfvec, '{1:1}/2'::extensions.sparsevec,
            %s OPERATOR(extensions.<->) '[1,3]', %t = B'10'
    """
    parameters = pgvector.Vector([1, 2]), pgvector.Bit("10")
    for binary in (False, True):
        for row in fetch_with_all(query, parameters, binary=binary, config=config):
            vector, vectors, half, sparse, distance, same = row
            assert vector == vectors[0] == pgvector.Vector([1, 2])
            assert half == pgvector.HalfVector([1, 2])
            assert sparse == pgvector.SparseVector([1, 0])
            assert (distance, same) == (1.0, True)


def test_shapely_makes_its_own_objects(
    connection: Connection, fetch_with_all: Callable[..., Any]
) -> None:
    shapely = pytest.importorskip("shapely")
    for name in ("geometry", "geography"):
        connection.execute(TEXT_TYPE.format(name=name))
    point = shapely.Point(1, 2)
    query = "SELECT %s::text::geometry, ARRAY[%s::text]::geography[], pg_typeof(%t)::text"
    shapes = point.wkb_hex, point.wkb_hex, point
    for row in fetch_with_all(query, shapes, config={"types": ["geometry"]}):
        assert row == (point, [point], "geography")


def test_one_question_serves_all_connections_of_a_process(
    connection: Connection, database: dict[str, Any], asked: list[bytes]
) -> None:
    config = read_config(
        {
            "connection_settings": database,
            "pool_settings": {"min_size": 3},
            "types": [{"enum": "mood"}],
        }
    )
    manager = PGConnectionManager()
    pool = manager.connection_for(config, "pool")
    with pool as one, pool as two, pool as three:
        for conn in (one, two, three):
            assert conn.execute("SELECT '{glad}'::mood[]").fetchone() != ("{glad}",)
    manager.connection_for(config, "pool", force_reload=True)
    with manager.connection_for(config, "normal") as conn:
        # Not even a begin: it has sent nothing since it has logged in.
        pid = conn.info.backend_pid
        shown = connection.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", (pid,))
        assert shown.fetchone() == ("",)
    manager.clear_cache()
    assert len(asked) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_knows_what_its_parent_has_asked(
    connection: Connection, database: dict[str, Any]
) -> None:
    run = run_program(
        """
        import os
        from flask_pgmonkey import Database
        from flask_pgmonkey.connections.known_types import KnownTypes
        db = Database({"connection_settings": config}, types={"mood": None})
        print(db.fetch_value("SELECT '{glad}'::mood[]"), flush=True)
        KnownTypes.learn = None
        child = os.fork()
        if child:
            os.waitpid(child, 0)  # which writes first
        print(db.fetch_value("SELECT '{sad}'::mood[]"), flush=True)
        db.close()
        """,
        database,
        checks=("-X", "dev"),
    )
    assert (run.stdout.splitlines(), run.stderr) == (["['glad']", "['sad']", "['sad']"], "")


def test_what_configure_registers_stands_above(
    connection: Connection, database: dict[str, Any]
) -> None:
    class Loud(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode().upper()

    def configure(conn: Connection) -> None:
        assert conn.adapters.types["mood"].array_oid
        conn.adapters.register_loader("mood", Loud)

    settings = {"connection_settings": database, "types": [{"enum": "mood"}]}
    with closing(Database(settings, configure=configure)) as db:
        for _ in range(2):
            assert db.fetch_value("SELECT 'glad'::mood") == "GLAD"
            with db.pool as conn:  # a borrower's own goes with it
                conn.adapters.register_loader("mood", psycopg.types.string.TextLoader)
                assert conn.execute("SELECT 'glad'::mood").fetchone() == ("glad",)
        connection.execute("CREATE TYPE other AS ENUM ('x')")
        db.refresh_types()
        assert db.fetch_value("SELECT ARRAY['glad'::mood]") == ["GLAD"]


def borrow_all(db: Database[Any]) -> None:
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(db.pool.connection())


def test_a_missing_type_is_one_warning_and_is_found_after_a_migration(
    connection: Connection,
    database: dict[str, Any],
    asked: list[bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {
        "connection_settings": database,
        "pool_settings": {"min_size": 2},
        "types": ["hstore", {"enum": "later"}, "mood"],
    }
    with closing(Database(settings)) as db:
        with db.pool, db.pool, db.pool:
            pass
        assert db.fetch_value("SELECT '{glad}'::mood[]") == ["glad"]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == (
            f"Types of {db.pool.config.target}: there is no type hstore: CREATE EXTENSION hstore"
            " makes it; there is no type later: create it, or take it out of types. Their values"
            " are text until then. They are looked for again when a connection is opened, and at"
            " once by db.refresh_types()."
        )
        assert len(asked) == 1  # not again for each connection

        connection.execute("CREATE TYPE later AS ENUM ('a')")
        db.refresh_types()
        with db.pool as one, db.pool as two, db.pool as three:  # none is as it was
            for conn in (one, two, three):
                ((value,),) = conn.execute("SELECT 'a'::later").fetchall()
                assert value.name == "a"
        assert len(asked) == 2
        assert len(caplog.records) == 1

        connection.execute(TEXT_TYPE.format(name="hstore"))
        monkeypatch.setattr(known_types, "LOOK_AGAIN_EVERY", 0.0)
        borrow_all(db)  # some of them are opened now
        assert db.fetch_value("""SELECT '"a"=>"1"'::hstore""") == {"a": "1"}
        borrow_all(db)
        number = len(asked)
        db.pool.disconnect()
        borrow_all(db)
        assert len(asked) == number  # nothing is missing any more
        assert len(caplog.records) == 1


def test_a_type_that_was_made_anew_is_known_after_a_migration(
    connection: Connection,
    database: dict[str, Any],
    asked: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anew = "DROP TYPE mood CASCADE; CREATE TYPE mood AS ENUM ('glad', 'sad', 'calm')"
    query = "SELECT 'glad'::mood"
    settings = {"connection_settings": database}
    types = {"mood": Calmer}
    manager = PGConnectionManager(types=types)
    normal = manager.get_database_connection_from_dict(settings, "normal")
    with normal as conn:
        assert conn.execute(query).fetchone() == (Calmer.GLAD,)

    async def migrate() -> None:
        db = AsyncDatabase(settings, types=types)
        assert (await db.fetch_value(query)).name == "GLAD"
        connection.execute(anew)
        assert await db.fetch_value(query) == "glad"
        await db.refresh_types()
        assert (await db.fetch_value("SELECT 'calm'::mood")).name == "CALM"
        await db.disconnect()

    asyncio.run(migrate())
    # By itself: it met a plan that the migration made stale, and opens a connection later.
    monkeypatch.setattr(known_types, "LOOK_AGAIN_EVERY", 0.0)
    with closing(Database(settings, types=types)) as db:
        assert db.fetch_value(query).name == "GLAD"
        number = len(asked)
        with db.pool, db.pool:
            pass
        assert len(asked) == number
        connection.execute("CREATE TABLE moods (mood mood)")
        for _ in range(14):  # prepared on both
            db.fetch_all("SELECT * FROM moods")
        connection.execute(f"{anew}; ALTER TABLE moods ADD COLUMN mood mood")
        db.fetch_all("SELECT * FROM moods")
        borrow_all(db)
        assert db.fetch_value(query).name == "GLAD"
        assert len(asked) > number
    # And so does the normal connection of the manager whose pool has asked.
    with normal as conn:
        assert conn.execute(query).fetchone() == ("glad",)
    manager.get_database_connection_from_dict(settings, "pool").refresh_types()
    with normal as conn:
        assert conn.execute(query).fetchone() == (Calmer.GLAD,)
    manager.clear_cache()


def test_a_type_that_does_not_fit_is_said_and_comes_as_text(
    connection: Connection, database: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Short(Enum):
        GLAD = "glad"

    class Near(NamedTuple):
        street: str
        town: str

    classes = {"mood": Short, "address": Near, "colour": Address, "price": Colour, "pair": None}
    with closing(Database({"connection_settings": database}, types=classes)) as db:
        row = db.fetch_one("SELECT 'sad'::mood, ROW('a', 'b', NULL)::address, 'red'::colour")
        assert row == ("sad", "(a,b,)", "red")
        assert db.fetch_value("SELECT ROW(1, NULL)::pair") == (1, None)
    message = caplog.records[0].getMessage()
    assert len(caplog.records) == 1
    for words in (
        "Short has no member for sad of the enum mood",
        "Near(street, town) does not fit the composite address (street, zip, mood)",
        "colour is no composite",
        "price is no enum",
    ):
        assert words in message.replace(f"{Short.__qualname__[:-5]}", "")


def test_a_server_that_does_not_tell_its_types_is_connected_to(
    connection: Connection, database: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute("REVOKE SELECT ON pg_enum FROM PUBLIC")
    settings = {**database, "options": "-c role=pg_monitor"}
    config = {"connection_settings": settings, "types": ["mood"]}
    with closing(Database(config)) as db:
        assert db.fetch_value("SELECT 1") == 1
        (record,) = caplog.records
        assert "permission denied for table pg_enum" in record.getMessage()
        connection.execute("GRANT SELECT ON pg_enum TO PUBLIC")
        db.refresh_types()
        assert db.fetch_value("SELECT '{glad}'::mood[]") == ["glad"]


def test_other_encodings_of_the_client(connection: Connection, database: dict[str, Any]) -> None:
    connection.execute("CREATE TYPE größe AS ENUM ('größer')")
    types = {"größe": Size}
    query = b"SELECT enumlabel::text::gr\\+ FROM pg_enum WHERE enumlabel LIKE '%er'"
    for encoding in ("LATIN1", "UTF8", "SQL_ASCII"):
        settings = {"connection_settings": {**database, "client_encoding": encoding}}
        with closing(Database(settings, types=types)) as db:
            name = "größe".encode("utf-8" if encoding == "SQL_ASCII" else encoding)
            assert db.fetch_value(query.replace(b"gr\\+", name)).name == "BIG"


def test_labels_that_no_enum_can_have(
    connection: Connection, database: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute("CREATE TYPE odd AS ENUM ('mro', '_x_', '')")
    settings = {"connection_settings": database, "types": [{"enum": "odd"}]}
    with closing(Database(settings)) as db:
        assert db.fetch_value("SELECT 'mro'::odd") == "mro"
    assert "odd cannot be registered: " in caplog.text


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ("vector", "types must be a list of names, such as [vector, hstore]."),
        ({"mood": None}, "types must be a list of names, such as [vector, hstore]."),
        ([5], "types[0] must be the name of a type: NAME or SCHEMA.NAME."),
        (["a", "b c"], "types[1] must be the name of a type"),
        (["a.b.c"], "types[0] must be the name of a type"),
        ([{"enums": "a"}], "types[0] must be a name, {enum: NAME} or {composite: NAME}."),
        ([{"enum": "a", "composite": "b"}], "types[0] must be a name, {enum: NAME} or"),
        ([{}], "types[0] must be a name, {enum: NAME} or"),
        ([{"enum": ["a"]}], "types[0] must be the name of a type"),
        (["a", {"enum": "a"}], "types names a twice."),
        (["pgvector"], "types[0]: pgvector is an extension; did you mean its type vector?"),
        (["x"] * 1001, "types must not have more than 1000 names."),
    ],
)
def test_a_wrong_list_of_types_is_a_config_error(types: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"types": types})
    assert words in str(caught.value)


def test_a_missing_package_is_an_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, package in [("vector", "pgvector"), ("geography", "shapely")]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError) as caught:
            read_config({"types": [name]})
        assert str(caught.value) == (
            f"the mapping: types[0]: the type {name} needs the package {package}:"
            f' pip install "flask-pgmonkey[{package}]".'
        )
        with pytest.raises(ConfigError, match="pip install"):
            Database({}, types={name: None})


def test_what_is_no_class_is_refused() -> None:
    with pytest.raises(TypeError, match=r"types\['mood'\] must be an Enum, a dataclass"):
        Database({}, types={"mood": "Mood"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"types\['a b'\] must be the name of a type"):
        Database({}, types={"a b": Mood})


def test_without_types_nothing_of_them_is_loaded(database: dict[str, Any]) -> None:
    run = run_program(
        """
        from flask_pgmonkey import Database
        db = Database({"connection_settings": config})
        print(db.fetch_value("SELECT 1"), [name for name in sys.modules if "known_types" in name])
        db.close()
        """,
        database,
    )
    assert (run.stdout, run.stderr) == ("1 []\n", "")
