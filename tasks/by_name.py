"""Requests in by-name messages: read with care, because callers are strangers."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from tasks.cleanup.inventory import protected_among
from tasks.durations import ACCEPTED_TIME, LONGEST, iso, parse_time
from tasks.errors import InvalidRequest, LedgerUnavailable
from tasks.intake import BULK, digest_of
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import SEEN_HEADER
from tasks.ledger.queries import get_many
from tasks.ledger.types import Act
from tasks.records import NewRequest, check_finetune_id, check_line
from tasks.text import one_line

# What were Celery's eta and expires. Our transport moves them: no worker holds a message until its eta, and an
# accepted request that is repeated later does not end as revoked.
ETA_HEADER, EXPIRES_HEADER = "janitor_eta", "janitor_expires"
log = structlog.get_logger()
_OPTIONS = (
    "account", "reason", "requested_by", "labels", "due_at", "delay_seconds", "requested_at", "missing_ok",
)  # fmt: skip
# Callbacks as `send_task` takes them, and as a request has them.
_CALLBACKS = {"link": "callbacks", "link_error": "errbacks", "group_id": "group"} | {
    name: name for name in ("chain", "chord", "group_index", "root_id", "parent_id")
}
# What a message holds besides arguments and headers of others: by Celery's message protocol 2.
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
_HEADERS = (
    "task", "id", "root_id", "parent_id", "group", "group_index", "expires", "timelimit", "shadow", "origin",
    "ignore_result", "stamps", "stamped_headers",
)  # fmt: skip
_PLAIN = ("account", "reason", "requested_by", "labels", "missing_ok")  # taken as they are


def by_name(
    request_id: str, finetune_id: Any, options: Mapping[str, Any],
    *, eta: str = "", seen: str = "", bulk: bool = False,
) -> NewRequest:  # fmt: skip
    """The request in a message; raises `InvalidRequest`.

    options: as given; times are ISO 8601, the delay is in seconds. eta: Celery's eta or countdown, which is a
    `due_at`; if both are given, the later one counts. Without a `requested_at` the request is then dated by it,
    because nobody knows how long the message has waited. seen: when a message that is sent again was here first;
    the request is no younger.
    """
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise InvalidRequest(f"{unknown[0]!r} is not an argument: accepted are {', '.join(_OPTIONS)}")
    due_at, requested_at = (_time(name, options.get(name)) for name in ("due_at", "requested_at"))
    if eta:
        at = parse_time(eta)
        due_at, requested_at = max(at, due_at or at), requested_at or at
    if seen:
        at = parse_time(seen)
        requested_at = min(requested_at or at, at)
    plain = {name: options[name] for name in _PLAIN if name in options}
    return NewRequest(
        request_id, finetune_id, source="name", due_at=due_at, requested_at=requested_at,
        delay=_delay(options.get("delay_seconds")), bulk=bulk,
        digest=digest_of(finetune_id, options.get("account"), {**options, "eta": eta}), **plain,
    )  # fmt: skip


def by_name_many(
    task_id: str, finetune_ids: Any, options: Mapping[str, Any], *, eta: str = "", seen: str = ""
) -> list[NewRequest]:
    """A request for each finetune, its id made from the task's: the same message again is the same requests."""
    if not isinstance(finetune_ids, list | tuple) or not finetune_ids:
        raise InvalidRequest("the finetune ids must be a list of at least one")
    for finetune_id in finetune_ids:
        check_finetune_id(finetune_id, allow_org_ids=True)
    space = uuid.uuid5(uuid.NAMESPACE_OID, task_id)
    unique = dict.fromkeys(finetune_ids)
    bulk = len(unique) > BULK
    return [by_name(str(uuid.uuid5(space, one)), one, options, eta=eta, seen=seen, bulk=bulk) for one in unique]


def send_each(
    send: Callable[..., object], ledger: Ledger, requests: Sequence[NewRequest], options: Mapping[str, Any],
    headers: Mapping[str, Any],
) -> None:  # fmt: skip
    """Send the requests of a list that are not on record as messages of their own; raises `LedgerUnavailable`.

    For use after Redis refused one request of a list: those after it were not written. If each is sent as its own
    message, only the refused one becomes a dead letter. send: Celery's `send_task`.
    """
    records = get_many(ledger, [request.id for request in requests])
    left = [request for request, record in zip(requests, records, strict=True) if record is None]
    try:
        for one in left:
            send("finetunes.delete", args=[one.finetune_id], kwargs=options, task_id=one.id, headers=headers)
    except Exception as error:  # Celery's and kombu's own
        raise LedgerUnavailable(str(error)) from error


def callbacks_of(request: Any) -> dict[str, Any] | None:
    """The callbacks in a message, as they must be given to send it again; None if there are none."""
    if not (request.callbacks or request.errbacks or request.chain or request.chord):
        return None
    return {name: getattr(request, kept) for name, kept in _CALLBACKS.items()}


def warn_protected(ledger: Ledger, requests: Sequence[NewRequest]) -> None:
    """Log which of these finetunes are protected. That keeps cleanups away; a request goes ahead."""
    account, ids = requests[0].account, [request.finetune_id for request in requests]
    with suppress(LedgerUnavailable):
        for id_ in protected_among(ledger, account, ids):
            log.warning("request.protected", finetune=id_, account=account)


def header(request: Any, name: str) -> str:
    """A header of a message that holds text; empty if there is none."""
    found = request.get(name) or (request.headers or {}).get(name)
    return found if isinstance(found, str) else ""


def times(request: Any) -> tuple[str, str]:
    """When it is due, and since when its message is here, as headers say."""
    return header(request, ETA_HEADER), header(request, SEEN_HEADER)


def headers(eta: str, seen: str) -> dict[str, str | None]:
    """The headers of a message that is sent in place of the current one."""
    return {ETA_HEADER: eta or None, SEEN_HEADER: seen or iso(datetime.now(UTC))}


def has_expired(request: Any) -> bool:
    """Whether its time to be accepted has passed; the clock is this process's own, as it is for Celery."""
    expires = header(request, EXPIRES_HEADER)
    return bool(expires) and parse_time(expires) < datetime.now(UTC)


def message_of(request: Any, encode: Callable[[Any], Any]) -> dict[str, Any]:
    """The message of a request, as it lay in its queue. encode: Celery's, of a value as JSON."""
    kept = {name: request.get(name) for name in _HEADERS} | (request.headers or {})
    body = [request.args, request.kwargs, {name: request.get(name) for name in _EMBEDDED}]
    properties = {**(request.properties or {}), "delivery_tag": request.id, "body_encoding": None}
    return {
        "headers": json.loads(encode(kept)), "properties": properties, "body": encode(body),
        "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip


def act_by_name(options: Mapping[str, Any], origin: str) -> Act:
    """Who cancels, and why, as the message says; raises `InvalidRequest`. origin: the process that sent it."""
    if unknown := sorted(set(options) - {"requested_by", "reason"}):
        accepted = "deletion_id, requested_by, reason"
        raise InvalidRequest(f"{unknown[0]!r} is not an argument: accepted are {accepted}")
    for name, text in options.items():
        check_line(name, text)
    return Act(options.get("requested_by") or one_line(origin) or None, "name", options.get("reason"))


def only(name: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The one argument that may be given by position; it is taken out of `options` if it is given by name."""
    if len(given) + (name in options) != 1:
        raise InvalidRequest(f"{len(given)} arguments are given by position: give {name}, and all others by name")
    return given[0] if given else options.pop(name)


def _time(name: str, given: Any) -> datetime | None:
    if given in (None, ""):
        return None
    if not isinstance(given, str):
        raise InvalidRequest(f"{name} is {given!r}: give {ACCEPTED_TIME}")
    return parse_time(given)


def _delay(given: Any) -> timedelta | None:
    if given is None:
        return None
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= LONGEST.total_seconds():
        raise InvalidRequest(f"delay_seconds is {given!r}: give a number of seconds, 0 or more, at most ten years")
    return timedelta(seconds=given)
