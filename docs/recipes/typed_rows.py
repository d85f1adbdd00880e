"""Rows of your own classes, known to type checkers."""

from dataclasses import dataclass
from typing import NamedTuple

from psycopg.rows import dict_row

from flask_pgmonkey import Database


@dataclass
class User:
    id: int
    name: str


class Initial(NamedTuple):
    letter: str
    users: int


db = Database("database.yaml", row_factory=dict_row)
db.execute_many("INSERT INTO users (name) VALUES (%s)", [["Ada"], ["Grace"], ["Anita"]])

users = db.fetch_all("SELECT id, name FROM users ORDER BY name", into=User)  # list[User]
print("Users:", [user.name for user in users])

initials = db.fetch_all(
    'SELECT left(name, 1) AS letter, count(*) AS "users" FROM users GROUP BY 1 ORDER BY 1',
    into=Initial,
)  # list[Initial]
print("Initials:", [f"{letter} {count}" for letter, count in initials])

how_many = db.fetch_value("SELECT count(*) FROM users", into=int)  # int | None
names = db.fetch_all("SELECT name FROM users ORDER BY name", into=str)  # list[str]
print("How many:", how_many, names)

ada = db.fetch_exactly_one("SELECT name FROM users WHERE name = %s", ["Ada"])  # dict[str, Any]
print("Without into:", ada)

db.close()
