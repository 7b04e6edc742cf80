"""What the settings say about a deletion, and what came of one claim of it. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from tasks.records import Evidence, State


@dataclass(frozen=True)
class Rules:
    """What the settings say about one deletion."""

    look_first: Literal["always", "unclear"] = "always"
    first_look_within: timedelta = timedelta(hours=1)
    retry_budget: timedelta = timedelta(seconds=20)


@dataclass(frozen=True)
class Outcome:
    """What came of a claim. QUEUED hands it back, after `delay` if given; None (of a look) changes no state."""

    state: State | None
    message: str | None = None
    status: str | None = None
    timestamp: str | None = None
    evidence: Evidence | None = None
    delay: timedelta | None = None
    since_ms: int | None = None  # requests made later mean another incarnation
    pause: str | None = None  # why all deleting for the account must stop
