"""Scenarios with names: faults that were found once, and rules that random scenarios rarely touch.

Each says how its deletions end.
"""

from __future__ import annotations

from typing import Any

from tests.explorer.explorer import Scenario
from tests.explorer.world import ELSEWHERE

_R1, _R2 = (0, "ask", "r1"), (0, "ask", "r2")
_LATE, _500 = (0, "fault", "late-reset"), (0, "fault", "500")
# An attempt that is applied late: after the observation for the second attempt, and before the mark of that one.
_SECOND_MARK = (
    ("before mark", "wait", 0), ("delete", "wait", 0), ("details", "wait", 0), ("asleep", "wait", 0), ("before details", "wait", 18.2),
    ("before mark", "wait", 1.7),
)  # fmt: skip


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
        _R1, _LATE, *_SECOND_MARK, ("before mark", "create"), ("before mark", "ask", "r2"), ("mark answered", "wait", 2.5),
        r1="deleted_by_read-back", r2="deleted_by_response",
    ),
    # The same, asked for at the start: it means the one that is gone.
    "a mark without a call": _s(
        _R1, _R2, _LATE, *_SECOND_MARK, ("mark answered", "wait", 2.5), r1="deleted_by_read-back", r2="deleted_by_sibling",
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
    # One name, two lives: an attempt on the second says nothing of the first.
    "a sibling deletes a newer one that was told apart": _s(
        (0, "ask", "r1", {"delay": 100.0}), ("before finish", "wait", 0), ("idle", "remove"), ("idle", "create"), ("idle", "ask", "r2"),
        kind="uid", r1="not_found", r2="deleted_by_response",
    ),
    "a sibling deletes a younger one": _s(
        (0, "ask", "r1", {"delay": 100.0}), (1, "remove"), (1, "wait", 15.0), (1, "create"), (1, "wait", 8.0), (1, "ask", "r2"),
        r1="not_found", r2="deleted_by_response",
    ),
    "a mark under an ended lease": _s(
        _R1, ("before mark", "freeze", "busy", 32.5), ("before mark", "slow", 12.0, 0.04), workers=2, steps=300,
        r1="deleted_by_response",
    ),
    # Its first attempt is settled when the second one is refused for now: it no longer holds the finetune.
    "a hold ends": _s(
        _R1, _500, (0, "fault", "503"), ("asleep", "stop", "busy"), ("before claim", "wait", 31.0), ("delete", "wait", 0),
        ("asleep", "stop", "busy"), r1="deleted_by_response",
    ),
    "five crashes": _s(
        _R1, _R2, *[_500] * 4, *[("delete", "kill", "busy")] * 5, steps=200, r1="review", r2="review",
    ),
    "a cancel during a call that is applied late": _s(_R1, _LATE, ("delete", "cancel", "r1"), r1="deleted_by_read-back"),
    "a cancel of one that waits, with an unclear attempt": _s(
        _R1, _LATE, ("asleep", "pause"), ("asleep", "stop", "busy"), (30, "cancel", "r1"), r1="deleted_by_read-back",
    ),
    # Retries.
    "a retry from another vantage": _s(
        _R1, (0, "fault", "refused"), ("before finish", "wait", 0), ("before claim", "move_house", 0),
        ("idle", "ask", "again", {"retry_of": "r1"}), r1="failed", again="review",
    ),
    "a retry of a reused name": _s(
        _R1, (0, "fault", "refused"), ("before finish", "wait", 0), ("idle", "reuse"), ("idle", "ask", "again", {"retry_of": "r1"}),
        kind="uid", r1="failed", again="superseded",
    ),
    "a retry of an unclear one": _s(
        _R1, _500, ("before finish", "wait", 0), ("idle", "ask", "again", {"retry_of": "r1"}), kind="shifting", r1="review",
        again="review",
    ),
    "a retry of an unclear one after a sibling": _s(
        _R1, _500, ("before finish", "pause"), ("idle", "ask", "r2"), ("idle", "wait", 1.0), ("idle", "ask", "again", {"retry_of": "r1"}),
        ("idle", "resume"), kind="shifting", r1="review", again="review", r2="review",
    ),
    # Cleanups.
    "a cleanup of a protected finetune": _s((0, "keep", "protect"), (0, "ask", "r1", {"cleanup": True}), r1="cancelled"),
    "a cleanup beside another deletion": _s(
        (0, "ask", "r1", {"delay": 100.0}), (1, "ask", "r2", {"cleanup": True}), r1="deleted_by_response", r2="cancelled",
    ),
    # Holds of a person. A call that was marked before may still happen.
    "a hold before it is asked for": _s((0, "hold"), _R1, r1="cancelled"),
    "a hold before the mark": _s(_R1, ("before mark", "hold"), r1="cancelled"),
    "a hold between the mark and the call": _s(_R1, ("delete", "hold"), r1="deleted_by_response"),
    "a hold after an attempt that is applied late": _s(
        _R1, _LATE, ("before mark", "wait", 0), ("delete", "wait", 0), ("before mark", "hold"), r1="deleted_by_read-back",
    ),
    "a hold after an attempt that is not applied": _s(
        _R1, _500, ("before mark", "wait", 0), ("delete", "wait", 0), ("before mark", "hold"), r1="cancelled",
    ),
    "a hold of one that waits": _s(
        (0, "ask", "r1", {"delay": 100.0}), (1, "hold"), (2, "release"), r1="cancelled",
    ),
    "a hold that is released": _s(
        (0, "hold"), _R1, ("before finish", "release"), ("idle", "ask", "r2"), r1="cancelled", r2="deleted_by_response",
    ),
    # Absence.
    "absent though it was never seen": _s(
        (0, "move_house", 0), (3, "ask", "r1"), _500, ("delete", "become", "created"), kind="listed", r1="review",
    ),
    "absent from another vantage than a sibling's": _s(
        _R1, ("delete", "ask", "r2"), ("before claim", "kill", "busy", ELSEWHERE), r1="deleted_by_response", r2="review",
    ),
    "absent after an attempt that ended before": _s(
        _R1, (0, "ask", "r3", {"delay": 5000.0}), ("before finish", "wait", 0), ("idle", "ask", "r2"), r1="deleted_by_response",
        r2="not_found", r3="deleted_by_sibling",
    ),
    "a list that is not whole": _s(
        (0, "remove"), (0, "cut"), _R1, ("asleep", "wait", 10.0), ("asleep", "create"), r1="superseded",
    ),
    "nothing to compare after an unclear attempt": _s(_R1, _500, kind="empty", r1="review"),
    "an API whose clock is wrong": _s(
        (0, "api_clock", -600.0), (0, "ask", "r1", {"delay": 20.0}), (1, "wait", 9.0), (1, "reuse"), r1="superseded",
    ),
    "details says 404, the list has it": _s(_R1, (0, "unclear_observation", "404"), r1="deleted_by_response"),
    "a cleanup of what cannot be told apart": _s((0, "ask", "r1", {"cleanup": True}), kind="shifting", r1="cancelled"),
    "equal settings after a long time": _s((0, "ask", "r1", {"delay": 5000.0}), kind="plain", r1="review"),
    # Reused between the start of the observation and the answer: the age that is told is not compared with the start.
    "a slow first observation": _s(
        _R1, ("before details", "freeze", "busy", 14.0), ("before details", "wait", 7.0), ("before details", "reuse"), r1="superseded",
    ),
    # The answer to the claim is lost; when it comes again, the name has passed to a finetune that is younger than the request.
    "a claim whose answer is lost for long": _s(
        _R1, ("before claim", "script", "lost"), ("waits for Redis", "wait", 20.0), ("waits for Redis", "reuse"), r1="superseded",
    ),
    "frozen after the mark": _s(_R1, ("mark answered", "freeze", "busy", 14.0), r1="deleted_by_response"),
    # A snapshot or a live migration: neither clock of the machine counts it. What it observes then is not kept.
    "a machine that stands still before it observes": _s(
        _R1, ("before details", "suspend", "busy", 20.0), ("before details", "wait", 20.0), ("before details", "reuse"),
        r1="superseded",
    ),
    "a machine that stands still before a first observation": _s(
        (0, "ask", "r1", {"delay": 100.0}), (1, "wait", 15.0), (1, "reuse"), ("before details", "suspend", "busy", 20.0),
        ("before details", "wait", 20.0), r1="superseded",
    ),
    # Two unsettled attempts: a retry's, and one of a sibling that ends first. The retry's still holds the finetune then.
    "two unsettled attempts": Scenario(
        "listed", (
            _R1, (0, "fault", "applied-500"), (0, "fault", "not-sent"), (1, "create"), (5, "freeze", 0, 14.0), (7, "ask", "r3"),
            (25, "ask", "r2", {"ago": 5000.0}), (29, "move_house", 0), (37, "save"), (43, "kill", 1),
            (49, "ask", "again", {"retry_of": "r1"}),
        ), "random", 32449, 60, expect={"r1": "review", "r2": "review", "r3": "review", "again": "review"},
    ),
    # Applied after its deletion has ended, and to the next life: the deletion that meant that one does not say `not_found`.
    "applied to a newer one": _s(
        _R1, (0, "fault", "late"), ("delete", "wait", 19.9), ("delete", "reuse"), ("delete", "ask", "r2"), ("before finish", "slow", 3.0),
        r1="review", r2="review",
    ),
    # What the API tells changes meanwhile.
    "an identity that is told only at first": _s(
        (0, "ask", "r1", {"delay": 100.0}), (0, "fault", "503"), ("before finish", "become", "created"), ("delete", "become", "uid"),
        ("delete", "reuse"), kind="both", steps=90, r1="superseded",
    ),
    "the creation time moves to another field": _s(
        (0, "ask", "r1", {"delay": 100.0}), ("before finish", "reuse"), kind="moving", r1="superseded",
    ),
    # The first observation tells only a unique id; the one for the next attempt that it was created after the request.
    "a newer one tells its creation time late": _s(
        _R1, (0, "fault", "503"), ("before details", "wait", 10.0), ("before details", "reuse"), ("delete", "wait", 20.0), kind="late",
        r1="superseded",
    ),
    "a unique id instead of the creation time": _s(
        (0, "ask", "r1", {"delay": 100.0}), ("before finish", "reuse"), ("before details", "become", "uid"), ("before finish", "become", "created"),
        r1="superseded",
    ),
    # The first deletion knows which finetune was meant, and the second, which waited for it, has seen none.
    "a sibling has seen which one is meant": _s(
        _R1, _R2, (0, "fault", "applied-timeout"), ("delete", "wait", 5.0), ("delete", "create"), kind="uid", r1="review", r2="superseded",
    ),
    # The first look is too old for a call, and still shows which finetune was meant.
    "frozen after the first look": _s(
        _R1, ("before mark", "freeze", "busy", 14.0), ("before mark", "reuse"), kind="uid", r1="superseded",
    ),
    "an answer that names another finetune": _s(
        _R1, _R2, (0, "fault", "wrong-id"), ("before finish", "wait", 0), ("before claim", "resume"), r1="review", r2="review",
    ),
    "the settings change": _s(
        (0, "ask", "r1", {"delay": 100.0}), ("before finish", "reuse"), kind="settings", r1="superseded",
    ),
    "details fail for a while": _s(
        (0, "ask", "r1", {"delay": 100.0}), ("before finish", "reuse"), ("before finish", "broken_details"), r1="superseded",
    ),
    "a younger one after an unclear attempt": _s(
        _R1, ("delete", "wait", 10.0), ("delete", "create"), ("delete", "become", "created"), ("delete", "kill", "busy"), kind="listed",
        r1="review",
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
