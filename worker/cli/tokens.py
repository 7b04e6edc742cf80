"""Commands for the tokens of the HTTP service: new, list, revoke."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, get_args

import click

from tasks.durations import iso
from tasks.errors import JanitorError
from tasks.ledger.types import Act
from tasks.records import DEFAULT_ACCOUNT
from worker.cli import options
from worker.cli.output import note, print_table
from worker.cli.session import Session
from worker.cli.times import local
from worker.http import tokens as files
from worker.http.tokens import Token
from worker.settings import load_settings, read_text

_Texts = tuple[str, ...]


@click.group()
def tokens() -> None:
    """Make, list and revoke tokens of the HTTP service, in the file JANITOR_TOKENS_FILE.

    A service that runs reads the file again within a second. If it was given a copy of the file, as by systemd's
    LoadCredential, restart it.

    \b
    janitor tokens new billing
    janitor tokens list
    janitor tokens revoke billing
    """


@tokens.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(get_args(files.Scope)), default=["enqueue", "read"],
    help="What it may do; may be repeated.",
)  # fmt: skip
@click.option(
    "--account", "accounts", multiple=True, default=[DEFAULT_ACCOUNT], metavar="A",
    help="An account that it may use, '*' for all; may be repeated.",
)  # fmt: skip
@click.option("--expires", type=options.LATER_TIME, help="When it expires; never unless given.")
@options.as_person
def new(*, name: str, scopes: _Texts, accounts: _Texts, expires: datetime | None, act: Act) -> None:
    """Make a token, add its digest to the file, and print it; it cannot be shown again.

    Without JANITOR_TOKENS_FILE it prints what the file must hold.

    \b
    janitor tokens new billing
    janitor tokens new reports --scope read --account '*' --expires 2027-01-31
    """
    file = load_settings().tokens_file
    secret, table = files.new_token(name, scopes, accounts, expires)
    if file is None:
        note("JANITOR_TOKENS_FILE is not set; add this to the file that it names for the service:")
        click.echo(f"\n{table}", err=True)
    else:
        files.add(file, name, table)
    note("the token, shown this once:")
    click.echo(secret)
    if file is not None:
        _audit("token new", name, act)


@tokens.command("list")
@options.json
def list_() -> None:
    """List them: names, scopes, accounts, when they expire.

    \b
    janitor tokens list
    """
    file = files.required(load_settings().tokens_file)
    known = files.parse(read_text("JANITOR_TOKENS_FILE", file))
    headings = ("NAME", "SCOPES", "ACCOUNTS", "EXPIRES")
    print_table(known, _record, headings, _cells, if_empty="no tokens: `janitor tokens new NAME` makes one")


@tokens.command()
@click.argument("name")
@options.as_person
def revoke(*, name: str, act: Act) -> None:
    """Remove a token from the file; its records stay.

    \b
    janitor tokens revoke billing
    """
    files.remove(files.required(load_settings().tokens_file), name)
    note(f"revoked: {name}")
    _audit("token revoke", name, act)


def _audit(what: str, name: str, act: Act) -> None:
    """Write it to the audit log; only warn if that fails: the file is changed, and it is no part of Redis."""
    try:
        Session().ledger.act(what, act, ids=[name])
    except JanitorError as error:
        note(f"warning: this is not in the audit log: {error}")


def _record(token: Token) -> Mapping[str, Any]:
    shown = token.model_dump(include={"name", "scopes", "accounts"})
    return shown | {"expires": iso(token.expires), "has_expired": token.has_expired}


def _cells(token: Token) -> tuple[str, ...]:
    expires = f"{local(token.expires)}{' (expired)' if token.has_expired else ''}"
    return token.name, ", ".join(token.scopes), ", ".join(token.accounts), expires or "never"
