"""``flask pgmonkey create-config``: a commented config file to start from."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from ..config.template import template, template_from_environment, template_from_uri
from .errors import WorkFailed, WrongUsage


@click.command("create-config")
@click.argument("filename", metavar="PATH")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--from-env", is_flag=True, help="Refer to the PG* variables that are set now.")
@click.option("--uri", metavar="URI", help="Take the settings from a postgresql:// URI.")
def create_config(filename: str, force: bool, from_env: bool, uri: str | None) -> None:
    """Write a commented config file that only its owner may read.

    A password in the URI does not go into the file, which refers to an environment variable
    instead.

    \b
      flask pgmonkey create-config db.yaml
      flask pgmonkey create-config db.yaml --from-env
      flask pgmonkey create-config db.yaml --uri postgresql://app@db.example/shop
    """
    if from_env and uri is not None:
        raise WrongUsage("Give either --from-env or --uri URI, not both.")
    if "://" in filename:
        raise WrongUsage("PATH is the file to write; a URI goes with --uri.")
    path = Path(filename)
    if path.is_dir():
        raise WorkFailed(f"{path} is a folder: name the file to write in it.")
    variables: list[str] = []
    if uri is not None:
        content, variables = template_from_uri(uri)
    else:
        content = template_from_environment() if from_env else template()
    if force:
        replace_file(path, content)
    else:
        write_new_file(path, content)
    click.echo(f"Wrote {path}.", err=True)
    for variable in variables:
        click.echo(f"Its secret is not in the file: put it into the variable {variable}.", err=True)
    if variables or from_env:
        click.echo("The file needs PGMONKEY_RESOLVE_ENV = True, or --resolve-env.", err=True)


def write_new_file(path: Path, content: str) -> None:
    """Write a file for its owner alone; what is half written is removed again.

    :raises WorkFailed: if there is something at *path* already.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise WorkFailed(f"{path} exists already; --force replaces it.") from error
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
    except BaseException:
        path.unlink()
        raise


def replace_file(path: Path, content: str) -> None:
    """Put a new file for its owner alone in the place of *path*, at one stroke.

    A link stays, and the file that it leads to is replaced. A device or a pipe is written to.
    """
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")
        return
    final = Path(os.path.realpath(path))
    beside = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    write_new_file(beside, content)
    try:
        beside.replace(final)
    except BaseException:
        beside.unlink()
        raise
