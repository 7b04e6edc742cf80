"""Cleanup policies: which finetunes are stale. A TOML file, reviewed like code and checked whole before use."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from cronsim import CronSim, CronSimError
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from tasks.cleanup.about import KEYS
from tasks.durations import ACCEPTED_DURATION, parse_duration
from tasks.errors import InvalidRequest
from tasks.records import DEFAULT_ACCOUNT, is_account
from tasks.text import is_line, read_file

_CLASS = re.compile(r"\[[^]]+\]")  # `[a-z0-9]*` matches all as well
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
# Anything else is in no id, or belongs to another notation (`{prod,demo}-*`, `^prod-.*$`, `!prod-*`): it would be
# read as plain text, fit nothing and so protect nothing.
_PATTERN = re.compile(r"(?:[A-Za-z0-9_/.?*-]|\[[A-Za-z0-9_-]+\])+")
_MISTAKEN = re.compile(r".*\.\*.*|[^?*\[]*[_-]")  # `prod-.*`; `prod-` alone, which fits only itself
# For what people write. One that fits nothing deletes nothing, but `[!a]` would fit nearly all.
_TEXT = re.compile(r"(?:[^\[\]]|\[[A-Za-z0-9_-]+\])+")
_LEAST_UNUSED = timedelta(days=2)
UNREADABLE = "unreadable"  # instead of a digest


class PolicyError(InvalidRequest):
    """A policy cannot be used; the message names the line and says what is accepted."""


def read_policies(file: Path | None) -> tuple[Policy, ...]:
    """The policies in `file`; raises `InvalidRequest` with the file, the line and the reason."""
    if file is None:
        raise InvalidRequest("no policies: set JANITOR_POLICY_FILE to a TOML file, or give --file")
    try:
        return parse_policies(read_file(file))
    except PolicyError as error:
        raise InvalidRequest(f"{file}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{file} cannot be read: {reason}") from None


def digest_of(file: Path) -> str:
    """The same for files that schedule the same policies: by it, workers tell what they have. Or `UNREADABLE`."""
    try:
        scheduled = sorted(policy.digest for policy in read_policies(file) if policy.schedule)
    except InvalidRequest:
        return UNREADABLE
    return hashlib.sha256(" ".join(scheduled).encode()).hexdigest()[:16]


def parse_policies(text: str) -> tuple[Policy, ...]:
    """The policies in a TOML text, `[[policy]]` tables; raises `PolicyError` for the first mistake in it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"not TOML: {error}") from None
    except RecursionError:
        raise PolicyError("not TOML: it is nested too deeply") from None
    tables = document.get("policy", [])  # an empty file: there are no policies any more
    unknown = sorted(set(document) - {"policy"})
    if unknown or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError(f"{unknown[0] if unknown else 'policy'!r} is not accepted: give [[policy]] tables")
    places = _Places(text)
    policies = tuple(_policy(table, n, places) for n, table in enumerate(tables))
    names = [policy.name for policy in policies]
    for n, name in enumerate(names):
        if name in names[:n]:
            raise places.error(n, "name", f"two policies have the name {name!r}: give each its own")
    return policies


class _Places:
    """The line of each key in the text: tomllib does not tell it."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        heads = [i for i, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*policy\s*\]\]", line)]
        self._tables = list(pairwise([*heads, len(self._lines)]))

    def error(self, n: int, key: str | None, why: str) -> PolicyError:
        first, end = self._tables[n] if n < len(self._tables) else (0, len(self._lines))
        wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=") if key else None
        found = [i for i in range(first, end) if wanted and wanted.match(self._lines[i])]
        return PolicyError(f"line {(found or [first])[0] + 1}: {why}")


def _policy(table: Mapping[str, Any], n: int, places: _Places) -> Policy:
    try:
        policy = _POLICIES.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise places.error(n, key, _in_words(key, first)) from None
    selects = any(not _fits_all(patterns) for patterns in (policy.match, *policy.about.values()))
    if not selects and policy.older_than is None and policy.unused_for is None:
        raise places.error(n, None, f"{policy.name!r} matches all and names no age: give older_than or unused_for")
    if policy.unused_for is not None and policy.unused_for < _LEAST_UNUSED:
        why = f"unused_for: {table['unused_for']!r} is not accepted: give 2d or more"
        raise places.error(n, "unused_for", f"{why}, since reports of use may pause for a day")
    return policy


def _in_words(key: str, error: Any) -> str:
    if error["type"] == "unexpected_keyword_argument":
        return f"{key!r} is not known: accepted are {', '.join(one.name for one in fields(Policy))}"
    if error["type"] == "missing":
        return "this policy has no name: give one, such as name = 'tests'"
    return f"{key}: {error['ctx']['error']}"


def _only(fits: Callable[[Any], object], accepted: str) -> BeforeValidator:
    def read(value: object) -> object:
        if not fits(value):
            raise InvalidRequest(f"{value!r} is not accepted: give {accepted}")
        return value

    return BeforeValidator(read)


def _text(fits: Callable[[str], object], accepted: str) -> BeforeValidator:
    return _only(lambda value: isinstance(value, str) and fits(value), accepted)


def _whole(least: int, most: int) -> BeforeValidator:
    accepted = f"a whole number from {least} to {most}"
    # To Python, true and false are whole numbers too.
    return _only(lambda value: type(value) is int and least <= value <= most, accepted)


def _patterns(fits: Callable[[str], object], accepted: str) -> BeforeValidator:
    def read(value: object) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not given:
            raise InvalidRequest(f"{value!r} is not a list of patterns: give texts such as 'test-*'")
        for one in given:
            if not isinstance(one, str) or not fits(one):
                raise InvalidRequest(f"{one!r} is not a pattern: give {accepted}")
        return tuple(given)

    return BeforeValidator(read)


def _is_pattern(text: str) -> bool:
    return bool(_PATTERN.fullmatch(text)) and not _MISTAKEN.fullmatch(text)


def _fits_all(patterns: tuple[str, ...]) -> bool:
    return any(not _CLASS.sub("", pattern).strip("*?") for pattern in patterns)


def _age(value: object) -> timedelta:
    age = _duration(value)
    if age <= timedelta(0):
        raise InvalidRequest(f"{value!r} is not accepted: give {ACCEPTED_DURATION}, longer than 0s")
    return age


def _duration(value: object) -> timedelta:
    if not isinstance(value, str):
        raise InvalidRequest(f"{value!r} is not a duration: give {ACCEPTED_DURATION}")
    return parse_duration(value)


def _schedule(value: object) -> str:
    parts = value.split() if isinstance(value, str) else []
    try:
        next(CronSim(" ".join(parts if len(parts) == 5 else ()), datetime.now(UTC), reverse=True))
    except (CronSimError, StopIteration):
        raise InvalidRequest(f"{value!r} is not a cron schedule: give five fields, such as '0 3 * * *'") from None
    return " ".join(parts)


_Patterns = Annotated[
    tuple[str, ...],
    _patterns(
        _is_pattern,
        "letters, digits, - _ . / and * (any text), ? (any character), [abc] (one of these), as in 'prod-*'; "
        "several are a list of texts, and what must stay is `protect`",
    ),
]
_Texts = Annotated[
    tuple[str, ...],
    _patterns(
        lambda text: is_line(text, 200) and _TEXT.fullmatch(text),
        "one line such as '*test*', with [ ] only around letters and digits, as in [abc]",
    ),
]
_Age = Annotated[timedelta | None, BeforeValidator(_age)]


@dataclass(frozen=True)
class Policy:
    """One rule. match, protect: patterns with `*`, `?` and `[abc]`; one of `match` must fit, none of `protect`.
    comment, trigger, type, base_model: patterns for what the details say; of each that is given one must fit.
    older_than, unused_for: a finetune is stale if both hold. keep_newest: how many of those that match stay
    whatever their age. grace: how long a deletion waits. max_deletions, max_percent: a plan beyond them deletes
    nothing. schedule: cron, UTC.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    name: Annotated[str, _text(_NAME.fullmatch, "lowercase letters, digits, - and _, at most 40")]
    account: Annotated[str, _text(is_account, "lowercase letters, digits and _, at most 40")] = DEFAULT_ACCOUNT
    match: _Patterns = ("*",)
    comment: _Texts = ()
    trigger: _Texts = ()
    type: _Texts = ()
    base_model: _Texts = ()
    older_than: _Age = None
    unused_for: _Age = None
    keep_newest: Annotated[int, _whole(0, 1_000_000)] = 0
    protect: _Patterns = ()
    grace: Annotated[timedelta, BeforeValidator(_duration)] = timedelta(hours=24)
    max_deletions: Annotated[int, _whole(1, 1_000_000)] = 20
    max_percent: Annotated[int, _whole(1, 100)] = 25
    schedule: Annotated[str | None, BeforeValidator(_schedule)] = None
    mode: Annotated[Literal["plan", "apply"], _text(("plan", "apply").__contains__, "'plan' or 'apply'")] = "plan"

    @property
    def digest(self) -> str:
        """Changes whenever any field of the policy does: a plan is applied only under the policy that made it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def about(self) -> dict[str, tuple[str, ...]]:
        """What it selects by beside the name: see `tasks.cleanup.about`."""
        return {key: patterns for key in KEYS if (patterns := getattr(self, key))}


_POLICIES = TypeAdapter(Policy)
