"""``flask pgmonkey generate-code``: a complete program for a config file, to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from ..codegen import LIBRARIES, generate_program
from ..codegen.sources import (
    ProgramSource,
    embedded_source,
    file_source,
    mapping_source,
    uri_source,
)
from ..config import CONNECTION_TYPES, check_config
from ..config.libpq import URI_SCHEMES
from .errors import file_errors_in_words
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

    The program reads the same config file when it runs; nothing of the file's content is in it, nor
    any secret of a mapping or a URI, which it takes from the environment.

    \b
      flask pgmonkey generate-code --config database.yaml
      flask pgmonkey generate-code --config database.yaml --type async_pool --library psycopg
      flask --app shop pgmonkey generate-code --bind reports --library manager --output report.py
    """
    folder = os.path.dirname(os.path.abspath(output or "-"))
    source = source_of(target, folder)
    if connection_type is None:
        connection_type = "normal" if target.source == "embedded" else target.config.connection_type
    program = generate_program(
        library,
        connection_type,
        source,
        allow_sensitive_defaults=target.allow_sensitive_defaults,
    )
    if output in (None, "-"):
        click.echo(program, nl=False)
    else:
        write_new_file(Path(output), program, force=force)


def source_of(target: Target, folder: str) -> ProgramSource:
    """How a program in *folder* names the config of *target*, whose keys are checked.

    References stay unresolved, and no server is started: the program may be meant for another
    machine.
    """
    config = target.source
    if config == "embedded" and target.app is not None:
        return embedded_source(os.path.join(target.app.instance_path, "postgres"), folder)
    check_config(
        config,
        resolve_env=target.resolve_env,
        allow_sensitive_defaults=target.allow_sensitive_defaults,
    )
    if isinstance(config, Mapping):
        return mapping_source(config, resolve_env=target.resolve_env)
    if str(config).startswith(URI_SCHEMES):
        return uri_source()
    return file_source(os.fspath(config), folder, resolve_env=target.resolve_env)
