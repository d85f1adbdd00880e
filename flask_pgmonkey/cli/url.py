"""``flask pgmonkey url``: the URL of a database of the app, for other tools."""

from __future__ import annotations

import click

from ..programs import settings_for, url_for
from .targets import Target, database_options
from .terminal import say


@click.command()
@database_options
@click.option("--with-password", is_flag=True, help="With the password and other secrets in it.")
def url(target: Target, with_password: bool) -> None:
    """Print the URL of the database, without its password.

    \b
      flask --app shop pgmonkey url
      flask --app shop pgmonkey url --bind reports --with-password
    """
    say(url_for(settings_for(target.config), with_secrets=with_password))
