"""``flask pgmonkey create-config``: a commented config file to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from ..config.libpq import ENVIRONMENT_VARIABLES, is_elsewhere, parse_uri
from ..config.template import template, template_from_environment, template_from_uri
from .errors import WorkFailed, WrongUsage, file_errors_in_words
from .targets import complete_files
from .terminal import say, say_aside
from .writing import write_new_file


@click.command("create-config")
@click.argument("filename", metavar="PATH", shell_complete=complete_files)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--from-env", is_flag=True, help="Refer to the PG* variables that are set now.")
@click.option("--uri", metavar="URI", help="Take the settings from a postgresql:// URI.")
@file_errors_in_words()
def create_config(filename: str, force: bool, from_env: bool, uri: str | None) -> None:
    """Write a commented config file that only its owner may read.

    As PATH, - prints it instead. A password in the URI does not go into the file, which refers to
    an environment variable instead.

    \b
      flask pgmonkey create-config database.yaml
      flask pgmonkey create-config database.yaml --from-env
      flask pgmonkey create-config -
      flask pgmonkey create-config database.yaml --uri postgresql://app@db.example/shop
    """
    if from_env and uri is not None:
        raise WrongUsage("Give either --from-env or --uri URI, not both.")
    if "://" in filename:
        raise WrongUsage("PATH is the file to write; a URI goes with --uri.")
    path = Path(filename)
    if path.is_dir() or filename.endswith(("/", os.sep)):
        raise WorkFailed(f"{filename} is a folder: name the file to write in it.")
    variables: list[str] = []
    options: Mapping[str, str] = {}
    if uri is not None:
        content, variables = template_from_uri(uri)
        options = parse_uri(uri) or {}
    elif from_env:
        content = template_from_environment()
        options = {
            keyword: os.environ.get(variable, "")
            for keyword, variable in ENVIRONMENT_VARIABLES.items()
        }
    else:
        content = template()
    if filename == "-":
        for line in content.splitlines():
            say(line)
    else:
        write_new_file(path, content, mode=0o600, force=force)
    for variable in variables:
        say_aside(f"Its secret is not in the file: put it into the variable {variable}.")
    if trusts_the_network(options):
        say_aside(
            "Its server is another machine: in the file set sslmode: verify-full with sslrootcert,"
            " so that no other server gets the password, and require_auth: scram-sha-256."
        )
    if variables or from_env:
        say_aside("The file needs PGMONKEY_RESOLVE_ENV = True, or --resolve-env.")


def trusts_the_network(options: Mapping[str, str]) -> bool:
    """Whether libpq would take the word of whatever answers at another machine's address."""
    hosts = (options.get("hostaddr") or options.get("host", "")).split(",")
    return options.get("sslmode") != "verify-full" and any(map(is_elsewhere, hosts))
