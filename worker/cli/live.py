"""`janitor doctor --live ID`: one delete at the API itself, looked at first, agreed to, and shown as it went."""

from __future__ import annotations

import json
from contextlib import suppress

import click
import requests

from tasks.bfl import BflClient, BflReader
from tasks.errors import ApiError, LedgerUnavailable
from tasks.inventory import protected_among
from tasks.ledger import Ledger
from tasks.looking import look
from tasks.queries import stopped_accounts
from tasks.records import check_finetune_id
from worker.app import client
from worker.cli.output import note
from worker.connections import connect, redis_url
from worker.settings import Account, Settings

_VERSIONS = {10: "HTTP/1.0", 11: "HTTP/1.1"}


def delete_live(settings: Settings, account: Account, finetune_id: str, *, sure: bool) -> int:
    """The exit code: 0 confirmed, 1 not. Raises `ApiError` where the look, or no answer, leaves it open."""
    check_finetune_id(finetune_id, allow_org_ids=settings.allow_org_ids)
    found = look(client(settings, account, BflReader), finetune_id, lambda: None)
    if not found.there:
        note(f"account {account.name} at {account.url} has no {finetune_id}: nothing was deleted")
        return 1
    note(f"account {account.name} at {account.url} has {finetune_id}: {json.dumps(found.details)}")
    if not sure:
        click.confirm(f"Delete {finetune_id} now, for good and without a record?", abort=True, err=True)
    forbidden = _forbidden(settings, account.name, finetune_id)
    if forbidden:
        note(f"nothing was deleted: {forbidden}")
        return 1
    return _delete(settings, account, finetune_id)


def _delete(settings: Settings, account: Account, finetune_id: str) -> int:
    key = account.key.get_secret_value()

    def shown(request: requests.PreparedRequest, response: requests.Response | None, raw: bytes) -> None:
        for line in _exchange(request, response, raw):
            click.echo("".join(c if c.isprintable() else "." for c in line.replace(key, "***")))

    try:
        client(settings, account, BflClient, shown).delete_finetune(finetune_id)
    except ApiError as error:
        if error.http_status is None:
            raise
        note(f"not confirmed: {error}")
        return 1
    note(f"{finetune_id} is deleted, says the API")
    return 0


def _forbidden(settings: Settings, account: str, finetune_id: str) -> str | None:
    """Why not, as far as Redis can be asked: this is also for trying a key before there is any."""
    with suppress(LedgerUnavailable):
        ledger = Ledger(connect(redis_url(settings), patient=False))
        for name, stop in stopped_accounts(ledger).items():
            if name in ("*", account) and stop.paused is not None:
                return f"deleting is paused ({stop.paused}); `janitor resume` goes on"
        if protected_among(ledger, account, [finetune_id]):
            return f"{finetune_id} is protected; `janitor unprotect {finetune_id}` lets it go"
    return None


def _exchange(request: requests.PreparedRequest, response: requests.Response | None, raw: bytes) -> list[str]:
    sent = request.body if isinstance(request.body, str) else (request.body or b"").decode()
    lines = [f"> {request.method} {request.url}"]
    lines += [f"> {name}: {'***' if name == 'x-key' else value}" for name, value in request.headers.items()]
    lines += ["> ", f"> {sent}"]
    if response is None:
        return [*lines, "< no complete answer"]
    lines.append(f"< {_VERSIONS.get(response.raw.version, 'HTTP')} {response.status_code} {response.reason}")
    lines += [f"< {name}: {value}" for name, value in response.headers.items()]
    return [*lines, "< ", *(f"< {line}" for line in raw.decode("utf-8", "replace").splitlines())]
