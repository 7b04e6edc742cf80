"""What each field of a message may hold: tables, and the check that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tasks.durations import ACCEPTED_TIME, parse_time

ETA_HEADER = "janitor_eta"  # where a message's eta is kept, out of Celery's sight
MOST_ID = 155  # what Celery's own result tables hold
_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii", "binary")


class RefusedMessage(ValueError):
    """The message cannot be carried out; the text says what the sender has to change."""


class Kind(NamedTuple):
    """What a field may hold: in words, and as a test. Null is accepted as well."""

    words: str
    fits: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e12 < value < 1e12


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1_000_000


def _is_line(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(parse_time(value))
    except ValueError:
        return False


def _is_limits(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(one is None or _is_number(one) for one in value)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


ID = Kind(f"an id of 1 to {MOST_ID} printable characters", lambda value: _is_line(value, MOST_ID))
NAME = Kind("a name of 1 to 255 printable characters", lambda value: _is_line(value, 255))
TEXT = Kind("text", _is_text)
COUNT = Kind("a whole number from 0 to 1,000,000", _is_count)
NUMBER = Kind("a number", _is_number)
PRIORITY = Kind("a whole number from 0 to 255", lambda value: _is_count(value) and value <= 255)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TIME = Kind(ACCEPTED_TIME, _is_time)
WHEN = Kind(f"{ACCEPTED_TIME}, or a number of seconds", lambda value: _is_time(value) or _is_number(value))
LIMITS = Kind("a list of two numbers of seconds or null", _is_limits)
WORDS = Kind("a list of texts", _is_words)
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
ENCODING = Kind(" or ".join(_ENCODINGS), lambda value: isinstance(value, str) and value.lower() in _ENCODINGS)
SIGNATURES = Kind("a signature or a list of them", lambda value: isinstance(value, list | dict))
JSON = Kind("json", lambda value: value == "json")

PROPERTIES = {
    "delivery_tag": ID,
    "delivery_info": OBJECT,
    "body_encoding": Kind("base64", lambda value: value == "base64"),
    "priority": PRIORITY,
    "correlation_id": NAME,
    "reply_to": NAME,
    "delivery_mode": COUNT,
}
HEADERS = {
    "task": NAME, "id": ID, "root_id": ID, "parent_id": ID, "group": ID, "group_index": COUNT, "shadow": NAME,
    "lang": TEXT, "meth": TEXT, "origin": TEXT, "argsrepr": TEXT, "kwargsrepr": TEXT,
    "eta": TIME, ETA_HEADER: TIME, "expires": TIME, "retries": COUNT, "timelimit": LIMITS, "ignore_result": FLAG,
    "replaced_task_nesting": COUNT, "stamped_headers": WORDS, "stamps": OBJECT, "headers": OBJECT,
    "redelivered": FLAG, "compression": TEXT,
}  # fmt: skip
SIGNATURE = {
    "task": NAME, "args": LIST, "kwargs": OBJECT, "options": OBJECT, "immutable": FLAG, "chord_size": COUNT,
    "subtask_type": Kind("chain, group or chord", lambda value: value in ("chain", "group", "chord")),
}  # fmt: skip
OPTIONS = {
    "queue": NAME, "task_id": ID, "root_id": ID, "parent_id": ID, "group_id": ID, "group_index": COUNT,
    "reply_to": NAME, "priority": PRIORITY, "retries": COUNT, "countdown": NUMBER, "eta": TIME, "expires": WHEN,
    "time_limit": NUMBER, "soft_time_limit": NUMBER, "shadow": NAME, "serializer": JSON, "ignore_result": FLAG,
    "headers": OBJECT, "replaced_task_nesting": COUNT, "origin": TEXT, "add_to_parent": FLAG,
}  # fmt: skip


def check_fields(
    given: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    where: str,
    *,
    needed: tuple[str, ...] = (),
    only: bool = False,
) -> None:
    for name in needed:
        if given.get(name) is None:
            raise RefusedMessage(f"{where} {name} is missing: give {kinds[name].words}")
    for name, value in given.items():
        if name in kinds and value is not None and not kinds[name].fits(value):
            raise RefusedMessage(f"{where} {name} is {shown(value)}: give {kinds[name].words}")
        if only and name not in kinds:
            raise RefusedMessage(f"{where} {shown(name)} is not accepted: accepted are {', '.join(kinds)}")


def as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RefusedMessage(f"{what} is {shown(value)}: give an object")
    return value


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
