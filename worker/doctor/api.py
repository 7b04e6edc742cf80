"""Does an account's API answer as it must? Host, certificate, key, list, details; nothing is changed."""

import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from requests.adapters import DEFAULT_CA_BUNDLE_PATH

from tasks.api.client import BflReader
from tasks.api.errors import ApiError, KeyRefused, NotFound, Unclear
from tasks.api.incarnations import incarnation_of
from tasks.durations import format_duration
from worker.app import client
from worker.doctor.server import Finding, judged
from worker.settings import Account, Settings

# From public reports; the contract names api.us1.bfl.ai, which is reported to be switched off.
KNOWN_URLS = ("https://api.bfl.ai", "https://api.eu.bfl.ai", "https://api.us.bfl.ai")
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_RENEW_BEFORE = timedelta(days=14)
_NO_FINETUNE = "janitor-doctor-no-such-finetune"


def check_proxy() -> Iterator[Finding]:
    """Say that a proxy in the environment is not used, if there is one."""
    if variable := next(filter(os.environ.get, _PROXY_VARIABLES), None):
        text = f"{variable} is set, and is not used: workers connect to the API directly"
        yield Finding("proxy", "warning", text)


def check_api(settings: Settings, account: Account) -> Iterator[Finding]:
    """One finding at a time."""
    reader, name = client(settings, account, BflReader), f"api {account.name}"
    yield from _certificate(settings, account)
    try:
        listing = reader.my_finetunes()
    except KeyRefused as error:
        yield Finding(name, "error", f"the key is refused: {error}; correct {account.key_variable}")
    except Unclear as error:
        question = f"is this the right host? It is set by {account.url_variable}"
        yield Finding(name, "error", f"{account.url}: {error}; {question}")
    except ApiError as error:
        yield Finding(name, "unreachable", f"{account.url}: {error}; test another one with {account.url_variable}")
    else:
        yield Finding(name, "ok", f"{account.url} accepts the key and lists {_finetunes(listing.count)}")
        yield _details(settings, reader, account, sorted(listing.names))
        return
    yield from _other_hosts(settings, account)


def _other_hosts(settings: Settings, account: Account) -> Iterator[Finding]:
    """Which other hosts of BFL accept the key: a finetune lives in one region, and hosts are switched off."""
    if not f".{urlsplit(account.url).hostname}".endswith(".bfl.ai"):
        return
    found, advice = [], ""
    for url in [one for one in KNOWN_URLS if one != account.url]:
        try:
            count = client(settings, account._replace(url=url), BflReader).my_finetunes().count
        except ApiError as error:
            found.append(f"{url}: {str(error).partition(': ')[0]}")
        else:
            found.append(f"{url} accepts the key and lists {_finetunes(count)}")
            advice = f": set {account.url_variable} to the one that has yours"
    yield Finding(f"hosts {account.name}", "warning", "; ".join(found) + advice)


def _details(settings: Settings, reader: BflReader, account: Account, listed: list[str]) -> Finding:
    """Whether `finetune_details` works, and tells one incarnation of a name from the next.

    The first, the middle and the last of those listed are asked for: two generations of finetunes, with other
    fields, are behind one list.
    """
    name = f"details {account.name}"
    asked = sorted({listed[0], listed[len(listed) // 2], listed[-1]}) if listed else [_NO_FINETUNE]
    for finetune_id in asked:
        try:
            details = reader.finetune_details(finetune_id)
        except ApiError as error:
            if error.http_status == 405 or (isinstance(error, NotFound) and not error.from_api):
                text = "the list alone decides, and a deletion that has waited ends in review"
                return Finding(name, "warning", f"finetune_details does not work there ({error}): {text}")
            if isinstance(error, NotFound) and not listed:
                return Finding(name, "ok", "finetune_details answers as for an unknown finetune")
            then = "its deletion waits until it answers" if isinstance(error, Unclear) else "ask again"
            return Finding(name, "warning", f"finetune_details of {finetune_id}, which is listed: {error}; {then}")
        found = incarnation_of(details.fields, finetune_id)
        if found.unique_id is None and (found.created is None or found.created.is_date):
            text = (
                f"finetune_details of {finetune_id} has neither a unique id nor an exact creation time: if its "
                "name is used again, only its settings can tell, and a deletion that waits longer than "
                f"{format_duration(settings.observe_within)} (JANITOR_OBSERVE_WITHIN) ends in review"
            )
            return Finding(name, "warning", text)
    return Finding(name, "ok", f"finetune_details tells incarnations apart (asked about {', '.join(asked)})")


def _certificate(settings: Settings, account: Account) -> Iterator[Finding]:
    parts = urlsplit(account.url)
    if parts.scheme != "https":
        return
    name, host = f"certificate {account.name}", parts.hostname or ""
    trusted = settings.ca_bundle or Path(DEFAULT_CA_BUNDLE_PATH)
    try:
        left = certificate_days(host, parts.port or 443, settings.connect_timeout.total_seconds(), trusted)
    except ssl.SSLCertVerificationError as error:
        why = "is this the right host, and this machine's clock right? JANITOR_CA_BUNDLE names other authorities"
        yield Finding(name, "error", f"{host}: {error.verify_message}: {why}")
    except OSError:
        return  # the call that follows says so
    else:
        yield judged(
            name, f"the certificate of {host} ends in {left} days",
            (left < _RENEW_BEFORE.days, "warning", "its owner has to renew it"),
        )  # fmt: skip


def certificate_days(host: str, port: int, timeout_seconds: float, trusted: Path) -> int:
    """For how many days the certificate of a host is still valid. Raises `OSError`, `SSLCertVerificationError`."""
    context = ssl.create_default_context(cafile=trusted)
    with (
        socket.create_connection((host, port), timeout=timeout_seconds) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        ends = (wrapped.getpeercert() or {}).get("notAfter")
    return int((ssl.cert_time_to_seconds(str(ends)) - datetime.now(UTC).timestamp()) // 86_400)


def _finetunes(count: int) -> str:
    return "1 finetune" if count == 1 else f"{count} finetunes"
