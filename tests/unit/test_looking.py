"""Looks: what counts as gone, what as still there, and what only a person or a later look can tell."""

from datetime import timedelta
from typing import Any

import pytest

from tasks.errors import ApiError, Refused, Unclear
from tasks.incarnations import fingerprint
from tasks.looking import Look, look, names, other_incarnation, too_late_to_know
from tasks.records import to_ms
from tests.unit.fakes import AGELESS, GONE, NO_KEY, NO_PAGE, NOT_ALLOWED, NOW, OTHER, OURS, RESET, THERE, Case

LISTED, MISSING, SEEN = Look(there=True), Look(there=False), Look(there=True, details=THERE)
OF_NO_AGE = Look(there=True, details=AGELESS)
HOUR = timedelta(hours=1)


def looked(details, listed) -> Look:
    api: Any = Case([], [details], [listed]).api
    return look(api, OURS, lambda: None)


@pytest.mark.parametrize(
    ("details", "listed", "found"),
    [
        (THERE, RESET, SEEN), (GONE, ["another"], MISSING), (NO_PAGE, [], MISSING), (NO_PAGE, [OURS], LISTED),
        (NOT_ALLOWED, [], MISSING), (NOT_ALLOWED, [OURS], LISTED),
    ],
)  # fmt: skip
def test_gone_takes_two_witnesses_and_the_list_alone_decides_where_details_do_not_work(details, listed, found):
    assert looked(details, listed) == found


@pytest.mark.parametrize(
    ("details", "listed", "error"),
    [
        (GONE, [OURS], "yet the list has it"), (GONE, [{"finetune_id": OURS}], "shape"), (GONE, NO_PAGE, "404"),
        (GONE, NO_KEY, "403"), (GONE, RESET, "broke"), (RESET, [], "broke"), (NO_KEY, [], "403"),
        (Refused("no", http_status=422), [], "422"),
    ],
)  # fmt: skip
def test_whatever_else_is_answered_says_nothing(details, listed, error):
    with pytest.raises(ApiError, match=error):
        looked(details, listed)


def test_a_list_is_read_only_in_the_shape_that_is_known():
    assert names(["a", "b", "a"]) == {"a", "b"}
    with pytest.raises(Unclear, match="shape"):
        names(["a", {"finetune_id": "b"}])


@pytest.mark.parametrize(
    ("found", "known", "why"),
    [
        (SEEN, fingerprint(THERE), None),
        (SEEN, "", None),
        (OF_NO_AGE, "", None),
        (LISTED, fingerprint(OTHER), None),
        (SEEN, fingerprint(OTHER), ": trigger_word, mode changed"),
        (SEEN, fingerprint(AGELESS), ": timestamp, mode changed"),
        (SEEN, fingerprint(THERE).replace("v1", "v0"), ": the form of its fingerprint changed"),
    ],
)
def test_another_fingerprint_is_another_finetune(found, known, why):
    other = other_incarnation(found, known, looked_at_ms=to_ms(NOW), asked_at_ms=to_ms(NOW), now=NOW)
    assert (other and (other.why[-len(why) :], other.since_ms)) == (why and (why, to_ms(NOW)))


@pytest.mark.parametrize(("seconds", "is_other"), [(59, False), (60, False), (61, True)])
def test_a_finetune_that_began_after_the_request_is_another_one(seconds, is_other):
    began = NOW - timedelta(days=1)
    found = Look(there=True, details={"timestamp": began.isoformat()})
    other = other_incarnation(found, "", 0, to_ms(began - timedelta(seconds=seconds)), NOW)
    assert (other and other.since_ms) == (to_ms(began) if is_other else None)


@pytest.mark.parametrize(
    ("found", "known", "age", "too_late"),
    [
        (SEEN, "", 2 * HOUR, False), (OF_NO_AGE, "", HOUR, False), (OF_NO_AGE, "", 2 * HOUR, True),
        (OF_NO_AGE, fingerprint(AGELESS), 2 * HOUR, False), (LISTED, "", 2 * HOUR, True),
        (LISTED, "", HOUR, False),
    ],
)  # fmt: skip
def test_a_late_first_look_trusts_only_a_sound_age(found, known, age, too_late):
    assert too_late_to_know(found, known, to_ms(NOW - age), NOW, within=HOUR) == too_late
