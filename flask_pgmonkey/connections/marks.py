"""Which statements leave state on the session that outlives their transaction.

By its text, since only that tells ``SET LOCAL`` from ``SET``, and since a pipeline has no results
yet. What a function or procedure of the user's own does inside cannot be seen here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

# As psycopg has it: longer ones are rarely sent twice.
LONGEST_REMEMBERED = 4096

# What any statement that leaves something contains, wherever it stands. For most there is no more.
_SUSPICIOUS = (
    rb"\b(?:SET|RESET|DISCARD|LISTEN|UNLISTEN|PREPARE|DEALLOCATE|LOAD|DO|HOLD|TEMP|TEMPORARY"
    rb"|set_config|pg_temp|pg_(?:try_)?advisory_(?:un)?lock\w*)\b"
)
_COMMENT = rb"--[^\n]*|/\*.*?\*/"
# Strings, quoted names and dollar quotes.
_QUOTED = (
    rb"\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
    rb"|\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$"
)
_NO_CODE = _COMMENT + rb"|" + _QUOTED
_PIECE = re.compile(
    rb"(?P<nothing>\s+|" + _COMMENT + rb")|(?P<end>;)|" + _QUOTED + rb"|\w+|.", re.DOTALL
)
_LEAVES_STATE = (
    # SET, but for what ends with the transaction.
    rb"\ASET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)"
    rb"|\A(?:RESET|DISCARD|LISTEN|UNLISTEN|DEALLOCATE|LOAD|DO)\b"
    rb"|\APREPARE\s+(?!TRANSACTION\b)"
    rb"|\ADECLARE\b.*\bWITH\s+HOLD\b"
    rb"|\ACREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:GLOBAL|LOCAL)\s+)?(?:TEMP|TEMPORARY)\b"
    rb"|\bINTO\s+(?:TEMP|TEMPORARY)\b|\bpg_temp\b"
    # But for set_config(…, true), which ends with the transaction.
    rb"|\bset_config\s*\((?![^()]*,\s*true\s*\))"
    rb"|\bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\("
)


def leaves_state(query: bytes) -> bool:
    """Whether a query, of one or more statements, marks the session that it runs on.

    :func:`leaves_state_remembered` is for those that are no longer than
    :data:`LONGEST_REMEMBERED`.
    """
    if re.search(_SUSPICIOUS, query, re.IGNORECASE) is None:
        return False
    # A quoted name is code where it calls a function: "pg_catalog"."set_config"(…).
    code = re.sub(rb'"([a-z_]+)"', rb"\1", query)
    code = re.sub(_NO_CODE, b" ", code, flags=re.DOTALL)
    return any(
        re.search(_LEAVES_STATE, statement.strip(), re.IGNORECASE | re.DOTALL)
        for statement in code.split(b";")
    )


leaves_state_remembered: Callable[[bytes], bool] = lru_cache(maxsize=1024)(leaves_state)


def prepares(query: bytes) -> bool:
    """Whether one that leaves state may have prepared a statement by its SQL command."""
    return re.search(rb"\bPREPARE\b", query, re.IGNORECASE) is not None


def without_semicolon(query: bytes) -> bytes:
    """*query* without the semicolon that ends it, and without a comment behind that."""
    if b";" not in query:
        return query
    end: int | None = None
    for piece in _PIECE.finditer(query):
        if piece["end"] is not None:
            end = piece.start() if end is None else end
        elif piece["nothing"] is None:
            end = None
    return query[:end]
