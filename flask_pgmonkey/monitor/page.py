"""The pages of the monitor: a blueprint, rendered with templates of its own.

No function of the app's templates runs for it, and nothing of it needs a connection of the app's
pools, so that it can be read when these are exhausted or the server is down.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib.metadata import version
from ipaddress import ip_address
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from weakref import ReferenceType, WeakKeyDictionary, ref

import psycopg
from flask import Blueprint, Flask, Response, abort, current_app, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from ..activity import Session
from ..config import Config
from ..config.provenance import shown_values
from ..config.redaction import redacted_value
from ..errors import ConfigError
from ..events import QueryEvent
from ..per_process import PerProcess
from ..printable import one_line, printable
from . import forms, pictures
from .explaining import explain, may_analyze, steps
from .recording import QUERIES, Entry, Recording, RequestRecord, Rings
from .server import Look, Watcher
from .sql_text import full_sql, short_sql

if TYPE_CHECKING:
    from jinja2 import Environment

    from ..manager import PGConnectionManager

EVERY = 2.0
"""Seconds after which a page that lives is asked for again."""

URL_PREFIX = "/_pgmonkey"
"""Where ``PGMONKEY_MONITOR`` puts the monitor."""

NAME = "pgmonkey_monitor"
_RECORDING = "pgmonkey_monitor"
_SHOWN = 100
_LARGEST = 15
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
        " img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}


class Databases(Protocol):
    """What the monitor asks of a :class:`~flask_pgmonkey.PGMonkey`."""

    @property
    def bind_names(self) -> tuple[str, ...]: ...
    @property
    def manager(self) -> PGConnectionManager: ...
    def get_config(self, name: str = ...) -> Config: ...


def monitor_blueprint(
    db: Databases, *, authorize: Callable[[], object] | None = None, name: str = NAME
) -> Blueprint:
    """A blueprint with pages that show what the databases of an app do, in this process and on
    their servers.

    It records from its registration on: the last queries, errors and requests, in rings that do not
    grow. Parameters of queries and paths of requests are kept and shown in debug alone, secrets
    never.

    :param authorize: called in each request for a page. Where it gives something false, the answer
        is 403; it may raise too, as :func:`flask.abort` does. Without it the app must be in debug
        mode, and is shown to requests that call it ``localhost`` or by an IP address.
    :param name: the blueprint's, as endpoints use it.
    :raises ConfigError: from ``register_blueprint``, without *authorize* outside debug mode.
    """
    monitor = _Monitor(db, authorize)
    blueprint = monitor.blueprint(name)
    blueprint.record(lambda state: monitor.begin(cast("Flask", state.app)))
    return blueprint


def show_in_debug(db: Databases, app: Flask) -> Recording:
    """Register the monitor for *app*, which answers in debug mode alone; and what is to be started
    when it shows that the app is in debug mode."""
    monitor = _Monitor(db, None)
    app.register_blueprint(monitor.blueprint(NAME), url_prefix=URL_PREFIX)
    recording = recording_of(app)
    if app.debug:
        recording.start()
    return recording


def recording_of(app: Flask) -> Recording:
    """The one recording of an app."""
    recording: Recording = app.extensions.setdefault(_RECORDING, Recording(app))
    return recording


class _Monitor:
    """The views of one blueprint."""

    def __init__(self, db: Databases, authorize: Callable[[], object] | None) -> None:
        self._db = db
        self._authorize = authorize
        self._watchers: WeakKeyDictionary[Flask, PerProcess[dict[str, Watcher]]] = (
            WeakKeyDictionary()
        )

    def begin(self, app: Flask) -> None:
        """Record, or refuse to be shown to everyone."""
        if self._authorize is None and not app.debug:
            raise ConfigError(
                f"the app {app.name!r} is not in debug mode, and its monitor would be shown to"
                " everyone: give monitor_blueprint(db, authorize=…) a function that says whether"
                " the request's user may see it, or register it in debug mode only"
            )
        recording_of(app).start()

    def blueprint(self, name: str) -> Blueprint:
        blueprint = Blueprint(name, __name__, static_folder="static")
        blueprint.before_request(self._refuse)
        blueprint.after_request(_add_headers)
        for rule, view in (
            ("/", self._overview),
            ("/requests/", self._requests),
            ("/requests/<int:number>", self._request),
            ("/queries/", self._queries),
            ("/queries/<int:number>", self._query),
            ("/queries/<int:number>/plan", self._plan),
            ("/server/", self._server),
            ("/server/<path:bind>", self._server),
            ("/config/", self._config),
        ):
            methods = ("GET", "POST") if view == self._plan else ("GET",)
            blueprint.add_url_rule(rule, view.__name__.lstrip("_"), view, methods=methods)
        return blueprint

    def _refuse(self) -> None:
        if self._authorize is not None:
            if not self._authorize():
                abort(403, "Not everyone may see this.")
            return
        if not current_app.debug:
            abort(404)
        if not _is_called_locally(request.host):
            # As a site that makes its own name point here would be: its scripts could read this.
            abort(
                403,
                "Without authorize= the monitor is shown at localhost and at IP addresses alone:"
                " use monitor_blueprint(db, authorize=…) for other names.",
            )

    # Pages

    def _overview(self) -> Response:
        rings = self._rings()
        now = time.time()
        measures = self._recording().measure()
        samples = list(rings.samples)
        pools = [
            (pool, stood, pictures.pool_chart(samples, pool, now))
            for pool, stood in sorted(measures.items())
        ]
        requests = rings.list_requests()
        return self._render(
            "overview.html",
            looks=[(bind, self._look(bind)) for bind in self._db.bind_names],
            pools=pools,
            borrowers=self._borrowers(rings, now),
            requests=requests[:12],
            requests_known=len(requests),
            errors=list(rings.errors)[::-1][:5],
            slow=list(rings.slow)[::-1][:5],
            exhausted=list(rings.exhausted)[::-1][:3],
        )

    def _requests(self) -> Response:
        requests = self._rings().list_requests()
        return self._render(
            "requests.html",
            requests=requests[:_SHOWN],
            requests_known=len(requests),
            endpoints=_by_endpoint(requests),
        )

    def _request(self, number: int) -> Response:
        found = self._rings().find_request(number)
        if found is None:
            return self._gone("This request")
        began, whole = found.began, max(found.ended - found.began, 1e-6)
        lines = [
            (
                entry,
                (entry.query.started_at - began) / whole,
                entry.query.duration / whole,
                found.repeats.get((entry.query.sql, entry.query.call_site), 0),
            )
            for entry in found.entries
        ]
        return self._render("request.html", record=found, lines=lines[:500], whole=whole)

    def _queries(self) -> Response:
        rings = self._rings()
        entries = list(rings.queries)
        texts = _by_text(entries)
        return self._render(
            "queries.html",
            texts=texts[:_SHOWN],
            texts_known=len(texts),
            seconds=sum(each.seconds for each in texts),
            known=len(entries),
            slow=list(rings.slow)[::-1][:50],
            slow_from=self._recording().slow,
            errors=list(rings.errors)[::-1][:50],
        )

    def _query(self, number: int) -> Response:
        found = self._rings().find_query(number)
        if found is None:
            return self._gone("This query")
        return self._render_query(number, found)

    def _plan(self, number: int) -> AnyResponse:
        if request.method == "GET":  # by somebody who loads the address again
            return redirect(url_for(".query", number=number))
        forms.refuse_forged()
        found = self._rings().find_query(number)
        if found is None:
            return self._gone("This query")
        analyze = request.form.get("analyze") == "1"
        try:
            config = self._db.get_config(found.bind or self._db.bind_names[0])
            plan = explain(config, found, analyze)
        except Exception as error:
            return self._render_query(number, found, refusal=_reason(error))
        return self._render_query(number, found, plan=plan, steps=steps(plan))

    def _render_query(self, number: int, query: QueryEvent, **more: Any) -> Response:
        token = forms.token()
        response = self._render(
            "query.html",
            number=number,
            query=query,
            **{"plan": None, "steps": (), "refusal": None, **more},
            may_explain=query.kind in ("query", "stream", "many"),
            may_analyze=may_analyze(query),
            token_field=forms.FIELD,
            token=token,
            token_of_app=forms.token_of_app(),
        )
        forms.keep(response, token, url_for(".overview"))
        return response

    def _server(self, bind: str | None = None) -> AnyResponse:
        names = self._db.bind_names
        if bind is None:
            return redirect(url_for(".server", bind=names[0]))
        if bind not in names:
            abort(404)
        look = self._look(bind)
        sessions = look.activity.of_clients_here() if look.activity is not None else []
        loans = self._borrowers(self._rings(), time.time())
        borrowers = {loan.pid: loan.who for loan in loans if loan.who is not None}
        return self._render(
            "server.html",
            bind=bind,
            binds=names,
            look=look,
            sessions=sessions,
            applications=_by_application(sessions),
            blockers=look.activity.blockers() if look.activity is not None else [],
            indexes=[
                index
                for place, index in enumerate(look.rows.get("indexes", []))
                if place < _LARGEST or index.is_unused
            ],
            borrowers=borrowers,
        )

    def _config(self) -> Response:
        shown: list[tuple[str, list[Any], str | None]] = []
        for bind in self._db.bind_names:
            try:
                shown.append((bind, shown_values(self._db.get_config(bind)), None))
            except Exception as error:  # a file or a variable that has gone
                shown.append((bind, [], one_line(error)))
        keys = {
            key: redacted_value(key, value)
            for key, value in sorted(current_app.config.items())
            if key.startswith("PGMONKEY_") and key not in ("PGMONKEY_CONFIG", "PGMONKEY_BINDS")
        }
        versions = [(each, version(each)) for each in _PACKAGES]
        return self._render("config.html", shown=shown, keys=keys, versions=versions)

    # What they show

    def _recording(self) -> Recording:
        return recording_of(_app())

    def _rings(self) -> Rings:
        return self._recording().rings

    def _look(self, bind: str) -> Look:
        app = _app()
        of_app = self._watchers.get(app) or self._watchers.setdefault(app, PerProcess(dict))
        of_process = of_app.here()
        watcher = of_process.get(bind)
        if watcher is None:
            find_config = partial(_find_config, self._db, ref(app), bind)
            watcher = of_process.setdefault(bind, Watcher(find_config))
        return watcher.look()

    def _borrowers(self, rings: Rings, now: float) -> list[Any]:
        found = []
        for pool, conn in self._recording().borrowed():
            record = conn.record
            who = rings.borrowers.get((pool, record.backend_pid))
            age = time.monotonic() - record.borrowed_at
            if who is not None and abs(now - who.at - age) > 1:
                who = None  # of somebody before
            found.append(_OnLoan(pool, record.backend_pid, age, who, record.stack))
        return sorted(found, key=lambda each: each.age, reverse=True)

    # Rendering

    def _gone(self, what: str) -> Response:
        response = self._render("gone.html", what=what)
        response.status_code = 404
        return response

    def _render(self, template: str, **values: Any) -> Response:
        rings = self._rings()
        html = (
            templates()
            .get_template(template)
            .render(
                **values,
                app_name=printable(current_app.name),
                debug=current_app.debug,
                binds_known=self._db.bind_names,
                is_live=(request.endpoint or "").rpartition(".")[2] in _LIVE,
                endpoint=(request.endpoint or "").rpartition(".")[2],
                now=time.time(),
                process=os.getpid(),
                every=EVERY,
                since=rings.since,
                ring_size=QUERIES,
                url=lambda endpoint, **given: url_for(f".{endpoint}", **given),
                slow_from_seconds=self._recording().slow,
            )
        )
        response = Response(html)
        response.headers["Cache-Control"] = "no-store"
        return response


class _OnLoan(NamedTuple):
    pool: str
    pid: int
    age: float
    who: Any
    stack: Any


class _Text(NamedTuple):
    """All the queries with one text."""

    sql: str
    latest: Entry
    calls: int
    seconds: float
    longest: float
    rows: int
    errors: int


class _Endpoint(NamedTuple):
    """All the requests of one endpoint."""

    name: str | None
    requests: int
    queries: float
    most_queries: int
    seconds: float
    longest: float
    errors: int


_LIVE = ("overview", "requests", "queries", "server")
_PACKAGES = ("flask-pgmonkey", "psycopg", "psycopg-pool", "Flask")


def _app() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def _find_config(db: Databases, find_app: ReferenceType[Flask], bind: str) -> Config:
    app = find_app()
    assert app is not None  # noqa: S101 - it is handling a request
    with app.app_context():
        return db.get_config(bind)


def _is_called_locally(host: str) -> bool:
    name = re.sub(r":\d*$", "", host).strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _add_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response


def _by_text(entries: Iterable[Entry]) -> list[_Text]:
    """The queries by their texts, those first that took longest in all."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.query.kind != "command":
            groups.setdefault(entry.query.sql, []).append(entry)
    texts = [
        _Text(
            sql,
            its[-1],
            len(its),
            sum(entry.query.duration for entry in its),
            max(entry.query.duration for entry in its),
            sum(entry.query.rows or 0 for entry in its),
            sum(entry.query.error is not None for entry in its),
        )
        for sql, its in groups.items()
    ]
    return sorted(texts, key=lambda each: each.seconds, reverse=True)


def _by_endpoint(requests: Iterable[RequestRecord]) -> list[_Endpoint]:
    groups: dict[str | None, list[RequestRecord]] = {}
    for each in requests:
        groups.setdefault(each.tally.endpoint, []).append(each)
    endpoints = [
        _Endpoint(
            name,
            len(its),
            median(each.tally.queries for each in its),
            max(each.tally.queries for each in its),
            median(each.tally.seconds for each in its),
            max(each.tally.seconds for each in its),
            sum(each.errors for each in its),
        )
        for name, its in groups.items()
    ]
    return sorted(endpoints, key=lambda each: each.requests * each.seconds, reverse=True)[:25]


def _by_application(sessions: Sequence[Session]) -> list[tuple[str, str, dict[str, int]]]:
    """How many sessions of each application and user are in which state."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for session in sessions:
        states = counts.setdefault((session.application, session.user or ""), {})
        state = session.state or "?"
        states[state] = states.get(state, 0) + 1
    return sorted(
        ((*names, states) for names, states in counts.items()),
        key=lambda each: -sum(each[2].values()),
    )


def _reason(error: Exception) -> str:
    """What went wrong, without the line of the query that PostgreSQL quotes."""
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return one_line(said or error)


# Templates


@cache
def templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("flask_pgmonkey.monitor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(
        bar=pictures.bar,
        both=pictures.both,
        parts=pictures.segments,
        span=pictures.span,
        strip=pictures.request_strip,
    )
    templates.filters.update(
        ms=_milliseconds,
        ago=_ago,
        clock=_clock,
        age=_age,
        bytes=_bytes,
        count=_count,
        percent=_percent,
        shown=_shown,
        plain=_plain,
        printable=lambda text: printable(str(text)),
        sql=short_sql,
        full_sql=full_sql,
    )
    return templates


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}" if seconds >= 0.001 else f"{seconds * 1000:.2f}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _ago(at: float) -> str:
    return _age(time.time() - at)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def _bytes(size: float | None) -> str:
    if size is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TB"


def _count(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if number == int(number) else f"{number:,.1f}"


def _percent(part: float, rest: float) -> str:
    whole = (part or 0) + (rest or 0)
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _plain(value: object) -> str:
    """A value of a config, as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _shown(value: object) -> str:
    """A parameter of a query."""
    text = printable(repr(value))
    return text if len(text) <= 1000 else f"{text[:1000]}…"
