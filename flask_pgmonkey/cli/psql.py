"""``flask pgmonkey psql``: the user's own psql, on a database of the app."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from psycopg.conninfo import make_conninfo

from ..config.libpq import ENVIRONMENT_VARIABLES, KEYWORDS
from ..config.redaction import is_secret_key
from ..config.values import TCP_DEFAULTS
from .errors import WorkFailed
from .targets import Target, database_options


@click.command()
@database_options
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]")
def psql(target: Target, arguments: tuple[str, ...]) -> None:
    """Open psql on the database; what follows -- goes to psql.

    The password goes to psql in its environment, so that no list of processes shows it.

    \b
      flask --app shop pgmonkey psql
      flask --app shop pgmonkey psql --bind reports -- -c "SELECT 1"
      flask pgmonkey psql --config db.yaml -- --csv -f report.sql
    """
    variables, rest = split_settings(target.config.connect_kwargs())
    command = ["psql", *(["--dbname", make_conninfo("", **rest)] if rest else []), *arguments]
    environment = {**os.environ, **variables}
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if target.source == "embedded":
            click.get_current_context().exit(run_beside(command, environment))
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is wanted
    except FileNotFoundError as error:
        raise WorkFailed(
            "There is no psql on the PATH. It comes with PostgreSQL's client programs:"
            " postgresql-client (Debian, Ubuntu), postgresql (Fedora), libpq (Homebrew)."
        ) from error


def run_beside(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code of *command*, run while this process stays and so keeps its server running.

    It is 128 and the signal's number if a signal ended the command, as in a shell.
    """
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for psql, which cancels a query.
    code = process.wait()
    return code if code >= 0 else 128 - code


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Settings as environment variables, and those that libpq reads from none by their keyword.

    :raises WorkFailed: for a secret without an environment variable, which psql cannot be given.
    """
    variables, rest = {}, {}
    for keyword, value in settings.items():
        if TCP_DEFAULTS.get(keyword) == value:
            continue  # Not worth a --dbname, beside which a name after -- would be the user's.
        if keyword in ENVIRONMENT_VARIABLES:
            variables[ENVIRONMENT_VARIABLES[keyword]] = str(value)
        elif is_secret_key(keyword):
            raise WorkFailed(f"psql cannot be given {keyword} without showing it to other users.")
        elif keyword in KEYWORDS:
            rest[keyword] = str(value)
    return variables, rest
