"""Does an account's API answer as it must? Host, certificate, key, list, details, clock; nothing is changed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from tasks.bfl import BflReader
from tasks.errors import ApiError, KeyRefused, NotFound, Refused, Unclear
from tasks.incarnations import CLOCK_TOLERANCE
from tasks.looking import details_work, names
from tasks.records import DEFAULT_ACCOUNT
from worker.app import client
from worker.ledger_checks import clock_finding
from worker.server_checks import Finding
from worker.settings import Account, Settings

_RENEW_BEFORE = timedelta(days=14)
_NOBODYS = "janitor-doctor-no-such-finetune"


def check_api(settings: Settings, account: Account, redis_ahead: timedelta | None) -> Iterator[Finding]:
    """One finding at a time. redis_ahead: of Redis's clock over this host's, None where it is not known."""
    heard: list[datetime] = []
    reader = _reader(settings, account, heard)
    suffix = "" if account.name == DEFAULT_ACCOUNT else f"_{account.name.upper()}"
    yield from _certificate(account, settings.connect_timeout)
    name = f"api {account.name}"
    try:
        listed = sorted(names(reader.my_finetunes()))
    except KeyRefused as error:
        yield Finding(name, "error", f"{account.url} refuses the key ({error}): correct BFL_API_KEY{suffix}")
        return
    except Unclear as error:
        yield Finding(name, "error", f"{account.url}: {error}; is this the right host?")
        return
    except ApiError as error:
        again = f"{account.url}: {error}; test another host with BFL_API_URL{suffix}"
        yield Finding(name, "unreachable", again)
        return
    yield Finding(name, "ok", f"{account.url} accepts the key and lists {len(listed)} finetunes")
    if heard and redis_ahead is not None:
        skew = datetime.now(UTC) + redis_ahead - heard[-1]
        # An API time is read with this tolerance: beyond it, a name's new finetune could be taken for the old one.
        yield clock_finding(f"clock {account.name}", "Redis", "the API", skew, error_from=CLOCK_TOLERANCE)
    yield _details(reader, account, listed)


def _reader(settings: Settings, account: Account, heard: list[datetime]) -> BflReader:
    def note(_: object, response: requests.Response | None, __: bytes) -> None:
        date = response.headers.get("Date") if response is not None else None
        with suppress(TypeError, ValueError):
            heard.append(parsedate_to_datetime(str(date)).replace(tzinfo=UTC))  # HTTP dates are GMT

    return client(settings, account, BflReader, note)


def _details(reader: BflReader, account: Account, listed: list[str]) -> Finding:
    """Whether `finetune_details` can tell finetunes apart: asked about one that exists, if there is any."""
    name = f"details {account.name}"
    asked = listed[0] if listed else _NOBODYS
    try:
        reader.finetune_details(asked)
    except (NotFound, Refused) as error:
        if not details_work(error):
            alone = f"finetune_details does not work there ({error}): the list alone decides, and a name that"
            return Finding(name, "warning", f"{alone} was used again is not told apart; ask BFL for another URL")
        if not listed:
            return Finding(name, "ok", "finetune_details answers as for an unknown finetune")
        return Finding(name, "warning", f"finetune_details of {asked}, which is listed: {error}; ask again")
    except ApiError as error:
        return Finding(name, "warning", f"finetune_details of {asked}: {error}; deletions wait until it answers")
    return Finding(name, "ok", f"finetune_details tells about {asked}")


def _certificate(account: Account, timeout: timedelta) -> Iterator[Finding]:
    parts = urlsplit(account.url)
    if parts.scheme != "https":
        return
    name, host = f"certificate {account.name}", parts.hostname or ""
    try:
        left = certificate_days(host, parts.port or 443, timeout.total_seconds(), DEFAULT_CA_BUNDLE_PATH)
    except ssl.SSLCertVerificationError as error:
        why = f"{host}: {error.verify_message}: is this the right host, and this machine's clock right?"
        yield Finding(name, "error", why)
    except OSError:
        return  # the call that follows says so
    else:
        soon = left < _RENEW_BEFORE.days
        text = f"the certificate of {host} ends in {left} days"
        yield Finding(name, "warning" if soon else "ok", f"{text}: its owner has to renew it" if soon else text)


def certificate_days(host: str, port: int, timeout_seconds: float, trusted: str) -> int:
    """For how many days the certificate of a host is still valid. Raises `OSError`, `SSLCertVerificationError`."""
    context = ssl.create_default_context(cafile=trusted)
    with (
        socket.create_connection((host, port), timeout=timeout_seconds) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        ends = (wrapped.getpeercert() or {}).get("notAfter")
    return int((ssl.cert_time_to_seconds(str(ends)) - datetime.now(UTC).timestamp()) // 86_400)
