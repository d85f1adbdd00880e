"""``flask pgmonkey top``: what the server's sessions do, again and again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from time import sleep
from typing import Any

import click
import psycopg
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..activity import Activity, Session, read_activity
from ..connections.query_timeout import block_with_timeout
from ..errors import QueryTimeoutError, ServerSilentError
from ..printable import one_line, printable
from .errors import in_one_line
from .seconds import Seconds
from .targets import Target, database_options
from .terminal import stdout_console

_COLUMNS = ("PID", "Application", "Database", "State", "For", "Transaction", "[Waits for] Query")
_LONGEST_ANSWER = 3.0
"""Seconds that the server has to answer."""


@click.command()
@database_options
@click.option(
    "--interval",
    type=Seconds(),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: a line for each look, a page with --once."
)
def top(target: Target, interval: float, once: bool, as_json: bool) -> None:
    """Show what the sessions of the server do, and who holds up whom.

    Those that block others stand first, with those that wait for them below; then what works, open
    transactions, and what is idle. Ctrl-C ends it.

    \b
      flask --app shop pgmonkey top
      flask --app shop pgmonkey top --bind reports --interval 0.5
      flask pgmonkey top --config db.yaml --once --json
    """
    console = stdout_console()
    if once:
        with target.connect() as connection, block_with_timeout(_LONGEST_ANSWER):
            activity = read_activity(connection)
        if as_json:
            click.echo(json.dumps(as_mapping(activity), indent=2))
        else:
            console.print(picture(target, activity, None))
        return
    is_screen = console.is_terminal and not as_json
    live = Live(console=console, screen=True, auto_refresh=False) if is_screen else None

    def show(activity: Activity, trouble: str | None) -> None:
        if as_json:
            click.echo(json.dumps({"error": trouble} if trouble else as_mapping(activity)))
        elif live is not None:
            live.update(picture(target, activity, trouble, console.height), refresh=True)
        else:
            console.print(picture(target, activity, trouble), "")

    try:
        with live or nullcontext():
            watch(target, interval, show)
    except KeyboardInterrupt:
        return


def watch(target: Target, interval: float, show: Callable[[Activity, str | None], None]) -> None:
    """Show what the sessions do, until somebody interrupts; when the server does not say it, what
    they did, and why.

    :raises psycopg.Error: where the first look fails.
    """
    seen: Activity | None = None
    while True:
        try:
            with target.connect() as connection, block_with_timeout(_LONGEST_ANSWER):
                connection.autocommit = True  # a transaction would see the same each time
                while True:
                    seen = read_activity(connection)
                    show(seen, None)
                    sleep(interval)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if seen is None:
                raise
            show(seen, trouble_of(error))
        sleep(interval)


def trouble_of(error: psycopg.Error) -> str:
    if isinstance(error, (QueryTimeoutError, ServerSilentError)):
        return f"the server has not answered within {_LONGEST_ANSWER:.0f} seconds"
    return in_one_line(error)


# For people


def picture(
    target: Target, activity: Activity, trouble: str | None, height: int | None = None
) -> RenderableType:
    """A page of what the sessions do.

    :param trouble: why it is not what they do now.
    :param height: that of the terminal; without it each session is there, and each text whole.
    """
    lines = [Text(headline(target, activity))]
    if trouble is not None:
        seen = f"{activity.at.astimezone():%H:%M:%S}"
        lines.append(Text(f"As it was at {seen}; asking again: {printable(trouble)}", "bold red"))
    hidden = sum(session.is_hidden for session in activity.sessions)
    if hidden:
        lines.append(
            Text(
                f"The role {printable(activity.role)} may not see what {hidden} of them do:"
                f" 'GRANT pg_monitor TO …' lets it.",
                "yellow",
            )
        )
    rows = list(activity.by_urgency())
    if height is not None and len(rows) > (room := max(1, height - len(lines) - 3)):
        lines.append(Text(f"{room} of {len(rows)} sessions fit here", "dim"))
        rows = rows[:room]
    return Group(*lines, Text(), *lines_of(rows, is_cut=height is not None))


def headline(target: Target, activity: Activity) -> str:
    """Where and when it is, and how many do what."""
    states = Counter(session.state or "unknown" for session in activity.sessions)
    counts = [f"{count} {state}" for state, count in states.most_common()]
    waiting = sum(bool(session.blocked_by) for session in activity.sessions)
    counts += [f"{waiting} waiting for a lock"] if waiting else []
    return printable(
        f"{target.config.target} at {activity.at.astimezone():%H:%M:%S}:"
        f" {len(activity.sessions)} other sessions of at most {activity.max_connections}"
        f" ({', '.join(counts) or 'nobody is there'})"
    )


def lines_of(rows: Sequence[tuple[int, Session]], is_cut: bool) -> Iterator[Text]:
    """The sessions with their depth in columns, under the names of these.

    :param is_cut: whether each is one line of the terminal. Its end goes, which is the query.
    """
    # Not rich's table, which would make all columns narrow for the sake of the query.
    cells = [cells_of(depth, session) for depth, session in rows]
    widths = [max(map(cell_len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    styles = ["bold", *(style_of(session) for _, session in rows)]
    for line, style in zip([_COLUMNS, *cells], styles, strict=True):
        *columns, query = map(set_cell_size, line, [*widths[:-1], cell_len(line[-1])])
        text = "  ".join([*columns, query])
        yield Text(text, style, no_wrap=is_cut, overflow="ellipsis" if is_cut else "fold")


def cells_of(depth: int, session: Session) -> tuple[str, ...]:
    query = one_line(session.query) if session.query else ""
    return (
        f"{'  ' * (depth - 1)}└ {session.pid}" if depth else str(session.pid),
        printable(session.application or session.kind or ""),
        printable(session.database or ""),
        session.state or "",
        duration(session.state_seconds),
        duration(session.transaction_seconds),
        printable(f"[{wait}] " if (wait := waits_for(session)) else "") + query,
    )


def style_of(session: Session) -> str:
    if session.blocked_by:
        return "yellow"
    if session.is_long:
        return "bold red"
    return "dim" if session.state == "idle" else ""


def waits_for(session: Session) -> str:
    if not session.blocked_by:
        return session.wait or ""
    whom = (str(pid) if pid else "a prepared transaction" for pid in session.blocked_by)
    return f"{', '.join(whom)}: {session.lock_mode} on {session.lock_on}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


# For programs


def as_mapping(activity: Activity) -> dict[str, Any]:
    return {**asdict(activity), "at": activity.at.isoformat()}
