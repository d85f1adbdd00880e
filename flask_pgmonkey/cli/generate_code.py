"""``flask pgmonkey generate-code``: a complete program for a config file, to start from."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..codegen import LIBRARIES, generate_program
from ..config import CONNECTION_TYPES, check_config
from ..config.libpq import URI_SCHEMES
from .errors import WrongUsage, file_errors_in_words
from .targets import Target, database_options
from .writing import write_new_file


@click.command("generate-code")
@database_options
@click.option(
    "--type",
    "connection_type",
    type=click.Choice(CONNECTION_TYPES),
    help="The connection type; else the one that the config names.",
)
@click.option(
    "--library",
    type=click.Choice(LIBRARIES),
    default="flask",
    show_default=True,
    help="An app with PGMonkey, a script with PGConnectionManager, or one that"
    " connects with psycopg and has only the config file read by flask_pgmonkey.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the program to this file instead of printing it.",
)
@click.option("--force", is_flag=True, help="Let --output replace an existing file.")
@file_errors_in_words()
def generate_code(
    target: Target, connection_type: str | None, library: str, output: str | None, force: bool
) -> None:
    """Print a complete program that queries the database.

    The program reads the same config file when it runs; nothing of the file's content is in it.

    \b
      flask pgmonkey generate-code --config db.yaml
      flask pgmonkey generate-code --config db.yaml --type async_pool --library psycopg
      flask --app shop pgmonkey generate-code --bind reports --library manager --output report.py
    """
    file = file_of(target)
    program = generate_program(
        library,
        connection_type or target.config.connection_type,
        file,
        resolve_env=target.resolve_env,
        allow_sensitive_defaults=target.allow_sensitive_defaults,
    )
    if output in (None, "-"):
        click.echo(program, nl=False)
    else:
        write_new_file(Path(output), program, force=force)


def file_of(target: Target) -> str:
    """The absolute path of the config file of *target*, whose keys are checked.

    References stay unresolved: the program may be meant for another machine.
    """
    source = target.source
    if (
        not isinstance(source, (str, os.PathLike))
        or source == "embedded"
        or str(source).startswith(URI_SCHEMES)
    ):
        raise WrongUsage(
            f"The database {target.name!r} is not configured by a file that a program could read."
            " Name one with --config PATH; `flask pgmonkey create-config` writes one."
        )
    check_config(
        source,
        resolve_env=target.resolve_env,
        allow_sensitive_defaults=target.allow_sensitive_defaults,
    )
    return os.path.abspath(source)
