"""Cleanup policies: which finetunes are stale, as a TOML file, reviewed like code and checked whole before use."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

from cronsim import CronSim, CronSimError

from tasks.durations import ACCEPTED_DURATION, parse_duration
from tasks.errors import InvalidRequest
from tasks.records import DEFAULT_ACCOUNT, is_account

_CLASS = re.compile(r"\[[^]]+\]")  # `[a-z0-9]*` matches all as well
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class PolicyError(InvalidRequest):
    """A policy cannot be used; the message names the line and says what is accepted."""


@dataclass(frozen=True)
class Policy:
    """One rule. match, protect: patterns with `*` and `?`; one of `match` must fit, and none of `protect`.

    older_than, unused_for: what both hold for is stale. keep_newest: of those that match, so many stay. grace: how
    long a deletion waits. max_deletions, max_percent: a plan beyond them deletes nothing. schedule: cron, UTC.
    """

    name: str
    account: str = DEFAULT_ACCOUNT
    match: tuple[str, ...] = ("*",)
    older_than: timedelta | None = None
    unused_for: timedelta | None = None
    keep_newest: int = 0
    protect: tuple[str, ...] = ()
    grace: timedelta = timedelta(hours=24)
    max_deletions: int = 20
    max_percent: int = 25
    schedule: str | None = None
    mode: Literal["plan", "apply"] = "plan"


def parse_policies(text: str) -> tuple[Policy, ...]:
    """The policies in a TOML text, `[[policy]]` tables; raises `PolicyError` for the first fault in it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"not TOML: {error}") from None
    tables = document.get("policy")
    unknown = sorted(set(document) - {"policy"})
    if unknown or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError(f"{unknown[0] if unknown else 'policy'!r} is not accepted: give [[policy]] tables")
    places = _Places(text)
    policies = tuple(_policy(table, n, places) for n, table in enumerate(tables))
    names = [policy.name for policy in policies]
    for n, name in enumerate(names):
        if name in names[:n]:
            raise places.error(n, "name", f"{name!r} names two policies: give each a name of its own")
    return policies


class _Places:
    """Where each key stands in the text: tomllib does not say."""

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
    values = {}
    for key, value in table.items():
        if key not in _READ:
            raise places.error(n, key, f"{key!r} is not known: accepted are {', '.join(_READ)}")
        try:
            values[key] = _READ[key](value)
        except InvalidRequest as error:
            raise places.error(n, key, f"{key}: {error}") from None
    if "name" not in values:
        raise places.error(n, None, "this policy has no name: give one, such as name = 'tests'")
    policy = Policy(**values)
    matches_all = any(not _CLASS.sub("", pattern).strip("*?") for pattern in policy.match)
    if matches_all and policy.older_than is None and policy.unused_for is None:
        raise places.error(n, None, f"{policy.name!r} matches all and names no age: give older_than or unused_for")
    return policy


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(f"{value!r} is not a name: give lowercase letters, digits, - and _, at most 40")
    return value


def _account(value: object) -> str:
    if not isinstance(value, str) or not is_account(value):
        raise InvalidRequest(f"{value!r} is not an account: give lowercase letters, digits and _, at most 40")
    return value


def _patterns(value: object) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(map(_is_pattern, given)):
        raise InvalidRequest(f"{value!r} is no list of patterns: give texts such as 'test-*'")
    return tuple(given)


def _is_pattern(value: object) -> bool:
    """No id has a space or a control character: such a pattern would protect nothing."""
    return isinstance(value, str) and value.isprintable() and bool(value) and " " not in value


def _age(value: object) -> timedelta:
    age = parse_duration(value) if isinstance(value, str) else None
    if age is None or age <= timedelta(0):
        raise InvalidRequest(f"{value!r} makes no sense: give {ACCEPTED_DURATION}, longer than 0s")
    return age


def _grace(value: object) -> timedelta:
    if not isinstance(value, str):
        raise InvalidRequest(f"{value!r} is not a duration: give {ACCEPTED_DURATION}")
    return parse_duration(value)


def _whole(least: int, most: int) -> Any:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidRequest(f"{value!r} is not accepted: give a whole number from {least} to {most}")
        return value

    return read


def _mode(value: object) -> object:
    if value not in ("plan", "apply"):
        raise InvalidRequest(f"{value!r} is not accepted: give 'plan' or 'apply'")
    return value


def _schedule(value: object) -> str:
    accepted = "give five fields in UTC, such as '0 3 * * *'"
    parts = value.split() if isinstance(value, str) else []
    try:
        next(CronSim(" ".join(parts if len(parts) == 5 else ()), datetime.now(UTC), reverse=True))
    except (CronSimError, StopIteration):
        raise InvalidRequest(f"{value!r} is not a cron schedule: {accepted}") from None
    return " ".join(parts)


_READ: Mapping[str, Any] = {
    "name": _name,
    "account": _account,
    "match": _patterns,
    "older_than": _age,
    "unused_for": _age,
    "keep_newest": _whole(0, 1_000_000),
    "protect": _patterns,
    "grace": _grace,
    "max_deletions": _whole(1, 1_000_000),
    "max_percent": _whole(1, 100),
    "schedule": _schedule,
    "mode": _mode,
}
