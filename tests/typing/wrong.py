"""Lines that must be errors: both checkers complain of a comment that silences nothing."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from psycopg.rows import class_row, dict_row

from flask_pgmonkey import Database, PGConnectionManager, PGMonkey

Q = "SELECT 1"


class User:
    id: int


db = PGMonkey()
manager = PGConnectionManager()

db.get_connection("poool")  # type: ignore[call-overload]
manager.get_database_connection("db.yaml", "threads")  # type: ignore[call-overload]
db.fetch_all(Q, row_factory="dict")  # type: ignore[call-overload]
db.fetch_all(Q, row_factory=dict_row, into=User)  # type: ignore[call-overload]
db.fetch_all(Q, into=class_row(User))  # type: ignore[call-overload]
db.fetch_one(Q).id  # type: ignore[union-attr]  # noqa: B018
PGMonkey(row_factory=dict_row).fetch_exactly_one(Q).id  # type: ignore[attr-defined]  # noqa: B018
db.bind("reports").fetch_one_or_404(Q)  # type: ignore[attr-defined]
Database("db.yaml", row_factory="dict")  # type: ignore[call-overload]
db.run_transaction(lambda tx, name: tx.execute(Q))  # type: ignore[arg-type, misc]
name: str | None = db.fetch_value(Q, into=int)  # type: ignore[assignment]
with db.batch() as b:
    b.fetch_all(Q, row_factory=dict_row, into=User)  # type: ignore[call-overload]
    b.fetch_value(Q, into=int).result() + 1  # type: ignore[operator]
    list(b.fetch_all(Q))  # type: ignore[call-overload]
