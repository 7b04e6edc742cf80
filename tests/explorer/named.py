"""Scenarios with names: faults that were found once, and rules that random scenarios rarely touch.

Each says how its deletions end.
"""

from __future__ import annotations

from typing import Any

from tests.explorer.explorer import Scenario

_R1, _R2 = (0, "ask", "r1"), (0, "ask", "r2")
_LATE, _500 = (0, "fault", "late-reset"), (0, "fault", "500")


def _s(
    *events: tuple[Any, ...], kind: str = "created", workers: int = 1, steps: int = 60, **expect: str
) -> Scenario:
    return Scenario(
        kind,
        events,
        steps=steps,
        workers=workers,
        expect={id_: end.replace("_by_", "/") for id_, end in expect.items()},
    )


NAMED: dict[str, Scenario] = {
    # A mark keeps what was observed: the worker dies right after it, and the next one knows which finetune was meant.
    "crash after the mark": _s(_R1, ("mark answered", "kill", "busy"), kind="uid", r1="deleted_by_response"),
    # The first attempt is applied after the observation for the second; the mark of that one leads to no call. A request that
    # came before that mark, but after the finetune was replaced, means the new one.
    "a mark without a call, and a request before it": _s(
        _R1, _LATE, ("before mark", "wait", 0), ("delete", "wait", 0), ("before mark", "wait", 25.0), ("before mark", "create"),
        ("before mark", "ask", "r2"), r1="deleted_by_read-back", r2="deleted_by_response",
    ),
    # The same, asked for at the start: it means the one that is gone.
    "a mark without a call": _s(
        _R1, _R2, _LATE, ("before mark", "wait", 0), ("delete", "wait", 0), ("before mark", "wait", 25.0),
        r1="deleted_by_read-back", r2="deleted_by_sibling",
    ),
    # A refused mark made no call: the attempt before it is still the one that deleted.
    "a refused mark after an unclear attempt": _s(
        _R1, _R2, _LATE, ("before mark", "wait", 0), ("delete", "wait", 0), ("before mark", "pause"), ("idle", "wait", 30.0),
        r1="deleted_by_read-back", r2="deleted_by_sibling",
    ),
    "a cancel between two attempts": _s(
        _R1, _500, ("before mark", "wait", 0), ("delete", "wait", 0), ("before mark", "cancel", "r1"), r1="cancelled",
    ),
    # The retry holds the finetune while it waits in the finetune's own list: it is the one that is put back.
    "a retry of an unclear one behind a sibling": _s(
        _R1, _500, ("before finish", "wait", 0), ("before claim", "ask", "r2"), ("details", "ask", "again", {"retry_of": "r1"}),
        kind="shifting", workers=2, r1="review", r2="deleted_by_response", again="deleted_by_sibling",
    ),
    "a late confirmation": _s(
        _R1, ("delete", "freeze", "busy", 70.0), ("delete", "wait", 0.03), ("delete", "create"), kind="uid", workers=2, steps=300,
        r1="deleted_by_response",
    ),
    # The claim of the frozen worker is lost in a failover with its mark, and the name passes to another finetune.
    "a late confirmation after superseded": _s(
        _R1, ("before mark", "save"), ("delete", "wait", 8.0), ("delete", "create"), ("delete", "roll_back"),
        ("delete", "freeze", "busy", 70.0), workers=2, steps=300, r1="review",
    ),
    # A worker whose lease has ended says that the deletion failed, while another one carries it out.
    "a late refusal": _s(
        _R1, (0, "fault", "refused"), ("delete", "freeze", "busy", 40.0), ("delete", "slow", 12.0, 12.0, 1.0), workers=2, steps=300,
        r1="deleted_by_response",
    ),
}  # fmt: skip
