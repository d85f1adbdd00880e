"""``flask pgmonkey psql``: the user's psql or the embedded server's, on a database of the app."""

from __future__ import annotations

import shutil

import click
from psycopg.conninfo import make_conninfo

from ..config.libpq import ENVIRONMENT_VARIABLES, KEYWORDS
from ..config.values import TCP_DEFAULTS
from ..programs import find_program, settings_for
from .programs import run_program
from .targets import Target, database_options


class WithPsqlsOwnOptions(click.Command):
    """Says where the options of psql go, which are asked for as often as ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"{error.option_name} is none of this command's options; psql's own go after --,"
                f" as in: {ctx.command_path} -- {error.option_name} …",
                ctx,
            ) from error


@click.command(cls=WithPsqlsOwnOptions)
@database_options
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]")
def psql(target: Target, arguments: tuple[str, ...]) -> None:
    """Open psql on the database; what follows -- goes to psql.

    It is exec -- psql, with the settings that libpq reads from no environment variable.

    \b
      flask --app shop pgmonkey psql
      flask --app shop pgmonkey psql --bind reports -- -c "SELECT 1"
      flask pgmonkey psql --config database.yaml -- --csv -f report.sql
    """
    rest = {
        keyword: value
        for keyword, value in settings_for(target.config).items()
        if keyword in KEYWORDS - ENVIRONMENT_VARIABLES.keys()
        and TCP_DEFAULTS.get(keyword) != value  # Beside --dbname a name after -- is the user's.
    }
    program = "psql" if shutil.which("psql") else find_program("psql") or "psql"
    command = [program, *(["--dbname", make_conninfo("", **rest)] if rest else []), *arguments]
    click.get_current_context().exit(run_program(command, target))
