"""``flask pgmonkey top``: what the server's sessions do, again and again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from time import sleep
from typing import TYPE_CHECKING, Any

import click
import psycopg

from ..activity import Activity, Session, read_activity
from ..connections.query_timeout import block_with_timeout
from ..errors import QueryTimeoutError, ServerSilentError
from ..printable import one_line, printable
from .errors import in_one_line
from .seconds import Seconds
from .tables import columns_of
from .targets import Target, database_options
from .terminal import print_table, say, say_sentence, terminal_width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_COLUMNS = ("PID", "Application", "Database", "State", "For", "Transaction", "[Waits for] Query")
_SHOWN = ((80, range(7)), (60, (0, 3, 5, 6)), (0, (0, 3, 6)))
"""From how many columns of the terminal on which of the columns are shown."""
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
      flask pgmonkey top --config database.yaml --once --json
    """
    if once:
        with target.connect() as connection, block_with_timeout(_LONGEST_ANSWER):
            activity = read_activity(connection)
        if as_json:
            click.echo(json.dumps(as_mapping(activity), indent=2))
        else:
            print_page(target, activity, None)
        return
    live = None
    if terminal_width() is not None and not as_json:
        from rich.live import Live  # takes as long to import as all the rest

        live = Live(screen=True, auto_refresh=False)

    def show(activity: Activity, trouble: str | None) -> None:
        if as_json:
            click.echo(json.dumps({"error": trouble} if trouble else as_mapping(activity)))
        elif live is not None:
            size = live.console.size
            live.update(picture(target, activity, trouble, size.width, size.height), refresh=True)
        else:
            print_page(target, activity, trouble)
            say()

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


def print_page(target: Target, activity: Activity, trouble: str | None) -> None:
    """A page of what the sessions do: each is there, and each text whole."""
    for sentence, _ in sentences(target, activity, trouble):
        say_sentence(sentence)
    say()
    rows = [cells_of(depth, session) for depth, session in activity.by_urgency()]
    print_table(_COLUMNS, rows)


def picture(
    target: Target, activity: Activity, trouble: str | None, width: int, height: int
) -> RenderableType:
    """The same for a screen of that size: what has no room is left out."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(sentence, style) for sentence, style in sentences(target, activity, trouble)]
    rows = list(activity.by_urgency())
    taken = sum(1 + (len(line) - 1) // width for line in lines)
    if len(rows) > (room := max(1, height - taken - 3)):
        lines.append(Text(f"{room} of {len(rows)} sessions fit here", "dim"))
        rows = rows[:room]
    return Group(*lines, Text(), *lines_of(rows, width))


def sentences(target: Target, activity: Activity, trouble: str | None) -> Iterator[tuple[str, str]]:
    """What stands above the sessions, each with its style.

    :param trouble: why it is not what they do now.
    """
    yield headline(target, activity), ""
    if trouble is not None:
        seen = f"{activity.at.astimezone():%H:%M:%S}"
        yield f"As it was at {seen}; asking again: {printable(trouble)}", "bold red"
    hidden = sum(session.is_hidden for session in activity.sessions)
    if hidden:
        yield (
            f"The role {printable(activity.role)} may not see what {hidden} of them do:"
            " 'GRANT pg_monitor TO …' lets it.",
            "yellow",
        )


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


def lines_of(rows: Sequence[tuple[int, Session]], width: int) -> Iterator[Text]:
    """The sessions with their depth in columns, under the names of these.

    Each is one line of the terminal. Its end goes, which is the query, and on a narrow one columns.
    """
    from rich.cells import set_cell_size
    from rich.text import Text

    shown = next(columns for least, columns in _SHOWN if width >= least)
    names, *cells = (
        [cells[column] for column in shown]
        for cells in (_COLUMNS, *(cells_of(depth, session) for depth, session in rows))
    )
    widths = [max(map(columns_of, column)) for column in zip(names, *cells, strict=True)]
    styles = ["bold", *(style_of(session) for _, session in rows)]
    for line, style in zip([names, *cells], styles, strict=True):
        *columns, query = map(set_cell_size, line, [*widths[:-1], columns_of(line[-1])])
        text = "  ".join([*columns, query])
        yield Text(text, style, no_wrap=True, overflow="ellipsis")


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
