"""The end of a COPY that nobody ends: begun by a method that is not for it, or left early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.generators import copy_end, copy_from, fetch
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

COPIES = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT)


def read_out(pgconn: PGconn) -> PQGen[None]:
    """Read all that the server sends still, and let it wait for no data.

    :raises psycopg.Error: the server's error, if the COPY ends with one.
    """
    while (result := (yield from fetch(pgconn))) is not None:
        if result.status == ExecStatus.COPY_OUT:
            while isinstance((yield from copy_from(pgconn)), memoryview):
                pass
        elif result.status == ExecStatus.COPY_IN:
            yield from copy_end(pgconn, b"nobody sends the data of this COPY")
