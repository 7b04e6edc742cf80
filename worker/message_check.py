"""A message is checked whole before Celery sees it.

Callers are strangers. Celery reads a message partly outside its own error handling: a field of an unexpected type
ends the consumer's loop, or raises in a pool thread that then never gives its slot back. `check_message` accepts
only what Celery 5.7 can carry through, and says of the rest what the sender has to change. Source: Celery's
`worker/strategy.py`, `worker/request.py`, `app/trace.py` and `canvas.py`. Pure functions, no I/O.
"""

import base64
import bz2
import re
import zlib
from inspect import signature
from typing import Any

from celery.app.task import Context
from kombu.utils.json import dumps, loads

from tasks.by_name import ETA_HEADER, EXPIRES_HEADER
from tasks.durations import iso, parse_time
from tasks.text import shown
from worker.message_callbacks import check_signatures
from worker.message_fields import BODY, ENVELOPE, HEADERS, PROPERTIES, TASKS, RefusedMessage

DEFERRABLE = ("finetunes.delete", "finetunes.delete_many")  # may have an eta

MOST_BYTES = 16 * 1024 * 1024  # of one message as it lies in its queue
MOST_BODY = 1024 * 1024  # some 25,000 finetunes with a UUID for a name, which take a slot for seconds
MOST_DEPTH = 50  # far below Python's own limit, which a pool thread would hit outside Celery's error handling
_SURROGATE = re.compile("[\ud800-\udfff]")
_DECOMPRESSORS: dict[str, Any] = {
    # zlib's own header, which kombu writes, or gzip's
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), lambda: zlib.decompressobj(zlib.MAX_WBITS | 32)),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
}


# The arguments of the tasks that give no answer: a report of use with a misspelt argument is kept, and not lost.
def _touch(finetune_ids: Any, account: Any = None, **more: Any) -> None: ...
def _work(account: Any) -> None: ...
def _tick() -> None: ...


_ARGUMENTS = {f"finetunes.{one.__name__[1:]}": signature(one) for one in (_touch, _work, _tick)}


def read(item: bytes) -> Any:
    """What kombu makes of `item`: JSON with kombu's typed values; raises `RefusedMessage`."""
    if len(item) > MOST_BYTES:
        raise RefusedMessage(f"the message has {len(item):,} bytes: send at most {MOST_BYTES:,}")
    return _from_json(item, "the message")


def check_message(raw: Any, queue: str) -> dict[str, Any]:
    """The message as kombu and Celery can take it; raises `RefusedMessage`.

    raw: the envelope of kombu's virtual transports, out of its JSON. queue: where it lay. What comes back has its
    `eta` and `expires` in headers of ours, so that Celery holds it in no timer and ends no repetition; a body that
    is not compressed; and `queue` as the place to which it is given back, whatever the sender wrote there.
    """
    envelope = ENVELOPE.check(raw, "the message")
    properties = PROPERTIES.check(envelope.get("properties"), "properties")
    headers = _checked_headers(envelope.get("headers"))
    body = _body(envelope, properties.get("body_encoding"), headers.pop("compression", None))
    _check_parts(body, headers["task"])
    _move_times(headers)
    place = properties.get("delivery_info") or {}
    # Without an exchange, it goes back to the queue by name: a forged one would lead to another key.
    back = {"exchange": "", "routing_key": queue, "redelivered": bool(place.get("redelivered"))}
    same = {name: properties.get(name) for name in PROPERTIES.kinds}
    return {
        "body": base64.b64encode(body).decode(),
        "headers": headers,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {**same, "body_encoding": "base64", "delivery_info": back},
    }


def _checked_headers(given: Any) -> dict[str, Any]:
    """A copy of the headers; raises `RefusedMessage`."""
    if isinstance(given, dict) and "task" not in given:
        raise RefusedMessage("the headers name no task: send Celery's message protocol 2 (task_protocol = 2)")
    headers = HEADERS.check(given, "headers")
    for name in headers.keys() - HEADERS.kinds.keys():
        # Celery makes headers into attributes of the task's request, over its methods and the embedded options.
        if name.startswith("_") or hasattr(Context, name):
            raise RefusedMessage(f"the header {shown(name)} is a name of Celery's own: choose another one")
    if headers["task"] not in TASKS:
        raise RefusedMessage(f"the task {shown(headers['task'])} is not one of {', '.join(TASKS)}")
    return dict(headers)


def _body(envelope: dict[str, Any], encoding: str | None, compression: str | None) -> bytes:
    """The body as plain bytes; raises `RefusedMessage`."""
    kind, text = envelope.get("content-type"), envelope.get("body")
    if kind != "application/json":
        raise RefusedMessage(f"the content type is {shown(kind)}: application/json is accepted")
    if not isinstance(text, str):
        raise RefusedMessage("the body is not text: give JSON, in base64 if body_encoding says so")
    try:
        body = base64.b64decode(text, validate=True) if encoding else text.encode()
    except ValueError:
        raise RefusedMessage("the body is not in base64, as body_encoding says: encode it") from None
    body = _decompressed(body, compression) if compression else body
    if len(body) > MOST_BODY:
        raise RefusedMessage(f"the body has more than {MOST_BODY:,} bytes: send smaller parts")
    return body


def _check_parts(body: bytes, task: str) -> None:
    parts = _from_json(body, "the body")
    if not BODY.fits(parts):
        raise RefusedMessage(f"the body is {shown(parts)}: give {BODY.words}, as Celery's message protocol 2 does")
    # What runs the callbacks is our own encoding of them, which escapes what is not ASCII.
    if len(body) > MOST_BODY // 8 and len(dumps(parts)) > MOST_BODY:
        raise RefusedMessage(
            f"the body has more than {MOST_BODY:,} bytes if it is written in ASCII: send smaller parts"
        )
    arguments, options, embedded = parts
    if task in _ARGUMENTS:
        try:
            _ARGUMENTS[task].bind(*arguments, **options)
        except TypeError as error:
            raise RefusedMessage(f"{task} takes other arguments: {error}") from None
    check_signatures(embedded or {})


def _decompressed(body: bytes, compression: str) -> bytes:
    if compression not in _DECOMPRESSORS:
        raise RefusedMessage(f"the compression {shown(compression)} is not accepted: use gzip, bzip2 or none")
    unpack = _DECOMPRESSORS[compression]()
    try:
        plain: bytes = unpack.decompress(body, MOST_BODY + 1)
    except (zlib.error, OSError, ValueError):
        raise RefusedMessage(f"the body is not in {compression}: correct the header compression") from None
    if len(plain) <= MOST_BODY and (not unpack.eof or unpack.unused_data):
        raise RefusedMessage("the compressed body is cut, or something follows it: send all of it alone")
    return plain


def _move_times(headers: dict[str, Any]) -> None:
    eta, deferred = headers.pop("eta", None), headers.pop(ETA_HEADER, None)
    if eta or deferred:
        if headers["task"] not in DEFERRABLE:
            raise RefusedMessage(f"{headers['task']} takes no eta or countdown: send it when it is to happen")
        headers[ETA_HEADER] = iso(parse_time(eta or deferred))
    expires = headers.pop("expires", None) or headers.pop(EXPIRES_HEADER, None)
    if expires:
        headers[EXPIRES_HEADER if headers["task"] in DEFERRABLE else "expires"] = iso(parse_time(expires))


def _from_json(data: bytes, what: str) -> Any:
    try:
        value = loads(data)
    # A typed value of kombu's can raise anything.
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise RefusedMessage(f"{what} is not JSON: use Celery's serializer json ({why})") from None
    _check_depth(value, what)
    return value


def _check_depth(value: Any, what: str) -> None:
    """Neither too deep for Python nor with half characters, which cannot be written as UTF-8."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise RefusedMessage(f"{what} is nested more than {MOST_DEPTH} levels deep: send fewer")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and not one.isascii() and _SURROGATE.search(one):
                raise RefusedMessage(f"{what} has half of a surrogate pair, which is no character: remove it")
        level, depth = inner, depth + 1
