"""``flask pgmonkey exec``: any program, on a database of the app."""

from __future__ import annotations

import click

from .programs import run_program
from .targets import Target, database_options


@click.command("exec", context_settings={"allow_interspersed_args": False})
@database_options
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGS]..."
)
def exec_(target: Target, command: tuple[str, ...]) -> None:
    """Run a program with what leads it to the database.

    That is PGHOST, PGPORT, PGUSER, PGDATABASE and libpq's other variables, the password in a
    private file for as long as the program runs, and DATABASE_URL without it. For the embedded
    server, its own programs come first on the PATH.

    \b
      flask --app shop pgmonkey exec -- pg_dump --schema-only
      flask --app shop pgmonkey exec --bind reports -- pgcli
      flask --app shop pgmonkey exec -- alembic upgrade head
    """
    click.get_current_context().exit(run_program(command, target))
