"""Labels, by which people and services find their requests again."""

import re
from collections.abc import Iterable, Mapping

from tasks.errors import InvalidRequest
from tasks.text import is_line, shown

MAX_LABELS = 8
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")
_LABELS = "keys of 1 to 63 letters, digits, - _ . / and values of 1 to 63 printable characters"


def check_labels(labels: object) -> None:
    """Raise `InvalidRequest` if labels, which may be None, are not some that a record can have."""
    if labels is None:
        return
    if not isinstance(labels, Mapping):
        raise InvalidRequest(f"labels is {shown(labels)}: give an object with {_LABELS}")
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"{len(labels)} labels are given: give at most {MAX_LABELS}")
    for key, value in labels.items():
        if not (isinstance(key, str) and _LABEL_KEY.fullmatch(key) and value and is_line(value, 63)):
            raise InvalidRequest(f"the label {shown(key)}: {shown(value)} is not accepted: give {_LABELS}")


def parse_labels(texts: Iterable[str]) -> dict[str, str] | None:
    """Labels written `key=value`, None if there are none; raises `InvalidRequest`."""
    labels: dict[str, str] = {}
    for text in texts:
        key, is_pair, value = text.partition("=")
        if not is_pair:
            raise InvalidRequest(f"the label {shown(text)} has no =: give key=value, such as customer=4711")
        if labels.setdefault(key, value) != value:
            raise InvalidRequest(f"the label {shown(key)} has two values: give one")
    check_labels(labels)
    return labels or None
