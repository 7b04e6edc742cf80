"""Which life of a name this is. BFL lets a name be used again, so details are compared over whatever they tell.

1. Identity: a unique id and a creation time, over the fields that both observations have.
2. Otherwise the settings known by name, then every other scalar; equal ones are believed for a limited time.
3. Otherwise the two are not distinguishable.

A field that only one of them has tells nothing. Moments are compared as moments, numbers as numbers.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self

from tasks.api.moments import Created, is_same_moment, read_created
from tasks.durations import format_duration
from tasks.text import finetune_key, is_same_name, one_line

MOST_FIELDS = 50
_ID_FIELDS = ("id", "uuid", "uid")
CREATED_FIELDS = ("created_at", "created", "timestamp")
_IDENTITY = (("the unique id", _ID_FIELDS, is_same_name), ("the creation time", CREATED_FIELDS, is_same_moment))
_SETTINGS = frozenset(
    ("type", "finetunetype", "mode", "basemodel", "model", "precision", "trigger", "triggerword", "triggerphrase",
     "iterations", "rate", "learningrate", "rank", "lorarank")
)  # fmt: skip
_FREE_TEXT = re.compile("comment|description|note", re.IGNORECASE)  # can hold personal data; never kept
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_MOST_DIGITS = 28  # of a number: `Decimal` compares so many exactly
_DEEPEST = 3


class Verdict(StrEnum):
    SAME = "same"
    OTHER = "other"
    UNKNOWN = "not distinguishable"


@dataclass(frozen=True)
class Incarnation:
    """What is kept of a finetune's details: all that the rules compare, no comments, at most 50 other fields.

    identity: unique ids and creation times (ISO 8601, UTC) by field. settings: values in clear, by field.
    others: a short hash of each other scalar, by field.
    """

    identity: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def unique_id(self) -> str | None:
        return next((self.identity[name] for name in _ID_FIELDS if name in self.identity), None)

    @property
    def created(self) -> Created | None:
        """The creation time, the most exact one if there are several; None if the API gives no sound one."""
        told = [made for name in CREATED_FIELDS if (made := read_created(self.identity.get(name)))]
        return min(told, key=lambda made: (made.is_date, not made.has_offset), default=None)

    def to_text(self) -> str:
        """Compact JSON, which tells the unique id and the creation time in clear; `from_text` reads it back."""
        in_clear = {"unique_id": self.unique_id, "created_at": str(self.created) if self.created else None}
        return json.dumps(in_clear | vars(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """What `to_text` wrote, in any version; None for an empty text. Raises `ValueError` if it is not JSON."""
        if not text:
            return None
        kept = json.loads(text)
        parts = [kept.get(name) for name in ("identity", "settings", "others")]
        return cls(*({k: str(v) for k, v in part.items()} if isinstance(part, dict) else {} for part in parts))


def incarnation_of(fields: Mapping[str, Any], finetune_id: str) -> Incarnation:
    """What tells this incarnation of `finetune_id` from others; fields: its details as the API gave them."""
    identity = {name: text for name in _ID_FIELDS if (text := _unique_id(fields.get(name), finetune_id))}
    identity |= {name: str(made) for name in CREATED_FIELDS if (made := read_created(fields.get(name)))}
    told = [
        (letters(path) not in _SETTINGS, one_line(path, most=60), plain)
        for path, value in scalars(fields)
        if path not in identity
        and not _FREE_TEXT.search(path)
        # A value that repeats the name is the same in every incarnation.
        and not is_same_name(plain := _plain(value), finetune_id)
    ]
    kept = sorted(told)[:MOST_FIELDS]
    settings = {path: _in_clear(text) for is_other, path, text in kept if not is_other}
    return Incarnation(identity, settings, {path: _hash(text) for is_other, path, text in kept if is_other})


def compare(earlier: Incarnation, later: Incarnation, *, gap: timedelta, within: timedelta) -> tuple[Verdict, str]:
    """Whether two observations show one incarnation, and why, in words for a person.

    gap: time between the two. within: how long equal settings are believed.
    """
    same, changed = _identity(earlier.identity, later.identity)
    if same and changed:
        return Verdict.UNKNOWN, f"{same[0]} is the same, but {'; '.join(changed)}"
    if changed:
        return Verdict.OTHER, "; ".join(changed)
    if same:
        return Verdict.SAME, f"{' and '.join(same)} {'are' if len(same) > 1 else 'is'} the same"
    return _by_fields(earlier, later, gap, within)


def is_comparable(one: Incarnation, other: Incarnation) -> bool:
    """Whether unique ids or creation times of the two can be compared."""
    return _identity(one.identity, other.identity) != ([], [])


def _identity(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What is the same and what has changed, of the first unique id and creation time that can be compared."""
    same, changed = [], []
    for what, fields, is_same in _IDENTITY:
        both = [(one[name], other[name]) for name in fields if name in one and name in other]
        pair = next((pair for pair in both if is_same(*pair) is not None), None)
        if pair and is_same(*pair):
            same.append(what)
        elif pair:
            changed.append(_change(what, *pair))
    return same, changed


def _by_fields(earlier: Incarnation, later: Incarnation, gap: timedelta, within: timedelta) -> tuple[Verdict, str]:
    one, other = earlier.settings, later.settings
    if changed := _changed(one, other):
        return Verdict.OTHER, "; ".join(_change(name, one[name], other[name]) for name in changed)
    if changed := _changed(earlier.others, later.others):
        return Verdict.UNKNOWN, f"{', '.join(changed)} changed, which does not tell incarnations apart"
    if not (one.keys() & other.keys() or earlier.others.keys() & later.others.keys()):
        return Verdict.UNKNOWN, "the API's details have nothing that can be compared"
    if gap > within:
        ago = f"{format_duration(gap)} lie between the two, more than {format_duration(within)}"
        return Verdict.UNKNOWN, f"all fields are equal, but there is no creation time, and {ago}"
    return Verdict.SAME, "all fields are equal"


def _change(what: str, then: str, now: str) -> str:
    return f"{what} changed from {then} to {now}"


def _changed(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return sorted(name for name in one.keys() & other.keys() if one[name] != other[name])


def _unique_id(value: object, finetune_id: str) -> str | None:
    """`value` if it can be a unique id: one that contains the name is the same in every incarnation."""
    text = finetune_key(str(value)) if value and isinstance(value, str | int) and value is not True else ""
    is_usable = text == one_line(text, most=200) and finetune_id.lower() not in text.lower()
    return text if text and is_usable else None


def scalars(fields: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, str | float]]:
    """Paths such as `config.mode`, and values; lists are left out."""
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from scalars(value, f"{path}.", depth + 1)
        elif isinstance(value, str | int | float):
            yield path, value


def _plain(value: str | float) -> str:
    """One notation for a scalar: `300`, `"300"` and `300.0` are one number, and moments are in UTC, in seconds."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if len(text) <= _MOST_DIGITS and _NUMBER.fullmatch(text):
        number = Decimal(text).normalize() + 0  # + 0: no negative zero
        return f"{number:f}" if abs(number.adjusted()) < 30 else str(number)
    moment = read_created(text)
    return f"{moment.moment:%Y-%m-%dT%H:%M:%SZ}" if moment else text


def letters(path: str) -> str:
    """Letters of the last part, so that `base_model`, `baseModel` and `config.base-model` are one field."""
    return re.sub("[^a-z]", "", path.rpartition(".")[2].lower())


def _in_clear(text: str) -> str:
    """One printable line of bounded length; two texts that look alike in it stay different."""
    line = one_line(text, most=80)
    return line if line == text else f"{line} #{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
