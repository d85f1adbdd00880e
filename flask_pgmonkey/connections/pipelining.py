"""Several statements in one round trip, through libpq's pipeline mode.

All are sent, then all answers are read: psycopg's own pipeline speaks with the server for each.
Rows are made later, since what makes them may fail, and the server has nothing to do with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg import errors
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.generators import fetch_many, send
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from ..mistakes import explain_parameters
from ..signals import query_executed, transaction_ended
from .copying import COPIES
from .cursor import is_stale_plan
from .marks import leaves_state
from .query_notes import note_query
from .watching import Watch, note_own_transaction, text_of

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult

    from ..signals import CallSite
    from .local_settings import LocalSettings
    from .server_connection import ServerConnection
    from .server_connection_async import AsyncServerConnection

_MOST_PARAMETERS = 65535  # the protocol counts them in two bytes
_REFUSALS = (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED)
_COMMIT = b"COMMIT"
_SETTINGS = b"set_config"
_UNSEEN: AbstractContextManager[None] = nullcontext()


class _Unconnected:
    """psycopg's AdaptContext of no connection: its encoding is UTF-8."""

    connection: None = None

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters: AdaptersMap = adapters


class Statement:
    """A query whose parameters are adapted already; and once it has run, its result.

    :param conn: the connection that it will run on, or one of the same pool.
    :param row_factory: how to make rows; the connection's own without it.
    :param site: where the app's code gave the query, if that is not where it runs.
    :param is_told: whether it is the app's own, which events and errors name.
    :raises psycopg.Error: for parameters that cannot be adapted.
    """

    __slots__ = ("_adapted", "_cursor", "_results", "_row_factory", "is_told", "params", "query",
                 "site")  # fmt: skip

    def __init__(
        self,
        conn: ServerConnection | AsyncServerConnection,
        query: Query,
        params: Params | None = None,
        row_factory: Any = None,
        site: CallSite | None = None,
        is_told: bool = True,
    ) -> None:
        self.query: Query = query
        self.params: Params | None = params
        self.site: CallSite | None = site
        self.is_told: bool = is_told
        self._row_factory = row_factory
        self._results: list[PGresult] | None = None
        self._cursor = self._make_cursor(conn)
        try:
            self._adapted = self._cursor._convert_query(query, params)
            if len(self._adapted.params or ()) > _MOST_PARAMETERS:
                raise psycopg.ProgrammingError(
                    f"the query has {len(self._adapted.params)} parameters, and the server takes"
                    f" {_MOST_PARAMETERS} at most: give a list as one parameter, with = ANY(%s)"
                )
        except psycopg.Error as error:
            note_query(error, query)
            raise
        except TypeError:
            explain_parameters(params)
            raise

    @property
    def text(self) -> bytes:
        """Its SQL text, as it is sent."""
        text: bytes = self._adapted.query
        return text

    def go_to(self, conn: ServerConnection | AsyncServerConnection) -> None:
        """Be about to run on *conn*."""
        self._results = None
        if self._cursor.connection is not conn:
            self._cursor = self._make_cursor(conn)
        # Again, since it may have been given back meanwhile, and its session reset.
        if leaves_state(self.text):
            conn.record.mark(self.text)

    def send_gen(self, prepare: bool | None) -> PQGen[None]:
        """Have psycopg send it: where a pipeline is on, into its queue."""
        yield from self._cursor._maybe_prepare_gen(self._adapted, prepare=prepare)

    def take(self, results: list[PGresult]) -> None:
        """Keep what the server has answered."""
        self._results = results

    def refuse(self, result: PGresult) -> NoReturn:
        """Raise the error that *result* is."""
        self._cursor._raise_for_result(result)
        raise AssertionError  # it has raised

    def rows(self) -> int | None:
        """How many rows it gave or affected, if that is known."""
        if self._results is None:
            rows: int = self._cursor.rowcount
            return rows if rows >= 0 else None
        result = self._results[0]
        return result.ntuples if result.nfields else result.command_tuples

    def cursor(self) -> Any:
        """The cursor, sync or async, that has its result."""
        if self._results is not None:
            self._cursor._set_results(self._results)  # the row factory may raise here
            self._results = None
        return self._cursor

    def _make_cursor(self, conn: ServerConnection | AsyncServerConnection) -> Any:
        make_cursor: Any = conn.cursor_factory
        cursor = make_cursor(conn, row_factory=self._row_factory or conn.row_factory)
        # As execute() does first. A connection that has been closed cannot tell its encoding.
        cursor._tx = Transformer(_Unconnected(cursor.adapters) if conn.closed else cursor)
        return cursor


class TripWatch(Watch):
    """The block of statements that go to the server together, told as one.

    :param statements: those to be told, one at least.
    """

    __slots__ = ("_only",)

    def __init__(self, conn: Any, statements: Sequence[Statement]) -> None:
        first, *others = statements
        self._only = None if others else first
        if self._only is not None:
            super().__init__(conn, first.query, first.params)
        else:
            texts = [text_of(each.query) for each in statements]
            super().__init__(conn, ";\n".join(texts), None, "pipeline", None, len(texts))

    def _rows(self, result: PGresult | None) -> int | None:
        return self._only.rows() if self._only is not None else None


def run_together(
    conn: ServerConnection,
    statements: Sequence[Statement],
    wrapped: bool | None = None,
    settings: LocalSettings | None = None,
) -> None:
    """Run *statements* in one round trip, all of them or none.

    A stale plan is not seen where no transaction was open. Any other error costs a second round
    trip, for the ROLLBACK.

    Where its borrower has settings for each transaction, they go with the BEGIN.

    :param settings: those, if it has been asked for them already.
    :param wrapped: whether BEGIN and COMMIT go with them, on a connection that is in no
        transaction. Without it they do where there are several statements and no transaction.
    :raises psycopg.Error: that of the first that fails, with its place among several.
    """
    trip = RoundTrip(conn, statements, wrapped, settings)
    with trip.watch() if _is_heard() else _UNSEEN:
        try:
            _make(conn, trip)
        except psycopg.Error as error:
            if not trip.may_be_made_again(error):
                raise
        else:
            return
        _make(conn, trip)


async def run_together_async(
    conn: AsyncServerConnection,
    statements: Sequence[Statement],
    wrapped: bool | None = None,
    settings: LocalSettings | None = None,
) -> None:
    """:func:`run_together`, on the running loop."""
    trip = RoundTrip(conn, statements, wrapped, settings)
    with trip.watch() if _is_heard() else _UNSEEN:
        try:
            await _make_async(conn, trip)
        except psycopg.Error as error:
            if not trip.may_be_made_again(error):
                raise
        else:
            return
        await _make_async(conn, trip)


def _is_idle(conn: Any) -> bool:
    return bool(conn.pgconn.transaction_status == TransactionStatus.IDLE)


def _is_heard() -> bool:
    return bool(query_executed.receivers or transaction_ended.receivers)


def _make(conn: ServerConnection, trip: RoundTrip) -> None:
    try:
        with conn.lock, trip:
            conn.wait(trip.gen())
    except psycopg.Error as error:
        trip.name_place(error)
        raise


async def _make_async(conn: AsyncServerConnection, trip: RoundTrip) -> None:
    try:
        async with conn.lock:
            with trip:
                await conn.wait(trip.gen())
    except psycopg.Error as error:
        trip.name_place(error)
        raise


class RoundTrip:
    """What goes to the server together, and its answers; the block in which that happens, under
    the connection's lock."""

    def __init__(
        self,
        conn: ServerConnection | AsyncServerConnection,
        statements: Sequence[Statement],
        wrapped: bool | None,
        settings: LocalSettings | None,
    ) -> None:
        self._conn: Any = conn
        self._statements = statements
        self._told = [each for each in statements if each.is_told]
        self._wants_wrap = wrapped
        self._prepare: bool | None = None  # as psycopg decides
        self._was_idle = self._is_wrapped = False  # until it is known
        self._place = ""
        self._pipeline: psycopg.Pipeline | None = None
        find_settings = conn.record.find_settings
        if settings is None and find_settings is not None and _is_idle(conn):
            settings = find_settings()  # now, before the lock is held: it may query
        self._settings = settings

    def watch(self) -> AbstractContextManager[object]:
        """The block in which the statements are seen."""
        return TripWatch(self._conn, self._told) if self._told else _UNSEEN

    def gen(self) -> PQGen[None]:
        """psycopg's way to say what is to be sent and waited for; the caller holds the lock."""
        conn = self._conn
        if conn._pipeline is not None:
            raise psycopg.ProgrammingError(
                "a pipeline() is open on this connection, and a batch is one of its own: run it"
                " before or after that"
            )
        is_several = len(self._statements) > 1
        self._was_idle = _is_idle(conn)
        wanted = self._wants_wrap
        if self._settings is not None:
            wanted = self._was_idle  # else they came with the BEGIN of the open one
        self._is_wrapped = is_several and self._was_idle if wanted is None else wanted
        self._place = ""
        for statement in self._statements:
            statement.go_to(conn)
        if self._is_wrapped or is_several:
            return self._pipeline_gen()
        return self._plain_gen(self._statements[0])

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # Whatever has interrupted it: neither in the pipeline any more, nor in its transaction.
        if self._pipeline is None:
            return
        self._pipeline = self._conn._pipeline = self._conn.record.pipelined = None
        self._conn.is_on_round_trip = False
        pgconn = self._conn.pgconn
        is_open = self._is_wrapped and pgconn.transaction_status != TransactionStatus.IDLE
        if pgconn.pipeline_status or is_open:
            pgconn.finish()  # nothing else ends a pipeline with answers under way

    def may_be_made_again(self, error: psycopg.Error) -> bool:
        """Whether all can be sent again, unseen by the caller: a plan was stale, and nothing is
        done. With a context it came from within a procedure, which may have committed."""
        # One of the statements may change what another one is prepared for.
        self._prepare = False
        return (
            is_stale_plan(error)
            and self._was_idle
            and self._conn.pgconn.transaction_status == TransactionStatus.IDLE
            and not error.diag.context
        )

    def name_place(self, error: psycopg.Error) -> None:
        """Have *error* say which of the statements it is about."""
        text = str(error)
        if self._place and not text.endswith(self._place):
            error.args = (f"{text}\n{self._place}",)

    def _plain_gen(self, statement: Statement) -> PQGen[None]:
        conn = self._conn
        try:
            yield from conn._start_query()
            yield from statement.send_gen(self._prepare)
            yield from conn._prepared.maintain_gen(conn)
        except psycopg.Error as error:
            note_query(error, statement.query, statement.site)
            raise

    def _pipeline_gen(self) -> PQGen[None]:
        conn = self._conn
        pgconn = conn.pgconn
        began = perf_counter()
        has_failed = pgconn.transaction_status == TransactionStatus.INERROR
        self._pipeline = pipeline = conn._pipeline = psycopg.Pipeline(conn)
        pgconn.enter_pipeline_mode()
        conn.record.pipelined = []  # BEGIN and the like are not told by themselves
        if not has_failed:
            yield from conn._prepared.maintain_gen(conn)  # what another batch has left to do
        owners = yield from self._enqueue_gen(pipeline)
        for send_one in pipeline.command_queue:
            send_one()
        pgconn.pipeline_sync()
        conn.is_on_round_trip = True
        try:
            yield from send(pgconn)
            answers = yield from self._read_gen()
        except psycopg.Error:
            self._note_transaction(False, began)
            raise
        conn._pipeline = conn.record.pipelined = None
        if pgconn.status == ConnStatus.OK:
            pgconn.exit_pipeline_mode()
        for owner, queued, results in zip(owners, pipeline.result_queue, answers, strict=False):
            if results[0].status in _REFUSALS:
                self._place = self._place_of(owner)
                yield from self._fail_gen(owner, results[0], began)
            if isinstance(owner, Statement) and queued is not None:  # not of its PREPARE
                _, preparing = queued
                if preparing is not None:
                    key, prepare, name = preparing
                    conn._prepared.validate(key, prepare, name, results)
                owner.take(results)
        if len(answers) != len(owners):
            raise errors.InternalError(f"{len(answers)} answers to {len(owners)} statements")
        self._note_transaction(True, began)
        if None in conn._prepared._to_flush:  # one of them has changed a table
            yield from conn._prepared.maintain_gen(conn)

    def _enqueue_gen(self, pipeline: psycopg.Pipeline) -> PQGen[list[Statement | bytes]]:
        """Fill the queue of *pipeline*, and give whose answer each will be: that of a statement, of
        its PREPARE too, or of a command."""
        queue = pipeline.result_queue
        owners: list[Statement | bytes] = [b"DEALLOCATE"] * len(queue)
        if self._is_wrapped:
            begin = self._conn._get_tx_start_command()
            self._enqueue(pipeline, begin)
            owners.append(begin)
            if self._settings is not None:
                self._enqueue(pipeline, *self._settings.message(self._conn.pgconn._encoding))
                owners.append(_SETTINGS)
        for statement in self._statements:
            yield from statement.send_gen(self._prepare)
            owners += [statement] * (len(queue) - len(owners))
        if self._is_wrapped:
            self._enqueue(pipeline, _COMMIT)
            owners.append(_COMMIT)
        return owners

    @staticmethod
    def _enqueue(
        pipeline: psycopg.Pipeline, command: bytes, params: list[bytes | None] | None = None
    ) -> None:
        pipeline.command_queue.append(partial(pipeline.pgconn.send_query_params, command, params))
        pipeline.result_queue.append(None)

    def _read_gen(self) -> PQGen[list[list[PGresult]]]:
        """The answers, of each command one."""
        answers: list[list[PGresult]] = []
        try:
            while results := (yield from fetch_many(self._conn.pgconn)):
                status = results[0].status
                if status == ExecStatus.PIPELINE_SYNC:
                    break
                if status in COPIES:
                    raise psycopg.ProgrammingError(
                        "COPY cannot be in a batch, and the connection is closed, since nothing"
                        " else ends it there: use copy() of a cursor"
                    )
                answers.append(results)
        except psycopg.OperationalError:
            # Where the server has said why it ends the connection, that is the error.
            if not (answers and answers[-1][0].status in _REFUSALS):
                raise
        return answers

    def _fail_gen(
        self, owner: Statement | bytes, result: PGresult, began: float
    ) -> PQGen[NoReturn]:
        """Undo what was done, and raise the error that *result* is."""
        conn = self._conn
        # What was to be prepared after the failure is not there.
        conn._prepared.clear()
        if conn.pgconn.transaction_status != TransactionStatus.INERROR:
            self._note_transaction(False, began)
        elif self._is_wrapped:
            with suppress(psycopg.Error):  # a connection that is lost shows by itself
                yield from conn._rollback_gen()
        try:
            if isinstance(owner, Statement):
                owner.refuse(result)
            raise errors.error_from_result(result, encoding=conn.pgconn._encoding)
        except psycopg.Error as error:
            if isinstance(owner, Statement):
                note_query(error, owner.query, owner.site)
            self.name_place(error)
            raise

    def _note_transaction(self, is_committed: bool, began: float) -> None:
        if self._is_wrapped and transaction_ended.receivers:
            note_own_transaction(self._conn, is_committed, began)

    def _place_of(self, owner: Statement | bytes) -> str:
        """What an error in the answer to *owner* says of where it is."""
        told = self._told
        if owner == _SETTINGS:
            return "in what session_settings gave for the transaction"
        if len(told) > 1 and owner == _COMMIT:
            return f"at the COMMIT of the batch of {len(told)} queries"
        if len(told) > 1 and owner in told:
            return f"in query {told.index(owner) + 1} of {len(told)} of the batch"
        return ""
